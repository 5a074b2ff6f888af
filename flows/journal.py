"""What this machine remembers between executions: seconds per stage, and what was tracked already.

One JSON object a line, only appended, so that a killed flow loses at most its last line.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from flows.environment import STATE_FOLDER

JOURNAL = Path(STATE_FOLDER) / "journal.jsonl"


def remember(root: Path, **facts: Any) -> None:
    """Append one line of facts."""
    path = root / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts, sort_keys=True) + "\n")


def _lines(root: Path) -> list[dict[str, Any]]:
    path = root / JOURNAL
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def last_seconds(root: Path) -> dict[str, float]:
    """Return the seconds of the last real execution of each stage on this machine."""
    return {
        line["stage"]: line["seconds"] for line in _lines(root) if line.get("outcome") == "executed"
    }


def fingerprint(root: Path) -> str:
    """Return the hash of dvc.lock, which has the hash of every input, param and output."""
    path = root / "dvc.lock"
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()


def was_tracked(root: Path, tracking_uri: str) -> bool:
    """Say whether the results in dvc.lock are the last ones published to this MLflow store."""
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri[10:]).is_file():
        return False
    tracked = [line for line in _lines(root) if line.get("tracked_to") == tracking_uri]
    return bool(tracked) and tracked[-1]["fingerprint"] == fingerprint(root)
