"""The reports *my model's best settings* and *the hot experts of my prompts*: what they say follows their
numbers, and each runs with parameters of the user's own."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_architectures import make_checkpoint
from tiny_low_bit import int4, make_low_bit

from specmoe.checkpoint import pack
from specmoe.lab import figures, report

NEW = ("best_settings", "hot_experts")


@pytest.fixture
def table() -> pd.DataFrame:
    """A sweep at two N: specmoe reads least, cached is the fastest; with N = 8 the other way round."""
    rows = [
        ("on_demand", 4, np.nan, 8000, 10.0),
        ("cached", 4, np.nan, 4000, 30.0),
        ("specmoe", 4, 2, 3000, 20.0),
        ("specmoe", 4, 6, 2000, 25.0),
        ("cached", 8, np.nan, 1000, 40.0),
        ("specmoe", 8, 2, 1500, 50.0),
    ]
    names = ["method", "draft_experts", "gamma", "fetched_bytes_per_token", "tokens_per_second"]
    return pd.DataFrame(rows, columns=names).assign(batch_size=1)


def test_the_best_of_each_memory_is_what_read_least_and_the_fastest_stands_beside_it(table):
    least = report.best_of(table[table["draft_experts"] == 4])
    assert (least["method"], least["gamma"]) == ("specmoe", 6)
    assert report.best_of(table)["gamma"] is None, "cached with N = 8 drafts nothing"
    _, _, four, eight = report.say_best(table).splitlines()
    assert "| `specmoe`, gamma 6 | 1.95 KiB | 0.50 | `cached` | 30" in four
    assert "| `cached` | 1000 B | 1.00 | `specmoe`, gamma 2 | 50" in eight


def test_only_experts_that_are_smaller_are_widened(tmp_path, tiny):
    """A model of one's own has larger ones, and the report ran into a refusal."""
    assert report.to_widen("tiny-skewed", "256KiB") == "256KiB"
    assert report.to_widen("tiny-skewed", "1KiB") is None
    assert report.to_widen("tiny-skewed", None) is None
    own = tiny("mixtral")
    assert report.to_widen(str(own), "1MiB") == "1MiB"
    pack(own, tmp_path / "packed")
    assert report.to_widen(str(tmp_path / "packed"), "1MiB") is None
    sizes = {"hidden_size": 64, "moe_intermediate_size": 96}  # whole groups
    plain = make_checkpoint("qwen3_moe", tmp_path / "plain", torch.bfloat16, **sizes)
    few_bits = make_low_bit(plain, tmp_path / "few bits", int4)
    assert report.to_widen(str(few_bits), "1MiB") is None


def test_the_map_of_settings_has_a_panel_for_each_batch_and_a_point_for_each_run(table):
    both = pd.concat([table, table.assign(batch_size=4, tokens_per_second=5.0)])
    panels = list(figures.settings_map(both))
    assert [panel.get_title() for panel in panels] == ["batch = 1", "batch = 4"]
    points = panels[0].collections[0].get_offsets().data
    assert sorted(points[:, 1]) == sorted(table["tokens_per_second"])
    assert points[:, 0].max() == 8000 and "per new token" in panels[0].get_xlabel()
    plt.close("all")


def test_hot_experts_are_those_called_most_and_one_set_never_beats_a_prompts_own():
    first = pd.DataFrame([[5, 0, 4, 1], [0, 0, 10, 0]])
    second = pd.DataFrame([[0, 8, 1, 1], [10, 0, 0, 0]])
    hot = report.hot_experts(first, 2)
    assert list(hot["hottest"]) == ["0, 2", "2, 0"] and list(hot["share"]) == [0.9, 1.0]
    shares = report.hot_by_prompt([first, second], 1)
    # over both, layer 0 asks expert 1 most and layer 1 expert 0 (even with 2, and before it)
    assert list(shares["hot over all"]) == [0.0, pytest.approx(0.9)]
    assert list(shares["its own hottest"]) == [pytest.approx(0.75), pytest.approx(0.9)]


def test_both_are_found_with_a_title_and_say_what_each_parameter_is():
    titles = {one["name"]: one["title"] for one in report.list_reports()}
    assert titles["best_settings"] == "My model's best settings"
    assert titles["hot_experts"] == "The hot experts of my prompts"
    for name in NEW:
        assert all(about["help"] for about in report.report_parameters(name).values())


@pytest.mark.long
def test_the_report_of_hot_experts_runs_on_prompts_of_ones_own(tmp_path):
    wanted = {"prompts": ["sums: 17 + 36", "calendar: 2018-02-22"], "new_tokens": 6, "num_hot": 2}
    page = report.run_report("hot_experts", wanted, tmp_path / "out", progress=False)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(numbers["by_prompt"]) == 2 and len(numbers["hot"]) == 4
    assert 0 < numbers["covered_by_one_set"] <= numbers["covered_by_own_sets"] <= 1
    assert report.external_loads(page.read_text(encoding="utf-8")) == []


@pytest.mark.long
def test_the_report_of_best_settings_runs_and_says_where_its_sweep_lies(tmp_path):
    wanted = {
        "batch_sizes": [2],
        "gammas": [2],
        "draft_choices": [4],
        "new_tokens": 6,
        "prompts": 2,
    }
    wanted |= {"store": "memory", "link_bytes_per_s": None, "expert_bytes": None}
    page = report.run_report("best_settings", wanted, tmp_path / "out", progress=False)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(numbers["rows"]) == 3 and (tmp_path / "out" / "rows.jsonl").exists()
    (best,) = numbers["best"]
    assert best["fetched_bytes_per_token"] == min(
        round(row["fetched_bytes_per_token"], 1) for row in numbers["rows"]
    )
    assert report.external_loads(page.read_text(encoding="utf-8")) == []
