"""A guess beside the answer: right, near, off, of another kind, or none at all."""

from __future__ import annotations

import pytest

from specmoe.lab.guesses import compare


@pytest.mark.parametrize(
    ("guess", "answer", "said"),
    [
        (None, 12, "No guess was made. It is 12."),
        (None, (3, 0.51234), "No guess was made. It is 3, 0.512."),
        (12, 12, "You guessed 12, and it is 12."),
        (0.65, 0.6712, "You guessed 0.65, and it is 0.671."),
        (6, 12, "You guessed 6, but it is 12: 2.0 times as much."),
        (40.0, 10, "You guessed 40, but it is 10: 4.0 times as little."),
        (0, 3, "You guessed 0, but it is 3."),
        ((3, 1), [3, 2], "You guessed 3, 1, but it is 3, 2."),
        ((3, 1), [3, 1], "You guessed 3, 1, and it is 3, 1."),
        ((3,), [3, 1], "You guessed 3, but it is 3, 1."),
        (" Cached", "cached", "You guessed  Cached, and it is cached."),
        (True, False, "You guessed yes, but it is no."),
        ("many", 2194, "You guessed many, but it is 2194."),
    ],
)
def test_a_guess_is_set_beside_the_answer(guess, answer, said):
    assert compare(guess, answer) == said
