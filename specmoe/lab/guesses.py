"""A reader's guess beside the answer.

Comes in: what somebody wrote into a cell ``guess = None`` of a notebook, and the answer that the
next cell computed. Goes out: one sentence, which the cell prints.
"""

from __future__ import annotations

import math

from .words import show_number

NEAR = 0.1  # a number within a tenth of the answer is as good as right


def compare(guess, answer) -> str:
    """``guess`` beside ``answer``, in one sentence. None is no guess, and no mistake; several
    numbers (a list or tuple) are compared one by one."""
    if guess is None:
        return f"No guess was made. It is {_say(answer)}."
    if _same(guess, answer):
        return f"You guessed {_say(guess)}, and it is {_say(answer)}."
    return f"You guessed {_say(guess)}, but it is {_say(answer)}{_how_far(guess, answer)}."


def beside(guess, answer: int) -> str:
    """The answer within a sentence of the notebook's own; beside it the guess, if there was one."""
    return f"{answer:,}" if guess is None else f"{answer:,} (you said {guess})"


def _same(guess, answer) -> bool:
    if isinstance(answer, list | tuple) and isinstance(guess, list | tuple):
        return len(guess) == len(answer) and all(map(_same, guess, answer))
    if _is_number(guess) and _is_number(answer):
        return math.isclose(guess, answer, rel_tol=NEAR)
    return str(guess).strip().lower() == str(answer).strip().lower()


def _how_far(guess, answer) -> str:
    """By which factor a number is off, where that says more than the two numbers."""
    if not (_is_number(guess) and _is_number(answer)) or min(guess, answer) <= 0:
        return ""
    low, high = sorted((guess, answer))
    return f": {high / low:.1f} times as {'much' if answer > guess else 'little'}"


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _say(value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_say, value))
    if isinstance(value, float):
        return show_number(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
