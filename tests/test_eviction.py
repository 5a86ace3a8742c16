"""Which experts stay: every policy against its definition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specmoe.offload.evictions import make_policy
from specmoe.offload.policies import (
    LFU,
    LRU,
    Belady,
    KeepPolicy,
    RecentUse,
    Static,
    Temporal,
    replay,
)
from specmoe.options import EVICTIONS

E = 5
steps = st.lists(st.lists(st.integers(0, 3), min_size=E, max_size=E), min_size=1, max_size=12)


def counts(**tokens) -> list[int]:
    """``counts(e0=2, e3=1)``: tokens per expert."""
    return [tokens.get(f"e{expert}", 0) for expert in range(E)]


def after(policy: KeepPolicy, *requests) -> set[int]:
    resident: set[int] = set()
    for request in requests:
        resident = policy.keep(0, request, resident | {e for e, n in enumerate(request) if n})
    return resident


def test_on_demand_keeps_nothing():
    assert after(KeepPolicy(1, E, 3), counts(e0=1, e1=5)) == set()


def test_lru_keeps_the_most_recently_requested():
    assert after(LRU(1, E, 2), counts(e0=9), counts(e1=1), counts(e2=1)) == {1, 2}


def test_lru_breaks_ties_of_one_request_by_tokens():
    assert after(LRU(1, E, 2), counts(e0=1, e1=3, e2=2)) == {1, 2}


def test_lfu_keeps_the_most_frequent_of_the_run():
    assert after(LFU(1, E, 2), counts(e0=9), counts(e1=1), counts(e2=2), counts(e2=2)) == {0, 2}


def test_temporal_keeps_the_most_used_of_the_last_step_only():
    assert after(Temporal(1, E, 2), counts(e0=90, e1=90), counts(e2=1, e3=2)) == {2, 3}


def test_temporal_fills_up_with_what_was_used_before():
    assert after(Temporal(1, E, 2), counts(e0=9, e1=8), counts(e2=1)) == {0, 2}


def test_static_keeps_the_hottest_of_the_calibration_whatever_comes():
    policy = Static(2, E, 2, [[1, 5, 0, 4, 0], [0, 0, 0, 0, 7]])
    assert after(policy, counts(e0=9, e2=9)) == {1, 3}
    assert policy.fixed == [{1, 3}, {0, 4}]


def test_recent_use_fades_with_the_tokens_that_came_after():
    recent = RecentUse(2, E)
    recent.observe(1, counts(e0=40))
    recent.observe(1, counts(e1=RecentUse.HORIZON))
    recent.observe(1, counts(e2=30))
    assert recent.use[1][0] == pytest.approx(
        40 / 2.718 ** (1 + 30 / RecentUse.HORIZON), rel=1e-3
    ) and not any(recent.use[0])
    assert recent.use[1][1] > recent.use[1][2] > recent.use[1][0] > recent.use[1][3] == 0


def test_layers_do_not_mix():
    policy = LFU(2, E, 1)
    policy.keep(0, counts(e0=5), {0})
    assert policy.keep(1, counts(e3=1), {3}) == {3}


@given(requests=steps, num_kept=st.integers(0, E), name=st.sampled_from(["lru", "lfu", "temporal"]))
def test_at_most_num_kept_of_what_is_here_stay(requests, num_kept, name):
    policy, resident = make_policy(name, 1, E, num_kept), set()
    for request in requests:
        here = resident | {e for e, n in enumerate(request) if n}
        resident = policy.keep(0, request, resident)
        assert resident <= here and len(resident) == min(num_kept, len(here))


@given(requests=steps, num_kept=st.integers(1, E))
def test_no_policy_beats_belady(requests, num_kept):
    needed = [{e for e, n in enumerate(request) if n} for request in requests]
    best, _ = replay(requests, Belady(1, E, num_kept, [needed]))
    for name in ("lru", "lfu", "temporal"):
        hits, misses = replay(requests, make_policy(name, 1, E, num_kept))
        assert hits <= best and hits + misses == sum(map(len, needed))


def test_replay_counts_by_hand():
    requests = [counts(e0=1), counts(e0=1, e1=1), counts(e1=1)]
    # after the second step one of e0, e1 stays: e0, by its number
    assert replay(requests, LRU(1, E, 1)) == (1, 3)


@pytest.mark.parametrize("name", EVICTIONS)
def test_every_option_has_its_policy(name):
    policy = make_policy(name, 2, E, 2, [[random.random() for _ in range(E)]] * 2)
    assert len(policy.keep(0, counts(e0=1, e1=1), set())) == 2
