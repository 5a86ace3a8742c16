"""Exercise 9: the KV cache after a rejection.

Comes in: the student's ``next_block(starts, accepted, num_tokens, length)``: where each row's last
block began ``[B]``, how many of its drafted tokens stood ``[B]``, the width of the next block and of
the cache -> where the next block begins ``[B]``, and which keys its tokens may see ``[B][T][L]``.
Goes out: a verdict; rounds are then played on a cache of tokens, where every query has to see its
own text and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from . import parts
from .calling import Task, listed, wholes
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed, require

TASK = Task(
    "next_block",
    ("starts", "accepted", "num_tokens", "length"),
    "a pair: the begin of each row's next block, and a mask [B][num_tokens][length] of True and "
    "False",
)


def rule(begin: Callable, sees: Callable) -> Callable:
    """A rule from ``begin(start, accepted)`` and ``sees(key, begin, t, T)``."""
    return lambda starts, accepted, num, length: masked(
        [begin(s, a) for s, a in zip(starts, accepted)], sees, num, length
    )


def masked(begins: list[int], sees: Callable, num: int, length: int):
    return begins, [
        [[bool(sees(key, b, t, num)) for key in range(length)] for t in range(num)] for b in begins
    ]


def _begin(start, accepted):
    return start + 1 + accepted


def _causal(key, begin, t, num):
    return key <= begin + t


def _all_rows(choose: Callable) -> Callable:
    """Every row goes back as far as one of them."""
    return lambda starts, accepted, num, length: masked(
        [s + 1 + choose(accepted) for s in starts], _causal, num, length
    )


ONE_EARLY = (
    "the next block is one position early: behind the accepted tokens stands the target's own, "
    "and it is not in the cache yet"
)
ITSELF = "a token may see itself: key <= position, not key < position"
MISTAKES = (
    Mistake(ONE_EARLY, rule(lambda s, a: s + a, _causal)),
    Mistake(
        "the next block is one position late: accepted tokens stand right behind the row's start",
        rule(lambda s, a: s + a + 2, _causal),
    ),
    Mistake(
        "you go back to the row's start: accepted tokens stay in the cache",
        rule(lambda s, a: s + 1, _causal),
    ),
    Mistake(
        "you go back to the row's start: accepted tokens stay in the cache",
        rule(lambda s, a: s, _causal),
    ),
    Mistake(
        "positions begin at the row's start, not at zero: add starts",
        rule(lambda s, a: a + 1, _causal),
    ),
    Mistake(
        "nothing is rolled back: the next block follows the accepted tokens, not the whole block",
        lambda starts, accepted, num, length: masked(
            [s + num for s in starts], _causal, num, length
        ),
    ),
    Mistake(
        "every row has its own number of accepted tokens: none waits for the shortest",
        _all_rows(min),
    ),
    Mistake(
        "every row has its own number of accepted tokens: none goes as far as the longest",
        _all_rows(max),
    ),
    Mistake(ITSELF, rule(_begin, lambda key, b, t, n: key < b + t)),
    Mistake(
        "all tokens of the block see the same keys: the token at t sees up to begin + t",
        rule(_begin, lambda key, b, t, n: key <= b),
    ),
    Mistake(
        "all tokens of the block see the same keys: the token at t sees up to begin + t",
        rule(_begin, lambda key, b, t, n: key < b),
    ),
    Mistake(
        "a token sees tokens of its block that come after it: up to begin + t and no further",
        rule(_begin, lambda key, b, t, n: key < b + n),
    ),
    Mistake(
        "a token sees tokens of its block that come after it: up to begin + t and no further",
        rule(_begin, lambda key, b, t, n: key <= b + n),
    ),
    Mistake(
        "everything is visible, stale keys of rejected tokens too: hide what lies behind the query",
        rule(_begin, lambda key, b, t, n: True),
    ),
    Mistake(
        "the mask starts at key 0 in every row: the token at t stands at begin + t",
        rule(_begin, lambda key, b, t, n: key <= t),
    ),
    Mistake(
        "the prefix is hidden: a token sees all earlier tokens of its row, not its block alone",
        rule(_begin, lambda key, b, t, n: b <= key <= b + t),
    ),
    Mistake(
        "the mask is upside down: True is what a token may see",
        rule(_begin, lambda key, b, t, n: key > b + t),
    ),
    Mistake(
        "the mask still belongs to the last block: use the new begin",
        lambda starts, accepted, num, length: (
            [_begin(s, a) for s, a in zip(starts, accepted)],
            masked(list(starts), _causal, num, length)[1],
        ),
    ),
)


def read_block(answer) -> tuple[list[int], list[list[list[bool]]]]:
    begins, mask = answer
    rows = [[listed(query) for query in listed(row)] for row in listed(mask)]
    if any(value not in (True, False) for row in rows for query in row for value in query):
        raise ExerciseError("the mask holds something else than True and False")
    return wholes(begins), [[[bool(v) for v in query] for query in row] for row in rows]


RULE = Rule(
    TASK,
    parts.next_block,
    read_block,
    MISTAKES,
    "a block begins at start + 1 + accepted, and its token at t sees the keys up to begin + t",
)


def _cases() -> list[Case]:
    draw = random.Random(11)
    cases = [
        Case(([4], [0], 1, 8), "nothing stood: the target's own token follows the row's last"),
        Case(([4], [2], 2, 9)),
        Case(([4, 1], [2, 0], 3, 10), "rows of different lengths go back differently"),
    ]
    for number in range(40):
        rows, width = 1 + number % 3, draw.randint(1, 4)
        starts = [draw.randint(0, 5) for _ in range(rows)]
        accepted = [draw.randint(0, 3) for _ in range(rows)]
        cases.append(Case((starts, accepted, width, max(starts) + width + 4)))
    return cases


def _play(next_block: Callable, draw: random.Random) -> None:
    """Rounds over a cache that holds tokens; a query must see its row's text up to itself."""
    width, length, num_rows = 4, 40, 3
    texts = [[draw.randrange(90) for _ in range(draw.randint(1, 4))] for _ in range(num_rows)]
    cache = [text[:-1] + [-1] * (length - len(text) + 1) for text in texts]
    begins, accepted = [len(text) - 2 for text in texts], [0] * num_rows
    for _ in range(6):
        arguments = (begins, accepted, width, length)
        begins, mask = TASK.ask(next_block, arguments, read_block)
        told = TASK.told(arguments, answer=begins)
        accepted = [draw.randint(0, width - 1) for _ in texts]
        for b, text in enumerate(texts):
            block = [text[-1], *(draw.randrange(100, 190) for _ in range(width - 1))]
            cache[b][begins[b] : begins[b] + width] = block
            for t in range(width):
                seen = [token for token, shown in zip(cache[b], mask[b][t]) if shown]
                require(seen == text[:-1] + block[: t + 1], "a query sees another row's text", told)
            text += [*block[1 : accepted[b] + 1], draw.randrange(90)]


def check_rollback(next_block: Callable) -> Passed:
    """Verdict on ``next_block(starts, accepted, num_tokens, length)``; raises ``ExerciseError``
    naming the mistake."""
    cases, draw = _cases(), random.Random(12)
    RULE.check(next_block, cases)
    for _ in range(10):
        _play(next_block, draw)
    return Passed(
        f"{len(cases)} random blocks, and 60 rounds on a cache in which every query saw its own "
        "row's text and nothing stale"
    )
