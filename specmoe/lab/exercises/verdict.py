"""How an exercise answers: one sentence when something is wrong, a sentence and a table when all is
right.

Comes in: a student's function and small cases with known answers. Goes out: ``Passed``, or an
``ExerciseError`` whose sentence names the likely mistake. Every exercise of this folder is built on
these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from ...errors import SpecMoEError

NOTHING = "you return nothing yet"


class ExerciseError(SpecMoEError, AssertionError):
    """An answer is not right yet; the message names the likely mistake in one sentence."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows the sentence alone: the student's mistake is not in our stack."""
        return [f"Not yet: {self}"]


@dataclass(frozen=True)
class Passed:
    """A right answer: a sentence, and scores where there are any."""

    sentence: str
    scores: pd.DataFrame | None = None

    def __repr__(self) -> str:
        table = "" if self.scores is None else f"\n\n{self.scores.to_string(index=False)}"
        return f"Passed: {self.sentence}{table}"


class Case(NamedTuple):
    """Arguments with a known answer, chosen so that one mistake shows in it."""

    arguments: tuple
    expected: Any
    # the sentence for whoever gets this one wrong, or how to find it from the answer
    mistake: str | Callable[[Any], str]


def require(condition: bool, sentence: str) -> None:
    """Raise ``ExerciseError(sentence)`` unless ``condition``."""
    if not condition:
        raise ExerciseError(sentence)


def call(function: Callable, *arguments, expects: str) -> Any:
    """``function(*arguments)``, with its exceptions and an empty answer turned into
    ``ExerciseError``.

    ``expects`` says in words what should come back. The arguments are handed over as copies, and
    may not be changed.
    """
    require(
        callable(function),
        f"give the function itself, not {type(function).__name__}: leave out its brackets",
    )
    given = copy.deepcopy(arguments)
    try:
        answer = function(*given)
    except NotImplementedError:
        answer = None
    except Exception as failure:
        raise ExerciseError(
            f"your function raised {type(failure).__name__}: {failure}"
        ) from failure
    require(answer is not None, f"{NOTHING}: the function should give {expects}")
    return answer


def check_cases(
    function: Callable, cases: list[Case], expects: str, read: Callable[[Any], Any]
) -> None:
    """Try the cases in order and stop at the first wrong one. ``read`` brings an answer into the
    form of ``expected``."""
    for case in cases:
        answer = call(function, *case.arguments, expects=expects)
        try:
            answer = read(answer)
        except (TypeError, ValueError, RuntimeError):
            raise ExerciseError(
                f"{answer!r:.80} has the wrong form: the function should give {expects}"
            ) from None
        if answer != case.expected:
            mistake = case.mistake(answer) if callable(case.mistake) else case.mistake
            raise ExerciseError(
                f"{mistake} (you give {answer!r:.80}, right is {case.expected!r:.80})"
            )
