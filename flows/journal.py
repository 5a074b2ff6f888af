"""What this machine remembers between executions: seconds per stage, and what MLflow shows.

The file is only appended to, one JSON object per line. If a full disk or a lost machine cuts a line
short, only that line is lost.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flows.environment import STATE_FOLDER, sqlite_path

JOURNAL = Path(STATE_FOLDER) / "journal.jsonl"


def remember(root: Path, **facts: Any) -> None:
    """Append one line of facts, on a new line even if the last one was cut short."""
    path = root / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(facts, sort_keys=True)}\n")


def _lines(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects; the rest was cut short."""
    path = root / JOURNAL
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            if isinstance(facts := json.loads(line), dict):
                yield facts


def last_seconds(root: Path) -> dict[str, float]:
    """Return the seconds of the last real execution of each stage on this machine."""
    return {
        line["stage"]: line["seconds"] for line in _lines(root) if line.get("outcome") == "executed"
    }


def fingerprint(root: Path) -> str:
    """Return the hash of dvc.lock, which has the hash of every input, param and output."""
    path = root / "dvc.lock"
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


def was_tracked(root: Path) -> bool:
    """Say whether the results in dvc.lock are the last ones that MLflow's store got."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if (database := sqlite_path(uri)) and not database.is_file():
        return False
    shown = [line["fingerprint"] for line in _lines(root) if line.get("tracked_to") == uri]
    return shown[-1:] == [fingerprint(root)]


def is_edited(root: Path) -> bool:
    """Say whether params, graph or code are newer than dvc.lock, so that stages may have to run.

    This is a guess that takes no time; the plan says what must really run.
    """
    lock = root / "dvc.lock"
    files = (root / "params.yaml", root / "dvc.yaml", *(root / "stages").rglob("*.py"))
    newest = max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
    return not lock.is_file() or newest > lock.stat().st_mtime
