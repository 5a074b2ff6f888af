"""Prefect's process worker, which leaves its pool as soon as a stage finds its machine unfit.

An unfit machine is idle while the good ones are busy, so it would take every stage in its turn and
fail it. What runs beside the stage that found out may finish.
"""

import abc
import asyncio
import os
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.workers.reproduce import UnfitError
from flows.workers.stage_flow import UNFIT


class StageWorker(ProcessWorker, abc.ABC):  # ABC: Prefect registers it not in its own one's place
    """Runs stages of one pool as processes."""

    _unfit: str | None = None

    async def run(self, flow_run: FlowRun, *arguments: Any, **named: Any) -> ProcessWorkerResult:
        """Run one stage; its final state says if this machine is unfit."""
        result = await super().run(flow_run, *arguments, **named)
        state = (await self.client.read_flow_run(flow_run.id)).state
        if state is not None and state.name == UNFIT:
            self._unfit = state.message or UNFIT
        return result

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take what the pool has for this worker.

        Raises:
            UnfitError: the machine is unfit, and no stage runs here any more.
        """
        if self._unfit is None:
            return await super().get_and_submit_flow_runs()
        if self.limiter.borrowed_tokens == 0:
            raise UnfitError(self._unfit)
        return []


def work(pool: str, name: str, limit: int) -> None:
    """Run so many stages of the pool at once until this process is stopped.

    Raises:
        UnfitError: the machine turned out unfit.
    """

    async def start() -> None:
        setup_signal_handlers_worker(os.getpid(), f"worker {name}", print)
        await StageWorker(
            work_pool_name=pool, name=name, limit=limit, create_pool_if_not_found=False
        ).start()

    try:
        asyncio.run(start())
    except KeyboardInterrupt:
        print(f"worker {name} was stopped")
    except BaseExceptionGroup as group:
        if group.subgroup(UnfitError) is None:
            raise
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise UnfitError(f"worker {name} has left pool {pool}: {error}") from group
