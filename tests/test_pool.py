"""The resident pool: whatever is asked of it, in whatever order reads arrive, no slot is lost and
no byte is wrong."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specmoe.errors import FastMemoryError, StoreError
from specmoe.offload.policies import KeepPolicy, RunPolicy
from specmoe.offload.pool import PoolMode, ResidentPool, min_slots
from specmoe.offload.read_queue import DEMAND
from specmoe.offload.slots import Slots
from specmoe.offload.transfers import ExpertKey, Read
from specmoe.trace import Trace

LAYERS, EXPERTS, RECORD_BYTES = 2, 6, 4


def record_of(key: ExpertKey) -> list[int]:
    return [key.layer + 1, key.expert + 1, 77, 1]


class FakeRead(Read):
    """Waiting for it lets the store decide what else arrives first."""

    def wait(self, timeout_s=None):
        self.store.arrive_until(self)
        if self.error is not None:
            raise self.error

    def wait_released(self):
        self.store.arrive_until(self)


class FakeStore:
    """Reads happen when told to, in a random order, or when somebody waits. ``failing`` keys raise
    ``StoreError``."""

    def __init__(self, seed: int = 0, num_readers: int = 2):
        self.packed = SimpleNamespace(layers=["a", "b"][:LAYERS], num_experts=EXPERTS)
        self.record_bytes = RECORD_BYTES
        self.num_readers = num_readers
        self.device = torch.device("cpu")
        self.random = random.Random(seed)
        self.reads = []
        self.failing = set()
        self.hastened = []
        self.num_cancelled = 0

    def begin_of(self, key):
        return 0

    def bytes_of(self, key):
        return self.record_bytes

    def submit(self, key, buffer, priority=DEMAND, after=None):
        read = FakeRead(key, buffer, after, len(self.reads))
        read.store = self
        read.priority = priority
        assert not any(other.buffer.data_ptr() == buffer.data_ptr() for other in self.under_way), (
            "two reads, one slot"
        )
        self.reads.append(read)
        return read

    def cancel(self, read):
        if read.started:
            return False
        read.cancelled = True
        read.finish()
        self.num_cancelled += 1
        return True

    def promote(self, read):
        self.hastened.append(read.key)

    @property
    def under_way(self) -> list[Read]:
        return [read for read in self.reads if not read.done()]

    def arrive(self, read):
        assert not read.cancelled
        read.started = True
        if read.key in self.failing:
            return read.finish(
                StoreError(f"expert {read.key.expert} of MoE layer {read.key.layer} is gone")
            )
        read.buffer.copy_(torch.tensor(record_of(read.key), dtype=torch.uint8))
        read.finish()

    def arrive_until(self, read):
        while not read.done():
            self.arrive(self.random.choice(self.under_way))


def make_pool(
    num_slots: int, num_kept: int = 2, seed: int = 0, num_readers: int = 2, **options
) -> ResidentPool:
    slots = Slots(torch.zeros(num_slots, RECORD_BYTES, dtype=torch.uint8), poison=True)
    policy = FakePolicy(KeepPolicy(LAYERS, EXPERTS, num_kept))
    return ResidentPool(FakeStore(seed, num_readers), slots, policy, trace=Trace(), **options)


class FakePolicy(RunPolicy):
    """Priorities that a test sets by hand."""

    def __init__(self, rule):
        super().__init__(rule)
        self.priorities = {}

    def priority(self, key):
        return self.priorities.get(key, 0)


def each(arrivals):
    """One expert and record after the other, while they are valid."""
    for some in arrivals:
        yield from some.items()


def consume(pool, layer, experts, keep=frozenset()) -> list[int]:
    """Request and compute everything, checking every record on its way."""
    order = []
    for expert, record in each(pool.request(layer, experts, set(keep))):
        assert record.tolist() == record_of(ExpertKey(layer, expert))
        pool.check_integrity()
        order.append(expert)
    pool.check_integrity()
    return order


expert_sets = st.sets(st.integers(0, EXPERTS - 1))
layers = st.integers(0, LAYERS - 1)


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        kept=st.integers(0, 2),
        spare=st.integers(0, 5),
        seed=st.integers(0, 99),
        readers=st.integers(1, 3),
        mode=st.sampled_from(PoolMode),
    )
    def open(self, kept, spare, seed, readers, mode):
        slots = min_slots(LAYERS, kept) + spare
        self.pool = make_pool(slots, kept, seed, readers, mode=mode)
        self.store = self.pool.tier.store
        worth = random.Random(seed)
        values = {
            ExpertKey(layer, expert): worth.randrange(3)
            for layer in range(LAYERS)
            for expert in range(EXPERTS)
        }
        self.pool.policy.priorities = values

    @rule(layer=layers, experts=expert_sets, keep=expert_sets, later=expert_sets, data=st.data())
    def request(self, layer, experts, keep, later, data):
        keep = set(sorted(keep)[: self.pool.policy.num_kept])
        resident = {
            e
            for e in self.pool.resident_experts(layer)
            if ExpertKey(layer, e) not in self.pool.tier.speculative
        }
        before, num_reads = self.pool.counts.copy(), len(self.store.reads)
        requested = sorted(experts)
        order = []
        ahead = [ExpertKey(layer + 1, e) for e in later if layer + 1 < LAYERS]
        for expert, record in each(self.pool.request(layer, requested, keep, ahead)):
            assert record.tolist() == record_of(ExpertKey(layer, expert))
            self.pool.check_integrity()
            order.append(expert)
            if self.store.under_way and data.draw(st.booleans()):
                self.store.arrive(data.draw(st.sampled_from(self.store.under_way)))
        assert sorted(order) == requested, "every expert exactly once"
        hits = experts & resident
        assert set(order[: len(hits)]) == hits, "hits first"
        counts = self.pool.counts.minus(before)
        assert (counts.num_hits, counts.num_misses) == (len(hits), len(experts - hits))
        read = [read.key.expert for read in self.store.reads[num_reads:] if read.priority == DEMAND]
        assert len(set(read)) == len(read) and set(read) <= experts - hits, (
            "each missing expert is read once at most"
        )
        assert keep & experts <= self.pool.resident_experts(layer), "what is kept stays"
        if self.pool.mode in (PoolMode.ON_DEMAND, PoolMode.OVERLAPPED):
            assert self.pool.resident_experts(layer) & experts <= keep, (
                "what was computed and is not kept is gone"
            )

    @rule(layer=layers, experts=expert_sets, num_taken=st.integers(0, 3))
    def abandon(self, layer, experts, num_taken):
        """An error between two experts: the rest is never computed."""
        arrivals = self.pool.request(layer, sorted(experts), set())
        for _ in range(num_taken):
            next(arrivals, None)
        arrivals.close()
        self.pool.reset_reads()

    @rule(layer=layers, experts=expert_sets)
    def fetch(self, layer, experts):
        experts = set(sorted(experts)[: self.pool.policy.num_kept])
        self.pool.fetch(layer, experts)
        assert experts <= self.pool.resident_experts(layer) and experts <= self.pool.kept[layer]

    @rule(layer=layers, expert=st.integers(0, EXPERTS - 1))
    def prefetch(self, layer, expert):
        key, room, protected = (
            ExpertKey(layer, expert),
            self.pool.max_speculative - len(self.pool.tier.speculative),
            self.protected(),
        )
        was_held = self.pool.tier.holds(key)
        started = self.pool.prefetch(key)
        assert not (started and (was_held or room <= 0)), "a prefetch without need or room"
        assert self.pool.tier.holds(key) == (was_held or started)
        assert protected <= self.pool.tier.resident.keys(), "a guess pushed a protected expert out"

    @precondition(lambda self: hasattr(self, "store") and self.store.under_way)
    @rule(data=st.data())
    def arrive(self, data):
        self.store.arrive(data.draw(st.sampled_from(self.store.under_way)))

    @precondition(lambda self: hasattr(self, "store") and self.store.under_way)
    @rule(data=st.data())
    def start(self, data):
        data.draw(st.sampled_from(self.store.under_way)).started = True

    @rule()
    def collect_finished(self):
        self.pool.tier.collect_finished()

    @rule()
    def reset_reads(self):
        self.pool.reset_reads()
        assert not self.store.under_way

    def protected(self) -> set[ExpertKey]:
        return {key for key in self.pool.tier.resident if key.expert in self.pool.kept[key.layer]}

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        pool.check_integrity()
        for key, slot in pool.tier.resident.items():
            assert pool.tier.slots[slot].tolist() == record_of(key)
        assert len(pool.tier.resident) + len(pool.tier.loading) <= len(pool.tier.slots)
        assert pool.tier.slots.memory.nbytes == len(pool.tier.slots) * RECORD_BYTES
        assert all(
            pool.tier.slots[slot].eq(0xFF).all()
            for slot in pool.tier.slots.free
            if slot not in self.dirty()
        ), "not poisoned"
        assert pool.counts.num_fetches == len(self.store.reads) - self.store.num_cancelled
        assert pool.counts.fetched_bytes == pool.counts.num_fetches * RECORD_BYTES
        assert 0 <= pool.counts.prefetch_used <= pool.counts.num_prefetches

    def dirty(self) -> set[int]:
        """Slots given back by ``reset_reads`` in the middle of a read hold what the read left
        there."""
        return {
            (read.buffer.data_ptr() - self.pool.tier.slots.memory.data_ptr()) // RECORD_BYTES
            for read in self.store.reads
        }


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=50, stateful_step_count=25)


def test_too_few_slots_are_refused_with_the_bytes_that_are_needed():
    with pytest.raises(FastMemoryError, match="5 slots of 4 bytes are needed"):
        make_pool(4, num_kept=2)
    make_pool(5, num_kept=2)


@pytest.mark.parametrize("mode", PoolMode)
def test_one_spare_slot_carries_a_whole_layer(mode):
    pool = make_pool(1, num_kept=0, mode=mode)
    assert sorted(consume(pool, 0, range(EXPERTS))) == list(range(EXPERTS))
    assert pool.counts.num_fetches == EXPERTS


def test_a_kept_expert_survives_any_pressure():
    pool = make_pool(min_slots(LAYERS, 2), num_kept=2)
    consume(pool, 0, range(EXPERTS), keep={1, 4})
    consume(pool, 1, range(EXPERTS), keep={0, 5})
    assert pool.resident_experts(0) >= {1, 4} and pool.resident_experts(1) >= {0, 5}
    assert consume(pool, 0, [1, 4], keep={1, 4}) == [1, 4]
    assert pool.counts.num_hits == 2


def test_a_pool_that_does_not_linger_drops_what_was_computed():
    pool = make_pool(8, num_kept=1, mode=PoolMode.OVERLAPPED)
    consume(pool, 0, [0, 1, 2], keep={2})
    assert pool.resident_experts(0) == {2}


def test_a_lingering_expert_is_a_hit_until_its_slot_is_wanted():
    pool = make_pool(4, num_kept=0)
    consume(pool, 0, [0, 1, 2, 3])
    consume(pool, 0, [3])
    assert pool.counts.num_hits == 1
    consume(pool, 1, [0])  # the least recently used makes room
    assert pool.resident_experts(0) == {1, 2, 3}


def test_a_synchronous_pool_never_reads_while_computing():
    pool = make_pool(8, num_kept=0, num_readers=2, mode=PoolMode.ON_DEMAND)
    for _ in pool.request(0, range(5), set()):
        assert not pool.tier.store.under_way
    assert [read.number for read in pool.tier.store.reads] == list(range(5))


@pytest.mark.parametrize(
    ("mode", "at_once"),
    [
        # what a wave brought; the hits, and whatever arrives when, by itself; all
        (PoolMode.ON_DEMAND, [[0, 1], [2, 3], [4]]),
        (PoolMode.CACHED, [[1, 2], [0], [3], [4]]),
        (PoolMode.RESIDENT, [[0, 1, 2, 3, 4]]),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_given_at_once_does_not_hang_on_the_order_of_arrival(mode, at_once, seed):
    pool = make_pool(8, num_kept=0, num_readers=2, mode=mode, seed=seed)
    if mode is not PoolMode.ON_DEMAND:
        consume(pool, 0, [1, 2] if mode is PoolMode.CACHED else range(5))
    assert [list(some) for some in pool.request(0, range(5), set())] == at_once


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_what_is_computed_and_evicted_does_not_hang_on_the_order_of_arrival(num_slots):
    """So that two runs of the same job move the same bytes."""
    histories = []
    for seed in range(6):
        pool = make_pool(num_slots, num_kept=0, seed=seed, num_readers=4)
        orders = [
            consume(pool, layer, experts)
            for layer, experts in [(0, range(6)), (1, [1, 3, 5]), (0, [2, 4, 0])] * 3
        ]
        histories.append((orders, sorted(pool.tier.resident), pool.counts.num_hits))
    assert histories == histories[:1] * 6


def test_an_asynchronous_pool_reads_everything_it_has_slots_for_at_once():
    pool = make_pool(8, num_kept=0)
    arrivals = pool.request(0, range(5), set())
    assert len(pool.tier.store.under_way) == 5
    assert len(list(each(arrivals))) == 5


def test_reads_that_have_arrived_together_are_computed_one_by_one():
    """Else the clock would say which are multiplied in one call."""
    pool = make_pool(8, num_kept=0)
    arrivals = pool.request(0, range(5), set())
    for read in list(pool.tier.store.under_way):
        pool.tier.store.arrive(read)
    assert [len(some) for some in arrivals] == [1] * 5


def test_a_claimed_prefetch_is_a_miss_where_everything_is_resident_too():
    pool = make_pool(8, num_kept=0, mode=PoolMode.RESIDENT)
    assert pool.prefetch(ExpertKey(0, 3))
    consume(pool, 1, range(3))
    assert consume(pool, 0, [3]) == [3]
    assert (pool.counts.num_hits, pool.counts.prefetch_used) == (0, 1)


def test_a_claimed_prefetch_is_a_miss_that_moves_no_second_byte():
    pool = make_pool(8)
    assert pool.prefetch(ExpertKey(1, 3))
    consume(pool, 1, [3])
    counts = pool.counts
    assert (counts.num_hits, counts.num_misses, counts.num_fetches, counts.prefetch_used) == (
        0,
        1,
        1,
        1,
    )
    assert pool.tier.store.hastened == [ExpertKey(1, 3)], (
        "compute waits for it now: it goes before other prefetches"
    )


def test_a_prefetch_of_another_layer_stays_and_an_unwanted_one_is_taken_back():
    pool = make_pool(10)
    for key in (ExpertKey(0, 1), ExpertKey(0, 2), ExpertKey(1, 5)):
        assert pool.prefetch(key)
    consume(pool, 0, [2])
    assert pool.tier.store.num_cancelled == 1 and not pool.tier.holds(ExpertKey(0, 1))
    assert pool.tier.holds(ExpertKey(1, 5))
    assert (pool.counts.num_prefetches, pool.counts.num_fetches) == (2, 2), (
        "what never moved is not counted"
    )


def valued(pool, **worth):
    """``pool`` with what its experts are worth: ``a3`` is expert 3 of the first layer, ``b0``
    expert 0 of the second."""
    values = {ExpertKey("ab".index(name[0]), int(name[1:])): value for name, value in worth.items()}
    pool.policy.priorities = values
    return pool


def test_reads_of_little_worth_pass_through_few_slots_and_leave_the_others_alone():
    pool = make_pool(8, num_kept=0, num_readers=1)  # three slots carry reads at a time
    consume(pool, 1, range(5))
    valued(pool, b0=9, b1=9, b2=9, b3=9, b4=9, a0=1, a1=1, a2=1, a3=1, a4=1, a5=1)
    assert sorted(consume(pool, 0, range(6))) == list(range(6))
    assert pool.resident_experts(1) == set(range(5))


def test_a_read_worth_more_takes_the_place_of_a_lingering_expert_at_once_the_worthiest_first():
    pool = make_pool(6, num_kept=0, num_readers=1)
    consume(pool, 1, range(6))
    valued(pool, b5=1, a0=1, a1=2, a2=2, a3=2, a4=2, a5=3)
    arrivals = pool.request(0, range(6), set())
    assert [read.key.expert for read in pool.tier.store.under_way] == [5, 1, 2, 3, 4, 0]
    assert len(list(each(arrivals))) == 6


def test_a_prefetch_does_not_push_out_what_is_worth_more():
    pool = make_pool(6, num_kept=0)
    consume(pool, 1, range(6))
    valued(pool, **{f"b{expert}": 2 for expert in range(6)}, a0=1, a1=2)
    assert not pool.prefetch(ExpertKey(0, 0)) and pool.prefetch(ExpertKey(0, 1))


def test_a_later_layer_is_read_ahead_once_this_one_waits_for_no_slot():
    pool = make_pool(5, num_kept=0, num_readers=1)
    later = [ExpertKey(1, 4), ExpertKey(1, 2), ExpertKey(1, 0)]
    arrivals = pool.request(0, [0, 1, 2], set(), later)
    assert [read.key for read in pool.tier.store.under_way] == [
        *map(ExpertKey, [0] * 3, range(3)),
        *later[:2],
    ]
    assert len(list(each(arrivals))) == 3 and all(map(pool.tier.holds, later))
    pool.check_integrity()
    assert sorted(consume(pool, 1, [0, 2, 4, 5])) == [0, 2, 4, 5]
    assert pool.counts.prefetch_used == pool.counts.num_prefetches == 3


def test_a_layer_waits_for_its_own_reads_before_it_takes_the_slots_of_the_next_ones_prefetches():
    pool = make_pool(5, num_kept=0)
    ahead = [ExpertKey(1, expert) for expert in range(3)]
    assert all(pool.prefetch(key) for key in ahead)
    assert len(consume(pool, 0, range(6))) == 6 and all(map(pool.tier.holds, ahead))


def test_prefetches_never_take_the_last_slots():
    pool = make_pool(min_slots(LAYERS, 2) + 1, num_kept=2)
    assert pool.max_speculative - len(pool.tier.speculative) == 0 and not pool.prefetch(
        ExpertKey(0, 0)
    )
    pool = make_pool(min_slots(LAYERS, 2) + 3, num_kept=2)
    assert [pool.prefetch(ExpertKey(0, e)) for e in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("state", ["queued", "started", "landed"])
def test_demand_sacrifices_prefetches_in_any_state(state):
    pool = make_pool(min_slots(LAYERS, 1) + 3, num_kept=1)
    consume(pool, 0, [0], keep={0})
    consume(pool, 1, [0], keep={0})
    for expert in (1, 2):
        assert pool.prefetch(ExpertKey(1, expert))
    for read in pool.tier.store.under_way:
        if state == "landed":
            pool.tier.store.arrive(read)
        read.started = state != "queued"
    assert sorted(consume(pool, 0, range(EXPERTS), keep={0})) == list(range(EXPERTS))
    assert pool.resident_experts(1) >= {0}


@pytest.mark.parametrize("state", ["queued", "started", "landed"])
def test_demand_takes_the_slot_of_a_guess_at_once_while_hits_hold_all_others(state):
    pool = make_pool(min_slots(LAYERS, 1) + 3, num_kept=1)
    consume(pool, 1, [0], keep={0})
    consume(pool, 0, [0, 1, 2], keep={0})  # 1 and 2 linger
    guesses = [ExpertKey(1, expert) for expert in (1, 2)]
    assert all(pool.prefetch(key) for key in guesses) and not pool.prefetch(ExpertKey(1, 3))
    for read in pool.tier.store.under_way:
        if state == "landed":
            pool.tier.store.arrive(read)
        read.started = state != "queued"
    arrivals = pool.request(0, [0, 1, 2, 3], {0})
    assert [pool.tier.holds(key) for key in guesses].count(True) == 1
    assert pool.tier.store.reads[-1].key == ExpertKey(0, 3), "its read waits for no hit"
    assert sorted(expert for expert, _ in each(arrivals)) == [0, 1, 2, 3]
    pool.check_integrity()


def test_a_failed_read_is_raised_where_it_is_needed_and_the_pool_can_go_on():
    pool = make_pool(8, num_kept=1)
    pool.tier.store.failing = {ExpertKey(0, 3)}
    with pytest.raises(StoreError, match="expert 3 of MoE layer 0"):
        list(pool.request(0, range(EXPERTS), {1}))
    pool.reset_reads()
    pool.check_integrity()
    pool.tier.store.failing = set()
    assert sorted(consume(pool, 0, range(EXPERTS), keep={1})) == list(range(EXPERTS))


def test_freed_slots_hold_nan_in_every_format():
    pool = make_pool(3, num_kept=0, mode=PoolMode.OVERLAPPED)
    consume(pool, 0, [0, 1])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert torch.isnan(pool.tier.slots.memory.view(-1).view(dtype)).all()


def test_the_trace_has_one_event_per_read_hit_and_eviction():
    pool = make_pool(4, num_kept=0)
    consume(pool, 0, [0, 1, 2])
    consume(pool, 0, [1, 2, 3])
    consume(pool, 1, [0])
    kinds = [event[3] for event in pool.tier.trace.events]
    counts = pool.counts
    assert (
        (kinds.count("fetch"), kinds.count("hit"))
        == (counts.num_fetches, counts.num_hits)
        == (5, 2)
    )
    assert kinds.count("evict") == 5 - len(pool.tier.resident)


def test_of_the_lingering_the_one_used_least_lately_goes_first():
    pool = make_pool(4, num_kept=1)
    valued(pool, a0=5, a1=1, a2=3, b4=9, b5=9)
    for expert in (0, 1, 2):
        consume(pool, 0, {expert})
    consume(pool, 1, {4, 5})  # wants one slot more than is free
    assert pool.resident_experts(0) == {0, 2}, "expert 1 was the least used"
