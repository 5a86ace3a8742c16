"""Exercise 11: expected tokens per round (Leviathan et al., arXiv:2211.17192, equation 1).

Comes in: the student's ``expected_tokens(alpha, gamma)``: the chance that a drafted token stands,
given that all before it stood, and how many are drafted -> tokens that a row gains per round. Goes
out: a verdict, with the formula beside recorded rounds of a shipped model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from . import parts
from .calling import Task
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed, require
from .workload import recorded_rounds

TASK = Task("expected_tokens", ("alpha", "gamma"), "one number, tokens per round")
NUM_ROUNDS, FAR = 20_000, 0.06


def _series(alpha: float, first: int, last: int) -> float:
    return sum(alpha**i for i in range(first, last + 1))


MISTAKES = (
    Mistake(
        "the bonus is missing: the target's own token comes on top of the accepted ones",
        lambda a, g: _series(a, 1, g),
    ),
    Mistake(
        "the last term is missing: all gamma tokens may stand, so the sum goes to alpha^gamma",
        lambda a, g: _series(a, 0, g - 1),
    ),
    Mistake(
        "one term too many: alpha^gamma is the last, as no more than gamma tokens are drafted",
        lambda a, g: _series(a, 0, g + 1),
    ),
    Mistake(
        "you expect alpha of the gamma tokens to stand: a rejection ends the round, so the token "
        "at i stands with chance alpha^i",
        lambda a, g: 1 + a * g,
    ),
    Mistake(
        "you expect alpha of the gamma tokens to stand, and leave out the target's own token",
        lambda a, g: a * g,
    ),
    Mistake(
        "you expect alpha of gamma + 1 tokens: the target's own token always comes",
        lambda a, g: a * (g + 1),
    ),
    Mistake("this is the most a round can give: weigh it by chances", lambda a, g: g + 1.0),
    Mistake(
        "this is a round without an end: gamma stops it, so the series is cut off",
        lambda a, g: 1 / (1 - a) if a < 1 else 1e9,
    ),
    Mistake(
        "this counts only rounds in which all are accepted: rounds that end earlier give tokens too",
        lambda a, g: 1 + g * a**g,
    ),
    Mistake(
        "this counts only rounds in which all are accepted: rounds that end earlier give tokens too",
        lambda a, g: (g + 1) * a**g,
    ),
    Mistake(
        "this is the chance that all are accepted, not a number of tokens",
        lambda a, g: a**g,
    ),
    Mistake(
        "you have taken 1 - alpha for alpha: alpha is the chance to stand",
        lambda a, g: _series(1 - a, 0, g),
    ),
    Mistake(
        "the sum is not divided by 1 - alpha: (1 - alpha^(gamma + 1)) / (1 - alpha)",
        lambda a, g: 1 - a ** (g + 1),
    ),
    Mistake(
        "you divide by alpha: (1 - alpha^(gamma + 1)) / (1 - alpha)",
        lambda a, g: (1 - a ** (g + 1)) / a,
    ),
    Mistake(
        "you round to whole tokens: an expectation need not be whole",
        lambda a, g: float(round(_series(a, 0, g))),
    ),
    Mistake(
        "you round to whole tokens: an expectation need not be whole",
        lambda a, g: float(int(_series(a, 0, g))),
    ),
)


def read_number(answer) -> float:
    if isinstance(answer, bool | list | tuple | dict | str):
        raise TypeError(answer)
    number = float(answer)
    if number != number:
        raise ExerciseError("your answer is not a number (NaN): was zero divided by zero?")
    return number


RULE = Rule(
    TASK,
    parts.expected_tokens,
    read_number,
    MISTAKES,
    "the token at i stands with chance alpha^i; add those up to gamma, and one for the target's own",
    lambda answer, right, arguments: abs(answer - right) < 1e-6,
)


def _cases() -> list[Case]:
    draw = random.Random(15)
    cases = [
        Case((0.5, 1), "one drafted token: half of the rounds give two tokens, half give one"),
        Case((0.5, 2)),
        Case((0.8, 5)),
        Case((0.8, 0), "gamma = 0 is plain decoding: one token per round"),
    ]
    cases += [Case((round(draw.uniform(0.05, 0.95), 2), draw.randint(0, 12))) for _ in range(30)]
    return cases + [
        Case((0.0, 4), "alpha = 0: nothing stands, and the target's own token comes"),
        Case((1.0, 4), "alpha = 1: everything stands, gamma + 1 tokens; mind the division by zero"),
    ]


def counted(alpha: float, gamma: int) -> float:
    """Tokens per round in ``NUM_ROUNDS`` drawn rounds."""
    draw, total = random.Random(16), 0
    for _ in range(NUM_ROUNDS):
        stood = 0
        while stood < gamma and draw.random() < alpha:
            stood += 1
        total += stood + 1
    return total / NUM_ROUNDS


def check_expected_tokens(expected_tokens: Callable) -> Passed:
    """Verdict on ``expected_tokens(alpha, gamma)``; raises ``ExerciseError`` naming the mistake."""
    RULE.check(expected_tokens, _cases())
    for alpha, gamma in ((0.3, 2), (0.6, 4), (0.8, 5), (0.9, 8)):
        come = counted(alpha, gamma)
        require(
            abs(expected_tokens(alpha, gamma) - come) < FAR,
            f"{NUM_ROUNDS} drawn rounds give {come:.2f} tokens at alpha={alpha}, gamma={gamma}",
        )
    return Passed(
        f"what {NUM_ROUNDS} drawn rounds give; below, alpha is that of the recorded rounds with "
        "gamma = 1 (tiny-skewed)",
        beside_recorded(expected_tokens),
    )


def beside_recorded(expected_tokens: Callable) -> pd.DataFrame:
    """The formula beside recorded rounds of a shipped model."""
    tokens = {g: run.num_new_tokens / float(run.rows.sum()) for g, run in recorded_rounds().items()}
    alpha = tokens[1] - 1
    rows = [
        (gamma, round(alpha, 3), round(expected_tokens(alpha, gamma), 2), round(found, 2))
        for gamma, found in tokens.items()
    ]
    return pd.DataFrame(rows, columns=["gamma", "alpha", "yours", "recorded"])
