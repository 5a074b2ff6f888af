"""The report of a sweep: table, plot, the best point, and how to continue from it."""

import fnmatch
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flows.overlay import look_up, read_params
from flows.sweeps.points import Point
from flows.table import MISSING, align, mean_and_spread

METRICS = ("evaluation/*/generalized/novel/*/AP50",)
BEST = "evaluation/detector/generalized/novel/segm/AP50"
RESULTS, TABLE, PLOT = "results.json", "table.txt", "plot.png"
SPLIT = "evaluation.split"


@dataclass(frozen=True)
class Question:
    """What a sweep's report shows: patterns of metrics' paths, and which one decides the best."""

    metrics: tuple[str, ...] = METRICS
    best: str = BEST
    direction: str = "max"  # or min
    over: str = "seed"  # the param over which mean and spread are taken


@dataclass(frozen=True)
class Result:
    """The result of one point; a failed one has the metrics of the stages that it finished."""

    point: Point
    failed: bool
    metrics: dict[str, float]  # "<stage>/<key>/<key>…"
    outcomes: dict[str, int] = field(default_factory=dict)  # number of stages by what happened


@dataclass(frozen=True)
class Row:
    """All points that differ only in the seed."""

    values: dict[str, Any]
    results: list[Result]

    def numbers(self, metric: str) -> list[float]:
        """Return the metric of every seed that has it."""
        return [r.metrics[metric] for r in self.results if not r.failed and metric in r.metrics]


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write every metric of every point into the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")


def write_report(root: Path, folder: Path, results: Sequence[Result], question: Question) -> str:
    """Write table and plot into the sweep's folder; return the report's text."""
    if all(result.failed for result in results):
        return "No point was finished, so there is nothing to compare"
    rows = group_seeds(results, question.over)
    metrics = choose_metrics(results, question.metrics)
    best_metric, *others = choose_metrics(results, [question.best])
    if others:
        raise ValueError(f"--best {question.best}: matches {1 + len(others)} metrics; give one")
    names = short_names(metrics)
    cells = [[*rows[0].values, "points", *names.values()]]
    cells += [
        [*map(str, row.values.values()), _count(row), *(_cell(row.numbers(m)) for m in metrics)]
        for row in rows
    ]
    table = align(cells, right=range(len(cells[0])))
    drawn = rows if rows[0].values else group_seeds(results, over="")  # only seeds: no mean
    plot(drawn, metrics, folder / PLOT)
    spread = f", mean ± standard deviation over {question.over}"
    repeated = any(len(row.results) > 1 for row in rows)
    text = "\n".join([f"{', '.join(question.metrics)}{spread if repeated else ''}", table])
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    lines = [text]
    if len(rows) > 1:
        lines += _choose(root, rows, results, best_metric, question.direction)
    return "\n".join(lines)


def _choose(
    root: Path, rows: Sequence[Row], results: Iterable[Result], metric: str, direction: str
) -> list[str]:
    row = find_best(rows, metric, direction)
    if row is None:
        return [f"\nNo point has {metric} for all its seeds, so none is the best"]
    values = ", ".join(f"{key} = {value}" for key, value in row.values.items())
    names = ", ".join(result.point.name for result in row.results)
    lines = [
        f"\nBest: {values}, with {metric} {_cell(row.numbers(metric))}",
        f"`dvc exp apply <name>` takes a point into the workspace: {names}",
    ]
    default = look_up(read_params(root), SPLIT)
    if any(result.point.values.get(SPLIT, default) == "test" for result in results):
        lines.append(
            f"Chosen on the test images, so its numbers flatter it: choose with -S {SPLIT}=val,"
            " and measure only what was chosen on test"
        )
    return lines


def group_seeds(results: Sequence[Result], over: str) -> list[Row]:
    """Return the results grouped by the values of the params that differ, except `over`."""
    points = [result.point.values for result in results]
    kept = [k for k in points[0] if k != over and any(p[k] != points[0][k] for p in points)]
    rows: dict[str, Row] = {}  # by the values, which may be lists
    for result in results:
        values = {key: result.point.values[key] for key in kept}
        rows.setdefault(repr(values), Row(values, [])).results.append(result)
    return list(rows.values())


def choose_metrics(results: Iterable[Result], patterns: Sequence[str]) -> list[str]:
    """Return the metrics that match the patterns, in the patterns' order."""
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
    """Return the row with the best mean; `direction` is "max" or "min".

    Rows with a failed point are left out: a mean over fewer seeds is not comparable.
    """
    whole = [row for row in rows if len(row.numbers(metric)) == len(row.results)]
    choose = max if direction == "max" else min
    return choose(whole, key=lambda row: statistics.fmean(row.numbers(metric)), default=None)


def short_names(metrics: Sequence[str]) -> dict[str, str]:
    """Return a column name per metric: the parts of its path in which the metrics differ."""
    parts = [metric.split("/") for metric in metrics]
    if len(metrics) < 2 or len({len(path) for path in parts}) > 1:
        return {metric: metric for metric in metrics}
    differ = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    return {
        metric: " ".join(part for part, shown in zip(path, differ, strict=True) if shown)
        for metric, path in zip(metrics, parts, strict=True)
    }


def plot(rows: Sequence[Row], metrics: Sequence[str], path: Path) -> None:
    """Write each metric's mean and spread over seeds at each point, as PNG; MLflow draws the rest.

    Points without one of the metrics are left out.
    """
    rows = [row for row in rows if all(row.numbers(metric) for metric in metrics)]
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for metric, name in short_names(metrics).items():
        numbers = [row.numbers(metric) for row in rows]
        means = [statistics.fmean(seeds) for seeds in numbers]
        spread = [statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in numbers]
        axes.errorbar(range(len(rows)), means, yerr=spread, marker="o", capsize=3, label=name)
    texts = ["\n".join(map(str, row.values.values())) for row in rows]
    axes.set_xticks(range(len(rows)), texts)
    axes.set_xlabel(", ".join(rows[0].values) if rows else "no point has these metrics")
    axes.set_ylabel("metric")
    axes.legend()
    figure.savefig(path)


def count_outcomes(results: Sequence[Result]) -> str:
    """Say how many points were made, and what happened to their stages."""
    totals = sum((Counter(result.outcomes) for result in results), Counter())
    done = sum(not result.failed for result in results)
    words = ", ".join(f"{number} {kind}" for kind, number in totals.items())
    return f"{done} of {len(results)} points done; their stages: {words}"


def _count(row: Row) -> str:
    done = sum(not result.failed for result in row.results)
    return str(done) if done == len(row.results) else f"{done} of {len(row.results)}"


def _cell(numbers: list[float]) -> str:
    if not numbers:
        return MISSING
    return mean_and_spread(numbers) if len(numbers) > 1 else f"{numbers[0]:.4g}"
