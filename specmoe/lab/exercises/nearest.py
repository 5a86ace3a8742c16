"""Exercise 1: who stands in for an expert that is not resident.

Comes in: the student's ``table(distances, residents)``: pairwise distances ``[E][E]`` (lists of
floats) and the resident experts in any order -> a list ``[E]``: for every expert the nearest
resident one, E ("no expert") where nobody is resident. Goes out: a verdict; the last comparison is
with ``affinity.nearest_resident`` on a shipped model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...offload.affinity import nearest_resident
from .verdict import Case, Passed, check_cases
from .workload import shipped_distances

EXPECTS = "a list with one stand-in for each of the E experts"
SMALL = [[0.0, 1.0, 4.0, 6.0], [1.0, 0.0, 3.0, 5.0], [4.0, 3.0, 0.0, 2.0], [6.0, 5.0, 2.0, 0.0]]
# experts 0 and 2 have the same weights
TWINS = [[0.0, 3.0, 0.0], [3.0, 0.0, 3.0], [0.0, 3.0, 0.0]]
SPREAD = [[abs(a - b) for b in (0.0, 1.0, 10.0, 12.0)] for a in (0.0, 1.0, 10.0, 12.0)]


def read_table(answer) -> list[int]:
    return [int(expert) for expert in answer]


def _cases() -> list[Case]:
    return [
        Case((SMALL, [0, 3]), [0, 0, 3, 3], _first_mistake),
        Case(
            (TWINS, [0, 2]),
            [0, 0, 2],
            "a resident must stand for itself, also where another one has equal weights",
        ),
        Case(
            (SPREAD, [3, 0]),
            [0, 0, 3, 3],
            "residents may come in any order: look an expert's own column up, by its number",
        ),
        Case(
            (SMALL, []),
            [4] * 4,
            "with no resident at all every expert maps to E, which means 'no expert'",
        ),
    ]


def _first_mistake(answer: list[int]) -> str:
    """What a wrong table for SMALL with residents 0 and 3 (right: [0, 0, 3, 3]) most likely comes
    from."""
    if len(answer) != 4:
        return (
            "the table needs one entry for each of the 4 experts, resident or not, and yours "
            f"has {len(answer)}"
        )
    if answer == [0, 0, 1, 1]:
        return (
            "these are positions in the list of residents, not numbers of experts: index "
            "residents with them"
        )
    if answer == [0, 1, 2, 3]:
        return (
            "everyone stands for themselves, the nearest of all: take the minimum over the "
            "residents' columns only"
        )
    if answer == [3, 3, 0, 0]:
        return "these are the farthest residents: take the smallest distance, not the largest"
    if answer[0] != 0 or answer[3] != 3:
        return "a resident must stand for itself, at distance zero"
    if not set(answer) <= {0, 3}:
        return "a stand-in is not resident: take the minimum over the residents' columns only"
    return "an expert that is not resident does not get the nearest resident one"


def check_nearest(table: Callable) -> Passed:
    """Verdict on ``table(distances, residents)``; raises ``ExerciseError`` naming the mistake."""
    check_cases(table, _cases(), EXPECTS, read_table)
    distances = shipped_distances()  # [L, E, E]
    generator = torch.Generator().manual_seed(0)
    cases = []
    for layer in distances:
        residents = torch.randperm(len(layer), generator=generator)[:4].tolist()
        expected = nearest_resident(layer, residents)[:-1].tolist()
        cases.append(
            Case(
                (layer.tolist(), residents),
                expected,
                "the small tables are right, a table of tiny-skewed is not",
            )
        )
    check_cases(table, cases, EXPECTS, read_table)
    return Passed(
        f"the same tables as specmoe.offload.affinity.nearest_resident on {len(cases)} "
        "layers of tiny-skewed"
    )
