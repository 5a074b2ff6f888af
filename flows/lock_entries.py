"""Entries of dvc.lock, read while DVC may be writing it for another stage.

DVC rewrites the file in place and takes a while to do so, in which it is empty or ends early.
"""

import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

SECONDS_TO_WRITE = 30.0  # far more than DVC takes
SECONDS_BETWEEN_READS = 0.2


def lock_entry(lock: Path, stage: str) -> dict[str, Any]:
    """Return what `lock` records of a stage, which must have been recorded before this call.

    The last entry that can be read may be cut off, so it counts if it is the same twice.

    Raises:
        RuntimeError: there is no such entry, half a minute long.
    """
    deadline, before = time.monotonic() + SECONDS_TO_WRITE, None
    while time.monotonic() < deadline:
        stages = _read(lock)
        entry = stages.get(stage)
        if entry is not None and (entry == before or next(reversed(stages)) != stage):
            return entry
        before = entry
        time.sleep(SECONDS_BETWEEN_READS)
    raise RuntimeError(f"{lock}: no entry of {stage}, though it was made; run the same again")


def _read(lock: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(lock)
    except (FileNotFoundError, YAMLError):
        return {}
    return (content or {}).get("stages") or {}
