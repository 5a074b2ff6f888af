"""A training that is split, by processes or in micro-batches, repeats that of one process."""

import json
from types import SimpleNamespace

import pytest
import torch

from stages.common.runtime import processes
from stages.common.runtime.errors import is_for_users
from stages.common.runtime.params import environment_number
from stages.common.runtime.processes import own_places, run_in_processes
from tests.support.train_in_parts import train

WORKER = "tests.support.train_in_parts"
CPU = torch.device("cpu")
# Losses of six steps and weights; rounding is near 1e-6 at the first step and grows from there.
TOLERANCE = {"rel": 2e-3, "abs": 2e-4}
EARLY = pytest.mark.xdist_group("processes")  # of all long tests: groups begin before single ones


@pytest.fixture(scope="module")
def whole():
    """Give losses and weights of one process."""
    return train([])


def assert_same_curve(rows: list[dict], expected: list[dict]) -> None:
    assert len(rows) == len(expected) == 6
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, **TOLERANCE)
    assert rows[0] == pytest.approx(expected[0], rel=1e-5)


@EARLY
def test_two_processes_repeat_one(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("OVIS_PROCESSES", "2")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path)])
    run_in_processes(WORKER, CPU, 8)
    rows, weights = whole
    assert_same_curve(json.loads((tmp_path / "losses.json").read_text()), rows)
    for name, value in torch.load(tmp_path / "weights.pt").items():
        torch.testing.assert_close(value, weights[name], rtol=0.02, atol=2e-3, msg=name)


@EARLY
def test_the_error_of_one_process_reaches_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("OVIS_PROCESSES", "2")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path), "fail"])
    with pytest.raises(SystemExit, match=r"one of 2 processes(.|\n)*labels\.json: no object"):
        run_in_processes(WORKER, CPU, 8)


@EARLY
def test_what_a_process_tells_its_user_is_raised_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OVIS_PROCESSES", "2")
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path), "refuse"])
    with pytest.raises(ValueError, match=r"^a batch of 1 images for 2 processes: ") as found:
        run_in_processes(WORKER, CPU, 8)
    assert is_for_users(found.value)


@pytest.mark.parametrize("size", ["1", "2"])
def test_micro_batches_repeat_the_whole_batch(monkeypatch, size):
    frozen = ["trunk", "pyramid"]
    rows, _ = train(frozen)
    monkeypatch.setenv("OVIS_MICRO_BATCH", size)
    assert_same_curve(train(frozen)[0], rows)


def test_micro_batches_are_refused_where_batch_statistics_are_trained(monkeypatch):
    monkeypatch.setenv("OVIS_MICRO_BATCH", "2")
    with pytest.raises(ValueError, match=r"OVIS_MICRO_BATCH=2: backbone\..* statistics of all 5"):
        train([])


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_a_wrong_number_of_processes_is_named(monkeypatch, text):
    monkeypatch.setenv("OVIS_PROCESSES", text)
    with pytest.raises(ValueError, match=f"OVIS_PROCESSES='{text}': expected a whole number"):
        environment_number("OVIS_PROCESSES")


def test_more_processes_than_cuda_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("OVIS_PROCESSES", "3")
    with pytest.raises(ValueError, match="OVIS_PROCESSES=3: there are 2 CUDA devices"):
        run_in_processes(WORKER, torch.device("cuda", 0), 64)


@pytest.mark.parametrize(("batch_size", "count"), [(64, 8), (8, 8), (4, 4), (1, 1)])
def test_there_are_as_many_processes_as_devices_but_none_without_an_image(
    monkeypatch, batch_size, count
):
    started, used = [], []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "init", lambda: used.append("cuda"))
    monkeypatch.setattr(processes, "spawn", lambda work, arguments, count: started.append(count))
    alone = SimpleNamespace(main=lambda: started.append(1))
    monkeypatch.setattr(processes.importlib, "import_module", lambda name: alone)
    run_in_processes(WORKER, torch.device("cuda", 0), batch_size)
    assert started == [count]
    # The receipt is of this process: where others computed on CUDA devices, it has to tell so.
    assert used == ["cuda"] * (count > 1)


@pytest.mark.parametrize(("count", "parts"), [(8, 3), (5, 5), (7, 1)])
def test_places_are_shared_out_without_gap_or_overlap(monkeypatch, count, parts):
    monkeypatch.setattr(processes, "num_processes", lambda: parts)
    shares = []
    for index in range(parts):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        shares.append(list(own_places(count)))
    assert [place for share in shares for place in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "num_processes", lambda: 4)
    with pytest.raises(ValueError, match="a batch of 3 images for 4 processes"):
        own_places(3)
