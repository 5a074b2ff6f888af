"""The last words of a sweep: table, plot, the best point, and how to go on from it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.nested import look_up
from flows.overlay import read_params
from flows.sweeps.plot import plot
from flows.sweeps.results import (
    Result,
    Row,
    choose_metrics,
    find_best,
    group_seeds,
    short_names,
)
from flows.table import MISSING, align, mean_and_spread

METRICS = ("evaluation/*/generalized/novel/*/AP50",)
BEST = "evaluation/detector/generalized/novel/segm/AP50"
RESULTS, TABLE, PLOT = "results.json", "table.txt", "plot.png"
SPLIT = "evaluation.split"


@dataclass(frozen=True)
class Question:
    """What is asked of a sweep: metrics as patterns of paths, and of which the best counts."""

    metrics: tuple[str, ...] = METRICS
    best: str = BEST
    direction: str = "max"  # or min
    over: str = "seed"  # the param over which mean and spread are taken


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write every metric of every point into the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(result) for result in results], indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")


def write_report(
    root: Path, folder: Path, results: Sequence[Result], question: Question
) -> tuple[str, list[dict[str, str]]]:
    """Write table and plot into the sweep's folder; return all that is to say, and the table.

    Raises:
        ValueError: nothing matches a pattern of the question.
    """
    if all(result.failed for result in results):
        return "No point was finished, so there is nothing to compare", []
    rows = group_seeds(results, question.over)
    metrics = choose_metrics(results, question.metrics)
    best_metric, *others = choose_metrics(results, [question.best])
    if others:
        raise ValueError(f"--best {question.best}: matches {1 + len(others)} metrics; give one")
    cells = report_rows(rows, metrics)
    header = list(cells[0])
    table = align([header, *(list(row.values()) for row in cells)], right=range(len(header)))
    drawn = rows if rows[0].values else group_seeds(results, over="")  # seeds alone: no mean
    plot(drawn, metrics, best_metric, folder / PLOT)
    spread = f", mean ± standard deviation over {question.over}"
    repeated = any(len(row.results) > 1 for row in rows)
    text = "\n".join([f"{', '.join(question.metrics)}{spread if repeated else ''}", table])
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    lines = [text]
    if len(rows) > 1:
        lines += _choose(root, rows, results, best_metric, question.direction)
    return "\n".join(lines), cells


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
            f"Chosen on the test pictures, so its numbers flatter it: choose with -S {SPLIT}=val,"
            " and measure only what was chosen on test"
        )
    return lines


def report_rows(rows: Iterable[Row], metrics: Sequence[str]) -> list[dict[str, str]]:
    """Return one mapping of column to text per row: params, seeds, and each metric."""
    names = short_names(metrics)
    return [
        {
            **{key: str(value) for key, value in row.values.items()},
            "points": _count(row),
            **{names[metric]: _cell(row.numbers(metric)) for metric in metrics},
        }
        for row in rows
    ]


def count_outcomes(results: Sequence[Result]) -> str:
    """Return in words how many points were made, and what happened to their stages."""
    kinds = dict.fromkeys(kind for result in results for kind in result.outcomes)
    totals = {kind: sum(result.outcomes.get(kind, 0) for result in results) for kind in kinds}
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
