"""One exercise: its check, its hints, and the tier of an answer.

Comes in: what a student calls, ``check_nearest(table)`` or ``hint(1)``. Goes out: ``Passed`` with a
tier, or an ``ExerciseError``. Where a number is scored the check gives the tier; else it is given
by the hints that were read in this session. What passes goes to the leaderboard, where one is
named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from . import leaderboard
from .hints import HINTS
from .verdict import ExerciseError, Passed, require

BY_HINTS = "excellent without a hint, good after hints 1 and 2, pass after hint 3"
TIER_AFTER = ("excellent", "good", "good", "pass")
LEVELS = ("a nudge", "the idea", "almost the code")


class Hint(str):
    """A hint that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


@dataclass
class Exercise:
    """A check that can be called. State: the highest hint that was read."""

    name: str
    check: Callable[..., Passed]
    hints_read: int = 0

    def __call__(self, *answers, board=None) -> Passed:
        """The verdict on ``answers``; ``board`` names a leaderboard file."""
        try:
            passed = self.check(*answers)
        except ExerciseError as failure:
            # from here, so that no traceback of ours is kept
            raise failure from None
        passed = passed if passed.tier else self._by_hints(passed)
        note = leaderboard.add(self.name, passed, board)
        return replace(passed, why=f"{passed.why} {note}") if note else passed

    def _by_hints(self, passed: Passed) -> Passed:
        read = f"hint {self.hints_read} read" if self.hints_read else "no hint read"
        tier = TIER_AFTER[self.hints_read]
        return replace(passed, tier=tier, why=f"{read}; {BY_HINTS}", score=read)

    def hint(self, level: int = 1) -> Hint:
        """Hint 1, 2 or 3: a nudge, the idea, almost the code."""
        known = isinstance(level, int) and not isinstance(level, bool) and 1 <= level <= 3
        require(known, f"there is no hint {level!r}: 1 is a nudge, 2 the idea, 3 almost the code")
        self.hints_read = max(self.hints_read, level)
        return Hint(f"Hint {level}, {LEVELS[level - 1]}:\n{HINTS[self.name][level - 1]}")
