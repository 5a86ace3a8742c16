"""How an exercise answers: one sentence and the call that failed when something is wrong; a
sentence, a tier and a table when all is right.

Comes in: what a check has found. Goes out: ``Passed``, or an ``ExerciseError`` whose sentence names
the likely mistake. Every exercise of this folder is built on these.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from ...errors import SpecMoEError, one_line

NOTHING = "you return nothing yet"
TIERS = ("pass", "good", "excellent")


class ExerciseError(SpecMoEError, AssertionError):
    """An answer is not right yet; the message names the likely mistake in one sentence. ``call``:
    the call that failed, what was answered and what is right, on lines of their own."""

    def __init__(self, sentence: str, call: str = ""):
        super().__init__(sentence)
        self.sentence = one_line(sentence)
        self.call = call

    def __str__(self) -> str:
        return "\n".join([self.sentence, *map(one_line, self.call.splitlines())])

    def at(self, call: str) -> ExerciseError:
        """The same, with the call that failed, unless one is named already."""
        return ExerciseError(self.sentence, self.call or call)

    def _render_traceback_(self) -> list[str]:
        """IPython shows the message alone: the student's mistake is not in our stack."""
        return [f"Not yet: {self}"]


class Scale(NamedTuple):
    """How a number is scored: less is better, ``limits`` for pass, good and excellent."""

    unit: str
    limits: tuple[float, float, float]

    def tier(self, score: float) -> str | None:
        """The best tier that ``score`` reaches; None: it does not pass."""
        reached = [tier for tier, limit in zip(TIERS, self.limits) if score <= limit]
        return reached[-1] if reached else None

    def __str__(self) -> str:
        steps = zip(TIERS, self.limits)
        return ", ".join(f"{tier} up to {limit:g} {self.unit}" for tier, limit in steps)


@dataclass(frozen=True)
class Passed:
    """A right answer: a sentence, scores where there are any, a tier and why it is that one."""

    sentence: str
    scores: pd.DataFrame | None = None
    tier: str = ""
    why: str = ""
    score: str = ""

    @property
    def points(self) -> int:
        """1, 2 or 3, by tier."""
        return TIERS.index(self.tier or TIERS[0]) + 1

    def __repr__(self) -> str:
        tier = f"\nTier: {self.tier} ({self.why})" if self.tier else ""
        table = "" if self.scores is None else f"\n\n{self.scores.to_string(index=False)}"
        return f"Passed: {self.sentence}{tier}{table}"


def scored(passed: Passed, score: float, scale: Scale, told: str) -> Passed:
    """``passed`` with the tier of ``score``; raises ``ExerciseError`` (``told``) below the
    lowest."""
    tier = scale.tier(score)
    if tier is None:
        raise ExerciseError(f"{told}; {scale}")
    return replace(passed, tier=tier, why=str(scale), score=f"{score:g} {scale.unit}")


def require(condition: bool, sentence: str, call: str = "") -> None:
    """Raise ``ExerciseError(sentence)`` unless ``condition``."""
    if not condition:
        raise ExerciseError(sentence, call)
