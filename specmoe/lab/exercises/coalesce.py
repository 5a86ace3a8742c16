"""Exercise 5: what a block of tokens has to fetch, each expert once.

Comes in: the student's ``coalesce(routing, num_tokens, resident)``: experts ``[B][T][K]`` that the
router named, of which the first ``num_tokens[b]`` tokens of a row count, and the resident experts
-> (experts to fetch, tokens by expert), the second a dictionary from every needed expert to its
tokens (row, position). Goes out: a verdict, with bytes on real routing.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .verdict import ExerciseError, Passed, call, require
from .workload import recorded_block

EXPECTS = "a pair: the experts to fetch, and a dictionary from expert to a list of (row, position)"
ROUTING = [[[1, 2], [1, 3]], [[2, 4], [0, 5]]]  # [B=2][T=2][K=2]
RECORD_BYTES = 98304


def right_answer(routing, num_tokens, resident) -> tuple[set[int], dict[int, set[tuple[int, int]]]]:
    """(experts to fetch, tokens by expert)."""
    tokens: dict[int, set[tuple[int, int]]] = {}
    for row, length in enumerate(num_tokens):
        for position in range(length):
            for expert in routing[row][position]:
                tokens.setdefault(expert, set()).add((row, position))
    return set(tokens) - set(resident), tokens


def _read(answer) -> tuple[list[int], dict[int, list[tuple[int, int]]]]:
    try:
        fetch, tokens = answer
        return [int(e) for e in fetch], {
            int(e): [(int(r), int(t)) for r, t in pairs] for e, pairs in tokens.items()
        }
    except (TypeError, ValueError, AttributeError):
        raise ExerciseError(
            f"{answer!r:.80} has the wrong form: the function should give {EXPECTS}"
        ) from None


def _check(coalesce: Callable, routing, num_tokens, resident) -> int:
    """Raise for the first mistake; the number of fetches otherwise."""
    fetch, tokens = _read(call(coalesce, routing, num_tokens, set(resident), expects=EXPECTS))
    wanted, groups = right_answer(routing, num_tokens, resident)
    first = {choices[0] for row, n in zip(routing, num_tokens) for choices in row[:n]}
    padded, _ = right_answer(routing, [len(row) for row in routing], resident)
    twice = sorted({expert for expert in fetch if fetch.count(expert) > 1})
    require(
        not twice,
        f"expert {twice[:1]} is fetched more than once: one fetch serves the tokens of all rows",
    )
    require(
        not set(fetch) & set(resident),
        f"expert {sorted(set(fetch) & set(resident))[:1]} is resident: do not fetch it again",
    )
    require(
        not set(fetch) - padded,
        f"expert {sorted(set(fetch) - padded)[:1]} is fetched and no token asked for it",
    )
    require(
        set(fetch) <= wanted,
        "padding is fetched for: only the first num_tokens[b] tokens of a row count",
    )
    require(
        wanted == set(fetch) or set(fetch) != first - set(resident),
        "only each token's first expert is fetched: it has top_k",
    )
    require(
        set(fetch) == wanted, f"expert {sorted(wanted - set(fetch))[:1]} is needed and not fetched"
    )
    missing = sorted(set(groups) - set(tokens))
    require(
        not missing or not set(missing) <= set(resident),
        f"expert {missing[:1]} is resident, but its tokens still have to be computed: list "
        "them too",
    )
    require(
        set(tokens) == set(groups),
        "the dictionary's experts are not those that the counted tokens asked for",
    )
    same = all(sorted(set(tokens[e])) == sorted(groups[e]) for e in groups)
    require(
        same,
        "a token is listed under the wrong (row, position): count positions within the row, from 0",
    )
    require(
        all(len(tokens[e]) == len(groups[e]) for e in groups),
        "a token is listed twice under one expert",
    )
    return len(fetch)


def check_coalescing(coalesce: Callable) -> Passed:
    """Verdict on ``coalesce(routing, num_tokens, resident)``; raises ``ExerciseError`` naming the
    mistake."""
    for num_tokens, resident in (
        ([2, 2], set()),
        ([2, 2], {1, 4}),
        ([1, 2], {4}),
        ([0, 2], set()),
        ([2, 1], {0}),
    ):
        _check(coalesce, ROUTING, num_tokens, resident)
    rows = []
    for num_rows in (1, 2, 6):
        block = recorded_block()[:num_rows]
        lengths = [len(row) for row in block]
        fetches = _check(coalesce, block, lengths, set())
        single = sum(len(choices) for row in block for choices in row)
        per_row = sum(len({e for choices in row for e in choices}) for row in block)
        rows.append(
            (num_rows, *(round(n * RECORD_BYTES / 1e6, 2) for n in (single, per_row, fetches)))
        )
    scores = pd.DataFrame(rows, columns=["rows", "one_by_one_MB", "per_row_MB", "yours_MB"])
    last = scores.iloc[-1]
    return Passed(
        f"a block of 6 rows fetches {last['yours_MB']} MB instead of {last['one_by_one_MB']} MB",
        scores,
    )
