import subprocess
import sys
import threading
import time

import pytest

from flows.resources import DeviceSlots, list_devices
from tests.support.toy import wait_until


@pytest.mark.parametrize(
    ("value", "devices"),
    [("", []), ("-1", []), ("0,1", ["0", "1"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])],
)
def test_the_environment_says_which_devices_may_be_used(monkeypatch, value, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert list_devices() == devices


def test_a_machine_without_devices_sets_no_variable_and_lets_gpu_stages_run(tmp_path):
    with DeviceSlots([], tmp_path).reserve(1) as first, DeviceSlots([], tmp_path).reserve(1) as one:
        assert (first, one) == ({}, {})


def test_cpu_stages_see_no_device_and_wide_ones_get_all_there_are(tmp_path):
    slots = DeviceSlots(["0", "1"], tmp_path)
    with slots.reserve(0) as none:
        assert none == {"CUDA_VISIBLE_DEVICES": "", "DEVICE": "cpu"}
    with slots.reserve(8) as wide:
        assert wide == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_a_device_is_held_by_one_at_a_time_also_across_processes(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from flows.resources import DeviceSlots\n"
        "with DeviceSlots(['7'], Path(sys.argv[1])).reserve(1): print('held', flush=True);"
        " time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    with other:
        assert other.stdout.readline() == b"held\n"
        got = []

        def take() -> None:
            with DeviceSlots(["7"], tmp_path).reserve(1) as visible:
                got.append(visible)

        thread = threading.Thread(target=take)
        thread.start()
        time.sleep(0.5)
        assert got == []
        other.kill()  # a lost process gives its device back
        thread.join(20)
    assert got == [{"CUDA_VISIBLE_DEVICES": "7"}]


def test_two_that_want_two_never_wait_for_each_other(tmp_path):
    slots, held, most = DeviceSlots(["0", "1", "2"], tmp_path), [], []

    def take() -> None:
        for _ in range(3):
            with slots.reserve(2) as visible:
                held.append(visible)
                most.append(len(held))
                time.sleep(0.01)
                held.pop()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert (len(most), max(most)) == (9, 1)


def test_who_waits_is_let_go_when_the_slots_close(tmp_path):
    slots = DeviceSlots(["0"], tmp_path)
    with slots.reserve(1):
        got = []

        def take() -> None:
            with slots.reserve(1) as visible:
                got.append(visible)

        thread = threading.Thread(target=take)
        thread.start()
        slots.close()
        wait_until(lambda: got, 10)
        thread.join(10)
    assert got == [{"CUDA_VISIBLE_DEVICES": ""}]
