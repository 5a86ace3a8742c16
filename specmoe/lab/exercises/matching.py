"""Which mistake was made: the wrong rule that answers as the student does.

Comes in: a ``Rule`` (the task, a right function, wrong ones each with its sentence), a student's
function and cases, the smallest first. Goes out: nothing, or an ``ExerciseError`` at the first case
that is answered wrongly. Its sentence is that of the wrong rule whose answers agree with the
student's on nearly all cases; where none does, the sentence of the case, or ``otherwise``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .calling import Task
from .verdict import ExerciseError

ENOUGH = 0.9  # share of the cases in which a wrong rule must answer as the student does
PROBES = 60


class Mistake(NamedTuple):
    """A wrong rule, and what to say to whoever answers as it does."""

    sentence: str
    rule: Callable


class Case(NamedTuple):
    """Arguments, and the sentence for whoever gets them wrong as nobody else does."""

    arguments: tuple
    sentence: str = ""


def equal(answer: Any, right: Any, arguments: tuple) -> bool:
    return answer == right


@dataclass(frozen=True)
class Rule:
    """A function that has one right answer. ``agrees(answer, right, arguments)``: is it right?"""

    task: Task
    right: Callable
    read: Callable
    mistakes: Sequence[Mistake]
    otherwise: str
    agrees: Callable[[Any, Any, tuple], bool] = equal

    def check(self, function: Callable, cases: Sequence[Case]) -> None:
        """Raise at the first case that is answered wrongly; then ask again, backwards: an answer
        that changes remembers something."""
        for number, case in enumerate(cases):
            right = self.right(*copy.deepcopy(case.arguments))
            note = f" ({case.sentence})" if case.sentence else ""
            given = self.task.call(function, *case.arguments, right=right, note=note)
            answer = self.task.read(given, case.arguments, self.read, right)
            if not self.agrees(answer, right, case.arguments):
                told = self.task.told(case.arguments, answer=given, right=right)
                raise ExerciseError(self._sentence(function, cases, number), told)
        for case in reversed(cases[:PROBES]):
            right = self.right(*copy.deepcopy(case.arguments))
            answer = self.task.ask(function, case.arguments, self.read, right)
            if not self.agrees(answer, right, case.arguments):
                raise ExerciseError(
                    "asked a second time your function answers differently: it remembers "
                    "something between calls, in a global variable or a default argument",
                    self.task.told(case.arguments, answer=answer, right=right),
                )

    def _sentence(self, function: Callable, cases: Sequence[Case], failed: int) -> str:
        """The sentence of the wrong rule that answers alike most often; cases in which the
        student's function fails say nothing."""
        tried = [(case, self._try(function, case)) for case in [cases[failed], *cases[:PROBES]]]
        answered = [(case, answer) for case, answer in tried if answer is not None]
        best, most = cases[failed].sentence or self.otherwise, ENOUGH * len(answered)
        for sentence, rule in self.mistakes:
            alike = [self._alike(rule, case, answer) for case, answer in answered]
            if alike[0] and sum(alike) > most:
                best, most = sentence, sum(alike)
        return best

    def _alike(self, rule: Callable, case: Case, answer: Any) -> bool:
        wrong = self._try(rule, case)
        if wrong is None:
            return False
        return answer == wrong or self.agrees(answer, wrong, case.arguments)

    def _try(self, function: Callable, case: Case) -> Any:
        try:
            return self.task.ask(function, case.arguments, self.read)
        except Exception:
            return None
