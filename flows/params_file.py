"""Checks, before DVC runs, that params.yaml has the sections that the dvc.yaml files read.

DVC ignores a section that no stage reads; for a missing one it only names the place in dvc.yaml. It
puts values into commands as they are, so `x; rm -r .` would be a second command. The values within
a section are checked by its model, `python -m stages.preflight`, before a run or if DVC cannot fill
its templates with them.
"""

import difflib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.graph import DagError
from flows.overlay import PARAMS, flatten, load_yaml, look_up

REFERENCE = re.compile(r"\$\{\s*([\w.]+)")
# What a command or path may be filled with: no option, no folder above, nothing that a shell reads.
PLAIN = re.compile(r"(?!.*\.\.)[\w.][\w./+=-]*")
DAG = "dvc.yaml"
LOCAL = {"item", "key"}  # variables of a `foreach` stage
# The key of DVC's run cache leaves out the size and number of files of data, and with them every
# param of that name: after a change of `download.size` DVC would restore the old result.
LOST = {"size", "nfiles"}


def check_params(root: Path) -> None:
    """Check that params.yaml has the sections that stages read, no others, and valid shards.

    Whatever a dvc.yaml puts into commands and paths has to be plain words.

    Raises:
        DagError: it does not; the message names the file, the section and the fix.
    """
    files = [path for path in (root / DAG, *sorted(root.glob(f"*/{DAG}"))) if path.exists()]
    found = [_keys(path, path.relative_to(root).as_posix()) for path in files]
    filled = {key for _, keys in found for key in keys}
    read = {key.split(".")[0] for key in filled.union(*(keys for keys, _ in found))}
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
    for key in sorted(filled):
        for word in _words(look_up(params, key)):
            if not PLAIN.fullmatch(word):
                raise DagError(
                    f"{PARAMS}: {key}: a {DAG} puts it into a command or path; expected letters,"
                    f" digits and . / + = - _, found {word!r}"
                )
    gpus = params.get("gpus_per_training", 1)
    if type(gpus) is not int or gpus < 1:
        raise DagError(f"{PARAMS}: gpus_per_training: expected a whole number >= 1, found {gpus!r}")
    shards = params.get("shards", [0])
    whole = isinstance(shards, list) and all(type(shard) is int for shard in shards)
    if not whole or not shards or shards != list(range(len(shards))):
        count = shards if type(shards) is int and 0 < shards < 9 else 4
        raise DagError(
            f"{PARAMS}: shards: expected numbers from 0 on, such as {list(range(count))} for"
            f" {count} shards, found {shards!r}"
        )


def check_values(root: Path, section: str | None = None) -> None:
    """Let the models of all sections, or of one, check their values, but not whether files exist.

    Raises:
        DagError: some are wrong; the message names their keys.
    """
    models = {section} if section else {path.parent.name for path in root.glob("*/*/params.py")}
    sections = sorted(models & _load(root / PARAMS, PARAMS).keys())
    command = [sys.executable, "-m", "stages.preflight", *sections, "--elsewhere"]
    done = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8")
    if sections and done.returncode:
        raise DagError(done.stderr.strip())


def _words(value: Any) -> Iterator[str]:
    """Yield all that a template may be filled with, but numbers."""
    if isinstance(value, dict | list):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _words(inner)
    elif value is not None and not isinstance(value, int | float):
        yield str(value)


def _keys(path: Path, name: str) -> tuple[set[str], set[str]]:
    """Return which keys of params.yaml a dvc.yaml lists as params, and which its templates have."""
    content = _load(path, name)
    if content is None:
        raise DagError(f"{name}: expected stages, found nothing; `git checkout {name}` brings them")
    content = _expect(dict, content, name)
    lists = _expect(list, content.get("vars"), f"{name}: vars")
    own = {key for names in lists if isinstance(names, dict) for key in names} | LOCAL
    listed: set[str] = set()
    for stage, entry in _expect(dict, content.get("stages"), f"{name}: stages").items():
        place = f"{name}: stages.{stage}"
        entry = _expect(dict, entry, place)
        entry = _expect(dict, entry.get("do", entry), f"{place}.do")
        keys = _expect(list, entry.get("params"), f"{place}.params")
        listed |= {key for key in keys if isinstance(key, str)}
    templates = set(REFERENCE.findall(path.read_text(encoding="utf-8")))
    return listed, {key for key in templates if key.split(".")[0] not in own}


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
