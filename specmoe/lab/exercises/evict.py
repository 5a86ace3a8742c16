"""Exercise 2: which experts of a layer stay resident after a step.

Comes in: the student's ``keep(counts, resident, memory, num_kept)``: tokens per expert in this step
``[E]``, the resident experts (a set), a dictionary that is theirs to write in and lasts for one
layer's run -> the set of experts to keep. Goes out: a verdict, with bytes fetched on the recorded
requests of a shipped model beside LRU, LFU, temporal and Belady.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from ...offload.policies import KeepPolicy, replay
from ..replay import Request, replay_pool
from .verdict import ExerciseError, Passed, call, require
from .workload import recorded_requests

EXPECTS = "the set of experts to keep"
RECORD_BYTES, NUM_KEPT, SMALL_KEPT = 98304, 4, 2
# expert 0 always, the others by turns
HOT = [[9, *[int(e == 1 + step % 7) for e in range(1, 8)]] for step in range(14)]
# the text changes its subject
MOVED = [[4, 4, 0, 0, 0, 0, 0, 0]] * 3 + [[0, 0, 0, 0, 4, 4, 0, 0]] * 30


class StudentPolicy(KeepPolicy):
    """The student's function as an eviction policy of specmoe; every answer is checked."""

    def __init__(self, num_experts: int, num_kept: int, function: Callable):
        super().__init__(1, num_experts, num_kept)
        self.function = function
        self.memory = {}
        self.history = []

    def keep(self, layer, counts, resident):
        answer = call(
            lambda *given: self.function(*given, self.memory, self.num_kept),
            list(counts),
            set(resident),
            expects=EXPECTS,
        )
        try:
            kept = {int(expert) for expert in answer}
        except (TypeError, ValueError):
            raise ExerciseError(
                f"{answer!r:.60} has the wrong form: the function should give {EXPECTS}"
            ) from None
        self._check(kept, {expert for expert, count in enumerate(counts) if count} | set(resident))
        self.history.append(kept)
        return kept

    def _check(self, kept: set[int], here: set[int]) -> None:
        room = min(self.num_kept, len(here))
        require(
            bool(kept),
            "you keep nothing, so every step fetches all it needs again: that is on-demand",
        )
        require(
            len(kept) <= self.num_kept,
            f"you keep {len(kept)} experts where num_kept={self.num_kept} fit",
        )
        away = sorted(kept - here)
        require(
            not away,
            f"expert {away[:1]} is neither resident nor asked for in this step: "
            "keeping it cannot fetch it",
        )
        require(
            len(kept) == room,
            f"you keep {len(kept)} of {room} possible experts: unused slots "
            "save nothing, so fill "
            "up with residents that this step did not ask for",
        )


def misses_of(function: Callable, requests: list, num_kept: int) -> tuple[int, list[set[int]]]:
    """(misses, what was kept after each step) of one layer's requests under the student's policy,
    starting empty."""
    policy = StudentPolicy(len(requests[0]), num_kept, function)
    return replay(requests, policy)[1], policy.history


def scores_of(function: Callable, layers: dict[int, list[Request]]) -> pd.DataFrame:
    """Megabytes fetched over all layers: columns policy, fetched_MB, the student's first."""
    misses = {
        "yours": sum(
            misses_of(function, [r.counts for r in part], NUM_KEPT)[0] for part in layers.values()
        )
    }
    misses["on demand"] = sum(len(request.needed) for part in layers.values() for request in part)
    for name in ("lru", "lfu", "temporal", "belady"):
        misses[name] = sum(
            held.misses for part in layers.values() for held in replay_pool(part, NUM_KEPT, name)
        )
    rows = [(name, count * RECORD_BYTES / 1e6) for name, count in misses.items()]
    return pd.DataFrame(rows, columns=["policy", "fetched_MB"]).round(1)


def check_eviction(keep: Callable) -> Passed:
    """Verdict on ``keep(counts, resident, memory, num_kept)``; raises ``ExerciseError`` naming the
    mistake."""
    _, history = misses_of(keep, HOT, SMALL_KEPT)
    require(
        all(0 in kept for kept in history[-7:]),
        "the expert used most in every step is let go: sort from the most used down",
    )
    _, again = misses_of(keep, HOT, SMALL_KEPT)
    require(
        history == again,
        "a second run decides differently: remember things in memory, not in a global variable",
    )
    _, history = misses_of(keep, MOVED, SMALL_KEPT)
    require(
        history[-1] & {4, 5} != set(),
        "experts 4 and 5 were needed thirty steps long and never kept: let old residents go",
    )
    require(
        history[-1] == {4, 5},
        "of two experts needed thirty steps long one was kept: an old resident holds its slot for "
        "ever",
    )
    scores = scores_of(keep, recorded_requests())
    mb = dict(zip(scores["policy"], scores["fetched_MB"], strict=True))
    told = f"valid, but it fetches {mb['yours']} MB where LRU fetches {mb['lru']} MB"
    require(
        mb["yours"] <= mb["lru"], f"{told}: how recent and how frequent the use was both matter"
    )
    return Passed(
        f"{mb['yours']} MB fetched, LRU {mb['lru']} MB; the bound is Belady's {mb['belady']} MB",
        scores,
    )
