"""One layer's request under way: records of the experts in use, in the order in which they come.

Comes in: the pool, hits, misses that somebody read ahead, misses to be read. Goes out: experts and
their records, each once, some at a time. ``pool`` makes one per layer and step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import takewhile

import torch

from .read_queue import DEMAND
from .transfers import ExpertKey


class Request:
    """State: the ``queue`` of misses whose read has not begun; the experts ``in_use``: resident or
    being read, and not computed yet; of them those ``in_transit``, which were read on demand;
    ``later``: experts of later layers, to be read once nothing of this one waits for a slot."""

    def __init__(
        self,
        pool,
        hits: Iterable[ExpertKey] = (),
        ahead: Iterable[ExpertKey] = (),
        absent: Iterable[ExpertKey] = (),
        later: Iterable[ExpertKey] = (),
    ):
        self.pool = pool
        self.tier = pool.tier
        self.hits = list(hits)
        self.ahead = list(ahead)
        self.queue = deque(absent)
        # in the order of reads
        self.in_use = dict.fromkeys(self.hits + self.ahead)
        self.in_transit: set[ExpertKey] = set()
        self.later = iter(later)
        self.next_later = next(self.later, None)

    def arrivals(self) -> Iterator[dict[int, torch.Tensor]]:
        """Hits first and at once, then misses as they arrive: a wave of synchronous reads at once,
        others one by one, so that the clock has no say in what is computed together. Records are
        valid until the next are taken."""
        tier = self.tier
        try:
            if self.hits:
                yield from self._given(self.hits)
            for key in [key for key in self.ahead if key in tier.resident]:
                yield from self._given([key])
            while self.in_use or self.queue:
                self.start_reads()
                assert self.in_use, "no slot can be freed for an expert"
                arrived = self._next_arrivals()
                for keys in [arrived] if self.pool.is_synchronous else [[key] for key in arrived]:
                    yield from self._given(keys)
        finally:
            self.end()

    def _given(self, keys: list[ExpertKey]) -> Iterator[dict[int, torch.Tensor]]:
        """The records of ``keys``, which have been computed when the next are asked for."""
        yield {key.expert: self.tier.record(key) for key in keys}
        for key in keys:
            self._computed(key)

    def end(self) -> None:
        """Nothing is protected for this request any more."""
        self.in_use.clear()
        self.in_transit.clear()
        self.next_later = None

    def start_reads(self) -> None:
        """Start queued reads while slots can be had; synchronous pools start one wave at a time."""
        wave = len(self.queue)
        if self.pool.is_synchronous:
            if not self.in_use.keys().isdisjoint(self.tier.loading):
                return
            wave = min(wave, self.tier.store.num_readers)
        for _ in range(wave):
            if not self.pool.make_room(self.queue[0]):
                return
            key = self.queue.popleft()
            self.tier.load(key, DEMAND)
            self.in_use[key] = None
            self.in_transit.add(key)
        while (key := self.next_later) and (self.tier.holds(key) or self.pool.prefetch(key)):
            self.next_later = next(self.later, None)

    def _next_arrivals(self) -> list[ExpertKey]:
        """The next experts in use that have arrived, in the order of their reads, so that a run
        repeats itself; waits for one (synchronous: for all of them) when none has."""
        tier = self.tier
        tier.collect_finished()
        arrived = list(takewhile(lambda key: key in tier.resident, self.in_use))
        on_the_way = [key for key in self.in_use if key in tier.loading]
        if on_the_way and (self.pool.is_synchronous or not arrived):
            awaited = on_the_way if self.pool.is_synchronous else on_the_way[:1]
            began_s = time.perf_counter()
            for key in awaited:
                tier.wait(key)
            tier.count_wait(awaited[0], time.perf_counter() - began_s)
            arrived += awaited
        return arrived

    def _computed(self, key: ExpertKey) -> None:
        """``key`` has been used: it may go now unless it is kept. Its slot may carry the next
        miss."""
        self.in_use.pop(key, None)
        self.in_transit.discard(key)
        self.tier.touch(key)
        self.pool.drop(key)
        if not self.pool.is_synchronous:
            self.start_reads()
