"""The fast tier: a fixed number of slots that hold expert records.

Comes in: an ``ExpertStore``, the number of slots, and per layer and step the experts that the
router named and the set to keep (``offload.policies``, ``draft_sets``). Goes out: records, hits
first, then misses as they arrive. ``experts`` calls next.

A slot is free, being filled, or resident. A resident expert is *kept* (protected: chosen to stay),
*in use* (protected until the layer has computed it), *speculative* (prefetched for a layer that has
not asked yet), or *evictable*: it stays until its slot is wanted. The pool never holds more bytes
than its slots, whatever is asked of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

import torch

from ..errors import FastMemoryError
from ..trace import PoolCounts, Trace
from .policies import RunPolicy
from .read_queue import DEMAND, PREFETCH
from .slots import Slots
from .store import ExpertStore
from .transfers import ExpertKey, Read


@dataclass
class _Loading:
    slot: int
    read: Read
    prefetch: bool


class PoolMode(Enum):
    """When experts are read, and whether one that nobody keeps stays."""

    # Computes only when a wave of reads has landed, reads only when it has been computed, drops
    # what was computed.
    ON_DEMAND = "on_demand"
    # Reads while it computes, and drops what was computed.
    OVERLAPPED = "overlapped"
    # Reads while it computes; what was computed stays until somebody wants its slot.
    CACHED = "cached"
    # Every expert is there from the start: nothing is read or evicted while decoding.
    RESIDENT = "resident"


class ResidentPool:
    """Fixed slots, one record each. ``policy.num_kept`` experts per layer may be protected at once;
    the slots beyond ``num_protected`` carry everything else through; layers before
    ``policy.first_kept`` (an encoder's) keep none. Eviction order of the unprotected: lowest
    priority, then least recently used. A read of lower priority than every evictable expert may
    hold at most ``max_in_transit`` slots."""

    def __init__(
        self,
        store: ExpertStore,
        slots: Slots,
        policy: RunPolicy,
        mode: PoolMode = PoolMode.CACHED,
        trace: Trace | None = None,
    ):
        self.store = store
        self.policy = policy
        self.mode = mode
        self.evictable = mode in (PoolMode.CACHED, PoolMode.RESIDENT)
        self.synchronous = mode is PoolMode.ON_DEMAND
        num_kept, first_kept = policy.num_kept, policy.first_kept
        self.trace = Trace(enabled=False) if trace is None else trace  # an empty trace is false
        self.num_layers = len(store.packed.layers)
        self.num_experts = store.packed.num_experts
        num_slots = len(slots)
        num_layers = self.num_layers - first_kept
        needed_slots = min_slots(num_layers, num_kept)
        if num_slots < needed_slots:
            raise FastMemoryError(
                f"{num_slots} slots cannot keep {num_kept} experts in each of {num_layers} MoE "
                "layers and read one more: "
                f"{needed_slots} slots of {store.record_bytes} bytes are needed"
            )
        self.num_slots = num_slots
        self.num_kept = num_kept
        self.num_protected = num_layers * num_kept
        self.slots = slots
        # slots that prefetches never take
        self.num_reserved = min(2, num_slots - needed_slots + 1)
        # on demand at once, beyond what takes the place of something worth less
        self.max_in_transit = store.num_readers + 2
        self.counts = PoolCounts()
        self._empty()

    def _empty(self) -> None:
        # key -> slot; insertion order = least recently used first
        self.resident: dict[ExpertKey, int] = {}
        self.loading: dict[ExpertKey, _Loading] = {}
        # prefetched (landed or loading), not yet asked for
        self.speculative: set[ExpertKey] = set()
        # asked for by the layer that is being computed, in the order of reads
        self.in_use: dict[ExpertKey, None] = {}
        self.in_transit: set[ExpertKey] = set()  # read on demand and not yet computed
        # of later layers, to be read once nothing of this one waits for a slot
        self.next_later: ExpertKey | None = None
        self.kept: list[set[int]] = [set() for _ in range(self.num_layers)]

    # ---- questions ----

    def resident_experts(self, layer: int) -> set[int]:
        """Experts of ``layer`` that can be computed right now."""
        return {key.expert for key in self.resident if key.layer == layer}

    def holds(self, key: ExpertKey) -> bool:
        """Resident, or on its way."""
        return key in self.resident or key in self.loading

    def record(self, key: ExpertKey) -> torch.Tensor:
        """The record of a resident expert, uint8 ``[record_bytes]``; valid while the expert is
        protected."""
        return self.slots[self.resident[key]]

    @property
    def prefetch_room(self) -> int:
        """How many more experts may be prefetched now."""
        return self.num_slots - self.num_protected - self.num_reserved - len(self.speculative)

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if a slot is lost, doubled, or a protected expert is missing."""
        used = (
            list(self.resident.values())
            + [loading.slot for loading in self.loading.values()]
            + self.slots.free
        )
        assert sorted(used) == list(range(self.num_slots)), (
            f"slots lost or used twice: {sorted(used)}"
        )
        assert not (self.resident.keys() & self.loading.keys()), (
            "an expert is both resident and loading"
        )
        assert all(self.holds(key) for key in self.speculative), "a prefetch is lost"
        assert all(self.holds(key) for key in self.in_use), "an expert in use is lost"
        assert all(len(kept) <= self.num_kept for kept in self.kept), "more kept than allowed"
        assert not any(self.kept[: self.policy.first_kept]), "an encoder's layer keeps experts"
        assert all(loading.prefetch or key in self.in_use for key, loading in self.loading.items())

    # ---- the target's request: every distinct expert once ----

    def request(
        self, layer: int, experts: Iterable[int], keep: set[int], later: Iterable[ExpertKey] = ()
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Start reading what is missing of ``experts`` now; returns an iterator of (expert,
        record), hits first, then misses as they arrive. A record is valid until the next one is
        taken. From here on exactly ``keep`` is protected in ``layer``. ``later``: experts of later
        layers, to be prefetched as soon as nothing of this one waits for a slot. Changes:
        residents, counts, trace; evicts whatever is neither kept nor in use."""
        assert len(keep) <= self.num_kept, f"{len(keep)} experts to keep, {self.num_kept} allowed"
        self.kept[layer] = set(keep)
        self.later = iter(later)
        self.next_later = next(self.later, None)
        keys = [ExpertKey(layer, expert) for expert in experts]
        if self.mode is PoolMode.RESIDENT and all(key in self.resident for key in keys):
            self._count_request(keys, [])  # there is no more to keep books of
            return ((key.expert, self.record(key)) for key in keys)
        self._give_up_speculative(layer, keys)
        hits = [key for key in keys if key in self.resident and key not in self.speculative]
        misses = [key for key in keys if key not in set(hits)]
        self.in_use = dict.fromkeys(hits + [key for key in misses if self.holds(key)])
        self._count_request(hits, misses)
        ahead = [key for key in misses if self.holds(key)]
        absent = sorted(
            (key for key in misses if not self.holds(key)), key=self.policy.priority, reverse=True
        )
        # the more an expert is used, the earlier it may take the place of another
        queue = deque(absent)
        for key in ahead:
            if key in self.loading:
                self.store.promote(self.loading[key].read)
        if not self.synchronous:
            self._start_reads(queue)
        return self._arrivals(hits, ahead, queue)

    def _arrivals(
        self, hits: list, ahead: list, queue: deque
    ) -> Iterator[tuple[int, torch.Tensor]]:
        try:
            for key in hits + [key for key in ahead if key in self.resident]:
                yield key.expert, self.record(key)
                self._computed(key, queue)
            while self.in_use or queue:
                self._start_reads(queue)
                assert self.in_use, "no slot can be freed for a needed expert"
                for key in self._next_arrivals():
                    yield key.expert, self.record(key)
                    self._computed(key, queue)
        finally:
            self.in_use.clear()
            self.in_transit.clear()
            self.next_later = None

    def _count_request(self, hits: list, misses: list) -> None:
        self.counts.num_hits += len(hits)
        self.counts.num_misses += len(misses)
        for key in hits:
            self.trace.add("hit", key.layer, key.expert)
        for key in misses:
            if key in self.speculative:
                self.speculative.discard(key)
                self.counts.prefetch_used += 1

    def _start_reads(self, queue: deque) -> None:
        """Start queued reads while slots can be had; synchronous pools start one wave at a time."""
        if self.synchronous and any(key in self.in_use for key in self.loading):
            return
        wave = self.store.num_readers if self.synchronous else len(queue)
        for _ in range(min(wave, len(queue))):
            slot = self._take_slot(queue[0])
            if slot is None:
                return
            self._load(queue.popleft(), slot, DEMAND)
        while self.next_later and (self.holds(self.next_later) or self.prefetch(self.next_later)):
            self.next_later = next(self.later, None)

    def _next_arrivals(self) -> list[ExpertKey]:
        """The next experts in use that have arrived, in the order of their reads, so that a run
        repeats itself; waits for one (synchronous: for all of them) when none has."""
        self.collect_finished()
        arrived = list(takewhile(lambda key: key in self.resident, self.in_use))
        on_the_way = [key for key in self.in_use if key in self.loading]
        if on_the_way and (self.synchronous or not arrived):
            awaited = on_the_way if self.synchronous else on_the_way[:1]
            began_s = time.perf_counter()
            for key in awaited:
                self._finish_read(key)
            self._count_wait(awaited[0], time.perf_counter() - began_s)
            arrived += awaited
        return arrived

    def _count_wait(self, key: ExpertKey, seconds: float) -> None:
        self.counts.wait_s += seconds
        self.trace.add("wait", key.layer, key.expert, seconds=seconds)

    def _computed(self, key: ExpertKey, queue: deque) -> None:
        """``key`` has been used: it may go now unless it is kept. Its slot may carry the next
        miss."""
        self.in_use.pop(key, None)
        self.in_transit.discard(key)
        slot = self.resident.pop(key)
        self.slots.mark_used(slot)
        self.resident[key] = slot  # now the most recently used
        if not self.evictable and key.expert not in self.kept[key.layer]:
            self._evict(key)
        if not self.synchronous:
            self._start_reads(queue)

    # ---- reads ahead of the router ----

    def prefetch(self, key: ExpertKey) -> bool:
        """Start reading ``key`` before its router asks, if there is room; True when a read was
        started."""
        if self.holds(key) or self.prefetch_room <= 0:
            return False
        slot = self._take_slot(key, for_prefetch=True)
        if slot is None:
            return False
        self._load(key, slot, PREFETCH)
        self.speculative.add(key)
        self.counts.num_prefetches += 1
        return True

    def fetch(self, layer: int, experts: Iterable[int]) -> None:
        """Make ``experts`` resident and keep them, waiting for the reads (for fixed draft sets,
        before decoding)."""
        experts = set(experts)
        missing = [expert for expert in experts if ExpertKey(layer, expert) not in self.resident]
        kept = experts | (
            self.kept[layer] & self.resident_experts(layer)
            if len(experts) < self.num_kept
            else set()
        )
        for _ in self.request(
            layer, missing, set(sorted(kept, key=lambda e: e not in experts)[: self.num_kept])
        ):
            pass

    def _give_up_speculative(self, layer: int, wanted: list[ExpertKey]) -> None:
        for key in [k for k in self.speculative if k.layer == layer and k not in wanted]:
            loading = self.loading.get(key)
            if loading is None:
                self.speculative.discard(key)
                if not self.evictable and key.expert not in self.kept[key.layer]:
                    self._evict(key)
            elif self.store.cancel(loading.read):
                self._forget(key)

    def _forget(self, key: ExpertKey) -> None:
        """A read that never happened: its slot is free again and its bytes were never moved."""
        self.slots.give_back(self.loading.pop(key).slot)
        self.counts.num_prefetches -= key in self.speculative
        self.speculative.discard(key)
        self.counts.num_fetches -= 1
        self.counts.fetched_bytes -= self.store.record_bytes

    # ---- slots ----

    def _load(self, key: ExpertKey, slot: int, priority: int) -> None:
        read = self.store.submit(key, self.slots[slot], priority, after=self.slots.last_use[slot])
        self.loading[key] = _Loading(slot, read, priority == PREFETCH)
        if priority == DEMAND:
            self.in_use[key] = None
            self.in_transit.add(key)
        self.counts.num_fetches += 1
        self.counts.fetched_bytes += self.store.record_bytes

    def _finish_read(self, key: ExpertKey) -> None:
        """A read has landed: loading -> resident."""
        loading = self.loading[key]
        loading.read.wait()
        del self.loading[key]
        self.resident[key] = loading.slot
        self._trace_read(key, loading)

    def _trace_read(self, key: ExpertKey, loading: _Loading) -> None:
        self.counts.read_s += loading.read.seconds
        kind, read = "prefetch" if loading.prefetch else "fetch", loading.read
        about = {"size": self.store.record_bytes, "seconds": read.seconds, "ended_s": read.ended_s}
        self.trace.add(kind, key.layer, key.expert, **about)

    def collect_finished(self) -> None:
        """Make resident what has arrived meanwhile."""
        for key in [key for key, loading in self.loading.items() if loading.read.done()]:
            self._finish_read(key)

    def _take_slot(self, key: ExpertKey, for_prefetch: bool = False) -> int | None:
        """A slot to read ``key`` into: a free one, that of the least evictable expert, or
        (never for a prefetch) a speculative one's."""
        self.collect_finished()
        if self.slots.free:
            return self.slots.take()
        least = min(
            (other for other in self.resident if self._is_evictable(other)),
            key=self.policy.priority,
            default=None,
        )
        if least is not None and self._may_replace(key, least, for_prefetch):
            self._evict(least)
        elif least is None and not for_prefetch and not self.in_transit:
            self._evict_prefetched()
        return self.slots.take()

    def _may_replace(self, key: ExpertKey, victim: ExpertKey, for_prefetch: bool) -> bool:
        """At once when ``key`` will be worth more once computed: then ``victim`` would go
        anyway. Else only a few slots carry such reads through, one after the other; the others keep
        what will be wanted again."""
        few = not for_prefetch and len(self.in_transit) < self.max_in_transit
        return few or self.policy.priority(key) >= self.policy.priority(victim)

    def _is_evictable(self, key: ExpertKey) -> bool:
        return (
            key.expert not in self.kept[key.layer]
            and key not in self.in_use
            and key not in self.speculative
        )

    def _evict_prefetched(self) -> None:
        """Demand goes before guesses: take back the newest queued prefetch, else wait for one and
        use its slot."""
        speculative = [key for key in self.loading if key in self.speculative]
        for key in reversed(speculative):
            if self.store.cancel(self.loading[key].read):
                return self._forget(key)
        landed = next(
            (key for key in self.resident if key in self.speculative and key not in self.in_use),
            None,
        )
        key = landed or next(iter(speculative), None)
        if key is None:
            return
        if landed is None:
            self.loading[key].read.wait()
            self._finish_read(key)
        self._evict(key)

    def _evict(self, key: ExpertKey) -> None:
        slot = self.resident.pop(key)
        self.speculative.discard(key)
        self.slots.give_back(slot, was_filled=True)
        self.trace.add("evict", key.layer, key.expert)

    def reset_reads(self) -> None:
        """Give up all reads and wait for those under way, so that nothing writes into the slots any
        more."""
        for key, loading in list(self.loading.items()):
            if self.store.cancel(loading.read):
                self._forget(key)
                continue
            loading.read.wait_released()
            self.slots.give_back(self.loading.pop(key).slot)
            if loading.read.error is None:
                self._trace_read(key, loading)
        self.speculative &= self.resident.keys()
        self.in_use.clear()
        self.in_transit.clear()
        self.next_later = None

    @property
    def num_bytes(self) -> int:
        return self.num_slots * self.store.record_bytes


def min_slots(num_layers: int, num_kept: int) -> int:
    """Slots that a step needs when every layer keeps ``num_kept``: those, and one to carry the
    others through."""
    return num_layers * num_kept + 1
