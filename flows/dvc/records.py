"""Reads dvc.lock, sorts it, checks whether it is true, and withdraws records from it.

It also frees a cache: `dvc gc` keeps what dvc.lock records, but a worker's clone records neither
what its workspaces made nor results that could not be pushed yet.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dvc.dvcfile import Lockfile
from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.hash_info import HashInfo
from ruamel.yaml import YAML

from flows.dvc.plan import files_of
from flows.dvc.project import load_stage, locked_repo, read_graph, split_name
from flows.graph import DagError
from flows.overlay import PARAMS

# An entry of dvc.lock as DVC writes it: a name after two spaces, and more deeply indented lines.
ENTRY = re.compile(r"^  (?P<name>[\w@./-]+):\n(?:(?:    .*)?\n)+", re.MULTILINE)
HASH = re.compile(r"\bmd5: ([0-9a-f]{32}(?:\.dir)?)\b")
OUTPUT = re.compile(r"- path: (.+)\n(?: +hash: md5\n)? +md5: ([0-9a-f]{32}(?:\.dir)?)\n")
SECONDS_OF_YOUTH = 3600.0  # somebody may be about to use or push a younger file of the cache
SECONDS_TO_READ = 2.0  # a stage reads its inputs again before it notes that it has ended


def recorded(root: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what dvc.lock records of these stages, by name; stages without a record are left out.

    Only the wanted entries are parsed, because the whole file takes seconds.
    """
    files: dict[str, dict[str, str]] = {}
    for name in names:
        file, short = split_name(name)
        files.setdefault(file, {})[short] = name
    with locked_repo(root):  # DVC rewrites the file in place
        texts = {file: _read((root / file).with_suffix(".lock")) for file in files}
    return {
        files[file][entry["name"]]: YAML(typ="safe").load(entry.group())[entry["name"]]
        for file, text in texts.items()
        for entry in ENTRY.finditer(text)
        if entry["name"] in files[file]
    }


def sort_lock(root: Path) -> None:
    """Put the stages of dvc.lock in the order of the graph, as one `dvc repro` writes them.

    Stages that run at the same time are recorded in the order in which they happen to end. A file
    that DVC did not write in this format, such as one with conflict markers, is left alone.
    """
    path = root / "dvc.lock"
    with locked_repo(root) as repo:
        graph, _ = read_graph(repo, root)
        head, section, body = _read(path).partition("stages:\n")
        entries = {entry["name"]: entry.group() for entry in ENTRY.finditer(body)}
        names = [name for name in dict.fromkeys((*graph, *entries)) if name in entries]
        if "".join(entries.values()) == body and names != list(entries):
            new = path.with_name(f".{path.name}.partial")
            text = "".join((head, section, *(entries[name] for name in names)))
            new.write_text(text, encoding="utf-8")
            new.replace(path)


def _read(lock: Path) -> str:
    return lock.read_text(encoding="utf-8") if lock.is_file() else ""


def late_changes(root: Path, name: str, inputs: dict[str, Any], ended: float) -> list[str]:
    """Describe which inputs DVC recorded differently from what the executed stage read.

    Args:
        root: the project.
        name: of the stage.
        inputs: what the stage read, `stages.guard.Inputs` as JSON.
        ended: when it had read them again, in seconds since the epoch.
    """
    moved = {path: fact[3] for path, fact in inputs["files"].items() if _moved(root / path, fact)}
    folders = {(root / path).parent for path in inputs["files"]} - {root}
    grown = any(f.is_dir() and f.stat().st_mtime > ended - SECONDS_TO_READ for f in folders)
    # Reading a record takes DVC's lock, so it is read only if there is something to find.
    entry = recorded(root, [name]).get(name) if moved or grown else None
    if entry is None:
        return []
    added = [dep["path"] for dep in entry.get("deps", []) if _has_more(dep, inputs["files"])]
    params = json.loads(json.dumps(entry.get("params", {}).get(PARAMS, {}), default=str))
    keys = [key for key, value in inputs["params"].items() if params.get(key) != value]
    hashes = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
    # For large files and files in folders only the time of the last change is known.
    changed = (path for path, md5 in moved.items() if not md5 or hashes.get(path) != md5)
    files = [path for path in changed if path != PARAMS]
    return [*(f"{PARAMS}: {key}" for key in keys), *files, *added]


def _has_more(dep: dict[str, Any], files: Iterable[str]) -> bool:
    """Say whether DVC found more files in a folder than the stage, which saw `files`."""
    return dep.get("nfiles", 0) > sum(path.startswith(f"{dep['path']}/") for path in files)


def _moved(path: Path, fact: list) -> bool:
    now = path.stat() if path.is_file() else None
    return now is None or [now.st_size, now.st_mtime_ns, now.st_ino] != fact[:3]


def forget(root: Path, name: str) -> None:
    """Remove the record of a stage's last execution from dvc.lock and the run cache."""
    with locked_repo(root) as repo:
        stage = load_stage(repo, root, name)
        key, value = _get_stage_hash(stage), _get_cache_hash(to_single_stage_lockfile(stage))
        (Path(repo.stage_cache.cache_dir) / key[:2] / key / value).unlink(missing_ok=True)
        Lockfile(repo, str(Path(stage.path).with_suffix(".lock"))).remove_stage(stage)


def find_damage(root: Path) -> tuple[int, list[str]]:
    """Hash all outputs and their copies in the cache again, without trusting hashes DVC has noted.

    Returns:
        The number of outputs that dvc.lock records, and a description of each file that differs.
    """
    with locked_repo(root) as repo:
        _, stages = read_graph(repo, root)
        outs = [out for stage in stages.values() for out in stage.outs if out.hash_info]
        files = {path: (info.value, out) for out in outs for path, info in _files(out).items()}
        copies = [(info, out) for out in outs for info in _objects(out)]
        has_remote = bool(repo.config["core"].get("remote"))
        there = {path for out in outs for path in repo.dvcignore.find(repo.fs, out.fs_path)}
    shown = partial(os.path.relpath, start=root)
    hashes: dict[tuple[int, int], str] = {}  # by inode: a hard link and the cache's copy are one
    if not any(Path(out.fs_path).exists() for out in outs):
        return len(outs), [f"no results here yet: {_remedy(outs, has_remote)} them"]
    found = [f"{shown(path)} is not in dvc.lock" for path in sorted(there - files.keys())]
    for path, (md5, out) in files.items():
        if not Path(path).is_file():
            found.append(f"{shown(path)} is missing; {_remedy([out], has_remote)} it")
        elif _md5(path, hashes) != md5:
            found.append(f"{shown(path)} is not what dvc.lock says")
    for info, out in dict.fromkeys(copies):
        path = out.cache.oid_to_path(info.value)
        if Path(path).is_file() and _md5(path, hashes) != info.value.removesuffix(".dir"):
            found.append(
                f"{shown(path)}, the cache's copy of {out.def_path} or a file in it, is damaged;"
                " delete it, and `make repro` makes it again"
            )
    return len(outs), found


def _files(out: Any) -> dict[str, HashInfo]:
    """Return the hash of each file; of a folder that is missing, only its own."""
    return files_of(out) if Path(out.fs_path).exists() else {out.fs_path: out.hash_info}


def _objects(out: Any) -> list[Any]:
    """Return the hash of the output, and those of all files if it is a folder."""
    return [out.hash_info, *files_of(out).values()]


def _remedy(missing: Iterable[Any], has_remote: bool) -> str:
    """Say which command gets outputs that are missing, or files in them."""
    copies = [out.cache.oid_to_path(info.value) for out in missing for info in _objects(out)]
    if copies and all(map(os.path.isfile, copies)):
        return "`dvc checkout` restores"
    return "`dvc pull` fetches" if copies and has_remote else "`make repro` computes"


def _md5(path: str, known: dict[tuple[int, int], str]) -> str:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        inode = (status.st_dev, status.st_ino)
        if inode not in known:
            known[inode] = hashlib.file_digest(file, "md5").hexdigest()
    return known[inode]


def free_cache(repo: Repo, remote: Any, workspaces: Iterable[Path], wanted: float) -> int:
    """Delete `wanted` bytes of a clone's cache, the least recently used first; return how many.

    It deletes only files that the remote has in full size, that no workspace sharing the cache
    records, and that are not outputs in the clone itself.

    Raises:
        DagError: the cache is outside the clone, so others may use it.
    """
    clone, cache = Path(repo.root_dir), Path(repo.cache.local.path)
    if not cache.resolve().is_relative_to(clone.resolve()):
        raise DagError(f"{cache} may be in use by other clones; free it by hand")
    used, young, freed = set(_used(clone, workspaces, cache)), time.time() - SECONDS_OF_YOUTH, 0
    files = [(file, file.stat()) for file in cache.glob("[0-9a-f][0-9a-f]/*")]
    for file, facts in sorted(files, key=lambda own: max(own[1].st_atime, own[1].st_ctime)):
        name = file.parent.name + file.name
        spare = name not in used and facts.st_ctime <= young
        if freed < wanted and spare and _has(remote, name, facts.st_size):
            file.unlink()
            freed += facts.st_size
    return freed


def _used(clone: Path, workspaces: Iterable[Path], cache: Path) -> Iterator[str]:
    """Yield the hashes that are recorded, and those of the files in recorded folders."""
    found = {md5 for root in workspaces for text in _locks(root) for md5 in HASH.findall(text)}
    for text in _locks(clone):
        found |= {md5 for path, md5 in OUTPUT.findall(text) if (clone / path).exists()}
    for name in found:
        yield name
        listed = cache / name[:2] / name[2:]
        if name.endswith(".dir") and listed.is_file():
            yield from (entry["md5"] for entry in json.loads(listed.read_bytes()))


def _locks(root: Path) -> list[str]:
    return [_read(path) for path in (root / "dvc.lock", *root.glob("*/dvc.lock"))]


def _has(remote: Any, name: str, size: int) -> bool:
    try:
        return remote.fs.info(remote.odb.oid_to_path(name))["size"] == size
    except FileNotFoundError:
        return False
