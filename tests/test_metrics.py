"""Metrics on traces small enough to count by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from specmoe.errors import OptionError
from specmoe.lab import metrics
from specmoe.trace import Trace


class HandTrace(Trace):
    """A trace whose clock is set by hand: ``at(seconds)`` before ``add``."""

    def __init__(self):
        self.now_s = 0.0
        super().__init__(clock=lambda: self.now_s)

    def at(self, seconds: float, phase: str | None = None, round: int | None = None) -> HandTrace:
        self.now_s = seconds
        self.phase = self.phase if phase is None else phase
        self.round = self.round if round is None else round
        return self


@pytest.fixture
def frame() -> pd.DataFrame:
    """A prefill, then two rounds of two rows that drafted three tokens each; experts of 100 bytes,
    one MoE layer.

    Round 0 (2.0 s): draft 0.5 s, of it 0.1 waiting; verify 1.2 s, of it 0.4 waiting. Round 1 (1.0
    s): verify 0.8 s.
    """
    trace = HandTrace()
    trace.at(1.0, "prefill", -1).add("route", 0, 5, count=7)
    trace.add("fetch", 0, 5, size=100, seconds=0.5)
    trace.add("wait", 0, 5, seconds=0.4)
    trace.add("prefill", count=7, size=2, seconds=1.0)
    trace.at(1.2, "draft", 0).add("wait", 0, 1, seconds=0.1)
    trace.at(1.4).add("prefetch", 0, 1, size=100, seconds=0.3)  # needed below: 1.1 .. 1.4
    trace.at(1.5).add("prefetch", 0, 3, size=100, seconds=0.3)  # never needed
    trace.at(1.5).add("draft", count=6, size=2, seconds=0.5)
    for expert, count in ((0, 6), (1, 1), (2, 1)):
        trace.at(1.6, "verify").add("route", 0, expert, count=count)
    trace.add("hit", 0, 0)
    trace.at(2.3).add("wait", 0, 2, seconds=0.4)
    trace.at(2.4).add("fetch", 0, 2, size=100, seconds=0.6)  # 1.8 .. 2.4
    trace.at(2.7).add("verify", count=8, size=2, seconds=1.2)
    trace.at(2.8, "accept").add_block(0, 0, [1] * 3, 3, [])
    trace.add_block(1, 0, [1] * 3, 1, [])
    trace.at(3.0).add("round", count=6, size=2, seconds=2.0)
    trace.at(3.1, "verify", 1).add("route", 0, 0, count=2)
    trace.add("hit", 0, 0)
    trace.at(3.9).add("verify", count=2, size=2, seconds=0.8)
    trace.at(3.9, "accept").add_block(0, 0, [1] * 1, 0, [])
    trace.add_block(1, 0, [1] * 0, 0, [])
    trace.at(4.0).add("round", count=2, size=2, seconds=1.0)
    return trace.to_frame()


@pytest.fixture
def nothing() -> pd.DataFrame:
    return Trace().to_frame()


def test_expert_use_counts_tokens_of_the_asked_phase_and_knows_the_unused(frame):
    use = metrics.expert_use(frame, num_layers=2, num_experts=8)
    assert use.shape == (2, 8)
    assert use.loc[0].tolist() == [8, 1, 1, 0, 0, 0, 0, 0]
    assert use.loc[1].sum() == 0
    assert metrics.expert_use(frame, "prefill").loc[0].tolist() == [0, 0, 0, 0, 0, 7]
    assert metrics.expert_use(frame, None).to_numpy().sum() == 17
    assert (use.index.name, use.columns.name) == ("layer", "expert")


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ([1, 1, 1, 1], 0.0),
        ([0, 0, 0, 5], 0.75),
        ([5, 0, 0, 0], 0.75),
        ([1, 3], 0.25),
        ([2, 1, 1, 0], 0.375),
    ],
)
def test_gini_of_counts_done_by_hand(use, expected):
    assert metrics.gini(use) == pytest.approx(expected)


def test_gini_of_a_layer_that_nothing_used_is_nan():
    assert math.isnan(metrics.gini([0, 0]))


def test_skewness_is_the_mean_over_layers_and_not_of_their_sum():
    counts = pd.DataFrame([[4, 0], [0, 4]])  # opposite layers: their sum would look even
    assert metrics.skewness(counts) == pytest.approx(0.5)
    assert metrics.dead_experts(counts).tolist() == [1, 1]
    assert metrics.top_share(pd.DataFrame([[6, 3, 1], [1, 1, 2]]), 1) == pytest.approx(
        (0.6 + 0.5) / 2
    )


def test_bytes_are_of_decoding_and_prefill_stands_apart(frame):
    assert metrics.fetched_bytes(frame) == 300
    assert metrics.fetched_bytes(frame, "prefill") == 100
    assert metrics.fetched_bytes(frame, None) == 400
    assert metrics.new_tokens(frame) == 8
    assert metrics.bytes_per_token(frame) == pytest.approx(300 / 8)


def test_hit_rate_is_over_distinct_experts_of_each_step(frame):
    assert metrics.hit_rate(frame) == pytest.approx(2 / 4)


def test_tokens_per_round_is_per_row(frame):
    assert metrics.tokens_per_round(frame) == pytest.approx(8 / 4)


def test_acceptance_over_drafted_and_by_position(frame):
    assert metrics.acceptance_rate(frame) == pytest.approx(4 / 7)
    places = metrics.acceptance_by_position(frame)
    assert places["position"].tolist() == [1, 2, 3]
    assert places["drafted"].tolist() == [3, 2, 2]
    assert places["accepted"].tolist() == [2, 1, 1]
    assert places["rate"].tolist() == pytest.approx([2 / 3, 1 / 2, 1 / 2])


def test_time_shares_add_up_and_waits_are_taken_out_of_the_step_they_were_in(frame):
    shares = metrics.time_shares(frame)
    assert shares == pytest.approx(
        {"draft": 0.4 / 3, "verify": (1.2 - 0.4 + 0.8) / 3, "wait": 0.5 / 3, "rest": 0.5 / 3}
    )
    assert sum(shares.values()) == pytest.approx(1)
    assert metrics.decode_seconds(frame) == pytest.approx(3.0)


def test_oracle_takes_the_longer_of_load_and_compute_in_each_step(frame):
    # Round 0: needed reads 1.1 .. 1.4 and 1.8 .. 2.4 (0.9 s) against 1.2 - 0.4 = 0.8 s of
    # computing. Round 1: 0.8 s.
    assert metrics.oracle_overlap_seconds(frame) == pytest.approx(0.9 + 0.8)


def test_reads_at_work_together_count_once_in_the_oracle():
    trace = HandTrace()
    for expert, (end, seconds) in enumerate([(2.0, 1.0), (2.5, 1.0), (2.6, 2.0), (5.0, 1.0)]):
        trace.at(end, "verify", 0).add("route", 0, expert, count=1)
        trace.add("fetch", 0, expert, size=1, seconds=seconds)
    trace.at(5.0).add("verify", count=1, size=1, seconds=0.5)
    # 0.6 .. 2.6 and 4 .. 5
    assert metrics.oracle_overlap_seconds(trace.to_frame()) == pytest.approx(2.0 + 1.0)


def test_prefetch_recall_and_precision_compare_with_the_same_round(frame):
    # experts 1 (ahead) and 2 (on demand)
    assert metrics.prefetch_recall(frame) == pytest.approx(1 / 2)
    # experts 1 (used) and 3 (not)
    assert metrics.prefetch_precision(frame) == pytest.approx(1 / 2)


def test_a_prefetch_that_only_a_later_round_needs_was_wrong():
    trace = HandTrace()
    trace.at(1, "draft", 0).add("prefetch", 0, 4, size=1, seconds=0.1)
    trace.at(2, "verify", 1).add("route", 0, 4, count=1)
    assert metrics.prefetch_precision(trace.to_frame()) == 0


def test_an_empty_trace_gives_nan_and_zero_but_no_exception(nothing):
    numbers = metrics.summary(nothing)
    assert numbers["new_tokens"] == numbers["fetched_bytes"] == 0
    for name in (
        "bytes_per_token",
        "hit_rate",
        "tokens_per_round",
        "acceptance_rate",
        "wait_share",
    ):
        assert math.isnan(numbers[name]), name
    assert metrics.expert_use(nothing).empty
    assert metrics.acceptance_by_position(nothing).empty


def test_table_has_one_row_per_trace(frame, nothing):
    table = metrics.table({("specmoe", 2): frame, ("on_demand", 1): nothing})
    assert table[["method", "batch"]].to_numpy().tolist() == [["specmoe", 2], ["on_demand", 1]]
    assert table.loc[0, "fetched_bytes"] == 300
    assert table.loc[0, "wait_share"] == pytest.approx(0.5 / 3)
    named = metrics.table({("cached:lru", 1): nothing}).loc[0]
    assert (named["method"], named["eviction"]) == ("cached", "lru")


def test_where_the_time_went_is_the_median_of_the_repeats_and_has_their_ends(frame):
    shares = [
        {"label": "cached", "batch": batch, "repeat": number}
        | {"draft_share": 0.0, "verify_share": 0.9 - wait, "wait_share": wait, "rest_share": 0.1}
        for batch, waits in ((4, [0.5, 0.3, 0.6]), (8, [0.1]))
        for number, wait in enumerate(waits)
    ]
    table = metrics.table({("cached", 4): frame, ("cached", 16): frame}, shares)
    assert table.loc[0, "wait_share"] == 0.5
    assert (table.loc[0, "wait_share_min"], table.loc[0, "wait_share_max"]) == (0.3, 0.6)
    assert table.loc[1, "wait_share"] == metrics.time_shares(frame)["wait"]


def test_expert_use_is_counted_on_a_plain_method_at_the_largest_batch():
    traces = {
        ("specmoe", 64): "a",
        ("cached:lru", 64): "b",
        ("cached:lru", 1): "c",
        ("on_demand", 1): "d",
    }
    assert metrics.plainest(traces) == "d"
    assert metrics.plainest({key: traces[key] for key in list(traces)[:3]}) == "b"
    assert metrics.plainest({("specmoe", 1): "x", ("specmoe", 4): "y"}) == "y"


def test_an_unknown_phase_and_a_foreign_frame_are_refused(frame):
    with pytest.raises(OptionError, match="verfy.*did you mean 'verify'"):
        metrics.expert_use(frame, "verfy")
    with pytest.raises(OptionError, match="no column 'time_s'"):
        metrics.bytes_per_token(pd.DataFrame({"a": [1]}))
