"""Exercise 3: greedy acceptance on rows that drafted different numbers of tokens.

Comes in: the student's ``accept(target, drafted, num_drafted)``: the target's own token at each
position ``[B][G + 1]``, drafted tokens ``[B][G]``, of which ``num_drafted`` ``[B]`` count -> a list
of (accepted, token) per row. Goes out: verdict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...speculate.sampling import accept_matching
from .verdict import Case, Passed, check_cases

EXPECTS = "a list with one pair (accepted, token) per row"


def read_verdicts(answer) -> list[tuple[int, int]]:
    return [(int(accepted), int(token)) for accepted, token in answer]


def _first_rejected(answer) -> str:
    """A row that drafted 5 7 9 where the target says 5 8 6, then 4 (right: one accepted, token
    8)."""
    known = {
        (1, 7): "after a rejection the row gains the target's token, not the drafted one",
        (1, 4): "the token that follows is the target's at the first rejection, not at the end of "
        "the block",
        (1, 6): "the token is one position late: after `accepted` tokens comes target[accepted]",
        (1, 5): "the token is one position early: after `accepted` tokens comes target[accepted]",
        (0, 5): "target[i] answers drafted[i], at the same position: there is no shift between "
        "them",
        (0, 8): "target[i] answers drafted[i], at the same position: there is no shift between "
        "them",
    }
    pair = answer[0] if len(answer) == 1 else None
    return known.get(
        pair,
        "one token agrees, then one differs: accepted is the number of agreeing tokens before it",
    )


CASES = [
    Case(([[5, 8, 6, 4]], [[5, 7, 9]], [3]), [(1, 8)], _first_rejected),
    Case(
        ([[5, 8, 6, 4]], [[5, 7, 6]], [3]),
        [(1, 8)],
        "agreement after a rejection does not count: take the prefix",
    ),
    Case(
        ([[5, 8, 6, 4]], [[5, 8, 6]], [3]),
        [(3, 4)],
        "all accepted: the row gains one more, the target's bonus token",
    ),
    Case(
        ([[5, 8, 0, 0]], [[5, 8, 0]], [2]),
        [(2, 0)],
        "padding behind num_drafted was not drafted, even if it agrees",
    ),
    Case(
        ([[5, 8, 6]], [[0, 0]], [0]),
        [(0, 5)],
        "a row that drafted nothing still gains the target's first token",
    ),
    Case(
        ([[5, 8, 6], [1, 2, 3]], [[5, 8], [9, 2]], [2, 2]),
        [(2, 6), (0, 1)],
        "every row has its own number of accepted tokens: none waits for the shortest",
    ),
]


def check_acceptance(accept: Callable) -> Passed:
    """Verdict on ``accept(target, drafted, num_drafted)``; raises ``ExerciseError`` naming the
    mistake."""
    check_cases(accept, CASES, EXPECTS, read_verdicts)
    generator = torch.Generator().manual_seed(0)
    cases = []
    for _ in range(50):  # three tokens only, so that long agreement happens
        target = torch.randint(3, (4, 6), generator=generator)
        drafted = torch.randint(3, (4, 5), generator=generator)
        num_drafted = torch.randint(6, (4,), generator=generator).tolist()
        expected = [tuple(verdict) for verdict in accept_matching(target, drafted, num_drafted)]
        mistake = "the small cases are right, a random block is not"
        cases.append(Case((target.tolist(), drafted.tolist(), num_drafted), expected, mistake))
    check_cases(accept, cases, EXPECTS, read_verdicts)
    return Passed(
        "the same verdicts as specmoe.speculate.sampling.accept_matching on 50 random ragged blocks"
    )
