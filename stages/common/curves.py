"""Training curves: a CSV with one row per logged step, which DVC plots and MLflow shows."""

import csv
from pathlib import Path
from typing import Any

from stages.common.storage import replace_file


class Curve:
    """Collects running means of named scalars and writes them as `step,<name>,…` rows."""

    def __init__(self, every: int) -> None:
        """Log one row per `every` steps, each the mean over those steps."""
        self.every = every
        self._rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, step: int, **scalars: float) -> dict[str, float] | None:
        """Take the scalars of 1-based `step`; return the row if this step closed one."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1
        if step % self.every:
            return None
        row = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._rows.append({"step": step, **row})
        self._sums, self._counts = {}, {}
        return row

    def last(self) -> dict[str, float]:
        """Return the last row without its step, empty if none was closed."""
        return {k: v for k, v in (self._rows[-1] if self._rows else {}).items() if k != "step"}

    def state(self) -> dict[str, Any]:
        """Return all that a resumed training needs to go on, as JSON values."""
        return {"rows": self._rows, "sums": self._sums, "counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` returned."""
        self._rows, self._sums, self._counts = state["rows"], state["sums"], state["counts"]

    def write(self, path: Path) -> None:
        """Write the rows; scalars that were not logged at a step are left empty."""
        names = sorted({name for row in self._rows for name in row} - {"step"})
        with replace_file(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names], lineterminator="\n")
            writer.writeheader()
            for row in self._rows:
                writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
