"""Exercise 1: who stands in for an expert that is not resident.

Comes in: the student's ``table(distances, residents)``: pairwise distances ``[E][E]`` (lists of
floats) and the resident experts in any order -> a list ``[E]``: for every expert the nearest
resident one, E ("no expert") where nobody is resident. Goes out: a verdict; the last comparison is
with ``affinity.nearest_resident`` on a shipped model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from ...offload.affinity import nearest_resident
from ...registry import yours
from . import own, parts
from .calling import Task, wholes
from .matching import Case, Mistake, Rule
from .verdict import Passed, require
from .workload import shipped_distances

TASK = Task(
    "table", ("distances", "residents"), "a list with one stand-in for each of the E experts"
)
EMPTY = "with no resident at all every entry is E, which means 'no expert'"


def spread(*places: float) -> list[list[float]]:
    """Distances of experts that lie on a line."""
    return [[abs(a - b) for b in places] for a in places]


SMALL = spread(0.0, 1.0, 4.0, 6.0)


def nearest_in(columns: Callable, choose: Callable = min, to_entry: Callable | None = None):
    """A wrong rule: ``choose`` among ``columns(distances, residents, e)`` for every expert."""

    def rule(distances, residents):
        if not residents:
            return [len(distances)] * len(distances)
        entries = [
            choose(columns(distances, residents, e), key=lambda c: row[c])
            for e, row in enumerate(distances)
        ]
        return [to_entry(residents, entry) for entry in entries] if to_entry else entries

    return rule


def resident_first(other: Callable) -> Callable:
    """Residents stand for themselves; the others as ``other(distances, residents, e)`` says."""
    return lambda d, r: [e if e in r or not r else other(d, r, e) for e in range(len(d))]


MISTAKES = (
    Mistake(
        "these are positions in the list of residents, not numbers of experts: index residents "
        "with them",
        nearest_in(lambda d, r, e: r, to_entry=lambda r, entry: r.index(entry)),
    ),
    Mistake(
        "these are positions in the list of residents, not numbers of experts: index residents "
        "with them",
        lambda d, r: [e if e in r else r.index(parts.table(d, r)[e]) for e in range(len(d))],
    ),
    Mistake(
        "everyone stands for themselves, the nearest of all: take the minimum over the residents' "
        "columns only",
        lambda d, r: list(range(len(d))),
    ),
    Mistake(
        "these are the farthest residents: take the smallest distance, not the largest",
        nearest_in(lambda d, r, e: r, max),
    ),
    Mistake(
        "these are the farthest residents: take the smallest distance, not the largest",
        resident_first(lambda d, r, e: max(r, key=lambda x: d[e][x])),
    ),
    Mistake(
        "a resident must stand for itself, at distance zero: do not leave it out of the residents "
        "it may choose from",
        nearest_in(lambda d, r, e: [x for x in r if x != e] or r),
    ),
    Mistake(
        "the nearest other expert is taken, resident or not: take the minimum over the residents' "
        "columns only",
        resident_first(
            lambda d, r, e: min((x for x in range(len(d)) if x != e), key=lambda x: d[e][x])
        ),
    ),
    Mistake(
        "you compare the experts' numbers: the nearest is the one with the smallest distance, not "
        "the neighbouring number",
        resident_first(lambda d, r, e: min(r, key=lambda x: abs(x - e))),
    ),
    Mistake(
        "one resident stands in for everybody: choose for each expert by its own row of distances",
        resident_first(lambda d, r, e: r[0]),
    ),
    Mistake(
        "one resident stands in for everybody: choose for each expert by its own row of distances",
        resident_first(lambda d, r, e: min(r, key=lambda x: sum(d[x]))),
    ),
    Mistake(
        "a resident must stand for itself, also where another one has equal weights",
        nearest_in(lambda d, r, e: r),
    ),
    Mistake(
        "residents may come in any order: a column number is an expert's number, not a position",
        nearest_in(lambda d, r, e: r, to_entry=lambda r, entry: sorted(r)[r.index(entry)]),
    ),
)


def read_table(answer) -> list[int]:
    return wholes(answer)


def agrees(answer, right, arguments) -> bool:
    """Of two residents at one distance either may stand in."""
    distances, residents = arguments
    if not residents or len(answer) != len(right):
        return answer == right
    return all(
        a == e if e in residents else a in residents and row[a] == row[b]
        for e, (row, a, b) in enumerate(zip(distances, answer, right))
    )


RULE = Rule(
    TASK,
    parts.table,
    read_table,
    MISTAKES,
    "an expert that is not resident does not get the nearest resident one",
    agrees,
)


def _cases() -> list[Case]:
    """Small ones first; then random experts on a line, among them equals, in any order."""
    draw = random.Random(1)
    cases = [
        Case((SMALL, [0, 3])),
        Case(
            (spread(0.0, 3.0, 0.0), [0, 2]),
            "a resident must stand for itself, also where another one has equal weights",
        ),
        Case((spread(0.0, 1.0, 10.0, 12.0), [3, 0]), "residents may come in any order"),
        Case((SMALL, [2]), "one resident stands in for all"),
        Case((SMALL, [3, 1, 0, 2]), "where all are resident each stands for itself"),
    ]
    for _ in range(40):
        size = draw.randint(2, 8)
        places = [float(draw.randint(0, 12)) for _ in range(size)]
        cases.append(Case((spread(*places), draw.sample(range(size), draw.randint(1, size)))))
    cases.insert(12, Case((SMALL, []), EMPTY))
    return cases


def check_nearest(table: Callable) -> Passed:
    """Verdict on ``table(distances, residents)``; raises ``ExerciseError`` naming the mistake."""
    answer = TASK.ask(table, (SMALL, [0, 3]), read_table)
    require(
        len(answer) == 4,
        "the table needs one entry for each of the 4 experts, resident or not, and yours has "
        f"{len(answer)}",
        TASK.told((SMALL, [0, 3]), answer=answer, right=[0, 0, 3, 3]),
    )
    RULE.check(table, _cases())
    distances = shipped_distances()  # [L, E, E]
    generator = torch.Generator().manual_seed(0)
    for layer in distances:
        residents = torch.randperm(len(layer), generator=generator)[:4].tolist()
        expected = nearest_resident(layer, residents)[:-1].tolist()
        given = (layer.tolist(), residents)
        require(
            TASK.ask(table, given, read_table) == expected,
            "the small tables are right, a table of tiny-skewed is not",
            TASK.told(given, right=expected),
        )
    return Passed(
        f"the same tables as specmoe.offload.affinity.nearest_resident on {len(distances)} "
        "layers of tiny-skewed",
        own.score_parts("substitute") if yours("substitute") else None,
    )
