"""Exercise 4: speculative sampling that leaves the target's distribution as it is.

Comes in: the student's ``verify(p, q, token, uniform)``: distributions of target and draft (lists
that sum to 1), the token drawn from q, one draw in [0, 1) -> ``None`` when the token is accepted,
else the distribution of its replacement. Goes out: a verdict. Nothing is drawn: answers are compared
on both sides of the right threshold, and what comes out is summed over tokens and a grid of draws.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd
import torch

from ...speculate.sampling import accept_by_rejection
from . import parts
from .calling import Task, numbers
from .matching import Case, Mistake, Rule
from .verdict import NOTHING, ExerciseError, Passed, require

EXPECTS = "None to accept, else a list of V probabilities"
TASK = Task("verify", ("p", "q", "token", "uniform"), EXPECTS, none_is_an_answer=True)
P, Q, GRID = [0.1, 0.6, 0.3], [0.5, 0.3, 0.2], 200
FAR = 0.01  # total variation that the grid of draws may leave


def accepted_where(rule: Callable) -> Callable:
    """A wrong rule of acceptance from ``rule(p, q, u)`` on the token's own probabilities; what it
    replaces with is not compared."""
    return lambda p, q, token, u: None if rule(p[token], q[token], u) else [0.0] * len(p)


def _or(otherwise: Callable) -> Callable:
    """Accept where p >= q; below it as ``otherwise(p, q)`` says."""
    return accepted_where(lambda a, b, u: a >= b or u < otherwise(a, b))


UPSIDE_DOWN = "you accept with q / p: the ratio is upside down"
P_ALONE = "you accept with probability p: divide by q, with which the token was drawn"
RATIO = "where p is below q the chance is p / q and nothing else"
ACCEPTANCE = (
    Mistake(
        "you reject where p is below q: accept with probability p / q there",
        accepted_where(lambda a, b, u: a >= b),
    ),
    Mistake(UPSIDE_DOWN, accepted_where(lambda a, b, u: u * a < b)),
    Mistake(P_ALONE, accepted_where(lambda a, b, u: u < a)),
    Mistake(P_ALONE, _or(lambda a, b: a)),
    Mistake(
        "you accept when the draw is above the ratio: accept below it",
        accepted_where(lambda a, b, u: u * b > a),
    ),
    Mistake(
        "you accept every token: a token that the target wants less often than the draft is to be "
        "accepted with min(1, p / q)",
        accepted_where(lambda a, b, u: True),
    ),
    Mistake(
        "you accept no token: accept with probability min(1, p / q)",
        accepted_where(lambda a, b, u: False),
    ),
    Mistake(
        "you divide by 1 - q, the chance that the draft would *not* draw this token: " + RATIO,
        _or(lambda a, b: a / max(1 - b, 1e-9)),
    ),
    Mistake(
        "you divide by 1 - q, the chance that the draft would *not* draw this token: " + RATIO,
        accepted_where(lambda a, b, u: u * (1 - b) < a),
    ),
    Mistake("you take a fixed multiple of p: " + RATIO, _or(lambda a, b: 2 * a)),
    Mistake("you take a fixed multiple of p: " + RATIO, accepted_where(lambda a, b, u: u < 2 * a)),
    Mistake(
        "you accept with p / (p + q): " + RATIO,
        accepted_where(lambda a, b, u: u * (a + b) < a),
    ),
    Mistake("you accept with p / (p + q): " + RATIO, _or(lambda a, b: a / max(a + b, 1e-9))),
    Mistake(
        "you accept with 1 - (q - p), the difference: " + RATIO,
        accepted_where(lambda a, b, u: u < 1 - (b - a)),
    ),
    Mistake(
        "you accept with q, with which the token was drawn: " + RATIO,
        accepted_where(lambda a, b, u: u < b),
    ),
    Mistake(
        "you use one draw against a fixed threshold: the threshold is this token's p / q",
        accepted_where(lambda a, b, u: u < 0.5),
    ),
    Mistake(
        "you accept where the target would choose this token itself: that is greedy decoding",
        lambda p, q, token, u: None if p[token] == max(p) else [0.0] * len(p),
    ),
    Mistake(
        "you accept with the rate of all tokens together, the sum of min(p, q): each token has "
        "its own p / q",
        lambda p, q, token, u: None if u < sum(map(min, p, q)) else [0.0] * len(p),
    ),
)


def replaced_by(replace: Callable) -> Callable:
    """The right acceptance with ``replace(p, q, token)``."""
    return lambda p, q, token, u: None if u < p[token] / q[token] else replace(p, q, token)


def _scaled(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values] if sum(values) else values


def _beyond(p, q) -> list[float]:
    return [max(0.0, a - b) for a, b in zip(p, q)]


def _without(p, q, token) -> list[float]:
    return [0.0 if other == token else a for other, a in enumerate(p)]


REPLACEMENT = (
    Mistake(
        "you replace a rejected token by a draw from p: what the draft already covers is then "
        "counted twice",
        replaced_by(lambda p, q, token: p),
    ),
    Mistake(
        "you replace a rejected token by a draw from q: it must come from what the target has "
        "beyond the draft",
        replaced_by(lambda p, q, token: q),
    ),
    Mistake(
        "you subtract the wrong way round: the replacement comes from max(0, p - q), not "
        "max(0, q - p)",
        replaced_by(lambda p, q, token: _scaled(_beyond(q, p))),
    ),
    Mistake(
        "you take |p - q|: cut it off at zero instead",
        replaced_by(lambda p, q, token: _scaled([abs(a - b) for a, b in zip(p, q)])),
    ),
    Mistake(
        "the replacement holds negative probabilities: cut p - q off at zero",
        replaced_by(lambda p, q, token: [a - b for a, b in zip(p, q)]),
    ),
    Mistake(
        "the replacement does not sum to 1: divide it by its sum",
        replaced_by(lambda p, q, token: _beyond(p, q)),
    ),
    Mistake(
        "you leave the rejected token out and keep the rest of p: take from each token what q "
        "already covers",
        replaced_by(lambda p, q, token: _scaled(_without(p, q, token))),
    ),
    Mistake(
        "you leave the rejected token out and keep the rest of p: take from each token what q "
        "already covers",
        replaced_by(_without),
    ),
    Mistake(
        "you give all to the likeliest token: the replacement is a distribution, and is drawn from",
        replaced_by(lambda p, q, token: [float(a == max(p)) for a in p]),
    ),
    Mistake(
        "every token gets the same: the replacement is max(0, p - q) divided by its sum",
        replaced_by(lambda p, q, token: [1 / len(p)] * len(p)),
    ),
    Mistake(
        "you divide by 1 - sum(min(p, q)) or the like twice: max(0, p - q) is divided by its sum "
        "once",
        replaced_by(lambda p, q, token: [x / sum(_beyond(p, q)) ** 2 for x in _beyond(p, q)]),
    ),
)


def _read(answer) -> list[float] | None:
    if isinstance(answer, bool):
        raise ExerciseError(f"your answer is {answer}: give {EXPECTS}")
    return None if answer is None else numbers(answer)


def _alike(answer, right, arguments) -> bool:
    if answer is None or right is None:
        return answer is right
    return len(answer) == len(right) and all(abs(a - b) < 1e-6 for a, b in zip(answer, right))


def _verdict(answer) -> str:
    return "accepted" if _read(answer) is None else "rejected"


ACCEPTS = Rule(
    TASK,
    lambda *given: _verdict(parts.verify(*given)),
    _verdict,
    ACCEPTANCE,
    "the acceptance is not min(1, p / q): try the call below by hand",
)
REPLACES = Rule(
    TASK,
    parts.verify,
    _read,
    REPLACEMENT,
    "the replacement is not max(0, p - q) divided by its sum",
    _alike,
)


def distributions(draw: random.Random, size: int) -> tuple[list[float], list[float]]:
    """Random p and q in steps of 0.05; a few entries are zero."""

    def one() -> list[float]:
        cuts = sorted(draw.randint(0, 20) for _ in range(size - 1))
        return [(b - a) / 20 for a, b in zip([0, *cuts], [*cuts, 20])]

    return one(), one()


def pairs(num: int) -> list[tuple[list[float], list[float]]]:
    """Pairs of distributions, ``num`` of them random, over 2 to 6 tokens; one pair is equal."""
    draw = random.Random(4)
    return [(P, Q), (P, P), *(distributions(draw, 2 + i % 5) for i in range(num))]


def _draws(ratio: float, draw: random.Random) -> list[float]:
    """Draws close to the right threshold on both sides, and anywhere."""
    near = [ratio - 1e-6, ratio + 1e-6, ratio - 0.05, ratio + 0.05]
    anywhere = [(i + draw.random()) / 8 for i in range(8)]
    return [u for u in [*near, *anywhere] if 0 < u < 1]


def _cases() -> list[Case]:
    draw, cases = random.Random(5), []
    for p, q in pairs(30):
        for token in [token for token, chance in enumerate(q) if chance]:
            draws = _draws(p[token] / q[token], draw)
            cases += [Case((p, q, token, u)) for u in draws if abs(u * q[token] - p[token]) > 1e-9]
    draw.shuffle(cases)
    first = [Case((P, Q, 0, 0.15)), Case((P, Q, 0, 0.35)), Case((P, Q, 1, 0.9))]
    return first + cases


def outcome(verify: Callable, p, q) -> list[float]:
    """The distribution of the token that comes out, summed over q and a grid of draws."""
    total = [0.0] * len(p)
    for token, chance in enumerate(q):
        for step in range(GRID if chance else 0):
            answer = verify(list(p), list(q), token, (step + 0.5) / GRID)
            replaced = [float(i == token) for i in range(len(p))] if answer is None else answer
            total = [old + chance * float(new) / GRID for old, new in zip(total, replaced)]
    return total


def package_verify(p, q, token, uniform):
    """The package's own rule in the exercise's form."""
    both = torch.tensor([p, p], dtype=torch.float64)  # [G + 1, V]
    accepted, residual = accept_by_rejection(
        both, torch.tensor([token]), torch.tensor([q], dtype=torch.float64), [uniform]
    )
    return None if accepted else residual.tolist()


def check_sampling(verify: Callable) -> Passed:
    """Verdict on ``verify(p, q, token, uniform)``; raises ``ExerciseError`` naming the mistake."""
    TASK.check_function(verify)
    cases = _cases()
    answers = [TASK.ask(verify, case.arguments, _read) for case in cases[:60]]
    require(
        any(answer is not None for answer in answers),
        f"{NOTHING}: None accepts every token, also those that the target never gives",
        TASK.told(cases[1].arguments, answer=answers[1], right=parts.verify(*cases[1].arguments)),
    )
    ACCEPTS.check(verify, cases)
    REPLACES.check(verify, cases)
    for p, q in pairs(30):
        came = outcome(verify, p, q)
        require(
            _distance(came, p) < FAR,
            f"what comes out is {[round(x, 3) for x in came]} and the target is {p}, with q={q}",
        )
    rows = [(name, _distance(outcome(rule, P, Q), P)) for name, rule in _rules(verify).items()]
    return Passed(
        f"what comes out has the target's distribution, for {len(pairs(30))} pairs of p and q",
        pd.DataFrame(rows, columns=["rule", "distance_from_p"]),
    )


def _rules(verify: Callable) -> dict[str, Callable]:
    def from_p(p, q, token, uniform):
        return None if package_verify(p, q, token, uniform) is None else p

    return {
        "yours": verify,
        "specmoe": package_verify,
        "replace from p": from_p,
        "accept all": lambda *_: None,
    }


def _distance(a, b) -> float:
    """Total variation, 0 to 1; rounded, as the grid of draws is no finer."""
    return round(sum(abs(x - y) for x, y in zip(a, b)) / 2, 3)
