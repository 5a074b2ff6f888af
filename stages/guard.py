"""Detect params, code and data that change while a stage runs, so that DVC does not record them.

DVC hashes the inputs of a stage after it has ended. An edit during the run would therefore be
recorded as the input of a result that was made without it. This module reads the values of a
stage's params and the state of its files (size, time of change, inode, and the MD5 of small files)
before the stage is imported, and compares them when it has ended.
"""

import hashlib
import importlib.metadata
import itertools
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ruamel.yaml import YAML

from stages.common.runtime.params import PARAMS_FILE, read_params

DVC_FILE = "dvc.yaml"
LOCK = "requirements-stages.lock"
# The paths that .dvcignore excludes; DVC and the receipt must count the same files.
IGNORED = re.compile(r"(^|/)__pycache__/|\.partial(/|$)|^comparators/[^/]+/README\.md$")
LARGEST_HASHED = 1 << 20  # bytes; source files are far smaller, data files are not
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
MISSING = "–"


@dataclass(frozen=True)
class Inputs:
    """The state of everything that a stage depends on, at one moment.

    Attributes:
        params: value of each key of params.yaml that the stage reads, such as "pseudo_boxes".
        files: [size, time of change in ns, inode, MD5 or "" if the file is large] per path.
    """

    params: dict[str, Any]
    files: dict[str, list]


@dataclass(frozen=True)
class Declared:
    """A stage's inputs as dvc.yaml declares them: files and folders, and keys of params.yaml."""

    paths: list[str]
    keys: list[str]

    def read(self) -> Inputs:
        """Return their present state; a missing key is None, a missing file is left out."""
        params = read_params()
        paths = [PARAMS_FILE.as_posix(), *(file for path in self.paths for file in _files_in(path))]
        return Inputs(
            {key: _look_up(params, key) for key in self.keys},
            {path: fact for path in paths if (fact := _fact(Path(path))) is not None},
        )


def find_declared(stage: str) -> Declared:
    """Return the declared inputs of a stage; the working directory is the repository's root.

    Args:
        stage: its name in DVC, such as "pseudo_boxes@0" or "comparators/dvc.yaml:rpn".

    Raises:
        ValueError: no dvc.yaml has the stage, or one of its inputs does not exist.
    """
    file, _, name = stage.rpartition(":")
    group = name.split("@")[0]
    # In its own folder DVC names a stage without the path of the file.
    files = [Path(file or DVC_FILE), Path(DVC_FILE), *sorted(Path().glob(f"*/{DVC_FILE}"))]
    for path in dict.fromkeys(files):
        content = YAML(typ="safe").load(path) if path.is_file() else {}
        if group in content.get("stages", {}):
            break
    else:
        raise ValueError(f"{DVC_FILE}: there is no stage '{stage}'")
    entry = content["stages"][group]
    known = read_params()
    for variables in content.get("vars", []):
        known |= variables if isinstance(variables, dict) else {}  # a string is a file: params.yaml
    if "foreach" in entry:
        key = name.partition("@")[2]
        known |= {"key": key, "item": entry["foreach"][key]}
        entry = entry["do"]
    else:
        known |= {"item": _item(entry, name, known)}
    deps: list[str] = [
        dep if isinstance(dep, str) else next(iter(dep)) for dep in entry.get("deps", [])
    ]
    keys = entry.get("params", [])
    whole: list[str] = [file for key in keys if isinstance(key, dict) for file in key]
    paths = [
        REFERENCE.sub(lambda found: str(_look_up(known, found[1])), path) for path in deps + whole
    ]
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise ValueError(f"{stage}: input {missing[0]} of {DVC_FILE} does not exist")
    return Declared(paths, [key for key in keys if isinstance(key, str)])


def changes(before: Inputs, after: Inputs) -> list[str]:
    """Return one text per difference; of params.yaml only the keys that the stage reads count."""
    found = []
    for key, value in before.params.items():
        old, new = _leaves(value, key), _leaves(after.params[key], key)
        found += [
            f"{PARAMS_FILE}: {leaf}: {old.get(leaf, MISSING)} → {new.get(leaf, MISSING)}"
            for leaf in {**old, **new}
            if old.get(leaf, MISSING) != new.get(leaf, MISSING)
        ]
    paths = {**before.files, **after.files}.keys() - {PARAMS_FILE.as_posix()}
    return found + sorted(p for p in paths if before.files.get(p) != after.files.get(p))


def other_packages(root: Path) -> list[str]:
    """Return one text per package of the stages whose installed version is not the locked one.

    Builds of one version (`2.9.0+cpu`, `2.9.0+cu128`) count as equal, because the machines of a
    cluster have both.
    """
    locked: dict[str, list[str]] = {}
    for line in (root / LOCK).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate():
                versions = locked.setdefault(canonicalize_name(pin.name), [])
                versions += [Version(clause.version).public for clause in pin.specifier]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for name in (canonicalize_name(Requirement(line).name) for line in project["dependencies"]):
        here, pins = Version(importlib.metadata.version(name)).public, locked.get(name, ["none"])
        if here not in pins:
            found.append(f"{name} {here} is installed, {' or '.join(pins)} is locked")
    return found


def _item(entry: dict, name: str, known: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's values of the matrix; for `pseudo_boxes@0` the first shard's number."""
    axes = {
        key: _look_up(known, found[1]) if (found := REFERENCE.fullmatch(str(values))) else values
        for key, values in entry.get("matrix", {}).items()
    }
    for members in itertools.product(*map(enumerate, axes.values())):
        # DVC names a mapping or a list by its position in the axis.
        called = [
            f"{axis}{place}" if isinstance(value, dict | list) else str(value)
            for axis, (place, value) in zip(axes, members, strict=True)
        ]
        if axes and name.endswith("@" + "-".join(called)):
            return {axis: value for axis, (_, value) in zip(axes, members, strict=True)}
    return {}


def _look_up(known: Any, key: str) -> Any:
    for part in key.split("."):
        known = known.get(part) if isinstance(known, dict) else None
    return known


def _leaves(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for name in value for k, v in _leaves(value[name], f"{key}.{name}").items()}
    return {key: value}


def _files_in(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        files = (Path(folder, name).as_posix() for name in names)
        yield from (file for file in files if not IGNORED.search(file))


def _fact(path: Path) -> list | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    digest = ""
    if found.st_size <= LARGEST_HASHED:
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return [found.st_size, found.st_mtime_ns, found.st_ino, digest]
