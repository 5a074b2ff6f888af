"""Frees a worker's cache without losing results: deletes what the remote has and nobody uses.

`dvc gc` keeps what dvc.lock records. But a worker's clone records neither what its workspaces made
nor results that could not be pushed yet.
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
SECONDS_OF_YOUTH = 3600.0  # somebody may be about to use or push a younger file


def free_cache(clone: Path, workspaces: Iterable[Path], wanted: float) -> int:
    """Delete files of the clone's cache, the least recently used first, and return their bytes.

    It deletes only files that the remote has in full size, that no workspace sharing the cache
    records, and that are not outputs in the clone itself; it stops after `wanted` bytes.

    Raises:
        DagError: the cache is outside the clone, so others may use it, or there is no remote.
        RemoteError: the remote failed.
    """
    with open_remote(clone) as (repo, remote):
        cache = Path(repo.cache.local.path)
        if not cache.resolve().is_relative_to(clone.resolve()):
            raise DagError(f"{cache} may be in use by other clones; free it by hand")
        used = set(_used(clone, workspaces, cache))
        files = [(file, file.stat()) for file in cache.glob("[0-9a-f][0-9a-f]/*")]
        freed = 0
        for file, facts in sorted(files, key=lambda own: max(own[1].st_atime, own[1].st_ctime)):
            name, young = file.parent.name + file.name, time.time() - SECONDS_OF_YOUTH
            if freed >= wanted:
                break
            if name in used or facts.st_ctime > young or not _has(remote, name, facts.st_size):
                continue
            file.unlink()
            freed += facts.st_size
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


def _has(remote: Any, name: str, size: int) -> bool:
    try:
        return remote.fs.info(remote.odb.oid_to_path(name))["size"] == size
    except FileNotFoundError:
        return False
