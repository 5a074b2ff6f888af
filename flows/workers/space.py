"""Frees space on a worker's disk: `python -m flows.workers.space`, or a worker when it needs to."""

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flows.dvc.records import free_cache
from flows.dvc.remote import RemoteError, open_remote
from flows.dvc.resume import INDEX, is_spare
from flows.graph import DagError
from flows.workers.workspace import idle_points, pause_pulls, workspaces

MIN_FREE_BYTES = 64 * 2**20  # with less, no stage is started
LOW, ENOUGH = 0.1, 0.2  # fractions of the disk: with less than LOW, space is freed up to ENOUGH;
LOW_BYTES = 50 * 2**30  # on large disks, with less than this, up to twice this
FULL_DISK = "No space left on device"

Log = Callable[[str], None]


class UnfitError(RuntimeError):
    """This worker cannot run the stage but another may; the message says what to fix here."""


def require_space(clone: Path, log: Log) -> None:
    """Free space if the disk runs low; raise UnfitError if there is still too little room."""
    disk = shutil.disk_usage(clone)
    if disk.free < min(LOW * disk.total, LOW_BYTES):
        try:
            enough = min(ENOUGH * disk.total, 2 * LOW_BYTES)
            log(f"{clone}: {free_space(clone, enough - disk.free)}")
        except (RemoteError, DagError) as error:
            log(f"{clone}: its cache cannot be freed: {error}")
    free = shutil.disk_usage(clone).free
    if free < MIN_FREE_BYTES:
        raise UnfitError(f"{clone}: {FULL_DISK}: {free >> 20} MiB; make room there")


def free_space(clone: Path, wanted: float) -> str:
    """Free `wanted` bytes, or as many as possible, and say how many were freed.

    Resume points go before the cache.
    """
    with pause_pulls(clone), open_remote(clone) as (repo, remote):
        present = workspaces(clone)
        points = _free_points(remote, idle_points(clone, present), wanted)
        freed = free_cache(repo, remote, present, wanted - points)
    return (
        f"freed {freed >> 20} MiB of the cache, which the remote has too,"
        f" and {points >> 20} MiB of resume points that are of no more use here"
    )


def _free_points(remote: Any, folders: Iterable[Path], wanted: float) -> int:
    """Delete resume points that are of no more use here; return how many bytes they had."""
    freed = 0
    for folder in folders:
        if freed < wanted and is_spare(remote, folder):
            freed += sum(path.stat().st_size for path in folder.glob("*/*"))
            (folder / INDEX).unlink(missing_ok=True)  # first, so that no half of a point is used
            shutil.rmtree(folder, ignore_errors=True)
    return freed


if __name__ == "__main__":
    try:
        print(free_space(Path.cwd(), float("inf")))
    except (RemoteError, DagError) as error:
        sys.exit(str(error))
