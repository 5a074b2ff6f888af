"""What a sweep found: the metrics of each point, together over seeds, and the best."""

import fnmatch
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from flows.sweeps.points import Point


@dataclass(frozen=True)
class Result:
    """What came out of one point; a failed one has the metrics of what it finished."""

    point: Point
    failed: bool
    metrics: dict[str, float]  # "<stage>/<key>/<key>…"
    outcomes: dict[str, int] = field(default_factory=dict)  # number of stages by what happened


@dataclass(frozen=True)
class Row:
    """All points that differ in nothing but the seed."""

    values: dict[str, Any]
    results: list[Result]

    def numbers(self, metric: str) -> list[float]:
        """Return the metric of every seed that has it."""
        return [r.metrics[metric] for r in self.results if not r.failed and metric in r.metrics]


def group_seeds(results: Sequence[Result], over: str) -> list[Row]:
    """Return the results by the values of the params that differ, but `over`."""
    kept = [key for key in differing(results) if key != over]
    rows: list[Row] = []
    for result in results:
        values = {key: result.point.values[key] for key in kept}
        row = next((row for row in rows if row.values == values), None)
        if row is None:
            rows.append(row := Row(values, []))
        row.results.append(result)
    return rows


def differing(results: Sequence[Result]) -> list[str]:
    """Return the params that do not have the same value in all points."""
    points = [result.point.values for result in results]
    return [key for key in points[0] if any(point[key] != points[0][key] for point in points)]


def choose_metrics(results: Iterable[Result], patterns: Sequence[str]) -> list[str]:
    """Return the metrics that match the patterns, in the patterns' order.

    Raises:
        ValueError: nothing matches one of them.
    """
    there = list(dict.fromkeys(key for result in results for key in result.metrics))
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = fnmatch.filter(there, pattern)
        if not found:
            some = ", ".join(there[:5]) or "none, as no point got that far"
            raise ValueError(f"no metric matches '{pattern}'; there are {len(there)}: {some} …")
        chosen.update(dict.fromkeys(found))
    return list(chosen)


def find_best(rows: Iterable[Row], metric: str, direction: str) -> Row | None:
    """Return the row of the best mean, `direction` being "max" or "min".

    Rows with a failed point are left out: a mean over fewer seeds is no fair rival.
    """
    whole = [row for row in rows if len(row.numbers(metric)) == len(row.results)]
    choose = max if direction == "max" else min
    return choose(whole, key=lambda row: statistics.fmean(row.numbers(metric)), default=None)


def short_names(metrics: Sequence[str]) -> dict[str, str]:
    """Return a column's name per metric: the parts of its path in which the metrics differ."""
    parts = [metric.split("/") for metric in metrics]
    if len(metrics) < 2 or len({len(path) for path in parts}) > 1:
        return {metric: metric for metric in metrics}
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return {
        metric: " ".join(part for part, shown in zip(path, differ, strict=True) if shown)
        for metric, path in zip(metrics, parts, strict=True)
    }
