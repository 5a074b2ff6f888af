"""The plot of a sweep: lines for one param, parallel coordinates for several."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.sweeps.results import Row, short_names

INCHES = (8.0, 4.5)
DOTS_PER_INCH = 120


def plot(rows: Sequence[Row], metrics: Sequence[str], best: str, path: Path) -> None:
    """Write the metrics' means over seeds against the params, as PNG.

    Args:
        rows: points without one of the metrics are left out.
        metrics: paths of metrics, at least one.
        best: the metric that colours the lines of parallel coordinates.
        path: of the picture.
    """
    rows = [row for row in rows if all(row.numbers(metric) for metric in (*metrics, best))]
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    if not rows:
        axes.text(0.5, 0.5, "no point has these metrics", ha="center")
    elif len(rows[0].values) == 1:
        _draw_lines(axes, rows, metrics)
    else:
        _draw_parallel(axes, rows, metrics, best)
    figure.savefig(path)


def _draw_lines(axes: Axes, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    (param,) = rows[0].values
    places, texts = _places([row.values[param] for row in rows])
    order = sorted(range(len(rows)), key=places.__getitem__)
    names = short_names(metrics)
    for metric in metrics:
        numbers = [rows[index].numbers(metric) for index in order]
        axes.errorbar(
            [places[index] for index in order],
            [statistics.fmean(seeds) for seeds in numbers],
            yerr=[statistics.stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in numbers],
            marker="o",
            capsize=3,
            label=names[metric],
        )
    axes.set_xticks(places, texts)
    axes.set_xlabel(param)
    axes.set_ylabel(metrics[0] if len(metrics) == 1 else "metric")
    axes.legend()


def _draw_parallel(axes: Axes, rows: Sequence[Row], metrics: Sequence[str], best: str) -> None:
    """One vertical axis per param and metric, each with its own scale; one line per row."""
    params = list(rows[0].values)
    columns = [[row.values[param] for row in rows] for param in params]
    columns += [[statistics.fmean(row.numbers(metric)) for row in rows] for metric in metrics]
    lines = []
    for position, column in enumerate(columns):
        places, texts = _places(column)
        heights = _scaled(places)
        lines.append(heights)
        ticks = sorted(set(zip(heights, texts, strict=True)))
        axes.axvline(position, color="0.7", linewidth=1, zorder=0)
        for height, text in ticks if position < len(params) else (ticks[0], ticks[-1]):
            axes.text(position + 0.02, height, text, fontsize=8, va="center", zorder=3)
    colours = colormaps["viridis"](_scaled([statistics.fmean(row.numbers(best)) for row in rows]))
    for heights, colour in zip(zip(*lines, strict=True), colours, strict=True):
        axes.plot(range(len(columns)), heights, color=colour)
    axes.set_xticks(range(len(columns)), [*params, *short_names(metrics).values()])
    axes.tick_params(axis="x", rotation=20)
    axes.set_yticks([])
    axes.set_title(f"bright: high {best}", fontsize=9)


def _scaled(values: Sequence[float]) -> list[float]:
    """Return the values mapped to 0..1; 0.5 if they are all the same."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _places(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Return where the values lie on an axis, and their texts; what is no number is counted."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return [float(value) for value in values], [f"{value:.4g}" for value in values]
    texts = list(map(str, values))
    kinds = list(dict.fromkeys(texts))
    return [float(kinds.index(text)) for text in texts], texts
