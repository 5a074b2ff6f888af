"""Carries the curves of running trainings from workers to coordinators, through the DVC remote.

The remote has them under curves/<key of the result> until the stage is done. All of it may be
deleted at any time.
"""

from pathlib import Path
from typing import Any

from flows.dvc.remote import open_remote
from flows.graph import Stage

FOLDER = "curves"  # on the remote


def push_curves(root: Path, stage: Stage, key: str) -> None:
    """Push what a running stage has written of its curves."""
    there = {path: root / path for path in stage.curves if (root / path).is_file()}
    if there:
        with open_remote(root) as (_, remote):
            remote.fs.makedirs(_place(remote, key), exist_ok=True)
            for path, file in there.items():
                remote.fs.fs.pipe_file(_place(remote, key, path), file.read_bytes())


def fetch_curves(root: Path, stage: Stage, key: str) -> None:
    """Put what workers have pushed of a stage's curves where the stage itself would write it."""
    if not stage.curves:
        return
    with open_remote(root) as (_, remote):
        for path in stage.curves:
            file = root / path
            try:
                text = remote.fs.fs.cat_file(_place(remote, key, path))
            except FileNotFoundError:
                continue
            if not file.is_file() or file.read_bytes() != text:
                new = file.with_name(f".{file.name}.partial")
                new.parent.mkdir(parents=True, exist_ok=True)
                new.write_bytes(text)
                new.replace(file)  # never in place: it may be linked to the cache


def remove_curves(root: Path, key: str) -> None:
    """Delete the curves of a stage that is done."""
    with open_remote(root) as (_, remote):
        if remote.fs.exists(place := _place(remote, key)):
            remote.fs.remove(remote.fs.find(place))


def _place(remote: Any, key: str, path: str = "") -> str:
    return remote.fs.join(remote.path, FOLDER, key, *filter(None, [path.replace("/", ".")]))
