"""Checks, before DVC runs, that params.yaml has the sections that the dvc.yaml files read.

DVC ignores a section that no stage reads; for a missing one it only names the place in dvc.yaml.
The values within a section are checked by its model: `python -m stages.preflight`.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.graph import DagError
from flows.overlay import PARAMS, flatten, load_yaml

REFERENCE = re.compile(r"\$\{(\w+)")
DAG = "dvc.yaml"
LOCAL = {"item", "key"}  # variables of a `foreach` stage
# The key of DVC's run cache leaves out the size and number of files of data, and with them every
# param of that name: after a change of `download.size` DVC would restore the old result.
LOST = {"size", "nfiles"}


def check_params(root: Path) -> None:
    """Check that params.yaml has the sections that stages read, no others, and valid shards.

    Raises:
        DagError: it does not; the message names the file, the section and the fix.
    """
    files = [path for path in (root / DAG, *sorted(root.glob(f"*/{DAG}"))) if path.exists()]
    read = {key for path in files for key in _sections(path, path.relative_to(root).as_posix())}
    if not read:
        return
    params = _load(root / PARAMS, PARAMS) if (root / PARAMS).exists() else None
    if not isinstance(params, dict):
        raise DagError(
            f"{PARAMS}: expected sections, found {'nothing' if params is None else repr(params)};"
            f" `git checkout {PARAMS}` takes the default back"
        )
    for key in sorted(params.keys() - read, key=str):
        near = difflib.get_close_matches(str(key), read - params.keys() or read, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"sections are {', '.join(sorted(read))}"
        raise DagError(f"{PARAMS}: {key}: no stage reads a section of this name; {hint}")
    for key in sorted(read - params.keys()):
        raise DagError(
            f"{PARAMS}: section '{key}' is missing; `git diff {PARAMS}` shows what it was"
        )
    for key, _ in flatten(params, "."):
        if LOST.intersection(key.split(".")):
            raise DagError(
                f"{PARAMS}: {key}: DVC's run cache does not see params called"
                f" {' or '.join(sorted(LOST))}; give it another name"
            )
    shards = params.get("shards", [0])
    whole = isinstance(shards, list) and all(type(shard) is int for shard in shards)
    if not whole or not shards or shards != list(range(len(shards))):
        count = shards if type(shards) is int and 0 < shards < 9 else 4
        raise DagError(
            f"{PARAMS}: shards: expected numbers from 0 on, such as {list(range(count))} for"
            f" {count} shards, found {shards!r}"
        )


def _sections(path: Path, name: str) -> Iterator[str]:
    """Yield the sections of params.yaml that a dvc.yaml reads, including those in templates."""
    content = _load(path, name)
    if content is None:
        raise DagError(f"{name}: expected stages, found nothing; `git checkout {name}` brings them")
    content = _expect(dict, content, name)
    lists = _expect(list, content.get("vars"), f"{name}: vars")
    own = {key for names in lists if isinstance(names, dict) for key in names}
    for stage, entry in _expect(dict, content.get("stages"), f"{name}: stages").items():
        place = f"{name}: stages.{stage}"
        entry = _expect(dict, entry, place)
        entry = _expect(dict, entry.get("do", entry), f"{place}.do")
        for key in _expect(list, entry.get("params"), f"{place}.params"):
            if isinstance(key, str):
                yield key.split(".")[0]
    yield from set(REFERENCE.findall(path.read_text(encoding="utf-8"))) - own - LOCAL


def _expect(kind: type, content: Any, place: str) -> Any:
    """Return a mapping or list of a dvc.yaml, empty where there is none."""
    if content is None:
        return kind()
    if not isinstance(content, kind):
        what = "a mapping" if kind is dict else "a list"
        raise DagError(f"{place}: expected {what}, found {content!r:.60}; `git diff` shows changes")
    return content


def _load(path: Path, name: str) -> Any:
    try:
        return load_yaml(YAML(typ="safe"), path, name)
    except ValueError as error:
        raise DagError(str(error)) from None
