"""Lets DVC's commands in this process read and write dvc.lock entry by entry.

For every stage that ran, DVC parses all of the file and writes it anew, so with many stages a run
takes time as the square of their number: with 329 entries, 6 of the 7 seconds of a stage that does
nothing. The bytes are those that DVC would write.
"""

from collections.abc import Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from dvc.dvcfile import Lockfile, logger
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml, parse_yaml

from flows.lock_text import SECTION, LockText

_load_whole, _dump_whole = Lockfile._load_yaml, Lockfile.dump_stages


def install() -> None:
    """Replace DVC's way by this one."""
    Lockfile._load_yaml, Lockfile.dump_stages = _load, _dump


class _Entries(Mapping[str, dict[str, Any]]):
    """What a lock records of each stage, parsed when it is asked for."""

    def __init__(self, text: LockText, path: str) -> None:
        self._texts, self._path = text.entries, path

    def __getitem__(self, name: str) -> dict[str, Any]:
        return parse_yaml(self._texts[name], self._path)[name]

    def __contains__(self, name: object) -> bool:
        return name in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


@wraps(_load_whole)
def _load(lock: Lockfile, **kwargs: Any) -> tuple[Any, str]:
    """Return what the file records, and its text, which no caller looks at."""
    text = None if kwargs else LockText.read(Path(lock.path))
    if text is None:
        return _load_whole(lock, **kwargs)
    return {"schema": "2.0", "stages": _Entries(text, lock.path)}, ""


@wraps(_dump_whole)
def _dump(lock: Lockfile, stages: list, **kwargs: Any) -> None:
    """Record the stages: each takes the place of its old entry, or comes last."""
    path = Path(lock.path)
    before = LockText.read(path)
    if before is None:
        _dump_whole(lock, stages, **kwargs)
        return
    entries = dict(before.entries)
    for stage in stages:
        # Under `stages`, for where long lines are broken depends on how far in they are.
        text = dumps_yaml({"stages": to_lockfile(stage, **kwargs)})
        entries[stage.name] = text.removeprefix(SECTION)
    after = LockText(entries)
    if after != before:
        logger.info("Updating lock file '%s'", lock.relpath)
        after.write(path)
        lock.repo.scm_context.track_file(lock.relpath)
