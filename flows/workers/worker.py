"""A worker of one Prefect pool: Prefect's process worker, except that it leaves its pool cleanly.

It leaves as soon as a stage finds the machine unfit. Such a machine would be idle while good ones
are busy, so it would take and fail one stage after another. Other stages that run there may finish.
Then it waits for OVIS_REST seconds: what restarts ended workers would bring it back at once.

It also leaves when it is stopped, by Ctrl-C or SIGTERM. Its stages are told to stop, push their
resume points, and return their runs to the pool. Prefect's own worker would kill them.
"""

import abc
import asyncio
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.environment import REST, seconds
from flows.resources import count_cores, list_devices, require_devices
from flows.server import require_server
from flows.workers.pools import POOL, has_pool
from flows.workers.space import UnfitError, require_space
from flows.workers.stage_flow import UNFIT

SECONDS_TO_GIVE_BACK = 45.0  # of the 60 that SLURM's --signal, Compose and Kubernetes allow
SECONDS_BETWEEN_LOOKS = 0.2


def run_worker(root: Path, pool: str, name: str, stages: int | None) -> None:
    """Run stages of a pool in the clone at `root` until the worker is stopped.

    `flows.environment.apply_worker_settings` must be called before this module is imported.

    Raises:
        ValueError: no server's address is set, the pool is missing or has another type, or this
            machine has no CUDA device for pool gpu.
        RuntimeError: the server refuses or does not answer, or this machine turned out unfit.
    """
    default = default_stages(pool)
    limit = stages or default
    require_server()
    if not has_pool(POOL.format(pool)):
        raise ValueError(f"Prefect's server has no pool {POOL.format(pool)}; `make pools` makes it")
    require_space(root, print)
    print(f"worker {name}: pool {pool}, {limit} stages at once; stop it with Ctrl-C or SIGTERM")
    work(POOL.format(pool), name, limit)


def default_stages(pool: str) -> int:
    """Return how many stages run at once: one per CUDA device, or else one per two cores.

    Training keeps two threads busy whatever the machine has (stages/common/runtime/seeding.py).
    """
    devices = len(list_devices()) if pool == "gpu" else 0
    require_devices(devices, int(pool == "gpu"))
    return devices or max(1, count_cores() // 2)


class StageWorker(ProcessWorker, abc.ABC):  # ABC: Prefect keeps its own registered
    """Runs stages of one pool as processes."""

    _unfit: str | None = None
    _leaving = False

    async def run(self, flow_run: FlowRun, *arguments: Any, **named: Any) -> ProcessWorkerResult:
        """Run one stage; its final state says whether this machine is unfit."""
        result = await super().run(flow_run, *arguments, **named)
        state = (await self.client.read_flow_run(flow_run.id)).state
        if state is not None and state.name == UNFIT:
            self._unfit = state.message or UNFIT
        return result

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take the pool's runs; an unfit worker takes none, and raises when it is idle."""
        if self._unfit is None and not self._leaving:
            return await super().get_and_submit_flow_runs()
        if self._unfit and self.limiter.borrowed_tokens == 0:
            raise UnfitError(self._unfit)
        return []

    async def give_back(self) -> None:
        """Take no more stages; make running ones stop and return their runs to the pool."""
        self._leaving = True
        for process in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.terminate()
        deadline = time.monotonic() + SECONDS_TO_GIVE_BACK
        while self.limiter.borrowed_tokens and time.monotonic() < deadline:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def work(pool: str, name: str, limit: int) -> None:
    """Run up to `limit` of the pool's stages at once until stopped, or found unfit.

    Raises:
        UnfitError: this machine turned out unfit; raised after the wait.
    """

    async def start() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        worker = StageWorker(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        )
        working, stopping = asyncio.create_task(worker.start()), asyncio.create_task(stopped.wait())
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if stopped.is_set():
            await worker.give_back()
            print(f"worker {name} was stopped")
            working.cancel()
        stopping.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await working
        except BaseExceptionGroup as group:
            if group.subgroup(UnfitError) is None:
                raise
            unfit = UnfitError(f"worker {name} has left pool {pool}: {_first(group)}")
            await _rest(unfit, stopped)
            raise unfit from group

    asyncio.run(start())


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def _rest(unfit: UnfitError, stopped: asyncio.Event) -> None:
    """Say why the worker is unfit and wait for OVIS_REST seconds, or until it is stopped."""
    if rest := seconds(REST):
        print(f"{unfit}; it ends in {rest:g} s ({REST})", flush=True)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), rest)
