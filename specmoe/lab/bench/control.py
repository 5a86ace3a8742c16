"""How far a ratio of two methods is to be trusted: its 95 % interval over paired slices, and the
spread of two arms of one method, inside which nothing is claimed.

Comes in: what slices of two methods gave, in the order in which they took turns. Goes out: a
``Ratio``. Pure functions; ``cells``, ``tables`` and ``methods`` ask here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, by degrees of freedom; beyond them the normal distribution's.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
LEAST = 3  # slices, for an interval


@dataclass(frozen=True)
class Ratio:
    """``low`` to ``high``: the 95 % interval, None where there are too few slices. ``spread``: the
    farthest from 1 that the ratio of two arms of one method may be, as a factor of at least 1; None
    without such arms. ``old``: measured with other code than the newest rows."""

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    old: bool = False

    def within(self, goal: float) -> bool:
        """Whether the distance to ``goal`` is no more than two arms of one method lie apart."""
        if self.spread is None or self.value <= 0:
            return False
        return abs(math.log(self.value / goal)) <= math.log(self.spread)

    def open(self, goal: float) -> bool:
        """Whether the interval holds ``goal``, so that either side of it may be true."""
        return self.low is not None and self.low <= goal <= self.high


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """``ours`` over ``theirs``, slice by slice: the geometric mean and its interval. Where the two
    have not as many slices, the ratio of their medians, without one."""
    if len(ours) != len(theirs) or min(*ours, *theirs) <= 0:
        below = statistics.median(theirs)
        return Ratio(statistics.median(ours) / below if below else math.inf)
    logs = [math.log(a / b) for a, b in zip(ours, theirs)]
    middle, num = statistics.fmean(logs), len(logs)
    if num < LEAST:
        return Ratio(math.exp(middle))
    reach = t95(num - 1) * statistics.stdev(logs) / math.sqrt(num)
    return Ratio(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def t95(freedom: int) -> float:
    return T95[freedom - 1] if freedom <= len(T95) else 1.96


def spread_of(arm: Sequence[float], again: Sequence[float]) -> float | None:
    """How far two arms of one method lie apart, as a factor: the far end of their ratio's interval;
    with few slices, the farthest of them."""
    if not arm or len(arm) != len(again) or min(*arm, *again) <= 0:
        return None
    ratio = paired(again, arm)
    ends = [ratio.low, ratio.high] if ratio.low else [a / b for a, b in zip(again, arm)]
    return max(math.exp(abs(math.log(end))) for end in ends)


def words(ratio: Ratio, unit: str = "×") -> str:
    """ "6.05× (5.80 to 6.31)", or without an interval "6.05×"."""
    shown = (lambda value: f"{value:.2f}{unit}") if unit else (lambda value: f"{value:.1%}")
    if ratio.low is None or ratio.high is None:
        return shown(ratio.value)
    low, high = (f"{end:.2f}" if unit else f"{end:.1%}" for end in (ratio.low, ratio.high))
    return f"{shown(ratio.value)} ({low} to {high})"
