"""Exercise 6: a draft set of one's own.

Comes in: the student's ``draft_set(layer, counts, num_draft, memory)``: tokens per expert of the
last verification ``[E]`` and a dictionary that lasts for one run, shared by all layers -> the
experts that draft next, at most ``num_draft``. Goes out: a verdict, with bytes per token on the
engine with a shipped checkpoint; it has to fetch less than HotTemporal.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from ...errors import OptionError
from ...registry import yours
from .calling import Task, wholes
from .verdict import ExerciseError, Passed, Scale, require, scored
from .workload import bytes_per_token

TASK = Task(
    "draft_set",
    ("layer", "counts", "num_draft", "memory"),
    "a list of up to num_draft experts",
    writable=("memory",),
)
BUSY = [6, 5, 0, 0, 1, 0, 0, 0]
OTHER = [0, 0, 1, 0, 0, 0, 5, 6]
LATER = [[0, 0, 3, 2, 0, 0, 0, 0]] * 30
GOOD, EXCELLENT = 0.98, 0.97  # of HotTemporal's bytes


class Chooser:
    """The student's function with a memory of its own, in the form that
    ``engine.generate(draft_set=...)`` takes; every answer is checked."""

    def __init__(self, function: Callable, forgets: bool = False):
        self.function = function
        self.forgets = forgets
        self.memory: dict = {}
        self.told = ""

    def __call__(self, layer, counts, num_draft) -> list[int]:
        if self.forgets:
            self.memory = {}
        arguments = (layer, list(counts), num_draft, self.memory)
        chosen = TASK.ask(self.function, arguments, wholes)
        self.told = TASK.told(arguments, answer=chosen)
        away = [expert for expert in chosen if not 0 <= expert < len(counts)]
        require(not away, f"there is no expert {away[:1]} of {len(counts)}", self.told)
        require(
            len(chosen) <= num_draft,
            f"you name {len(chosen)} experts where num_draft={num_draft} may draft",
            self.told,
        )
        require(
            len(set(chosen)) == len(chosen),
            "an expert is named twice: it takes one slot",
            self.told,
        )
        require(
            len(chosen) == num_draft,
            f"you name {len(chosen)} of num_draft={num_draft} experts: a slot that stays empty "
            "cannot draft",
            self.told,
        )
        return chosen


def for_engine(draft_set: Callable) -> Chooser:
    """The student's function for one run."""
    return Chooser(draft_set)


def _check_first(draft_set: Callable) -> None:
    """After one verification there is nothing but its counts to go by."""
    chooser = for_engine(draft_set)
    first = chooser(0, BUSY, 2)
    other = for_engine(draft_set)(0, OTHER, 2)
    require(
        set(first) != set(other),
        "you name the same experts whatever the verification used: look at counts",
        chooser.told,
    )
    require(
        not set(first) & {2, 3, 5, 6, 7},
        "you name experts that the verification did not use, which costs fetches: most used first",
        chooser.told,
    )
    draw = random.Random(8)
    drawn = [draw.sample(range(12), 8) for _ in range(20)]
    _check_apart(draft_set, drawn)
    for counts in drawn:
        chooser, top = for_engine(draft_set), sorted(range(8), key=lambda e: -counts[e])[:3]
        require(
            set(chooser(0, counts, 3)) == set(top),
            "after one verification the most used experts are the best guess: sort counts from "
            f"the top down, here {top}",
            chooser.told,
        )


def _check_apart(draft_set: Callable, drawn: list[list[int]]) -> None:
    """The first answer of a run depends on no other run, so their order changes none."""
    forward = [set(for_engine(draft_set)(0, counts, 3)) for counts in drawn]
    backward = [set(for_engine(draft_set)(0, counts, 3)) for counts in reversed(drawn)]
    require(
        forward == backward[::-1],
        "a second run remembers the first: use memory, not a global variable",
    )


def _check_memory(draft_set: Callable) -> None:
    """What is remembered belongs to one layer of one run, and fades."""
    choose = for_engine(draft_set)
    for _ in range(60):
        choose(0, BUSY, 2)
    require(
        set(choose(1, OTHER, 2)) == {6, 7},
        "layer 1 is given experts of layer 0: keep apart in memory what belongs to each layer",
        choose.told,
    )
    for counts in LATER:
        last = choose(0, counts, 2)
    require(
        set(last) == {2, 3},
        "thirty verifications after the text changed you still draft with the old experts: let "
        "old use fade",
        choose.told,
    )


def looks_back(draft_set: Callable) -> bool:
    """Does memory ever change what is chosen?"""
    draw, choose, forgetful = random.Random(9), Chooser(draft_set), Chooser(draft_set, forgets=True)
    steps = [[draw.choice([0, 0, 1, 1, 2]) for _ in range(8)] for _ in range(60)]
    return any(set(choose(0, counts, 3)) != set(forgetful(0, counts, 3)) for counts in steps)


def check_draft_set(draft_set: Callable) -> Passed:
    """Verdict on ``draft_set(layer, counts, num_draft, memory)``; raises ``ExerciseError`` naming
    the mistake."""
    TASK.check_function(draft_set)
    _check_first(draft_set)
    _check_memory(draft_set)
    require(
        looks_back(draft_set),
        "you look at this verification only: with one row many experts are used equally often, "
        "and HotTemporal breaks such ties by earlier use, so use memory too",
    )
    try:
        sizes = {"yours": bytes_per_token(for_engine(draft_set))}
    except OptionError as failure:
        raise ExerciseError(str(failure)) from failure
    others = "hot_temporal", "random", *yours("draft_set")
    return _score(sizes | {name: bytes_per_token(name) for name in others})


def _score(sizes: dict[str, float]) -> Passed:
    """The verdict on bytes per token of the student's draft set and of others, those that somebody
    registered last."""
    own, temporal = sizes["yours"], sizes["hot_temporal"]
    tail = f"{own / 1e3:.1f} kB per token, HotTemporal {temporal / 1e3:.1f} kB"
    require(
        own != temporal,
        f"this fetches exactly what HotTemporal does ({tail}): look further back than one "
        "verification",
    )
    require(
        own < temporal,
        f"valid, but it does not beat HotTemporal ({tail}): try another weight for the past",
    )
    limits = [round(share * temporal / 1e3, 1) for share in (1.0, GOOD, EXCELLENT)]
    rows = [(name, round(size / 1e3, 1)) for name, size in sizes.items()]
    passed = Passed(tail, pd.DataFrame(rows, columns=["draft_set", "kB_per_token"]))
    return scored(passed, round(own / 1e3, 1), Scale("kB per token", tuple(limits)), tail)
