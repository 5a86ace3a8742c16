"""Exercise 2: which experts of a layer stay resident after a step.

Comes in: the student's ``keep(counts, resident, memory, num_kept)``: tokens per expert in this step
``[E]``, the resident experts (a set), a dictionary that is theirs to write in and lasts for one
layer's run -> the set of experts to keep. Goes out: a verdict, with bytes fetched on the recorded
requests of a shipped model beside LRU, LFU, temporal and Belady.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd

from ...offload.policies import KeepPolicy, replay
from ...registry import yours
from ..replay import REPLAYED, Request, replay_pool
from .calling import Task, wholes
from .verdict import ExerciseError, Passed, Scale, require, scored
from .workload import recorded_requests

TASK = Task(
    "keep",
    ("counts", "resident", "memory", "num_kept"),
    "the set of experts to keep",
    writable=("memory",),
)
RECORD_BYTES, NUM_KEPT, SMALL_KEPT = 98304, 4, 2
# expert 0 always, the others by turns
HOT = [[9, *[int(e == 1 + step % 7) for e in range(1, 8)]] for step in range(14)]
# the text changes its subject, after twice as long as the new one then lasts
MOVED = [[4, 4, 0, 0, 0, 0, 0, 0]] * 60 + [[0, 0, 0, 0, 4, 4, 0, 0]] * 30
# of the way from LRU to Belady, for pass, good and excellent
SHARES = (0.1, 0.4, 0.5)


class StudentPolicy(KeepPolicy):
    """The student's function as an eviction policy of specmoe; every answer is checked.
    ``forgets``: its memory is empty in every step."""

    def __init__(self, num_experts: int, num_kept: int, function: Callable, forgets: bool = False):
        super().__init__(1, num_experts, num_kept)
        self.function = function
        self.forgets = forgets
        self.memory = {}
        self.history: list[set[int]] = []
        self.told = ""

    def keep(self, layer, counts, resident):
        if self.forgets:
            self.memory = {}
        arguments = (list(counts), set(resident), self.memory, self.num_kept)
        kept = set(TASK.ask(self.function, arguments, wholes))
        self.told = TASK.told(arguments, answer=kept)
        self._check(kept, {expert for expert, count in enumerate(counts) if count} | set(resident))
        self.history.append(kept)
        return kept

    def _check(self, kept: set[int], here: set[int]) -> None:
        room, away = min(self.num_kept, len(here)), sorted(kept - here)
        for wrong, sentence in (
            (
                not kept,
                "you keep nothing, so every step fetches all it needs again: that is on-demand",
            ),
            (
                len(kept) > self.num_kept,
                f"you keep {len(kept)} experts where num_kept={self.num_kept} fit",
            ),
            (
                away,
                f"expert {away[:1]} is neither resident nor asked for in this step: keeping it "
                "cannot fetch it",
            ),
            (
                len(kept) < room,
                f"you keep {len(kept)} of {room} possible experts: unused slots save nothing, so "
                "fill up with residents that this step did not ask for",
            ),
        ):
            require(not wrong, sentence, self.told)


def played(function: Callable, requests: list, num_kept: int, **how) -> tuple[int, StudentPolicy]:
    """(misses, the policy as it was in the end) of one layer's requests, starting empty."""
    policy = StudentPolicy(len(requests[0]), num_kept, function, **how)
    return replay(requests, policy)[1], policy


def scores_of(function: Callable, layers: dict[int, list[Request]]) -> pd.DataFrame:
    """Megabytes fetched over all layers: columns policy, fetched_MB, the student's first, evictions
    that somebody registered last."""
    misses = {
        "yours": sum(
            played(function, [r.counts for r in part], NUM_KEPT)[0] for part in layers.values()
        )
    }
    misses["on demand"] = sum(len(request.needed) for part in layers.values() for request in part)
    for name in (*REPLAYED, *yours("eviction")):
        misses[name] = sum(
            held.misses for part in layers.values() for held in replay_pool(part, NUM_KEPT, name)
        )
    rows = [(name, count * RECORD_BYTES / 1e6) for name, count in misses.items()]
    return pd.DataFrame(rows, columns=["policy", "fetched_MB"]).round(1)


def _check_small(keep: Callable) -> None:
    """Random requests for what is allowed; made ones for what is remembered."""
    draw = random.Random(2)
    for _ in range(12):
        steps = [[draw.choice([0, 0, 0, 1, 3]) for _ in range(6)] for _ in range(12)]
        played(keep, [counts for counts in steps if any(counts)], draw.randint(1, 3))
    _, policy = played(keep, HOT, SMALL_KEPT)
    require(
        all(0 in kept for kept in policy.history[-7:]),
        "the expert used most in every step is let go: sort from the most used down",
        policy.told,
    )
    _, again = played(keep, HOT, SMALL_KEPT)
    require(
        policy.history == again.history,
        "a second run decides differently: remember things in memory, not in a global variable",
        again.told,
    )
    _, policy = played(keep, MOVED, SMALL_KEPT)
    require(
        policy.history[-1] & {4, 5} != set(),
        "experts 4 and 5 were needed thirty steps long and never kept: let old residents go",
        policy.told,
    )
    require(
        policy.history[-1] == {4, 5},
        "of two experts needed thirty steps long one was kept: an old resident holds its slot for "
        "ever",
        policy.told,
    )


def looks_back(keep: Callable, layers: dict[int, list[Request]]) -> bool:
    """Does memory ever change what is kept? An answer that cannot do without it looks back too."""
    for part in layers.values():
        counts = [request.counts for request in part]
        remembered = played(keep, counts, NUM_KEPT)[1].history
        try:
            forgotten = played(keep, counts, NUM_KEPT, forgets=True)[1].history
        except ExerciseError:
            return True
        if remembered != forgotten:
            return True
    return False


def check_eviction(keep: Callable) -> Passed:
    """Verdict on ``keep(counts, resident, memory, num_kept)``; raises ``ExerciseError`` naming the
    mistake."""
    TASK.check_function(keep)
    _check_small(keep)
    layers = recorded_requests()
    require(
        looks_back(keep, layers),
        "you look at this step only: what was used before says what will be needed, so use memory",
    )
    scores = scores_of(keep, layers)
    mb = dict(zip(scores["policy"], scores["fetched_MB"], strict=True))
    told = f"{mb['yours']} MB fetched, LRU {mb['lru']} MB; the bound is Belady's {mb['belady']} MB"
    require(
        mb["yours"] != mb["lru"],
        f"this fetches exactly what LRU does ({told}): count how often as well as how lately",
    )
    limits = [round(mb["lru"] - share * (mb["lru"] - mb["belady"]), 1) for share in SHARES]
    worse = f"valid, but not far enough below LRU ({told}): how recent and how frequent both matter"
    return scored(Passed(told, scores), mb["yours"], Scale("MB", tuple(limits)), worse)
