"""Intervals of means over seeds."""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

CONFIDENCE = 0.95


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the mean's two-sided 95 % t interval; infinite with one value."""
    if len(values) == 1:
        return -math.inf, math.inf
    mean, count = statistics.fmean(values), len(values)
    error = statistics.stdev(values) / math.sqrt(count)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return mean - half, mean + half
