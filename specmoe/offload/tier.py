"""What lies in fast memory: which expert is in which slot, and which reads are under way.

Comes in: an ``ExpertStore``, ``Slots``, what ``pool`` decides. Goes out: records, and the counts
and events of every byte that moved.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch

from ..trace import PoolCounts, Trace
from .read_queue import PREFETCH
from .slots import Slots
from .store import ExpertStore
from .transfers import ExpertKey, Read


class Loading(NamedTuple):
    """A read under way into ``slot``."""

    slot: int
    read: Read
    is_prefetch: bool


class FastTier:
    """State: ``resident`` experts and their slots, least recently used first; of each layer those
    that are ``here``, the same once more; reads that are ``loading``; of both, those that are
    ``speculative``: prefetched, and not asked for yet."""

    def __init__(self, store: ExpertStore, slots: Slots, trace: Trace):
        self.store = store
        self.slots = slots
        self.trace = trace
        self.counts = PoolCounts()
        self.resident: dict[ExpertKey, int] = {}
        self.here: defaultdict[int, set[int]] = defaultdict(set)
        self.loading: dict[ExpertKey, Loading] = {}
        self.speculative: set[ExpertKey] = set()

    def holds(self, key: ExpertKey) -> bool:
        """Resident, or on its way."""
        return key in self.resident or key in self.loading

    def record(self, key: ExpertKey) -> torch.Tensor:
        """The record of a resident expert, uint8 ``[record_bytes]``."""
        return self.slots[self.resident[key]]

    def load(self, key: ExpertKey, priority: int) -> None:
        """Start reading ``key`` into a free slot."""
        slot = self.slots.take()
        buffer = self.slots.buffer(slot, self.store.begin_of(key))
        read = self.store.submit(key, buffer, priority, after=self.slots.last_use[slot])
        self.loading[key] = Loading(slot, read, priority == PREFETCH)
        self.counts.num_fetches += 1
        self.counts.fetched_bytes += self.store.bytes_of(key)

    def promote(self, key: ExpertKey) -> None:
        """Somebody waits for ``key`` now: its read goes before the prefetches."""
        if key in self.loading:
            self.store.promote(self.loading[key].read)

    def wait(self, key: ExpertKey) -> None:
        """Loading -> resident, once the record is in its slot."""
        self.loading[key].read.wait()
        loading = self.loading.pop(key)
        self.resident[key] = loading.slot
        self.here[key.layer].add(key.expert)
        self._note(key, loading)

    def collect_finished(self) -> None:
        """Make resident what has arrived meanwhile."""
        for key in [key for key, loading in self.loading.items() if loading.read.done()]:
            self.wait(key)

    def cancel(self, key: ExpertKey) -> bool:
        """Take back a read that has not begun: its slot is free, its bytes were never moved."""
        if not self.store.cancel(self.loading[key].read):
            return False
        self.slots.give_back(self.loading.pop(key).slot)
        self.counts.num_prefetches -= key in self.speculative
        self.speculative.discard(key)
        self.counts.num_fetches -= 1
        self.counts.fetched_bytes -= self.store.bytes_of(key)
        return True

    def touch(self, key: ExpertKey) -> None:
        """``key`` has been computed: now it is the most recently used."""
        slot = self.resident.pop(key)
        self.slots.mark_used(slot)
        self.resident[key] = slot

    def evict(self, key: ExpertKey) -> None:
        self.slots.give_back(self.resident.pop(key), was_filled=True)
        self.here[key.layer].discard(key.expert)
        self.speculative.discard(key)
        self.trace.add("evict", key.layer, key.expert)

    def reset_reads(self) -> None:
        """Give up all reads and wait for those under way, so that nothing writes into the slots any
        more."""
        for key, loading in list(self.loading.items()):
            if self.cancel(key):
                continue
            loading.read.wait_released()
            self.slots.give_back(self.loading.pop(key).slot)
            if loading.read.error is None:
                self._note(key, loading)
        self.speculative &= self.resident.keys()

    def count_wait(self, key: ExpertKey, seconds: float) -> None:
        """Compute stood still for ``key``."""
        self.counts.wait_s += seconds
        self.trace.add("wait", key.layer, key.expert, seconds=seconds)

    def _note(self, key: ExpertKey, loading: Loading) -> None:
        read, kind = loading.read, "prefetch" if loading.is_prefetch else "fetch"
        self.counts.read_s += read.seconds
        self.trace.add_read(kind, key, (self.store.bytes_of(key), read.seconds, read.ended_s))

    def check(self) -> None:
        """``AssertionError`` if a slot is lost or used twice."""
        filling = [loading.slot for loading in self.loading.values()]
        used = [*self.resident.values(), *filling, *self.slots.free]
        assert sorted(used) == list(range(len(self.slots))), f"slots lost or used twice: {used}"
        here = {ExpertKey(layer, expert) for layer in self.here for expert in self.here[layer]}
        assert here == self.resident.keys(), "what is here is not what is resident"
        assert not self.resident.keys() & self.loading.keys(), "both resident and loading"
        assert all(self.holds(key) for key in self.speculative), "a prefetch is lost"
