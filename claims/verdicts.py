"""Decides whether a comparison holds, and whether a claim does, over a few seeds.

Everything is paired by seed. Each row is tested by itself: it holds if the two-sided 95 % t
interval of its mean difference lies above its margin, fails if it lies below, and is undecided
otherwise.

A claim of several rows holds if all of them hold. It is only as certain as its least certain row,
so its p is the largest one-sided p of its rows; no correction is needed within the claim (an
intersection-union test). Across claims there is one family: each claim's test of our procedure and,
if measured, of the paper's. Holm's step-down method keeps the probability that any of them holds by
chance at 2.5 %, one side of a two-sided 95 % interval. Rows "beside" belong to no family.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from flows.intervals import CONFIDENCE, t_interval

LEVEL = (1 - CONFIDENCE) / 2  # significance level of a one-sided test

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Difference:
    """A paired difference over seeds.

    Attributes:
        values: better − factor × worse, for each seed.
        mean: over seeds.
        low, high: bounds of the t interval around the mean; infinite with one seed.
        margin: what the mean must exceed.
        p: one-sided probability of a mean at least this large if the true mean is the margin.
    """

    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    margin: float
    p: float

    @property
    def verdict(self) -> Verdict:
        """The verdict: whether the interval lies above, around or below the margin."""
        if self.low > self.margin:
            return "holds"
        return "fails" if self.high < self.margin else "undecided"


def difference(
    better: Sequence[float], worse: Sequence[float], factor: float = 1.0, margin: float = 0.0
) -> Difference:
    """Return the paired difference of the values of at least one seed."""
    values = tuple(b - factor * w for b, w in zip(better, worse, strict=True))
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Difference(values, mean, *t_interval(values), margin, 1.0)
    error = statistics.stdev(values) / math.sqrt(count)
    if error > 0:
        p = float(stats.t.sf((mean - margin) / error, count - 1))
    else:
        p = 0.0 if mean > margin else 1.0
    return Difference(values, mean, *t_interval(values), margin, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values in the given order; reject at level α those at most α."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def joint_verdict(rows: Sequence[Difference], adjusted_p: float) -> Verdict:
    """Return the verdict of a claim from its rows and its adjusted p."""
    if adjusted_p <= LEVEL:
        return "holds"
    return "fails" if any(row.verdict == "fails" for row in rows) else "undecided"
