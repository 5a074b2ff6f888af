"""Frees a worker's cache by a rule that loses nothing: what the remote has and nobody uses goes.

`dvc gc` asks what dvc.lock records, and a worker's clone records nothing of what its workspaces
made, nor of a result that could not be pushed yet.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flows.dvc.remote import open_remote
from flows.graph import DagError

RECORDED = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
OUTPUT = re.compile(r"- path: (.+)\n(?: +hash: md5\n)? +md5: ([0-9a-f]{32}(?:\.dir)?)\n")
SECONDS_OF_YOUTH = 3600.0  # within which somebody may be about to use or push it


def free_cache(clone: Path, workspaces: Iterable[Path], wanted: float) -> int:
    """Delete files of the clone's cache, the least recently used first, and return their bytes.

    Only those that the remote has, in their full size, and that no workspace records and no output
    in the clone itself is.

    Args:
        clone: whose cache it is.
        workspaces: projects that share the cache.
        wanted: bytes after which to stop.

    Raises:
        DagError: the cache is outside the clone, so others may use it; or there is no remote.
        RemoteError: the remote failed.
    """
    with open_remote(clone) as (repo, remote):
        cache = Path(repo.cache.local.path)
        if not cache.resolve().is_relative_to(clone.resolve()):
            raise DagError(f"{cache} may be in use by other clones; free it by hand")
        used = set(_used(clone, workspaces, cache))
        files = sorted(cache.glob("[0-9a-f][0-9a-f]/*"), key=_last_use)
        freed = 0
        for file in files:
            if freed >= wanted:
                break
            status, name = file.stat(), file.parent.name + file.name
            if name in used or status.st_ctime > time.time() - SECONDS_OF_YOUTH:
                continue
            if _has(remote, name, status.st_size):
                file.unlink()
                freed += status.st_size
        return freed


def _used(clone: Path, workspaces: Iterable[Path], cache: Path) -> Iterator[str]:
    """Yield the hashes that are recorded, and those of the files in recorded folders."""
    found = [RECORDED.findall(text) for root in workspaces for text in _locks(root)]
    for text in _locks(clone):
        found.append([md5 for path, md5 in OUTPUT.findall(text) if (clone / path).exists()])
    for name in {name for names in found for name in names}:
        yield name
        listed = cache / name[:2] / name[2:]
        if name.endswith(".dir") and listed.is_file():
            yield from (entry["md5"] for entry in json.loads(listed.read_bytes()))


def _locks(root: Path) -> Iterator[str]:
    for path in (root / "dvc.lock", *root.glob("*/dvc.lock")):
        if path.is_file():
            yield path.read_text(encoding="utf-8")


def _last_use(file: Path) -> float:
    status = file.stat()
    return max(status.st_atime, status.st_ctime)


def _has(remote: Any, name: str, size: int) -> bool:
    try:
        return remote.fs.info(remote.odb.oid_to_path(name))["size"] == size
    except FileNotFoundError:
        return False
