"""Keeps resume points of trainings on the DVC remote, so that another machine can continue them.

A stage keeps its points in .resume (stages/common/runtime/checkpoints.py), which a worker links to
one folder per result. The remote has them under resume/<key of the result>: first files named by
their hash, then an index of them, so that readers get a whole point or none. All of it may be
deleted at any time; trainings then start again from the beginning. All functions raise RemoteError
if the remote fails.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.dvc.remote import open_remote

FOLDER = "resume"  # on the remote
INDEX, STARTS = "index.json", "starts.json"
MOST_BYTES = 8 * 2**30  # per stage; VGG16 and its optimizer's moments have 1.1 GB
# fingerprint/file; names that begin with a dot are partial files
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ResumePoint:
    """The resume point of one result, on this machine and on the remote."""

    def __init__(self, root: Path, folder: Path, key: str) -> None:
        """Keep the point of result `key` in `folder` and on the remote of the project at `root`."""
        self._root, self._folder, self.key = root, folder, key
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index = folder / INDEX  # index of the remote's point that was fetched
        self._pushed: dict[str, tuple[int, int]] = {}  # size and time of change

    def pull(self, log: Callable[[str], None]) -> None:
        """Fetch the remote's point, unless the local one has continued from it."""
        with open_remote(self._root) as (_, remote):
            index = _read(remote, self._place(remote, INDEX))
            if not index or (self._index.is_file() and self._index.read_bytes() == index):
                return
            self._clear()
            try:
                for name, md5 in json.loads(index)["files"].items():
                    if not NAME.fullmatch(name):
                        raise ValueError(f"{name!r} is no name of a resume point")
                    path = self._folder / name
                    path.parent.mkdir(exist_ok=True)
                    remote.fs.get_file(self._place(remote, md5), str(path))
                    if _md5(path) != md5:
                        raise ValueError(f"{name} is damaged")
            except (ValueError, KeyError, AttributeError, FileNotFoundError) as error:
                self._clear()
                log(f"the resume point on the remote is of no use ({error}); beginning anew")
                return
            self._index.write_bytes(index)
            log("goes on from the resume point of another start")

    def push(self, log: Callable[[str], None]) -> None:
        """Push the point to the remote if it has changed since the last push."""
        facts, hashes, held = {}, {}, self._folder / ".held"
        for path in sorted(self._folder.glob("*/*")):
            name = path.relative_to(self._folder).as_posix()
            if NAME.fullmatch(name):
                with suppress(FileNotFoundError):  # the stage is done
                    status = path.stat()
                    facts[name] = (status.st_size, status.st_mtime_ns)
        if not facts or facts == self._pushed:
            return
        if (total := sum(size for size, _ in facts.values())) > MOST_BYTES:
            log(f"its resume point has {total >> 20} MiB, too many for the remote")
            return
        with open_remote(self._root) as (_, remote):
            for name in facts:
                held.unlink(missing_ok=True)
                os.link(self._folder / name, held)  # the stage may replace it meanwhile
                hashes[name] = _md5(held)
                if not remote.fs.exists(self._place(remote, hashes[name])):
                    remote.fs.put_file(str(held), self._place(remote, hashes[name]))
            index = json.dumps({"files": hashes}, sort_keys=True).encode()
            remote.fs.fs.pipe_file(self._place(remote, INDEX), index)
            self._index.write_bytes(index)
            self._pushed = facts
            for path in remote.fs.find(self._place(remote)):
                if remote.fs.name(path) not in (INDEX, STARTS, *hashes.values()):
                    remote.fs.remove(path)

    def count_start(self, run: str, start: int) -> int:
        """Return how many of a run's starts, up to this one, began from this same point."""
        point = hashlib.md5(self._index.read_bytes()).hexdigest() if self._index.is_file() else ""
        if start == 1 and not point:
            return 1
        with open_remote(self._root) as (_, remote):
            place = self._place(remote, STARTS)
            last = json.loads(_read(remote, place) or b"{}")
            since = start if point else 1
            if (last.get("run"), last.get("point")) == (run, point):
                since = last["since"]
            facts = {"run": run, "point": point, "since": since}
            remote.fs.makedirs(remote.fs.parent(place), exist_ok=True)
            remote.fs.fs.pipe_file(place, json.dumps(facts).encode())
        return start - since + 1

    def remove(self) -> None:
        """Delete the point here and on the remote, because the stage is done."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with open_remote(self._root) as (_, remote):
            if remote.fs.exists(place := self._place(remote)):
                remote.fs.remove(remote.fs.find(place))

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()

    def _place(self, remote: Any, *name: str) -> str:
        return remote.fs.join(remote.path, FOLDER, self.key, *name)


def identify_point(root: Path, key: str) -> bytes:
    """Return the index of the remote's resume point of a result; nothing without a point."""
    with open_remote(root) as (_, remote):
        return _read(remote, remote.fs.join(remote.path, FOLDER, key, INDEX))


def is_spare(remote: Any, folder: Path) -> bool:
    """Say whether the remote has the result of this folder's point, or a point in its place.

    The latter is another one, which `pull` would take instead, or the same with all its files.
    """
    key, runs = folder.name, remote.legacy_odb
    if runs.fs.exists(runs.fs.join(runs.path, "runs", key[:2], key)):  # pushed after its outputs
        return True
    place = remote.fs.join(remote.path, FOLDER, key)
    if not (index := _read(remote, remote.fs.join(place, INDEX))):
        return False
    if not (folder / INDEX).is_file() or (folder / INDEX).read_bytes() != index:
        return True
    listed = json.loads(index)["files"]
    there = {(remote.fs.name(path), remote.fs.info(path)["size"]) for path in remote.fs.find(place)}
    files = {
        path: listed.get(path.relative_to(folder).as_posix()) for path in folder.glob("*/[!.]*")
    }
    return all(
        (md5, path.stat().st_size) in there and _md5(path) == md5 for path, md5 in files.items()
    )


def _read(remote: Any, path: str) -> bytes:
    try:
        return remote.fs.fs.cat_file(path)
    except FileNotFoundError:
        return b""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
