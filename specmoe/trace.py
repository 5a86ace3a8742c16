"""What happened in a run: a list of events, and a pandas frame made from it.

Comes in: one call per event from the pool, the experts function and the round. Goes out:
``to_frame()``, which ``metrics``, ``figures`` and the reports read; and ``PoolCounts``, the pool's
sums, which do not need a trace. No torch here.

One event is one row:

==========  ========================================================================================
column      meaning
==========  ========================================================================================
time_s      seconds since the run began (when the event ended)
round       number of the round, from 0; -1 before it (a refill's prefill: that of the round before)
phase       "prefill" | "draft" | "verify" | "accept" | "idle"
kind        "fetch" (slow -> fast copy the router asked for), "prefetch" (the same before it asked),
            "hit" (needed and resident), "evict", "wait" (compute stood still for a read), "route"
            (tokens of one expert in one layer), "draft" | "verify" | "prefill" | "accept" (one step
            or one row's verdict), "round" (a whole round)
layer       MoE layer, from 0; -1 where none
expert      expert of that layer; -1 where none
row         prompt index of the row; -1 where none
count       tokens (route: tokens sent to the expert; draft, verify, prefill: tokens in the step;
            accept: accepted draft tokens; round: new tokens committed)
size        accept: drafted tokens of the row; draft, verify, round: rows in flight; fetch,
            prefetch: bytes moved
seconds     duration (fetch, prefetch: of the read itself; wait, draft, verify, prefill, round: wall
            clock)
==========  ========================================================================================
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("time_s", "round", "phase", "kind", "layer", "expert", "row", "count", "size", "seconds")
PHASES = ("idle", "prefill", "draft", "verify", "accept")


@dataclass
class PoolCounts:
    """What the pool did since the run began. A hit was resident when its layer asked; a miss
    was not (even if a prefetch was already under way, which makes it a ``prefetch_used``)."""

    num_hits: int = 0
    num_misses: int = 0
    num_fetches: int = 0  # every read: demand and prefetch
    fetched_bytes: int = 0
    num_prefetches: int = 0
    prefetch_used: int = 0
    wait_s: float = 0.0  # compute stood still for a read
    read_s: float = 0.0  # sum over reads of their own duration

    def copy(self) -> PoolCounts:
        return PoolCounts(**vars(self))

    def plus(self, other: PoolCounts) -> PoolCounts:
        return PoolCounts(
            **{name: value + getattr(other, name) for name, value in vars(self).items()}
        )

    def minus(self, other: PoolCounts) -> PoolCounts:
        return PoolCounts(
            **{name: value - getattr(other, name) for name, value in vars(self).items()}
        )


@dataclass(frozen=True)
class Round:
    """One round, as planner, stats and whoever iterates a run read it. Per row in flight:
    ``drafted``, ``accepted``."""

    gamma: int  # draft steps
    draft_s: float  # seconds of all of them
    verify_s: float
    drafted: Sequence[int]
    accepted: Sequence[int]
    steps: Sequence[tuple[int, float]] = ()  # rows and seconds of each draft step
    # rows that the draft's own probabilities expect to be cut short
    expected_rejections: float = 0.0
    new_tokens: int = 0  # committed, all rows
    index: int = 0
    prompts: Sequence[int] = ()  # in flight
    # Counts, which no clock disturbs: reads, those of them that began before the verification, and
    # the share (0 .. 1) of all experts that it named.
    num_reads: int = 0
    num_ahead: int = 0
    named: float = 0.0
    wait_s: float = 0.0  # compute stood still for reads


class Block(NamedTuple):
    """One row in one round: what was drafted and what became of it. Token ids."""

    round: int
    row: int  # prompt index
    start: int  # tokens the row had before the round
    drafted: tuple[int, ...]
    accepted: int  # drafted tokens that the target agreed with, from the first
    # what the row gained: accepted + 1 of the target's own, less where EOS or its limit cut it
    committed: tuple[int, ...]


class Trace:
    """Events of one run, in order. ``add`` and ``add_read`` append one row, ``add_block`` a row and
    a verdict; they change nothing else.

    ``phase`` and ``round`` are set by the round and stamped on every event. ``enabled=False`` keeps
    nothing; the totals in ``stats`` do not depend on it.
    """

    def __init__(self, enabled: bool = True, clock=time.perf_counter):
        self.enabled = enabled
        self.phase = "idle"
        self.round = -1
        self.clock = clock
        self.began_s = clock()
        self.events: list[tuple] = []
        self.blocks: list[Block] = []

    def add(
        self,
        kind: str,
        layer: int = -1,
        expert: int = -1,
        count: int = 0,
        size: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """One event that ends now."""
        if self.enabled:
            self._append(kind, self.clock(), (layer, expert, -1), (count, size, seconds))

    def add_read(self, kind: str, key: tuple[int, int], read: tuple[int, float, float]) -> None:
        """``read``: its bytes, its own seconds, and when it ended on this trace's clock."""
        if self.enabled:
            size, seconds, ended_s = read
            self._append(kind, ended_s, (*key, -1), (0, size, seconds))

    def add_block(
        self, row: int, start: int, drafted: list[int], accepted: int, committed: list[int]
    ) -> None:
        """What ``row`` drafted in this round and what it gained: an event "accept", too."""
        if self.enabled:
            self._append("accept", self.clock(), (-1, -1, row), (accepted, len(drafted), 0.0))
            self.blocks.append(
                Block(self.round, row, start, tuple(drafted), accepted, tuple(committed))
            )

    def _append(self, kind: str, ended_s: float, where: tuple, what: tuple) -> None:
        self.events.append((ended_s - self.began_s, self.round, self.phase, kind, *where, *what))

    def restart(self) -> None:
        """The run begins now: earlier events (preloading) are dropped, the clock starts at zero."""
        self.events.clear()
        self.blocks.clear()
        self.began_s = self.clock()

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        ended_s = self.events[-1][0] if self.events else 0.0
        return f"Trace({len(self):,} events in {self.round + 1:,} rounds and {ended_s:.4g} s)"

    def _repr_html_(self) -> str:
        frame: Any = self.to_frame()
        numbers = frame.groupby(["kind", "phase"], observed=True)[["count", "size", "seconds"]]
        table = numbers.sum().assign(events=numbers.size())
        return f"<p>{self!r}</p>{table.to_html()}"

    def to_frame(self) -> pd.DataFrame:
        """One row per event, columns as in the table at the top of this module."""
        import pandas as pd

        frame = pd.DataFrame.from_records(self.events, columns=list(COLUMNS))
        return frame.astype({"phase": "category", "kind": "category"})
