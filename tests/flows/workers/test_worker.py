"""When a worker leaves its pool; Prefect's own half of it is a stand-in (see test_fleet.py)."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from prefect import states
from prefect.workers.process import ProcessWorker

from flows.resources import DeviceError
from flows.workers import worker
from flows.workers.space import UnfitError
from flows.workers.worker import StageWorker, default_stages, run_worker, work

RUN = SimpleNamespace(id="run")


@pytest.fixture
def ends(monkeypatch) -> list[states.State]:
    """Give a list to put the end of the next run into; StageWorker runs nothing but that."""

    class Client:
        async def read_flow_run(self, wanted):
            assert wanted == RUN.id
            return SimpleNamespace(state=ends.pop())

    async def run(self, flow_run):
        return "result"

    async def get_and_submit_flow_runs(self):
        return [RUN]

    ends: list[states.State] = []
    monkeypatch.setattr(ProcessWorker, "run", run)
    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", get_and_submit_flow_runs)
    monkeypatch.setattr(StageWorker, "client", Client())
    monkeypatch.setattr(StageWorker, "limiter", SimpleNamespace(borrowed_tokens=0))
    return ends


def test_an_unfit_worker_takes_no_more_and_leaves_when_its_other_stages_have_ended(ends):
    worker = StageWorker(work_pool_name="pool", name="one")
    for end in (
        states.Completed(),
        states.Failed(name="StageFailed"),
        states.Failed(name="Unfit", message="on one: disk"),
    ):
        assert asyncio.run(worker.get_and_submit_flow_runs()) == [RUN]
        ends.append(end)
        assert asyncio.run(worker.run(RUN)) == "result"
    StageWorker.limiter.borrowed_tokens = 1
    assert asyncio.run(worker.get_and_submit_flow_runs()) == []
    StageWorker.limiter.borrowed_tokens = 0
    with pytest.raises(UnfitError, match="on one: disk"):
        asyncio.run(worker.get_and_submit_flow_runs())


@pytest.fixture
def end_by(monkeypatch):
    """Return a function that has `work` end by an error."""

    def end_by(error: BaseException) -> None:
        async def start(self):
            raise error

        monkeypatch.setattr(StageWorker, "start", start)
        work("ovis-dag-cpu", "one", 1)

    return end_by


def test_an_unfit_worker_ends_with_one_line(end_by):
    unfit = ExceptionGroup("services", [ExceptionGroup("loops", [UnfitError("on one: disk")])])
    with pytest.raises(UnfitError, match=r"^worker one has left pool ovis-dag-cpu: on one: disk$"):
        end_by(unfit)


def test_an_unfit_worker_says_why_and_then_waits_before_it_ends(end_by, monkeypatch, capsys):
    monkeypatch.setenv("OVIS_REST", "0.3")
    started = time.monotonic()
    with pytest.raises(UnfitError, match="on one: disk"):
        end_by(ExceptionGroup("services", [UnfitError("on one: disk")]))
    assert time.monotonic() - started >= 0.3
    told = "worker one has left pool ovis-dag-cpu: on one: disk; it ends in 0.3 s (OVIS_REST)\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_waiting_worker_ends_at_once_when_it_is_stopped(end_by, monkeypatch, number):
    monkeypatch.setenv("OVIS_REST", "600")
    stop = threading.Timer(0.3, os.kill, (os.getpid(), number))
    monkeypatch.setattr(worker, "print", lambda line, **_: stop.start(), raising=False)
    started = time.monotonic()
    with pytest.raises(UnfitError, match="on one: disk"):
        end_by(ExceptionGroup("services", [UnfitError("on one: disk")]))
    assert 0.3 <= time.monotonic() - started < 60


def test_other_ends_stay_what_they_are(end_by):
    with pytest.raises(ExceptionGroup):
        end_by(ExceptionGroup("services", [ValueError("a bug")]))


def test_a_worker_that_is_stopped_takes_no_more_and_lets_its_stages_give_their_runs_back(
    ends, monkeypatch, capsys
):
    class Stage:
        def terminate(self):
            told.append(self)
            StageWorker.limiter.borrowed_tokens = 0

    async def start(self):
        started.append(self)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(3600)

    told, started = [], []
    with subprocess.Popen(["sleep", "0.1"]) as process:
        ended = psutil.Process(process.pid)
    monkeypatch.setattr(psutil.Process, "children", lambda self: [ended, Stage()])
    monkeypatch.setattr(StageWorker, "start", start)
    StageWorker.limiter.borrowed_tokens = 1
    work("ovis-dag-cpu", "one", 1)
    assert capsys.readouterr().out == "worker one was stopped\n"
    assert len(told) == 1
    assert asyncio.run(started[0].get_and_submit_flow_runs()) == []


def test_a_machine_without_a_device_serves_pool_gpu_only_if_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceError, match="1 CUDA devices are wanted and this machine has 0"):
        run_worker(Path.cwd(), "gpu", "one", None)
    monkeypatch.setenv("OVIS_FEWER_GPUS", "1")
    assert default_stages("gpu") == default_stages("cpu") >= 1
