"""The map of drafts: what is counted, what is shipped, how it is drawn; and the example of the page."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import PROMPTS, tokens_of

from specmoe import registry
from specmoe.errors import OptionError
from specmoe.lab import draft_seconds, drafts, figures
from specmoe.lab.draft_seconds import Drafting, steps_of
from specmoe.lab.markdown import markdown_table
from specmoe.lab.simulate import preset
from specmoe.lab.simulate.real_models import size_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "drafts.md"


def nothing(texts, limits):
    return [[] for _ in texts]


@pytest.fixture(scope="module")
def counted(tiny):
    points = [(2, "resident"), (2, "low_bit:8"), (2, "oracle"), (2, nothing), (2, drafts.PLAIN)]
    return drafts.map_of_drafts(
        str(tiny("mixtral")),
        points,
        batches=(2,),
        num_prompts=3,
        max_new_tokens=12,
        eos_token_id=[],
    ).set_index("source")


def test_every_source_is_counted_at_the_same_fast_memory(counted):
    assert list(counted.index) == ["resident", "low_bit:8", "oracle", "nothing", "no draft"]
    held = counted["experts_held"]
    assert held["resident"] == 2 and held["oracle"] == held["nothing"] == 0
    assert 0 < held["low_bit:8"] < 8
    rounds = counted["tokens_per_round"]
    assert rounds["nothing"] == 1 <= rounds["resident"] <= rounds["oracle"]
    assert counted["acceptance_rate"]["oracle"] == 1.0 < rounds["low_bit:8"]
    assert (counted["seconds_per_token"] > 0).all()


def test_seconds_are_simulated_of_all_but_a_source_of_ones_own(counted):
    found = draft_seconds.speeds(counted.assign(model="m").reset_index())
    assert set(found["source"]) == {"resident", "low_bit:8", "oracle", "no draft"}
    by = found.set_index(["real", "link", "source"]).sort_index()
    for real in draft_seconds.REAL:
        for link in draft_seconds.LINKS:
            at = by.loc[real, link]
            assert at.loc["no draft", "speed"] == 1 and at["seconds"].idxmin() == "oracle"
        slow, fast = by.loc[real, "SSD"]["seconds"], by.loc[real, "PCIe 5.0"]["seconds"]
        assert (slow >= fast).all() and slow["no draft"] > fast["no draft"]


def test_a_draft_step_by_hand():
    size, machine = size_of("mixtral-8x7b"), preset("h100")
    even = np.full((3, 8), 0.25)  # every token chooses 2 of 8
    cost = lambda source, weight=0.25: Drafting(machine, size, steps_of(source, 4, weight, even))  # noqa: E731
    fixed = machine.layer_overhead_s
    each = size.expert_bytes / machine.memory_bytes_per_s
    distinct = 8 * (1 - 0.75**3)
    expected = fixed + distinct * (machine.expert_overhead_s + 0.25 * each)
    assert cost("low_bit:4").draft_layer(3, 4) == pytest.approx(expected)
    expected = fixed + 4 * (machine.expert_overhead_s + each)
    assert cost("resident").draft_layer(3, 4) == pytest.approx(expected)
    assert cost("merged:4").draft_layer(3, 4) == pytest.approx(expected)
    assert cost("layer_skip").draft_layer(3, 4) == pytest.approx(expected / 2)
    for name in ("oracle", "ngram"):
        assert cost(name).draft_layer(3, 4) == cost(name).draft_trunk(3, 9) == 0
    assert steps_of("follows", 4, 0.0, even) is None


def test_the_file_is_what_the_engine_counts_and_the_simulator_says_today():
    fresh = drafts.map_of_drafts("tiny-skewed", [(8, drafts.PLAIN)], [1]).iloc[0]
    rows = drafts.shipped().query("model == 'tiny-skewed' and source == 'no draft' and batch == 1")
    kept = rows.iloc[0]
    assert round(fresh["fetched_bytes_per_token"], 4) == kept["fetched_bytes_per_token"]
    for real, links in fresh["simulated"].items():
        assert kept["simulated"][real] == pytest.approx(links)


def test_the_shipped_map_has_every_source_of_every_model():
    table = drafts.shipped()
    for model, sizes in drafts.SIZES.items():
        of_model = table[table["model"] == model]
        found = set(zip(of_model["batch"], of_model["size"], of_model["source"]))
        assert found == set(drafts.points_of(sizes)), model


def test_the_shipped_map_says_what_the_page_says():
    table = drafts.shipped()
    for model, part in table[table["batch"] == 16].groupby("model"):
        rounds = part.set_index("source")["tokens_per_round"]
        assert rounds.max() == rounds["oracle"], model
        bits = [rounds[name] for name in drafts.COPIES]
        assert bits == sorted(bits), f"{model}: more bits, more tokens"
        residents = part[part["source"] == "resident"].sort_values("size")["tokens_per_round"]
        assert residents.iloc[0] < residents.iloc[-1]


def test_the_page_says_the_seconds_of_the_file():
    table, page = drafts.shipped(), PAGE.read_text(encoding="utf-8")
    assert markdown_table(draft_seconds.fastest(table), "counts of") in page
    said = " ".join(page.split())
    at = ["model", "source", "size", "batch", "real", "link"]
    speed = draft_seconds.speeds(table).set_index(at)["speed"].xs("mixtral-8x7b", level="real")
    ssd, rounds = speed.xs("SSD", level="link"), table.set_index(at[:4])["tokens_per_round"]
    copies, residents = ("tiny-skewed", "low_bit:4", 8, 16), ("tiny-skewed", "resident", 8, 16)
    assert (
        f"{rounds[copies]:.1f} tokens per round and residents (N = 8) {rounds[residents]:.1f};"
        in said
    )
    assert f"they are at {ssd[copies]:.2f} and {ssd[residents]:.2f} times no draft" in said
    assert f"the same copies are at {ssd['tiny-balanced', 'low_bit:4', 2, 16]:.2f} times" in said
    assert table["simulated"].map(lambda each: isinstance(each, dict)).all(), "seconds of all"
    alone = draft_seconds.speeds(table).query("batch == 1").groupby("source")["speed"].max()
    assert f"at most {alone.drop('oracle').max():.2f} times no draft" in said
    assert f"brings at most {alone['oracle']:.2f} times" in said
    even = ssd["tiny-balanced"].xs(16, level="batch").groupby("source").max()
    bound, best = even["oracle"], even.drop("oracle").max()
    assert f"is at {bound:.2f} times no draft there, the best draft at {best:.2f}." in said


def test_a_panel_for_each_link_and_model_with_the_bound_last(counted):
    table = pd.concat([counted.assign(model=name) for name in "ab"]).reset_index()
    axes = figures.speeds_of_drafts(table)
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles == ["a, PCIe 5.0", "b, PCIe 5.0", "a, SSD", "b, SSD"]
    assert [text.get_text() for text in axes[0].get_yticklabels()][-1] == "oracle (the bound)"
    assert "simulated" in axes[0].figure.get_supxlabel()
    plt.close(axes[0].figure)
    with pytest.raises(OptionError, match="no seconds of 'x'"):
        figures.speeds_of_drafts(table, real="x")


def test_a_panel_for_each_model_with_its_bound_and_a_line_for_each_family(counted):
    table = pd.concat([counted.assign(model="a"), counted.assign(model="b")]).reset_index()
    axes = figures.map_of_drafts(table, batch=2)
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b"]
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert set(lines) == {
        "oracle (the bound)",
        "resident experts (the paper)",
        "all experts, 2 3 4 8 bits",
        "your own: nothing",
    }
    assert list(lines["resident experts (the paper)"].get_xdata()) == [2.0]
    assert [text.get_text() for text in axes[0].texts] == ["8"]
    plt.close(axes[0].figure)
    with pytest.raises(OptionError, match="the table has no batch 5"):
        figures.map_of_drafts(table, batch=5)


def test_no_number_of_bits_covers_the_next_on_the_shipped_map():
    axes = figures.map_of_drafts(drafts.shipped(), batch=16)
    axes[0].figure.canvas.draw()
    for ax in axes:
        boxes = [text.get_window_extent() for text in ax.texts]
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert len(boxes) == 4 and not any(a.overlaps(b) for a, b in pairs), ax.get_title(
            loc="left"
        )
    plt.close(axes[0].figure)


def test_the_example_of_the_page_runs(open_engine, plain):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    engine = open_engine()
    names = {"engine": engine, "prompts": PROMPTS}
    try:
        exec(code, names)
        options = {"draft": "last_again", "max_new_tokens": 16, "eos_token_id": []}
        output = engine.generate(PROMPTS, method="specmoe", **options)
        assert tokens_of(output) == plain("mixtral") and output.stats.draft == "last_again"
        assert names["output"].stats.draft == "last_again"
    finally:
        registry.forget("draft", "last_again")


def test_the_page_names_every_source():
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}" in page for name in registry.BUILT_IN["draft"])
