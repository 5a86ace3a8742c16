"""The map of drafts: what is counted, what is shipped, how it is drawn; and the example of the page."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from conftest import PROMPTS, tokens_of

from specmoe import registry
from specmoe.errors import OptionError
from specmoe.lab import drafts, figures

PAGE = Path(__file__).resolve().parents[1] / "docs" / "drafts.md"


def nothing(texts, limits):
    return [[] for _ in texts]


@pytest.fixture(scope="module")
def counted(tiny):
    points = [(2, "resident"), (2, "low_bit:8"), (2, "oracle"), (2, nothing)]
    return drafts.map_of_drafts(
        str(tiny("mixtral")),
        points,
        batches=(2,),
        num_prompts=3,
        max_new_tokens=12,
        eos_token_id=[],
    ).set_index("source")


def test_every_source_is_counted_at_the_same_fast_memory(counted):
    assert list(counted.index) == ["resident", "low_bit:8", "oracle", "nothing"]
    held = counted["experts_held"]
    assert held["resident"] == 2 and held["oracle"] == held["nothing"] == 0
    assert 0 < held["low_bit:8"] < 8
    rounds = counted["tokens_per_round"]
    assert rounds["nothing"] == 1 <= rounds["resident"] <= rounds["oracle"]
    assert counted["acceptance_rate"]["oracle"] == 1.0 < rounds["low_bit:8"]
    assert (counted["seconds_per_token"] > 0).all()


def test_the_shipped_map_has_every_source_of_every_model():
    table = drafts.shipped()
    for model, sizes in drafts.SIZES.items():
        of_model = table[table["model"] == model]
        found = set(zip(of_model["size"], of_model["source"]))
        assert found == set(drafts.sources_of(sizes)), model


def test_the_shipped_map_says_what_the_page_says():
    table = drafts.shipped()
    for model, part in table.groupby("model"):
        rounds = part.set_index("source")["tokens_per_round"]
        assert rounds.max() == rounds["oracle"], model
        bits = [rounds[name] for name in drafts.COPIES]
        assert bits == sorted(bits), f"{model}: more bits, more tokens"
        residents = part[part["source"] == "resident"].sort_values("size")["tokens_per_round"]
        assert residents.iloc[0] < residents.iloc[-1]


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
