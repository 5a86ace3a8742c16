"""Exercise 13: which experts to read ahead.

Comes in: the student's ``read_ahead(votes, held, quorum, room)``: votes ``[L][E]`` (tokens of the
draft whose router chose the expert), the experts in fast memory or under way as a set of (layer,
expert), how many votes an expert needs, how many reads may begin -> a list of (layer, expert), the
first read first. Goes out: a verdict, with what such reads would have served in recorded rounds.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from . import parts
from .calling import Task, listed, wholes
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed
from .workload import recorded_votes

TASK = Task(
    "read_ahead",
    ("votes", "held", "quorum", "room"),
    "a list of pairs (layer, expert), the one to read first in front",
)
ROOMS = (2, 4, 8, 16, 32)


def rule(order: Callable = None, enough: Callable = None, free: Callable = None) -> Callable:
    """A rule from ``order(layer, expert, votes)``, ``enough(votes, quorum)`` and ``free(key,
    held)``; what is not named is right."""
    order = order or (lambda layer, expert, votes: (layer, -votes))
    enough = enough or (lambda votes, quorum: votes >= quorum)
    free = free or (lambda key, held: key not in held)

    def read_ahead(votes, held, quorum, room):
        named = [
            (layer, e)
            for layer, row in enumerate(votes)
            for e in range(len(row))
            if enough(row[e], quorum) and free((layer, e), held)
        ]
        return sorted(named, key=lambda key: order(*key, votes[key[0]][key[1]]))[:room]

    return read_ahead


def _room_first(votes, held, quorum, room):
    return [key for key in parts.read_ahead(votes, set(), quorum, room) if key not in held]


def _room_per_layer(votes, held, quorum, room):
    layers = range(len(votes))
    keys = parts.read_ahead(votes, held, quorum, len(votes) * len(votes[0]))
    return [key for one in layers for key in [k for k in keys if k[0] == one][:room]]


def _by_turns(votes, held, quorum, room):
    keys = parts.read_ahead(votes, held, quorum, len(votes) * len(votes[0]))
    places = [sum(other[0] == key[0] for other in keys[:i]) for i, key in enumerate(keys)]
    return [key for _, key in sorted(zip(places, keys), key=lambda pair: pair[0])][:room]


def _swapped(*arguments):
    return [(expert, layer) for layer, expert in parts.read_ahead(*arguments)]


VOTES_FIRST = (
    "you read what has most votes in all layers first: the next layer's reads are waited for first, "
    "so they go before those of later layers"
)
MISTAKES = (
    Mistake(
        "what is held is read again: leave out what is in fast memory or on its way",
        rule(free=lambda key, held: True),
    ),
    Mistake(
        "an expert is held in its own layer only: compare (layer, expert), not the expert's number",
        rule(free=lambda key, held: key[1] not in {expert for _, expert in held}),
    ),
    Mistake(
        "an expert with too few votes is read: one token alone is often wrong, so ask for quorum",
        rule(enough=lambda votes, quorum: votes > 0),
    ),
    Mistake(
        "quorum votes are enough, and you ask for more: >= quorum, not > quorum",
        rule(enough=lambda votes, quorum: votes > quorum),
    ),
    Mistake(
        "experts are read that nobody named: free buffers are no reason to read",
        rule(enough=lambda votes, quorum: True),
    ),
    Mistake(
        "more reads begin than there is room for: at most room of them",
        lambda votes, held, quorum, room: parts.read_ahead(votes, held, quorum, 999),
    ),
    Mistake(VOTES_FIRST, rule(order=lambda layer, expert, votes: -votes)),
    Mistake(
        "within a layer the reads are in the order of the experts' numbers: most votes first",
        rule(order=lambda layer, expert, votes: layer),
    ),
    Mistake(
        "within a layer the fewest votes come first: sort from the most down",
        rule(order=lambda layer, expert, votes: (layer, votes)),
    ),
    Mistake(
        "the last layer is read first: the verification begins with layer 0",
        rule(order=lambda layer, expert, votes: (-layer, -votes)),
    ),
    Mistake(
        "of two experts with equal votes you take the higher number first: take the lower",
        rule(order=lambda layer, expert, votes: (layer, -votes, -expert)),
    ),
    Mistake("room is for all layers together, not for each of them", _room_per_layer),
    Mistake(
        "you cut the list to room before what is held is out of it: buffers stay empty",
        _room_first,
    ),
    Mistake("the layers take turns: all reads of the next layer go before the others", _by_turns),
    Mistake("a pair is (layer, expert), and yours are (expert, layer)", _swapped),
    Mistake(
        "only layer 0 is read for: what the draft named for later layers counts too",
        lambda votes, held, quorum, room: parts.read_ahead(votes[:1], held, quorum, room),
    ),
)


def read_pairs(answer) -> list[tuple[int, int]]:
    if isinstance(answer, set | frozenset):
        raise ExerciseError("a set has no order, and the reads begin one after the other: a list")
    pairs = [tuple(wholes(pair)) for pair in listed(answer)]
    if any(len(pair) != 2 for pair in pairs):
        raise ExerciseError("a read is a pair (layer, expert)")
    return pairs


RULE = Rule(
    TASK,
    parts.read_ahead,
    read_pairs,
    MISTAKES,
    "the next layer first, in it the most votes first; what is held is left out, and so is what has "
    "fewer than quorum votes",
)


def _cases() -> list[Case]:
    """Small ones first; then random votes, with much or little room."""
    draw = random.Random(31)
    cases = [
        Case(([[0, 2, 1, 0]], set(), 1, 4), "two experts were named: read both"),
        Case(([[0, 2, 1, 0]], {(0, 1)}, 1, 4)),
        Case(([[1, 3, 0, 2], [0, 4, 0, 0]], set(), 2, 2)),
        Case(([[0, 0, 0, 0]], set(), 1, 4), "nobody was named: read nothing"),
        Case(([[1, 1, 1, 1]], set(), 1, 0), "room for nothing: read nothing"),
    ]
    for number in range(55):
        layers, experts = 2 + number % 3, draw.randint(4, 6)
        votes = [[draw.choice([0, 0, 1, 2, 3, 4]) for _ in range(experts)] for _ in range(layers)]
        keys = [(layer, expert) for layer in range(layers) for expert in range(experts)]
        held = set(draw.sample(keys, draw.randint(1, len(keys) // 3)))
        cases.append(Case((votes, held, draw.randint(1, 3), draw.randint(2, 8))))
    return cases


def served(read_ahead: Callable) -> pd.DataFrame:
    """What the reads would have been good for in recorded rounds, by room."""
    rounds, rows = recorded_votes(), []
    for room in ROOMS:
        begun = [set(read_ahead(one.votes, set(one.held), 1, room)) for one in rounds]
        good = sum(len(reads & one.needed) for reads, one in zip(begun, rounds))
        misses = sum(len(one.needed - one.held) for one in rounds)
        reads = sum(map(len, begun))
        rows.append((room, reads, round(100 * good / reads), round(100 * good / misses)))
    return pd.DataFrame(rows, columns=["room", "reads", "needed_%", "of_all_misses_%"])


def check_read_ahead(read_ahead: Callable) -> Passed:
    """Verdict on ``read_ahead(votes, held, quorum, room)``; raises ``ExerciseError`` naming the
    mistake."""
    cases = _cases()
    RULE.check(read_ahead, cases)
    scores = served(read_ahead)
    few, many = scores.iloc[0], scores.iloc[-1]
    return Passed(
        f"{len(cases)} random votes; in recorded rounds of one row {few['needed_%']} % of the reads "
        f"are needed with room for {few['room']}, {many['needed_%']} % with room for {many['room']}",
        scores,
    )
