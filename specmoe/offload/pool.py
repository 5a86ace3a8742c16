"""Which experts fast memory holds, and when they are read: the pool.

Comes in: per layer and step the experts that the router named and the set to keep
(``offload.policies``, ``draft_sets``). Goes out: records, hits first, then misses as they arrive.
``experts`` calls this; ``tier`` moves the bytes.

A slot is free, being filled, or resident. A resident expert is *kept* (protected: chosen to stay),
*in use* (protected until the layer has computed it), *speculative* (prefetched for a layer that has
not asked yet), or *evictable*: it stays until its slot is wanted. The pool never holds more bytes
than its slots, whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import torch

from ..errors import FastMemoryError
from ..trace import PoolCounts, Trace
from .policies import RunPolicy
from .read_queue import PREFETCH
from .request import Request
from .slots import Slots
from .store import ExpertStore
from .tier import FastTier
from .transfers import ExpertKey


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
    """``policy.num_kept`` experts per layer may be protected at once; the other slots carry
    everything else through; layers before ``policy.first_kept`` (an encoder's) keep none. Eviction
    order of the unprotected: lowest priority, then least recently used. A read of lower priority
    than every evictable expert may hold at most ``max_in_transit`` slots."""

    def __init__(
        self,
        store: ExpertStore,
        slots: Slots,
        policy: RunPolicy,
        mode: PoolMode = PoolMode.CACHED,
        trace: Trace | None = None,
    ):
        self.policy = policy
        self.mode = mode
        self.is_synchronous = mode is PoolMode.ON_DEMAND
        self.tier = FastTier(store, slots, Trace(enabled=False) if trace is None else trace)
        num_layers = len(store.packed.layers) - policy.first_kept
        needed = min_slots(num_layers, policy.num_kept)
        if len(slots) < needed:
            raise FastMemoryError(
                f"{len(slots)} slots cannot keep {policy.num_kept} experts in each of {num_layers} "
                f"MoE layers and read one more: {needed} slots of {store.record_bytes} bytes are "
                "needed"
            )
        # Some slots beyond the protected ones prefetches never take.
        num_reserved = min(2, len(slots) - needed + 1)
        self.max_speculative = len(slots) - num_layers * policy.num_kept - num_reserved
        self.max_in_transit = store.num_readers + 2
        self.kept: list[set[int]] = [set() for _ in store.packed.layers]
        self.current = Request(self)

    @property
    def counts(self) -> PoolCounts:
        return self.tier.counts

    def resident_experts(self, layer: int) -> set[int]:
        """Experts of ``layer`` that can be computed right now."""
        return set(self.tier.here[layer])

    def check_integrity(self) -> None:
        """``AssertionError`` if a slot is lost, doubled, or a protected expert is missing."""
        tier, num_kept = self.tier, self.policy.num_kept
        tier.check()
        assert all(tier.holds(key) for key in self.current.in_use), "an expert in use is lost"
        assert all(len(kept) <= num_kept for kept in self.kept), "more kept than allowed"
        assert not any(self.kept[: self.policy.first_kept]), "an encoder's layer keeps experts"
        for key, loading in tier.loading.items():
            assert loading.is_prefetch or key in self.current.in_use, "a read that nobody asked for"

    # ---- the target's request: every distinct expert once ----

    def request(
        self, layer: int, experts: Iterable[int], keep: set[int], later: Iterable[ExpertKey] = ()
    ) -> Iterator[dict[int, torch.Tensor]]:
        """Start reading what is missing of ``experts`` now; returns an iterator of experts and
        their records, hits first, then misses as they arrive. Records are valid until the next are
        taken. From here on exactly ``keep`` is protected in ``layer``. ``later``: experts of later
        layers, to be prefetched as soon as nothing of this one waits for a slot."""
        assert len(keep) <= self.policy.num_kept, f"{len(keep)} experts to keep"
        tier, self.kept[layer] = self.tier, set(keep)
        keys = [ExpertKey(layer, expert) for expert in experts]
        are_here = not tier.speculative and all(key in tier.resident for key in keys)
        if self.mode is PoolMode.RESIDENT and are_here:
            self._count(keys, [])  # there is no more to keep books of
            return (some for some in [{key.expert: tier.record(key) for key in keys}])
        self._give_up_speculative(layer, keys)
        hits = [key for key in keys if key in tier.resident and key not in tier.speculative]
        misses = [key for key in keys if key not in set(hits)]
        ahead = [key for key in misses if tier.holds(key)]
        self._count(hits, misses)
        for key in ahead:
            tier.promote(key)
        # the more an expert is used, the earlier it may take the place of another
        absent = (key for key in misses if not tier.holds(key))
        absent = sorted(absent, key=self.policy.priority, reverse=True)
        self.current = Request(self, hits, ahead, absent, later)
        if not self.is_synchronous:
            self.current.start_reads()
        return self.current.arrivals()

    def _count(self, hits: list[ExpertKey], misses: list[ExpertKey]) -> None:
        tier = self.tier
        tier.counts.num_hits += len(hits)
        tier.counts.num_misses += len(misses)
        tier.counts.prefetch_used += len(tier.speculative.intersection(misses))
        tier.speculative.difference_update(misses)
        for key in hits:
            tier.trace.add("hit", key.layer, key.expert)

    def drop(self, key: ExpertKey) -> None:
        """Where nothing stays that is not kept, ``key`` goes."""
        stays = self.mode in (PoolMode.CACHED, PoolMode.RESIDENT)
        if not stays and key.expert not in self.kept[key.layer]:
            self.tier.evict(key)

    # ---- reads ahead of the router ----

    def prefetch(self, key: ExpertKey) -> bool:
        """Start reading ``key`` before its router asks, if there is room; True when a read was
        started."""
        tier = self.tier
        if tier.holds(key) or len(tier.speculative) >= self.max_speculative:
            return False
        if not self.make_room(key, for_prefetch=True):
            return False
        tier.load(key, PREFETCH)
        tier.speculative.add(key)
        tier.counts.num_prefetches += 1
        return True

    def fetch(self, layer: int, experts: Iterable[int]) -> None:
        """Make ``experts`` resident and keep them, and of what was kept as many as may be; waits
        for the reads (for fixed draft sets, before decoding)."""
        experts, here = set(experts), self.resident_experts(layer)
        room = self.policy.num_kept - len(experts)
        others = sorted((self.kept[layer] & here) - experts)[: max(0, room)]
        for _ in self.request(layer, experts - here, experts.union(others)):
            pass

    def _give_up_speculative(self, layer: int, wanted: list[ExpertKey]) -> None:
        tier = self.tier
        for key in [key for key in tier.speculative if key.layer == layer and key not in wanted]:
            if key in tier.loading:
                tier.cancel(key)
            else:
                tier.speculative.discard(key)
                self.drop(key)

    # ---- room ----

    def make_room(self, key: ExpertKey, for_prefetch: bool = False) -> bool:
        """Whether a slot is free for ``key`` now: one that was, that of the least evictable expert,
        or (never for a prefetch) a speculative one's."""
        tier = self.tier
        tier.collect_finished()
        if tier.slots.free:
            return True
        # inline, as it is asked of every resident expert, for every read
        kept, in_use = self.kept, self.current.in_use
        unkept = [key for key in tier.resident if key[1] not in kept[key[0]]]
        evictable = (key for key in unkept if key not in in_use and key not in tier.speculative)
        least = min(evictable, key=self.policy.priority, default=None)
        if least is not None and self._may_replace(key, least, for_prefetch):
            tier.evict(least)
        elif least is None and not for_prefetch and not self.current.in_transit:
            self._evict_speculative()
        return bool(tier.slots.free)

    def _may_replace(self, key: ExpertKey, victim: ExpertKey, for_prefetch: bool) -> bool:
        """At once when ``key`` will be worth more once computed: then ``victim`` would go
        anyway. Else only a few slots carry such reads through, one after the other; the others keep
        what will be wanted again."""
        few = not for_prefetch and len(self.current.in_transit) < self.max_in_transit
        return few or self.policy.priority(key) >= self.policy.priority(victim)

    def _evict_speculative(self) -> None:
        """Demand goes before guesses: take back the newest queued prefetch, else the slot of one
        that has landed, else wait for one."""
        tier = self.tier
        under_way = [key for key in tier.loading if key in tier.speculative]
        if any(tier.cancel(key) for key in reversed(under_way)):
            return
        unclaimed = tier.speculative - self.current.in_use.keys()
        landed = [key for key in tier.resident if key in unclaimed]
        for key in (landed or under_way)[:1]:
            if not landed:
                tier.wait(key)
            tier.evict(key)

    # ---- the end of a run ----

    def reset_reads(self) -> None:
        """Give up all reads and wait for those under way."""
        self.tier.reset_reads()
        self.current.end()


def min_slots(num_layers: int, num_kept: int) -> int:
    """Slots that a step needs when every layer keeps ``num_kept``: those, and one to carry the
    others through."""
    return num_layers * num_kept + 1
