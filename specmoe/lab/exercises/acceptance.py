"""Exercise 3: greedy acceptance on rows that drafted different numbers of tokens.

Comes in: the student's ``accept(target, drafted, num_drafted)``: the target's own token at each
position ``[B][G + 1]``, drafted tokens ``[B][G]``, of which ``num_drafted`` ``[B]`` count -> a list
of (accepted, token) per row. Goes out: verdict.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from ...speculate.sampling import accept_matching
from . import parts
from .calling import Task, listed, whole
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed, require

TASK = Task(
    "accept",
    ("target", "drafted", "num_drafted"),
    "a list with one pair (accepted, token) per row",
)


def read_verdicts(answer) -> list[tuple[int, int]]:
    rows = listed(answer)
    if len(rows) == 2 and not any(isinstance(row, list | tuple) for row in rows):
        raise ExerciseError("this is one pair: give a list with one pair for each row")
    return [(whole(accepted), whole(token)) for accepted, token in map(listed, rows)]


def prefix(row, guesses) -> int:
    """How many of ``guesses`` agree before the first that does not."""
    return next((i for i, (a, b) in enumerate(zip(row, guesses)) if a != b), len(guesses))


def by_row(rule: Callable) -> Callable:
    """A rule on all rows from one on one row (target, drafted, number drafted)."""
    return lambda target, drafted, num: [rule(t, d, n) for t, d, n in zip(target, drafted, num)]


def counted(number: Callable, token: Callable) -> Callable:
    """A rule from ``number(t, d, n)`` accepted and ``token(t, d, accepted)``."""

    def rule(t, d, n):
        accepted = number(t, d, n)
        return accepted, token(t, d, accepted)

    return by_row(rule)


def _right_number(t, d, n):
    return prefix(t, d[:n])


def _right_token(t, d, accepted):
    return t[accepted]


def _all_agreeing(t, d, n):
    return sum(a == b for a, b in zip(t, d[:n]))


def _of_all_rows(choose: Callable) -> Callable:
    def rule(target, drafted, num):
        accepted = choose(_right_number(*row) for row in zip(target, drafted, num))
        return [(accepted, t[accepted]) for t in target]

    return rule


def _without_bonus(t, d, n):
    accepted = _right_number(t, d, n)
    return (accepted, t[accepted]) if accepted < n else (accepted - 1, t[accepted - 1])


TAKE_PREFIX = "agreement after a rejection does not count: take the prefix"
PADDED = "padding behind num_drafted was not drafted, even if it agrees"
TARGETS_OWN = "after a rejection the row gains the target's token, not the drafted one"
SHIFT = "target[i] answers drafted[i], at the same position: there is no shift between them"
MISTAKES = (
    Mistake(TAKE_PREFIX, counted(_all_agreeing, _right_token)),
    Mistake(
        TAKE_PREFIX,
        by_row(lambda t, d, n: (_all_agreeing(t, d, n), t[_right_number(t, d, n)])),
    ),
    Mistake(PADDED, counted(lambda t, d, n: prefix(t, d), _right_token)),
    Mistake(
        "the token that follows is the target's at the first rejection, not at the end of the "
        "block",
        counted(_right_number, lambda t, d, a: t[-1]),
    ),
    Mistake(TARGETS_OWN, counted(_right_number, lambda t, d, a: (d + [t[-1]])[a])),
    Mistake(TARGETS_OWN, counted(_right_number, lambda t, d, a: (d + [0])[a])),
    Mistake(TARGETS_OWN, counted(_right_number, lambda t, d, a: d[min(a, len(d) - 1)])),
    Mistake(
        "the token is one position late: after `accepted` tokens comes target[accepted]",
        counted(_right_number, lambda t, d, a: t[min(a + 1, len(t) - 1)]),
    ),
    Mistake(
        "the token is one position late: after `accepted` tokens comes target[accepted]",
        counted(_right_number, lambda t, d, a: t[a + 1]),
    ),
    Mistake(
        "the token is one position early: after `accepted` tokens comes target[accepted]",
        counted(_right_number, lambda t, d, a: t[max(a - 1, 0)]),
    ),
    Mistake(
        "the token is one position early: after `accepted` tokens comes target[accepted]",
        counted(_right_number, lambda t, d, a: t[a - 1]),
    ),
    Mistake(SHIFT, counted(lambda t, d, n: prefix(t[1:], d[:n]), _right_token)),
    Mistake(SHIFT, counted(lambda t, d, n: prefix(t, d[1:n]), _right_token)),
    Mistake(
        "all accepted: the row gains one more, the target's bonus token", by_row(_without_bonus)
    ),
    Mistake(
        "every row has its own number of accepted tokens: none waits for the shortest",
        _of_all_rows(min),
    ),
    Mistake(
        "every row has its own number of accepted tokens: the longest does not speak for all",
        _of_all_rows(max),
    ),
    Mistake(
        "accepted counts drafted tokens only: the target's own token comes on top",
        by_row(lambda t, d, n: (_right_number(t, d, n) + 1, t[_right_number(t, d, n)])),
    ),
    Mistake(
        "you accept whatever was drafted: compare each token with the target's",
        counted(lambda t, d, n: n, _right_token),
    ),
    Mistake(
        "you accept nothing: a drafted token that equals the target's stands",
        counted(lambda t, d, n: 0, _right_token),
    ),
    Mistake(
        "this is where the row was rejected, not how many agreed before it: all-accepted rows "
        "have no such place",
        by_row(
            lambda t, d, n: (
                (0, t[0]) if _right_number(t, d, n) == n else parts.accept([t], [d], [n])[0]
            )
        ),
    ),
)
RULE = Rule(
    TASK,
    parts.accept,
    read_verdicts,
    MISTAKES,
    "accepted is the number of agreeing tokens before the first that differs, and the token is "
    "target[accepted]",
)
SMALL = [
    Case(([[5, 8, 6, 4]], [[5, 7, 9]], [3])),
    Case(([[5, 8, 6, 4]], [[5, 7, 6]], [3]), TAKE_PREFIX),
    Case(
        ([[5, 8, 6, 4]], [[5, 8, 6]], [3]),
        "all accepted: the row gains one more, the target's bonus token",
    ),
    Case(([[5, 8, 0, 0]], [[5, 8, 0]], [2]), PADDED),
    Case(
        ([[5, 8, 6]], [[0, 0]], [0]),
        "a row that drafted nothing still gains the target's first token",
    ),
    Case(
        ([[5, 8, 6], [1, 2, 3]], [[5, 8], [9, 2]], [2, 2]),
        "every row has its own number of accepted tokens",
    ),
    Case(([[5]], [[]], [0]), "a round may draft nothing at all: gamma = 0 is plain decoding"),
]


def _random_cases() -> list[Case]:
    draw, cases = random.Random(3), []
    for number in range(60):  # three tokens only, so that long agreement happens
        rows, gamma = 1 + number % 4, 1 + number % 5
        target = [[draw.randrange(3) for _ in range(gamma + 1)] for _ in range(rows)]
        drafted = [
            [t if draw.random() < 0.6 else draw.randrange(3) for t in row[:-1]] for row in target
        ]
        cases.append(Case((target, drafted, [draw.randint(0, gamma) for _ in range(rows)])))
    return cases


def check_acceptance(accept: Callable) -> Passed:
    """Verdict on ``accept(target, drafted, num_drafted)``; raises ``ExerciseError`` naming the
    mistake."""
    given = SMALL[0].arguments
    answer = TASK.ask(accept, given, read_verdicts)
    told = TASK.told(given, answer=answer, right=[(1, 8)])
    require(len(answer) == 1, "one pair (accepted, token) is needed for each row", told)
    cases = SMALL + _random_cases()
    RULE.check(accept, cases)
    for case in cases:
        target, drafted, num = case.arguments
        own = accept_matching(torch.tensor(target), torch.tensor(drafted).view(len(num), -1), num)
        assert [tuple(verdict) for verdict in own] == parts.accept(*case.arguments)
    return Passed(
        "the same verdicts as specmoe.speculate.sampling.accept_matching on "
        f"{len(cases)} ragged blocks, and the text is the target's own in each"
    )
