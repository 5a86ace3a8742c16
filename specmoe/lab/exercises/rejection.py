"""Exercise 4: speculative sampling that leaves the target's distribution as it is.

Comes in: the student's ``verify(p, q, token, uniform)``: distributions of target and draft (lists
that sum to 1), the token drawn from q, one draw in [0, 1) -> ``None`` when the token is accepted,
else the distribution of the token that replaces it. Goes out: a verdict. Nothing is drawn: what
comes out is summed over all tokens and a grid of draws.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch

from ...speculate.sampling import accept_by_rejection
from .verdict import ExerciseError, Passed, call, require

EXPECTS = "None to accept (for at least one draw), else a list of probabilities"
P, Q, GRID = [0.5, 0.3, 0.2, 0.0], [0.2, 0.3, 0.1, 0.4], 200
P2, Q2 = [0.1, 0.6, 0.3], [0.5, 0.3, 0.2]


def _answers(verify: Callable, p, q, token: int) -> list:
    """The answers for ``token`` on a grid of draws: None where it was accepted."""
    answers = []
    for step in range(GRID):
        given = (list(p), list(q), token, (step + 0.5) / GRID)
        try:
            answer = verify(*given)
            answers.append(None if answer is None else [float(x) for x in answer])
        except NotImplementedError:
            raise ExerciseError(
                "you return nothing yet: the function should raise no NotImplementedError"
            ) from None
        except Exception as failure:
            raise ExerciseError(
                f"your function raised {type(failure).__name__}: {failure}"
            ) from failure
    return answers


def _check_rate(p, q, token: int, rate: float) -> None:
    """``rate``: how often ``token`` was accepted."""
    right = min(1.0, p[token] / q[token])
    if abs(rate - right) < 1.5 / GRID:
        return
    tail = (
        f" (token {token}: p={p[token]}, q={q[token]}, accepted in {rate:.0%} of the draws, "
        f"right is {right:.0%})"
    )
    known = [
        (
            min(1.0, q[token] / max(p[token], 1e-9)),
            "you accept with q / p: the ratio is upside down",
        ),
        (1 - right, "you accept when the draw is above the ratio: accept below it"),
        (p[token], "you accept with probability p: divide by q, with which the token was drawn"),
        (
            1.0,
            "you accept a token that the target wants less often than the draft: accept with "
            "min(1, p / q)",
        ),
        (0.0, "you reject where p is below q: accept with probability p / q there"),
    ]
    for wrong, sentence in known:
        require(abs(rate - wrong) >= 1.5 / GRID, sentence + tail)
    raise ExerciseError("the acceptance is not min(1, p / q)" + tail)


def _check_residual(p, q, residual: list[float]) -> None:
    require(
        len(residual) == len(p),
        f"the replacement needs {len(p)} probabilities, one per token, and has {len(residual)}",
    )
    require(
        all(x == x for x in residual), "the replacement holds NaN: something was divided by zero"
    )
    require(
        min(residual) >= 0, "the replacement holds negative probabilities: cut p - q off at zero"
    )
    known = {
        "you replace a rejected token by a draw from p: what the draft already covers is then "
        "counted twice": list(p),
        "you replace a rejected token by a draw from q: it must come from what the target has "
        "beyond the draft": list(q),
        "you subtract the wrong way round: the replacement comes from max(0, p - q), not max(0, q "
        "- p)": _positive(q, p),
        "you take |p - q|: cut it off at zero instead": _scaled([abs(a - b) for a, b in zip(p, q)]),
    }
    for sentence, wrong in known.items():
        require(not _close(residual, wrong), sentence)
    require(
        abs(sum(residual) - 1) < 1e-6,
        f"the replacement sums to {sum(residual):.3f}: divide it by its sum",
    )
    require(
        _close(residual, _positive(p, q)), "the replacement is not max(0, p - q) divided by its sum"
    )


def _scaled(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


def _positive(p, q) -> list[float]:
    return _scaled([max(0.0, a - b) for a, b in zip(p, q)])


def _close(a, b) -> bool:
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b))


def outcome(verify: Callable, p, q) -> list[float]:
    """The distribution of the token that comes out, summed over q and the grid of draws."""
    total = [0.0] * len(p)
    for token, chance in enumerate(q):
        for answer in _answers(verify, p, q, token):
            replaced = [float(i == token) for i in range(len(p))] if answer is None else answer
            total = [old + chance * new / GRID for old, new in zip(total, replaced)]
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
    call(lambda: True if callable(verify) else None, expects="a function")
    every = [_answers(verify, P, Q, token) for token in range(len(P))]
    silent = all(answer is None for answers in every for answer in answers)
    require(
        not silent,
        "you return nothing yet: None accepts every token, also those that the target never gives",
    )
    for p, q in ((P2, Q2), (P, Q)):
        for token in range(len(p)):
            answers = _answers(verify, p, q, token)
            _check_rate(p, q, token, sum(answer is None for answer in answers) / GRID)
            for residual in [answer for answer in answers if answer is not None][:1]:
                _check_residual(p, q, residual)
    require(
        all(a is None for a in _answers(verify, P2, P2, 0)),
        "where p equals q nothing may be rejected",
    )
    rows = [(name, _distance(outcome(rule, P, Q), P)) for name, rule in _rules(verify).items()]
    return Passed(
        "what comes out has the target's distribution",
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
