import os
import subprocess
import sys
import traceback
from itertools import count, islice

import pytest

from stages.common.formats.images import BrokenImageError, decode_image
from stages.common.runtime.errors import is_for_users
from stages.common.runtime.parallel import map_in_order, num_workers

# Python 3.12 and later warn of every fork beside BLAS threads, which the workers never use.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def square(number: int) -> int:
    return number * number


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise ValueError("seven")
    return number


def fail_by_a_fault(number: int) -> int:
    return [number].index(number + 1)


def decode_nothing(number: int) -> object:
    return decode_image(b"", f"{number}.png")


def die_at_seven(number: int) -> int:
    if number == 7:
        os._exit(9)
    return number


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("num_items", [0, 1, 50])
def test_results_keep_the_order(workers, num_items):
    results = map_in_order(square, range(num_items), workers, chunk_size=3)
    assert list(results) == [k * k for k in range(num_items)]


def test_items_are_taken_as_they_are_needed():
    results = map_in_order(square, count(), 2, chunk_size=3)
    assert list(islice(results, 5)) == [0, 1, 4, 9, 16]
    results.close()


def test_an_error_in_a_worker_is_raised_here():
    results = map_in_order(fail_at_seven, range(20), 2, chunk_size=2)
    with pytest.raises(ValueError, match="seven"):
        list(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_tells_who_an_error_is_for(workers):
    with pytest.raises(BrokenImageError, match=r"^0\.png: cannot be decoded") as found:
        list(map_in_order(decode_nothing, range(2), workers))
    assert is_for_users(found.value)
    with pytest.raises(ValueError, match="is not in list") as found:
        list(map_in_order(fail_by_a_fault, range(2), workers))
    assert not is_for_users(found.value)
    shown = "".join(traceback.format_exception(found.value))
    assert "in fail_by_a_fault" in shown


def test_a_killed_worker_is_an_error_and_no_endless_wait():
    with pytest.raises(Exception, match="terminated abruptly"):
        list(map_in_order(die_at_seven, range(20), 2, chunk_size=2))


FORK_BESIDE_OPENCV = """
import cv2, numpy
from stages.common.runtime.parallel import map_in_order

def blur(number):
    cv2.setNumThreads(1)
    return int(cv2.GaussianBlur(numpy.full((2000, 2000, 3), number, numpy.uint8), (9, 9), 0).max())

cv2.setNumThreads(4)
cv2.GaussianBlur(numpy.zeros((2000, 2000, 3), numpy.uint8), (9, 9), 0)  # starts OpenCV's threads
assert list(map_in_order(blur, range(3), 2)) == [0, 1, 2]
"""


def test_workers_are_forked_from_a_process_that_used_threads_of_opencv():
    subprocess.run([sys.executable, "-c", FORK_BESIDE_OPENCV], check=True, timeout=60)


FORK_BESIDE_TORCH = """
import torch
from stages.common.runtime.parallel import map_in_order

def blow_up(number):
    maps = torch.full((1, 8, 16, 16), float(number))
    return int(torch.nn.functional.interpolate(maps, (480, 640), mode="bilinear").max())

torch.set_num_threads(4)
blow_up(0)  # starts OpenMP's threads
assert list(map_in_order(blow_up, range(3), 2)) == [0, 1, 2]
"""


def test_workers_are_forked_from_a_process_that_used_threads_of_torch():
    subprocess.run([sys.executable, "-c", FORK_BESIDE_TORCH], check=True, timeout=60)


def test_number_of_workers(monkeypatch):
    monkeypatch.setenv("OVIS_WORKERS", "3")
    assert num_workers() == 3
    monkeypatch.delenv("OVIS_WORKERS")
    assert num_workers() == os.cpu_count()
    monkeypatch.setenv("OVIS_WORKERS", "all")
    with pytest.raises(ValueError, match=r"OVIS_WORKERS='all': expected a whole number above 0"):
        num_workers()
