"""Exercise 5: what a block of tokens has to fetch, each expert once.

Comes in: the student's ``coalesce(routing, num_tokens, resident)``: experts ``[B][T][K]`` that the
router named, of which the first ``num_tokens[b]`` tokens of a row count, and the resident experts
-> (experts to fetch, tokens by expert), the second a dictionary from every needed expert to its
tokens (row, position). Goes out: a verdict, with bytes on real routing.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from . import parts
from .calling import Task, listed, whole, wholes
from .verdict import ExerciseError, Passed, require
from .workload import recorded_block

TASK = Task(
    "coalesce",
    ("routing", "num_tokens", "resident"),
    "a pair: the experts to fetch, and a dictionary from expert to a list of (row, position)",
)
ROUTING = [[[1, 2], [1, 3]], [[2, 4], [0, 5]]]  # [B=2][T=2][K=2]
RECORD_BYTES = 98304


def _read(answer) -> tuple[list[int], dict[int, list[tuple[int, int]]]]:
    fetch, tokens = answer
    if isinstance(fetch, dict):
        raise ExerciseError("your pair is the wrong way round: first the list, then the dictionary")
    pairs = {whole(e): [tuple(map(whole, pair)) for pair in listed(p)] for e, p in tokens.items()}
    if any(len(pair) != 2 for group in pairs.values() for pair in group):
        raise ExerciseError("a token is a pair (row, position)")
    return wholes(fetch), pairs


def _lengths(routing) -> list[int]:
    return [len(row) for row in routing]


def _fetch_problems(fetch, arguments):
    """(is it wrong, sentence) about the list of experts to fetch, the first that holds is told."""
    routing, num_tokens, resident = arguments
    wanted = set(parts.coalesce(*arguments)[0])
    padded = set(parts.coalesce(routing, _lengths(routing), resident)[0])
    first = {choices[0] for row, n in zip(routing, num_tokens) for choices in row[:n]} - resident
    twice = sorted({expert for expert in fetch if fetch.count(expert) > 1})
    here, nobody = sorted(set(fetch) & resident), sorted(set(fetch) - padded)
    missing = sorted(wanted - set(fetch))
    yield twice, f"expert {twice[:1]} is fetched more than once: one fetch serves all rows"
    yield here, f"expert {here[:1]} is resident: do not fetch it again"
    yield nobody, f"expert {nobody[:1]} is fetched and no token asked for it"
    yield (
        set(fetch) - wanted,
        "padding is fetched for: only the first num_tokens[b] tokens of a row count",
    )
    yield (
        missing and set(fetch) == first,
        "only each token's first expert is fetched: it has top_k",
    )
    yield missing, f"expert {missing[:1]} is needed and not fetched"


def _token_problems(tokens, arguments):
    """The same about the dictionary, once the list is right."""
    routing, num_tokens, resident = arguments
    groups = {e: sorted(pairs) for e, pairs in parts.coalesce(*arguments)[1].items()}
    padded = parts.coalesce(routing, _lengths(routing), resident)[1]
    missing, more = sorted(set(groups) - set(tokens)), sorted(set(tokens) - set(groups))
    yield (
        missing and set(missing) <= resident,
        f"expert {missing[:1]} is resident, but its tokens still have to be computed: list them "
        "too",
    )
    yield missing, f"expert {missing[:1]} is needed and not in the dictionary"
    yield (
        more and not any(tokens[e] for e in more),
        f"expert {more[:1]} has no tokens: leave it out of the dictionary",
    )
    yield (
        more
        or any(
            set(tokens[e]) - set(groups[e]) and set(tokens[e]) <= set(padded[e]) for e in groups
        ),
        "padding is computed: only the first num_tokens[b] tokens of a row count",
    )
    swapped = {e: sorted((t, b) for b, t in pairs) for e, pairs in groups.items()}
    yield (
        {e: sorted(p) for e, p in tokens.items()} == swapped != groups,
        "a token is (row, position), and yours are (position, row)",
    )
    yield (
        any(len(set(tokens[e])) < len(tokens[e]) for e in groups),
        "a token is listed twice under one expert",
    )
    yield (
        any(set(tokens[e]) < set(groups[e]) for e in groups),
        "an expert lists only some of its tokens: it computes every token that asked for it",
    )
    yield (
        any(sorted(tokens[e]) != groups[e] for e in groups),
        "a token is listed under the wrong (row, position): count positions within the row, from 0",
    )


def _check(coalesce: Callable, routing, num_tokens, resident) -> int:
    """Raise for the first mistake; the number of fetches otherwise."""
    arguments = (routing, num_tokens, set(resident))
    right = parts.coalesce(*arguments)
    fetch, tokens = TASK.ask(coalesce, arguments, _read, right)
    told = TASK.told(arguments, answer=(fetch, tokens), right=right)
    for wrong, sentence in _fetch_problems(fetch, arguments):
        require(not wrong, sentence, told)
    for wrong, sentence in _token_problems(tokens, arguments):
        require(not wrong, sentence, told)
    return len(fetch)


def _cases() -> list[tuple]:
    """Small ones first; then random ragged blocks, with any experts resident."""
    draw = random.Random(6)
    cases = [
        (ROUTING, [2, 2], set()),
        (ROUTING, [2, 2], {1, 4}),
        (ROUTING, [1, 2], {4}),
        (ROUTING, [0, 2], set()),
        (ROUTING, [2, 1], {0}),
        (ROUTING, [0, 0], {0}),
    ]
    for number in range(60):
        rows, width, top_k = 1 + number % 3, draw.randint(1, 4), draw.randint(1, 3)
        routing = [[draw.sample(range(6), top_k) for _ in range(width)] for _ in range(rows)]
        lengths = [draw.randint(0, width) for _ in range(rows)]
        cases.append((routing, lengths, set(draw.sample(range(6), draw.randint(0, 4)))))
    return cases


def check_coalescing(coalesce: Callable) -> Passed:
    """Verdict on ``coalesce(routing, num_tokens, resident)``; raises ``ExerciseError`` naming the
    mistake."""
    for case in [*_cases(), *_cases()[:9]]:  # the first ones again: does it remember anything?
        _check(coalesce, *case)
    rows = []
    for num_rows in (1, 2, 6):
        block = recorded_block()[:num_rows]
        fetches = _check(coalesce, block, _lengths(block), set())
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
