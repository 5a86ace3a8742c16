"""A target beside what was measured: one number, or one of several batches; and its verdict.

Comes in: a goal, ratios with their intervals and A/A, what the floor would allow. Goes out: an
``Outcome``, and a frame of their words. ``tables`` says which targets there are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pandas as pd

from .cells import among
from .control import Ratio, words

Values = dict[int, Ratio | None]  # by batch
VERDICTS = ("no", "within the spread", "within the interval", "yes")  # the worst first


@dataclass(frozen=True)
class Outcome:
    """One target. ``found``: what was measured; ``at_least``: whether more is better; ``floor`` and
    ``note`` are words. ``bound``: what ``found`` would be at the floor; ``each``: what has to hold
    one by one, where the target is of every batch."""

    name: str
    goal: float
    at_least: bool
    found: Ratio | None = None
    floor: str = ""
    note: str = ""
    unit: str = "×"
    bound: float | None = None
    each: tuple[Ratio, ...] = ()

    @property
    def measured(self) -> float | None:
        return self.found.value if self.found else None

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else self._reaches(self.measured)

    @property
    def verdict(self) -> str:
        """The worst of all that has to hold; of a missed one, why. No claim where two arms of one
        method lie as far apart as the measured and the goal, or where the interval holds the
        goal."""
        if self.found is None:
            return ""
        said = {self.verdict_of(ratio) for ratio in self.each or (self.found,)}
        worst = next(verdict for verdict in VERDICTS if verdict in said)
        if worst == "no":
            missed_too = self.bound is not None and not self._reaches(self.bound)
            worst = "no: the floor forbids it" if missed_too else "no: not reached"
        return f"{worst} (old)" if self.found.old else worst

    def verdict_of(self, ratio: Ratio) -> str:
        """Of one of all that has to hold."""
        if ratio.within(self.goal):
            return "within the spread"
        if ratio.open(self.goal):
            return "within the interval"
        return "yes" if self._reaches(ratio.value) else "no"

    def _reaches(self, value: float) -> bool:
        return value >= self.goal if self.at_least else value <= self.goal

    def words(self, value: float) -> str:
        return words(Ratio(value), self.unit)


def target_frame(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """Target, measured, whether it was met, the floor, and the single values behind it, in
    words."""
    rows = [
        {
            "what": one.name,
            "target": f"{'≥' if one.at_least else '≤'} {one.words(one.goal)}",
            "measured": words(one.found, one.unit) if one.found else "not measured",
            "met": one.verdict,
            "A/A": f"± {one.found.spread - 1:.1%}" if one.found and one.found.spread else "",
            "what the floor would allow": one.floor,
            "by batch": one.note,
        }
        for one in outcomes
    ]
    return pd.DataFrame(rows)


# ---- of several batches ----


def of_batches(target: Outcome, values: Values, take: Callable) -> Outcome:
    """``target`` with ``take`` of the batches that were measured last; the note says which, where
    there are several, and what is older. The worst of them: all of them have to hold."""
    new, old = (_those(values, old=old) for old in (False, True))
    note = f"B = {', '.join(_listed(new))}" if len(values) > 1 and new else ""
    if len(values) > 1 and old:
        note = f"{note}; old: " * bool(note) + f"B = {', '.join(_listed(old))}"
    last = new or old
    every = tuple(last.values()) if take is (min if target.at_least else max) else ()
    return replace(target, found=_taken(take, last), note=note, each=every)


def _those(values: Values, old: bool) -> dict[int, Ratio]:
    return {b: ratio for b, ratio in values.items() if ratio is not None and ratio.old == old}


def _listed(values: dict[int, Ratio]) -> list[str]:
    return [f"{batch}: {words(ratio).replace('×', '')}" for batch, ratio in values.items()]


def _taken(take: Callable, values: dict[int, Ratio]) -> Ratio | None:
    """The least or the greatest as it is; of a mean, the mean of the ends and the widest spread."""
    if not values:
        return None
    if take is not statistics.mean:
        return take(values.values(), key=lambda ratio: ratio.value)

    def mean(name: str) -> float | None:
        ends = [getattr(ratio, name) for ratio in values.values()]
        return None if None in ends else statistics.mean(ends)

    spread = among(max, [ratio.spread for ratio in values.values()])
    old = any(ratio.old for ratio in values.values())
    return Ratio(
        statistics.mean(r.value for r in values.values()), mean("low"), mean("high"), spread, old
    )


def those_measured(values: Values) -> dict[int, Ratio]:
    """By batch what was measured last."""
    return _those(values, old=False) or _those(values, old=True)
