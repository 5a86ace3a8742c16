"""What is calculated for real machines: hand arithmetic, ceilings, and what no order may contradict."""

from __future__ import annotations

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from specmoe.errors import FastMemoryError, OptionError
from specmoe.lab import figures
from specmoe.lab.simulate import (
    PRESETS,
    Hardware,
    ModelSize,
    counts_at,
    expect,
    expectations,
    known_models,
    preset,
    recordings,
    size_of,
)

# 4 layers of 10 experts, top 2; an expert has 100 bytes and 100 FLOP, the trunk 500 of each.
SIZE = ModelSize("by hand", 100, 4, 10, 2, 100.0, 500.0, 500, held_bytes=600)
MACHINE = Hardware("by hand", 10.0, 0.0, 1000.0, 100.0)


def test_a_row_by_hand():
    found = expect(SIZE, MACHINE, share=0.5)
    plain, pool, resident = (found[name] for name in ("on_demand", "cached", "resident"))
    assert (plain.link_bytes, plain.memory_bytes, plain.flop) == (800, 500 + 800, 500 + 800)
    assert (plain.link_s, plain.memory_s, plain.compute_s) == (80, 13, 1.3)
    assert plain.seconds == 80 and plain.limit == "link" and plain.tokens_per_second == 1 / 80
    misses = counts_at(0.5).pool_reads
    assert pool.link_s == pytest.approx(80 * misses) and pool.memory_s == plain.memory_s
    assert (resident.link_s, resident.seconds, resident.limit) == (0, 13, "memory")
    memory = {name: each.fast_memory_bytes for name, each in found.items()}
    assert memory == {
        "on_demand": pytest.approx(600 + 2 * 100),
        "cached": 600 + 2000,
        "specmoe": 600 + 2000,
        "resident": 600 + 4000,
    }


def test_a_round_by_hand():
    counts, found = counts_at(0.5), expect(SIZE, MACHINE, share=0.5)["specmoe"]
    gamma, tokens = counts.gamma, counts.round_tokens
    assert found.link_bytes == pytest.approx(800 * counts.round_reads / tokens)
    passes = (gamma + 1) * 500 + gamma * 800 + counts.round_experts * 800
    assert found.memory_bytes == pytest.approx(passes / tokens)
    # gamma tokens drafted, gamma + 1 verified
    assert found.flop == pytest.approx((2 * gamma + 1) * 1300 / tokens)


def test_a_verification_touches_no_more_experts_than_there_are():
    few = replace(SIZE, num_experts=2)
    counts, found = counts_at(0.5), expect(few, MACHINE, share=0.5)["specmoe"]
    assert counts.round_experts > 1
    passes = (counts.gamma + 1) * (500 + 800)
    assert found.memory_bytes == pytest.approx(passes / counts.round_tokens)


@pytest.mark.parametrize("like", ["tiny-balanced", "tiny-skewed", "tiny-translate"])
def test_what_was_counted_is_the_recordings_own(like):
    pool = recordings(like, batch=1, method="cached")[0]
    layers = pool.fetches.shape[1]
    share = pool.info["slots"] / layers / pool.info["experts"]
    missed = pool.fetches.sum() / (pool.info["top_k"] * layers * pool.num_new_tokens)
    assert counts_at(share, like).pool_reads == pytest.approx(missed)
    empty, full = counts_at(0, like), counts_at(1, like)
    assert (empty.pool_reads, full.pool_reads, full.round_reads) == (1, 0, 0)
    shares = [step / 20 for step in range(21)]
    misses = [counts_at(each, like).pool_reads for each in shares]
    assert misses == sorted(misses, reverse=True)


def test_more_memory_or_a_faster_link_never_slows_a_method():
    for method in ("cached", "specmoe"):
        speeds = [
            expect("qwen3-30b-a3b", "consumer", gigabytes * 1e9)[method].tokens_per_second
            for gigabytes in (5, 10, 20, 40, 80)
        ]
        assert speeds == sorted(speeds)
        slow, fast = (expect("gpt-oss-120b", name)[method] for name in ("pcie3", "consumer"))
        assert slow.tokens_per_second < fast.tokens_per_second


def test_no_method_is_faster_than_everything_in_fast_memory():
    for model in known_models():
        found = expect(model, "h100", share=0.5)
        most = found["resident"].tokens_per_second
        assert all(each.tokens_per_second <= most for each in found.values()), model


def test_a_budget_that_holds_all_leaves_nothing_to_read_and_drafting_nothing_to_gain():
    found = expect("olmoe-1b-7b", "consumer")
    assert found["cached"].share == 1 and found["cached"].link_bytes == 0
    assert found["cached"].tokens_per_second == found["resident"].tokens_per_second
    assert found["specmoe"].tokens_per_second < found["cached"].tokens_per_second


def test_unified_memory_must_hold_the_whole_model():
    assert preset("unified").is_unified and not preset("laptop").is_unified
    fits = {
        name: expect(name, "unified")["on_demand"].fits for name in ("gpt-oss-120b", "glm-4.5-air")
    }
    assert fits == {"gpt-oss-120b": True, "glm-4.5-air": False}
    found = expect("gpt-oss-120b", "unified")
    assert found["on_demand"].tokens_per_second == found["resident"].tokens_per_second


def test_smaller_weights_are_read_faster():
    bf16, int4 = (
        expect("mixtral-8x7b", "laptop", share=0.0, weights=name)["on_demand"]
        for name in (None, "int4")
    )
    assert int4.link_bytes == pytest.approx(bf16.link_bytes * (4 + 20 / 128) / 16)


def test_rows_of_a_machine_that_cannot_hold_the_trunk_are_left_out():
    rows = expectations(["mixtral-8x7b"], ["consumer", "laptop"], 3e9)
    assert not len(rows)
    rows = expectations(known_models(), PRESETS)
    assert set(rows["method"]) == {"on_demand", "cached", "specmoe", "resident"}
    assert (rows["tokens_per_second"] > 0).all()


def test_wrong_questions_are_refused_in_a_sentence():
    with pytest.raises(FastMemoryError, match="2.0 GB .* cannot hold 'Mixtral-8x7B'.*take 3.9 GB"):
        expect("mixtral-8x7b", "consumer", 2e9)
    with pytest.raises(OptionError, match="budget_bytes=0 must be"):
        expect(SIZE, MACHINE)
    with pytest.raises(OptionError, match="share=2 of the experts"):
        expect(SIZE, MACHINE, share=2)
    with pytest.raises(OptionError, match="like='tiny-balance' is unknown"):
        expect(SIZE, MACHINE, share=0.5, like="tiny-balance")
    with pytest.raises(OptionError, match="gamma=5 was not recorded: one of 4, 10"):
        expect(SIZE, MACHINE, share=0.5, gamma=5)
    with pytest.raises(OptionError, match="'lapto' is unknown: did you mean 'laptop'"):
        expect(SIZE, "lapto")


def test_the_figure_shows_what_fits_and_says_that_it_is_calculated():
    rows = expectations(["olmoe-1b-7b", "glm-4.5-air"], ["laptop", "unified"])
    panels = figures.speeds_on_machines(rows)
    assert [panel.get_title() for panel in panels] == ["on_demand", "cached", "specmoe"]
    assert all("calculated" in panel.get_xlabel() for panel in panels)
    drawn = {
        panel.get_title(): sum(len(c.get_offsets()) for c in panel.collections) for panel in panels
    }
    assert drawn == dict.fromkeys(drawn, 3)  # GLM-4.5-Air does not fit into 128 GB
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == [
        size_of(name).name for name in ("olmoe-1b-7b", "glm-4.5-air")
    ]
    assert "$" not in "".join(tick.get_text() for tick in panels[0].get_xticklabels())
    plt.close("all")
    with pytest.raises(OptionError, match="no 'fits'"):
        figures.speeds_on_machines(rows.drop(columns="fits"))
