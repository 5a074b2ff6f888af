"""Training curves: a CSV with one row per logged step, plotted by DVC and shown by MLflow."""

import csv
import time
from pathlib import Path
from typing import Any, SupportsFloat

from stages.common.runtime.storage import replace_file

SECONDS_BETWEEN = 10.0  # between writes of the growing file


class Curve:
    """Collects means of named scalars and writes them as rows of `step,<name>,…`."""

    def __init__(self, every: int, growing: Path | None = None) -> None:
        """Start a curve that logs one row per `every` steps, the mean over those steps.

        Args:
            every: steps per row.
            growing: a file that is rewritten with a new row, at most every ten seconds, so that
                MLflow can follow a training.
        """
        self.every = every
        self._growing, self._last_write = growing, time.monotonic()
        self._rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._step = 0

    def add(self, step: int, **scalars: SupportsFloat) -> dict[str, float] | None:
        """Add the scalars of the 1-based `step`; return the row if the step completes one."""
        self._step = step
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1
        if step % self.every:
            return None
        row = self._means()
        self._rows.append({"step": step, **row})
        self._sums, self._counts = {}, {}
        if self._growing and time.monotonic() - self._last_write >= SECONDS_BETWEEN:
            self.write(self._growing)
            self._last_write = time.monotonic()
        return row

    def _means(self) -> dict[str, float]:
        return {name: self._sums[name] / self._counts[name] for name in self._sums}

    def _written_rows(self) -> list[dict[str, float]]:
        """Return the rows; for a training too short for one, the means over its steps."""
        return self._rows or ([{"step": self._step, **self._means()}] if self._sums else [])

    def last(self) -> dict[str, float]:
        """Return the last row without its step; empty if there is no row."""
        return {k: v for row in self._written_rows()[-1:] for k, v in row.items() if k != "step"}

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed training needs, as JSON values."""
        kept = {"rows": self._rows, "sums": self._sums, "counts": self._counts}
        return kept | {"step": self._step}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned."""
        self._rows, self._sums, self._counts = state["rows"], state["sums"], state["counts"]
        self._step = state["step"]

    def write(self, path: Path) -> None:
        """Write the rows; a scalar that a row lacks is left empty."""
        rows = self._written_rows()
        names = sorted({name for row in rows for name in row} - {"step"})
        with replace_file(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", *names], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.6g}" for k, v in row.items()})
