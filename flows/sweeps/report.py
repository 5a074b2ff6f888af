"""The report of a sweep: tables, the best point, and how to continue from it; MLflow draws it."""

import fnmatch
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.intervals import t_interval
from flows.overlay import look_up, read_params
from flows.sweeps.points import Point, point_name
from flows.table import MISSING, align, counted, mean_and_spread

RESULTS, TABLE = "results.json", "table.txt"
SPLIT = "evaluation.split"


@dataclass(frozen=True)
class Question:
    """What a sweep's report shows: patterns of metrics' paths, and which one decides the best."""

    metrics: tuple[str, ...] = ("evaluation/*/generalized/novel/*/AP50",)
    best: str = "evaluation/detector/generalized/novel/segm/AP50"
    direction: str = "max"  # or min
    over: tuple[str, ...] = ("seed",)  # params over which mean and spread are taken
    against: str | None = None  # row to compare the others with; the first if None


@dataclass(frozen=True)
class Result:
    """The result of one point; a failed one has the metrics of the stages that it finished."""

    point: Point
    failed: bool
    metrics: dict[str, float]  # "<stage>/<key>/<key>…"
    outcomes: dict[str, int] = field(default_factory=dict)  # number of stages by what happened
    supervision: dict[str, str] = field(default_factory=dict)  # evaluated model → its sources


@dataclass(frozen=True)
class Row:
    """All points that are shown alike, but for the seed."""

    values: dict[str, Any]
    results: list[Result]

    def numbers(self, metric: str) -> list[float]:
        """Return the metric of every seed that has it."""
        return [result.metrics[metric] for result in self.finished(metric)]

    def paired(self, first: "Row", metric: str, over: Sequence[str]) -> list[float]:
        """Return the metric less that of another row, for every seed that has both."""
        here, there = (
            {
                repr([result.point.values.get(key) for key in over]): result.metrics[metric]
                for result in row.finished(metric)
            }
            for row in (self, first)
        )
        return [here[seed] - there[seed] for seed in here if seed in there]

    def finished(self, metric: str) -> list[Result]:
        """Return the points that are done and have the metric."""
        return [r for r in self.results if not r.failed and metric in r.metrics]

    def supervision(self, metrics: Iterable[str]) -> str:
        """Return what the last of the models of these metrics learned from; "" if not known."""
        models = {metric.split("/")[1] for metric in metrics if metric.startswith("evaluation/")}
        done = [result.supervision for result in self.results if not result.failed]
        told = [[own[model] for model in own if model in models] for own in done]
        return " | ".join(dict.fromkeys(own[-1] for own in told if own))

    def count(self) -> str:
        """Say how many points are done."""
        done = sum(not result.failed for result in self.results)
        return str(done) if done == len(self.results) else f"{done} of {len(self.results)}"


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write every metric of every point into the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")


def write_report(root: Path, folder: Path, results: Sequence[Result], question: Question) -> str:
    """Write the table into the sweep's folder; return the report's text."""
    if all(result.failed for result in results):
        return "No point was finished, so there is nothing to compare"
    rows = group_seeds(results, question.over)
    try:
        metrics = choose_metrics(results, question.metrics)
    except ValueError as error:  # no reason to call the sweep failed
        return f"{error}; --metric shows others"
    text, over = ", ".join(question.metrics), " and ".join(question.over)
    if any(len(row.results) > 1 for row in rows):
        text += f", mean ± standard deviation over {over}"
    text += "\n" + _table(rows, metrics, lambda row, metric: _cell(row.numbers(metric)))
    text += _differences(rows, metrics, question)
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    if len(rows) == 1:
        return text
    try:
        best_metric, *more = choose_metrics(results, [question.best])
    except ValueError as error:
        return f"{text}\n\nNone is the best: {error}; --best takes another"
    if more:
        return f"{text}\n\n--best {question.best}: matches {1 + len(more)} metrics; give one"
    best = find_best(rows, best_metric, question.direction)
    if best is None:
        return f"{text}\n\nNo point has {best_metric} for all its seeds, so none is the best"
    values = ", ".join(f"{key} = {value}" for key, value in best.values.items())
    names = ", ".join(result.point.name for result in best.results)
    text += f"\n\nBest: {values}, with {best_metric} {_cell(best.numbers(best_metric))}"
    text += f"\n`dvc exp apply <name>` takes a point into the workspace: {names}"
    default = look_up(read_params(root), SPLIT)
    if any(result.point.values.get(SPLIT, default) == "test" for result in results):
        text += (
            f"\nChosen on the test images, so its numbers flatter it: choose with -S {SPLIT}=val,"
            " and measure only what was chosen on test"
        )
    return text


def _differences(rows: Sequence[Row], metrics: Sequence[str], question: Question) -> str:
    """Return the table of all rows less one of them, or "" if no two have seeds in common."""
    first, over = find_row(rows, question.against), question.over

    def gain(row: Row, metric: str) -> list[float]:
        return row.paired(first, metric, over)

    others = [row for row in rows if row is not first]
    if not any(len(gain(row, metric)) > 1 for row in others for metric in metrics):
        return ""
    text = f"\n\nThe same less {question.against or 'the first row'}, paired by"
    text += f" {' and '.join(over)}, with 95 % t intervals\n"
    return text + _table(others, metrics, lambda row, metric: _difference(gain(row, metric)))


def check_question(points: Sequence[Point], question: Question) -> None:
    """Raise ValueError if the points have no param or no row of a name that the question has."""
    known = {key for point in points for key in point.values}.union(Question.over)
    for key in question.over:
        if key not in known:
            told = ", ".join(dict.fromkeys(key for point in points for key in point.shown))
            raise ValueError(f"--over {key}: the points do not set it; they set {told}")
    rows = group_seeds([Result(point, False, {}) for point in points], question.over)
    find_row(rows, question.against)


def find_row(rows: Sequence[Row], name: str | None) -> Row:
    """Return the row of a name, which is that of its points without the seed; the first if None.

    Raises:
        ValueError: there is none.
    """
    by_name = {point_name(row.values): row for row in rows}
    if name is not None and name not in by_name:
        there = " ".join(filter(None, by_name))
        fix = f"expected one of {there}" if there else "all points are one row; leave it out"
        raise ValueError(f"--against {name}: {fix}")
    return rows[0] if name is None else by_name[name]


def group_seeds(results: Sequence[Result], over: Sequence[str]) -> list[Row]:
    """Return the results grouped by what differs between them, except `over`."""
    points = [result.point.shown for result in results]
    keys = dict.fromkeys(key for point in points for key in point if key not in over)
    kept = [key for key in keys if any(p.get(key) != points[0].get(key) for p in points)]
    rows: dict[str, Row] = {}  # by the values, which may be lists
    for result in results:
        values = {key: result.point.shown.get(key, "") for key in kept}
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
    """Return the row with the "max" or "min" mean; one over fewer seeds is not comparable."""
    whole = [row for row in rows if len(row.numbers(metric)) == len(row.results)]
    choose = max if direction == "max" else min
    return choose(whole, key=lambda row: statistics.fmean(row.numbers(metric)), default=None)


def _short_names(metrics: Sequence[str]) -> Sequence[str]:
    """Return the parts of the metrics' paths in which they differ."""
    parts = [metric.split("/") for metric in metrics]
    if len(metrics) < 2 or len({len(path) for path in parts}) > 1:
        return metrics
    kept = [index for index, column in enumerate(zip(*parts, strict=True)) if len({*column}) > 1]
    return [" ".join(path[index] for index in kept) for path in parts]


def count_outcomes(results: Sequence[Result]) -> str:
    """Say how many points were made, and what happened to their stages."""
    totals = sum((Counter(result.outcomes) for result in results), Counter())
    done = sum(not result.failed for result in results)
    words = ", ".join(f"{number} {kind}" for kind, number in sorted(totals.items()))
    return f"{done} of {counted(len(results), 'point')} done; their stages: {words}"


def _table(rows: Sequence[Row], metrics: Sequence[str], cell: Callable[[Row, str], str]) -> str:
    told = [row.supervision(metrics) for row in rows]
    known = any(told)
    cells = [[*rows[0].values, *["supervision"] * known, "points", *_short_names(metrics)]]
    for row, own in zip(rows, told, strict=True):
        start = [*map(str, row.values.values()), *[own or MISSING] * known, row.count()]
        cells.append([*start, *(cell(row, metric) for metric in metrics)])
    return align(cells, right=range(len(cells[0])))


def _difference(numbers: list[float]) -> str:
    if len(numbers) < 2:
        return MISSING
    mean, (low, high) = statistics.fmean(numbers), t_interval(numbers)
    digits = 1 if max(abs(low), abs(high)) > 1 else 3
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _cell(numbers: list[float]) -> str:
    if not numbers:
        return MISSING
    return mean_and_spread(numbers) if len(numbers) > 1 else f"{numbers[0]:.4g}"
