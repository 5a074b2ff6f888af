"""What an agent does with a request: the stage alone, in its own checkout, exactly or not at all.

It runs nothing unless it arrives at the coordinator's own hash of command, params and inputs, so a
stale clone, another environment or a wrong remote can refuse work but never make a wrong result.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flows.agents.request import Request, versions_here
from flows.agents.workspace import WorkspaceError, checkout
from flows.devices import DeviceSlots
from flows.dvc.project import load_graph
from flows.dvc.remote import (
    RemoteError,
    check_remote,
    fetch_result,
    pull_inputs,
    push_result,
    result_key,
    with_patience,
)
from flows.graph import DagError, Stage
from flows.stage import Outcome, StageFailedError, StageRunner

MIN_FREE_BYTES = 64 * 2**20  # below it nothing is started
FULL_DISK = "No space left on device"

Log = Callable[[str], None]


class UnfitError(RuntimeError):
    """This agent cannot do it and another may; the message says what to mend here."""


def reproduce(clone: Path, request: Request, name: str, log: Log) -> Outcome:
    """Make one stage or shard in a checkout called `name`, and push it with its run-cache entry.

    Raises:
        StageFailedError: the stage itself failed; it would anywhere.
        UnfitError: something about this machine failed.
    """
    try:
        _require_space(clone)
        with checkout(clone, request, name) as folder:
            _require_versions(folder, request)
            return _reproduce(folder, request, log)
    except (WorkspaceError, RemoteError, DagError, OSError) as error:
        raise UnfitError(f"{request.stage}: {error}") from error


def _reproduce(folder: Path, request: Request, log: Log) -> Outcome:
    name = request.stage
    with_patience(lambda: check_remote(folder), log)
    with_patience(lambda: pull_inputs(folder, request.inputs), log)
    if result_key(folder, name) != request.key:
        raise UnfitError(
            f"{name}: command, params or inputs at {request.commit[:12]} are not those of the "
            "coordinator's working tree; did it change since it was started?"
        )
    with_patience(lambda: fetch_result(folder, name), log)
    stage = load_graph(folder)[name]
    with DeviceSlots().reserve(stage.gpus) as visible:
        outcome = _run(folder, stage, log, visible)
    with_patience(lambda: push_result(folder, name), log)
    return outcome


def _run(folder: Path, stage: Stage, log: Log, visible: dict[str, str]) -> Outcome:
    """Run the stage in a thread: a signal reaches this one, which then stops it."""
    runner = StageRunner(folder, echo=lambda line: None)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.run, stage, log, visible)
        try:
            return future.result()
        except StageFailedError as error:
            if FULL_DISK in str(error):
                raise UnfitError(f"{stage.name}: {error}") from error
            raise
        except BaseException:
            runner.stop()
            raise


def _require_space(clone: Path) -> None:
    free = shutil.disk_usage(clone).free
    if free < MIN_FREE_BYTES:
        raise UnfitError(
            f"{clone}: {FULL_DISK}: {free >> 20} MiB; `dvc gc --workspace` there frees some"
        )


def _require_versions(folder: Path, request: Request) -> None:
    here = versions_here(folder)
    other = {
        f"{package} {here.get(package)} (coordinator: {version})"
        for package, version in request.versions.items()
        if here.get(package) != version
    }
    if other:
        raise UnfitError(
            f"another environment than the coordinator's: {', '.join(sorted(other))}; "
            "install the lock of the same commit"
        )
