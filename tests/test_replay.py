"""Replays of a trace: what they say is what the events say, and what the engine itself counted."""

from __future__ import annotations

import pytest
from conftest import PROMPTS
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import OptionError
from specmoe.lab import replay
from specmoe.lab.replay import Request
from specmoe.offload.pool import ResidentPool
from specmoe.trace import Block, Trace


def requests_of(*needed: set[int], num_experts: int = 4) -> list[Request]:
    return [
        Request(step, "verify", tuple(int(e in need) for e in range(num_experts)))
        for step, need in enumerate(needed)
    ]


def small_trace() -> Trace:
    """Prefill, then one round: a prefetch while drafting, a fetch and a wait while verifying;
    seconds by hand."""
    now = [0.0]
    trace = Trace(clock=lambda: now[0])

    def add(at_s: float, *what, **values) -> None:
        now[0] = at_s
        trace.add(*what, **values)

    trace.phase = "prefill"
    add(0.1, "route", 0, 1, count=3)
    add(1.0, "prefill", count=3, size=1, seconds=1.0)
    trace.phase = "draft"
    trace.round = 0
    add(1.8, "prefetch", 0, 2, size=100, seconds=0.5)
    add(2.0, "draft", count=1, size=1, seconds=1.0)
    trace.phase = "verify"
    add(2.25, "route", 0, 1, count=1)
    add(2.25, "route", 0, 2, count=1)
    add(2.25, "hit", 0, 1)
    add(2.5, "route", 1, 0, count=2)
    add(2.75, "fetch", 1, 0, size=100, seconds=0.25)
    add(2.75, "wait", 1, 0, seconds=0.25)
    add(3.0, "verify", count=2, size=1, seconds=1.0)
    trace.phase = "accept"
    trace.add_block(0, 4, [7], 1, [7, 8])
    add(3.5, "round", count=2, size=1, seconds=2.5)
    return trace


# ---- the pool ----


def test_requests_are_one_per_full_model_step_of_the_layer():
    frame = small_trace().to_frame()
    assert replay.layers_of(frame) == [0, 1]
    assert replay.layer_requests(frame, 0) == [
        Request(-1, "prefill", (0, 3, 0)),
        Request(0, "verify", (0, 1, 1)),
    ]
    assert replay.layer_requests(frame, 1, num_experts=4) == [Request(0, "verify", (2, 0, 0, 0))]


def test_lru_by_hand():
    """Two places: 0 1 are kept, 2 pushes out 0 (older), 0 pushes out 1."""
    held = replay.replay_pool(requests_of({0}, {1}, {2}, {0}, {2}), 2, "lru")
    assert [step.misses for step in held] == [1, 1, 1, 1, 0]
    assert [set(step.after) for step in held] == [{0}, {0, 1}, {1, 2}, {2, 0}, {2, 0}]


def test_belady_by_hand_knows_that_expert_0_returns():
    held = replay.replay_pool(requests_of({0}, {1}, {2}, {0}, {2}), 2, "belady")
    assert [step.misses for step in held] == [1, 1, 1, 0, 0]


def test_prefills_are_left_out_and_marked_where_they_ran():
    prefill, step = Request(-1, "prefill", (1, 1, 1)), Request(0, "verify", (1, 0, 0))
    requests = [prefill, prefill, step, step, prefill, step, prefill]
    assert replay.decoding(requests) == ([step] * 3, [0, 2])
    with pytest.raises(OptionError, match="prefills only"):
        replay.decoding([prefill])


def test_a_rule_of_ones_own_is_played_and_checked():
    requests = requests_of({0}, {1}, {2}, {0}, {2})
    oldest = replay.replay_pool(requests, 2, lambda counts, resident, num: sorted(resident)[:num])
    assert [set(step.after) for step in oldest] == [set()] * 5
    first = replay.replay_pool(
        requests,
        2,
        lambda counts, resident, num: sorted(resident | {i for i, c in enumerate(counts) if c})[
            :num
        ],
    )
    assert [set(step.after) for step in first] == [{0}, {0, 1}, {0, 1}, {0, 1}, {0, 1}]
    with pytest.raises(OptionError, match="at most 2 may stay"):
        replay.replay_pool(requests, 2, lambda counts, resident, num: {0, 1, 2})
    with pytest.raises(OptionError, match=r"\[2\], neither needed nor resident"):
        replay.replay_pool(requests, 2, lambda counts, resident, num: {2})


@settings(max_examples=60)
@given(
    st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=14),
    st.integers(1, 5),
)
def test_belady_never_misses_more_than_any_policy(needed, num_kept):
    table = replay.pool_table(requests_of(*needed, num_experts=6), num_kept)
    last = table.groupby("policy").last()
    assert (last.loc["belady", "total_misses"] <= last["total_misses"]).all()
    assert ((last["total_hits"] + last["total_misses"]) == sum(map(len, needed))).all()


@settings(max_examples=30)
@given(
    st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=14),
    st.integers(1, 4),
)
def test_lru_and_belady_hold_no_more_than_they_may(needed, num_kept):
    for policy in replay.REPLAYED:
        for step in replay.replay_pool(requests_of(*needed, num_experts=6), num_kept, policy):
            assert len(step.after) <= num_kept and step.after <= step.needed | step.before


@pytest.mark.parametrize("policy", ["lru", "lfu", "temporal"])
def test_a_replay_misses_what_the_engine_missed(open_engine, monkeypatch, policy):
    """The same policy and places, with empty spare slots: in the engine they may hold more than the
    policy."""
    request = ResidentPool.request

    def strict(pool, layer, experts, keep, later):
        yield from request(pool, layer, experts, keep, later)
        for key in [
            key for key in pool.tier.resident if key.layer == layer and key.expert not in keep
        ]:
            pool.tier.evict(key)

    monkeypatch.setattr(ResidentPool, "request", strict)
    engine = open_engine("mixtral", draft_experts=2)
    output = engine.generate(
        PROMPTS, max_new_tokens=12, method="cached", eviction=policy, eos_token_id=[]
    )
    frame, info = output.trace.to_frame(), engine.info
    misses = hits = 0
    for layer in range(info["layers"]):
        requests = replay.layer_requests(frame, layer, info["experts"])
        held = [
            step
            for step in replay.replay_pool(requests, info["cached_experts"], policy)
            if step.round >= 0
        ]
        misses, hits = (
            misses + sum(step.misses for step in held),
            hits + sum(step.hits for step in held),
        )
    assert (hits, misses) == (output.stats.num_hits, output.stats.num_misses)
    assert hits and misses


# ---- the clock ----


def test_the_timeline_of_a_round_by_hand():
    table = replay.timeline(small_trace().to_frame(), 0)
    spans = {
        (row.lane, row.kind, row.layer): (row.begin_s, row.end_s) for row in table.itertuples()
    }
    assert spans["link 1", "prefetch", 0] == pytest.approx((0.3, 0.8))
    assert spans["link 1", "fetch", 1] == pytest.approx((1.5, 1.75))
    assert spans["compute", "draft", -1] == pytest.approx((0.0, 1.0))
    # until layer 1's router spoke
    assert spans["compute", "verify", 0] == pytest.approx((1.0, 1.5))
    assert spans["compute", "verify", 1] == pytest.approx((1.5, 2.0))
    assert spans["compute", "wait", 1] == pytest.approx((1.5, 1.75))
    assert spans["compute", "rest", -1] == pytest.approx((2.0, 2.5))
    assert len(table) == len(spans)


def test_a_read_that_overlaps_the_rounds_end_is_cut_there():
    frame = small_trace().to_frame()
    late = frame["kind"] == "fetch"
    # it begins as before, and arrives after the round has ended
    frame.loc[late, ["time_s", "seconds"]] += 2.0
    whole = frame[frame["kind"] == "round"].iloc[0]
    fetch = replay.timeline(frame, 0).query("kind == 'fetch'").iloc[0]
    assert fetch["begin_s"] == pytest.approx(1.5) and fetch["end_s"] == pytest.approx(
        whole["seconds"]
    )


def test_reads_at_the_same_time_take_different_lanes(open_engine):
    frame = (
        open_engine("mixtral")
        .generate(PROMPTS, max_new_tokens=8, method="specmoe", gamma=2)
        .trace.to_frame()
    )
    for round in replay.rounds_of(frame):
        for _, lane in replay.timeline(frame, round).query("lane != 'compute'").groupby("lane"):
            assert (
                lane["end_s"].iloc[:-1].to_numpy() <= lane["begin_s"].iloc[1:].to_numpy() + 1e-6
            ).all()


# ---- rounds ----


@pytest.mark.parametrize(
    ("block", "kinds"),
    [
        (Block(0, 0, 5, (1, 2), 2, (1, 2, 3)), ["accepted", "accepted", "bonus"]),
        (Block(0, 0, 5, (1, 2), 1, (1, 9)), ["accepted", "recovered"]),
        (Block(0, 0, 5, (1, 2), 0, (9,)), ["recovered"]),
        (Block(0, 0, 5, (), 0, (9,)), ["plain"]),
        # EOS was accepted: what follows it is gone
        (Block(0, 0, 5, (1, 2), 2, (1,)), ["accepted"]),
    ],
)
def test_every_committed_token_has_one_kind(block, kinds):
    assert replay.token_kinds(block) == kinds


@pytest.mark.parametrize("gamma", [0, 3])
def test_the_blocks_of_a_row_are_its_text(open_engine, gamma):
    output = open_engine("mixtral").generate(
        PROMPTS, max_new_tokens=9, method="specmoe", gamma=gamma, batch_size=2
    )
    for row, (sequence, start) in enumerate(
        zip(output.sequences, output.num_prompt_tokens, strict=True)
    ):
        blocks = replay.blocks_of(output.trace, row)
        assert [token for block in blocks for token in block.committed] == sequence.tolist()[start:]
        assert [block.start for block in blocks] == [
            start + sum(len(b.committed) for b in blocks[:i]) for i in range(len(blocks))
        ]
        for block in blocks:
            agreed = block.drafted[: block.accepted]
            assert block.committed[: len(agreed)] == agreed[: len(block.committed)]


def test_an_untraced_engine_keeps_no_blocks(open_engine):
    output = open_engine("mixtral", trace=False).generate(
        PROMPTS, max_new_tokens=4, method="specmoe", gamma=2
    )
    assert output.trace.blocks == [] and len(output.trace) == 0


# ---- bad input ----


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: replay.layer_requests(f, 7), "layer=7 .*did you mean 1"),
        (lambda f: replay.layer_requests(f, "0"), "layer='0' must be a whole number"),
        (lambda f: replay.timeline(f, 3), "round=3 .*did you mean 0"),
        (lambda f: replay.timeline(f, True), "round=True must be a whole number"),
        (
            lambda f: replay.replay_pool(replay.layer_requests(f, 0), 9, "lru"),
            "num_kept=9 .*did you mean 3",
        ),
        (lambda f: replay.replay_pool(replay.layer_requests(f, 0), 2, "lur"), "did you mean 'lru'"),
        (lambda f: replay.as_frame(f.iloc[:0]), "no trace: load the engine with trace=True"),
        (lambda f: replay.as_frame("text"), "str holds no trace"),
        (lambda f: replay.blocks_of(small_trace(), 4), "row=4 .*did you mean 0"),
        (lambda f: replay.blocks_of(Trace(), 0), "no trace"),
    ],
)
def test_what_is_not_in_the_trace_is_named_with_the_nearest_that_is(call, words):
    with pytest.raises(OptionError, match=words):
        call(small_trace().to_frame())
