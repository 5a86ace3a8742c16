"""Exercise 6: a draft set of one's own.

Comes in: the student's ``draft_set(layer, counts, num_draft, memory)``: tokens per expert of the
last verification ``[E]`` and a dictionary that lasts for one run, shared by all layers -> the
experts that draft next, at most ``num_draft``. Goes out: a verdict, with bytes per token on the
engine with a shipped checkpoint; it has to fetch less than HotTemporal.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from ...errors import OptionError
from .verdict import ExerciseError, Passed, call, require
from .workload import bytes_per_token

EXPECTS = "a list of up to num_draft experts"
BUSY = [6, 5, 0, 0, 1, 0, 0, 0]
OTHER = [0, 0, 1, 0, 0, 0, 5, 6]
LATER = [[0, 0, 3, 2, 0, 0, 0, 0]] * 40


def for_engine(draft_set: Callable) -> Callable:
    """The student's function in the form that ``engine.generate(draft_set=...)`` takes, with a
    fresh memory."""
    memory: dict = {}

    def choose(layer, counts, num_draft):
        answer = call(
            lambda *given: draft_set(*given, memory), layer, counts, num_draft, expects=EXPECTS
        )
        try:
            return [int(expert) for expert in answer]
        except (TypeError, ValueError):
            raise ExerciseError(
                f"{answer!r:.60} has the wrong form: the function should give {EXPECTS}"
            ) from None

    return choose


def _check_small(draft_set: Callable) -> None:
    first = for_engine(draft_set)(0, BUSY, 2)
    require(len(first) <= 2, f"you name {len(first)} experts where num_draft=2 may draft")
    require(len(set(first)) == len(first), "an expert is named twice: it takes one slot")
    require(
        len(first) == 2,
        f"you name {len(first)} of num_draft=2 experts: a slot that stays empty cannot draft",
    )
    other = for_engine(draft_set)(0, OTHER, 2)
    require(
        set(first) != set(other),
        "you name the same experts whatever the verification used: look at counts",
    )
    require(
        not set(first) & {2, 3, 5, 6, 7},
        "you name experts that the verification did not use, which costs fetches: most used first",
    )
    require(
        set(first) == {0, 1},
        "after one verification the most used experts are the best guess: sort counts from the top "
        "down",
    )
    choose = for_engine(draft_set)
    for _ in range(5):
        choose(0, BUSY, 2)
    require(
        set(choose(1, OTHER, 2)) == {6, 7},
        "layer 1 is given experts of layer 0: keep apart in memory what belongs to each layer",
    )
    for counts in LATER:
        last = choose(0, counts, 2)
    require(
        set(last) == {2, 3},
        "forty verifications after the text changed you still draft with the "
        "old experts: forget slowly",
    )
    require(
        set(for_engine(draft_set)(0, OTHER, 2)) == {6, 7},
        "a second run remembers the first: use memory, not a global variable",
    )


def check_draft_set(draft_set: Callable) -> Passed:
    """Verdict on ``draft_set(layer, counts, num_draft, memory)``; raises ``ExerciseError`` naming
    the mistake."""
    _check_small(draft_set)
    try:
        yours = bytes_per_token(for_engine(draft_set))
    except OptionError as failure:
        raise ExerciseError(str(failure)) from failure
    sets = {
        "yours": yours,
        "hot_temporal": bytes_per_token("hot_temporal"),
        "random": bytes_per_token("random"),
    }
    scores = pd.DataFrame(
        [(name, round(size / 1e3, 1)) for name, size in sets.items()],
        columns=["draft_set", "kB_per_token"],
    )
    temporal = sets["hot_temporal"]
    tail = f"{yours / 1e3:.1f} kB per token, HotTemporal {temporal / 1e3:.1f} kB"
    require(
        yours != temporal,
        f"this fetches exactly what HotTemporal does ({tail}): look further "
        "back than one verification",
    )
    require(
        yours < temporal,
        f"valid, but it does not beat HotTemporal ({tail}): try another weight for the past",
    )
    return Passed(tail, scores)
