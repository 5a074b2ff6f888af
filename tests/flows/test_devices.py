"""Which CUDA devices there are and who holds them. nvidia-smi is a fake: tests need no device."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from flows import resources
from flows.dvc.plan import make_plan
from flows.resources import DeviceError, DeviceSlots, list_devices
from flows.stage import preflight
from tests.support.toy import wait_until

TWO = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111)
  MIG 3g.20gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb)
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Return a function that has `nvidia-smi` say this; the machine itself has no device."""
    monkeypatch.setattr(resources, "SYSTEM", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = tmp_path / "bin"
    folder.mkdir()

    def say(text: str, code: int = 0) -> Path:
        smi = folder / "nvidia-smi"
        (tmp_path / "answer").write_text(text)
        smi.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}\nexit {code}\n")
        smi.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return smi

    return say


@pytest.mark.parametrize(
    ("answer", "named", "devices"),
    [
        (TWO, None, ["GPU-aaaa", "GPU-bbbb"]),
        (TWO, "", []),
        (TWO, "-1", []),
        (TWO, "1,0", ["GPU-bbbb", "GPU-aaaa"]),
        (TWO, "1,-1,0", ["GPU-bbbb"]),
        (TWO, "GPU-b, GPU-aaaa", ["GPU-bbbb", "GPU-aaaa"]),
        (DIVIDED, None, ["MIG-1111", "MIG-2222", "GPU-bbbb"]),
        (DIVIDED, "0", ["MIG-1111", "MIG-2222"]),
        (DIVIDED, "MIG-2222,1", ["MIG-2222", "GPU-bbbb"]),
    ],
)
def test_devices_are_told_apart_by_their_uuids(driver, monkeypatch, answer, named, devices):
    driver(answer)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert list_devices() == devices


def test_a_device_that_is_not_there_is_told(driver, monkeypatch):
    driver(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(DeviceError, match=r"no device '2'; .* lists GPU-aaaa, GPU-bbbb"):
        list_devices()


@pytest.mark.parametrize("place", ["dev/nvidia0", "sys/bus/pci/devices/0000:01:00.0/vendor"])
def test_a_driver_that_fails_where_there_is_a_device_is_an_error_and_no_work_on_cores(
    driver, tmp_path, place
):
    driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    assert list_devices() == []  # a laptop with the program and without a device
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("0x10de\n")
    (tmp_path / place).with_name("class").write_text("0x030200\n")
    name = "/dev/nvidia0" if place.startswith("dev") else "PCI 0000:01:00.0"
    with pytest.raises(DeviceError, match=f"{name}, but .* fails: NVIDIA-SMI has failed"):
        list_devices()
    driver("No devices were found\n", 6)  # a SLURM job without a GPU on a node with some
    assert list_devices() == []


def test_a_machine_without_the_program_has_no_devices_unless_there_are_some(
    driver, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_devices() == []
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    with pytest.raises(DeviceError, match=r"/dev/nvidia0, but .* it is not on PATH"):
        list_devices()


def test_a_machine_without_devices_sets_no_variable_and_lets_gpu_stages_run(tmp_path):
    slots = DeviceSlots([], tmp_path / "locks")
    with slots.reserve(1) as first, slots.reserve(8) as second:
        assert (first.environment, second.environment) == ({}, {})


def test_cpu_stages_see_no_device_and_wide_ones_get_fewer_only_if_told(tmp_path, monkeypatch):
    slots = DeviceSlots(["0", "1"], tmp_path / "locks")
    with slots.reserve(0) as none:
        assert none.environment == {"CUDA_VISIBLE_DEVICES": "", "DEVICE": "cpu"}
    with pytest.raises(DeviceError, match=r"8 CUDA devices are wanted and .* has 2"):
        slots.reserve(8).__enter__()
    monkeypatch.setenv("OVIS_FEWER_GPUS", "1")
    with slots.reserve(8) as wide:
        assert wide.environment == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_too_few_devices_are_told_before_anything_runs(toy, driver):
    driver(TWO)
    toy.replace("meta: {cores: 64}", "meta: {cores: 64, gpus: 8}", "dvc.yaml")
    steps = make_plan(toy.root)
    with pytest.raises(DeviceError, match=r"8 CUDA devices are wanted and .* has 2"):
        preflight({toy.root: steps})()
    driver("No devices were found\n", 6)
    preflight({toy.root: steps})()
    driver(TWO)
    preflight({toy.root: steps}, pools=True)()  # workers have other devices


def start_holder(locks: Path, named: str) -> subprocess.Popen:
    """Start what takes a device, says which, and holds it."""
    code = (
        "import sys, time; from pathlib import Path; from flows.resources import DeviceSlots\n"
        "with DeviceSlots(locks=Path(sys.argv[1])).reserve(1) as held:\n"
        "    print(held.environment['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": named}
    command = [sys.executable, "-c", code, str(locks)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def take_in_thread(locks: Path, device: str) -> tuple[threading.Thread, list]:
    got: list = []

    def take() -> None:
        with DeviceSlots([device], locks).reserve(1) as held:
            got.append(held.environment)

    thread = threading.Thread(target=take)
    thread.start()
    return thread, got


def test_jobs_that_call_different_devices_by_one_number_do_not_wait_for_each_other(
    driver, tmp_path
):
    """As SLURM has it with ConstrainDevices: each job sees its own device, as number 0."""
    locks = tmp_path / "locks"
    for only in TWO.splitlines():
        driver(only)
        with start_holder(locks, "0") as job:
            assert job.stdout.readline().strip() == only[-9:-1]
            driver(TWO)
            other = {"GPU-aaaa": "GPU-bbbb", "GPU-bbbb": "GPU-aaaa"}[only[-9:-1]]
            thread, got = take_in_thread(locks, other)
            thread.join(20)
            assert got == [{"CUDA_VISIBLE_DEVICES": other}]
            job.kill()


def test_a_device_is_held_by_one_at_a_time_also_across_processes(driver, tmp_path):
    driver(TWO)
    with start_holder(tmp_path / "locks", "GPU-aaaa") as other:
        assert other.stdout.readline() == "GPU-aaaa\n"
        thread, got = take_in_thread(tmp_path / "locks", "GPU-aaaa")
        time.sleep(0.5)
        assert got == []
        other.kill()  # a lost process gives its device back
        thread.join(20)
    assert got == [{"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}]


def test_the_locks_are_every_users(tmp_path):
    with DeviceSlots(["0"], tmp_path / "locks").reserve(1):
        assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o666


def test_a_stage_whose_flow_was_killed_still_holds_its_device(toy, driver, tmp_path):
    """The flow's own lock would end with it, and the next flow's stage run out of memory."""
    driver(TWO)
    toy.replace(
        "    params: [side.factor]", "    meta: {gpus: 1}\n    params: [side.factor]", "dvc.yaml"
    )
    hold = toy.mark("hold.side")
    toy.dvc("repro", "download")
    locks = tmp_path / "locks"
    there = {"CUDA_VISIBLE_DEVICES": "1", "TMPDIR": str(tmp_path)}
    code = (
        "from pathlib import Path; from flows import resources\n"
        f"resources.LOCKS = Path({str(locks)!r})\n"
        "from flows.dvc.project import load_graph\n"
        "from flows.place import Machine; from flows.resources import CoreBudget\n"
        "Machine(Path.cwd(), CoreBudget(1)).run(load_graph(Path.cwd())['side'], 0, print)"
    )
    flow = toy.start("-c", code, **there)
    toy.until_it_runs("side")
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    thread, got = take_in_thread(locks, "GPU-bbbb")
    time.sleep(1)
    assert got == []
    hold.unlink()
    thread.join(60)
    assert got == [{"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}]
    assert (toy.root / "data/side/out.txt").is_file()


def test_jobs_with_temporary_folders_of_their_own_share_the_locks(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "mine"))
    with DeviceSlots(["0"]).reserve(1):
        assert (tmp_path / "locks").exists()


def test_who_waits_says_so_once(tmp_path):
    slots, told = DeviceSlots(["0"], tmp_path / "locks"), []
    with slots.reserve(1):
        threading.Timer(1.0, slots.close).start()
        with slots.reserve(1, told.append):
            pass
    assert told == ["waits for 1 GPU that others use"]


def test_two_that_want_two_never_wait_for_each_other(tmp_path):
    slots, held, most = DeviceSlots(["0", "1", "2"], tmp_path / "locks"), [], []

    def take() -> None:
        for _ in range(3):
            with slots.reserve(2) as devices:
                held.append(devices)
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
    slots = DeviceSlots(["0"], tmp_path / "locks")
    with slots.reserve(1):
        got = []

        def take() -> None:
            with slots.reserve(1) as devices:
                got.append(devices)

        thread = threading.Thread(target=take)
        thread.start()
        slots.close()
        wait_until(lambda: got, 10)
        thread.join(10)
    assert [devices.environment for devices in got] == [{"CUDA_VISIBLE_DEVICES": ""}]
