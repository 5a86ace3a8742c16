"""What docs/claims.md says, and who stands in: the page is what the committed results give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from specmoe.lab import others, stand_ins
from specmoe.lab.markdown import markdown_table

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def counted():
    return stand_ins.differences(stand_ins.shipped()).set_index(["model", "other"])


def test_the_page_has_the_table_of_claims_that_the_results_give():
    assert markdown_table(others.table()) in PAGE


def test_the_page_has_the_table_of_stand_ins_and_its_settings():
    assert markdown_table(stand_ins.table(stand_ins.shipped())) in PAGE
    said = f"{stand_ins.NUM_SETS} sets of {stand_ins.PER_SET} prompts"
    assert said in PAGE and f"{stand_ins.GAMMA} drafted tokens, {stand_ins.BATCH} rows" in PAGE
    for model, ratio in stand_ins.distances().items():
        assert f"{ratio:.2f} times" in PAGE, model


def test_what_the_page_says_in_words(counted):
    assert (counted["sets"] >= 20).all() and counted.index.get_level_values("model").nunique() > 1
    random = counted.xs("random", level="other")
    assert (random["low"] < 0).all() and (random["high"] > 0).all(), "the sign is open"
    farthest = counted.xs("farthest", level="other")
    assert farthest.loc["tiny-skewed", "low"] > 0.79 - 0.83, "a lead of that size is excluded"
    assert farthest.loc["tiny-translate", "low"] > 0


def test_sets_are_paired_and_the_interval_is_that_of_their_differences():
    base = np.linspace(0.2, 0.9, 20)  # sets differ far more than ways do
    ways = {"nearest": base + 0.02, "random": base, "farthest": base[::-1]}
    parts = [
        pd.DataFrame({"model": "m", "set": range(20), "way": way, "acceptance_rate": rates})
        for way, rates in ways.items()
    ]
    found = stand_ins.differences(pd.concat(parts)).set_index("other")
    assert found.loc["random", ["mean", "low", "high"]].tolist() == pytest.approx([0.02] * 3)
    assert found.loc["random", "ahead"] == found.loc["random", "sets"] == 20
    assert found.loc["farthest", "low"] < 0 < found.loc["farthest", "high"]
    assert list(
        stand_ins.table(pd.concat(parts).assign(tokens_per_round=1.0))["the nearest is"]
    ) == [
        "ahead",
        "open",
    ]


def test_a_set_is_counted_every_way(open_engine):
    engine = open_engine("mixtral", draft_experts=2)
    rows = stand_ins.count_set(engine, [[1, 2, 3], [4, 5]], 7)
    assert [row["way"] for row in rows] == ["nearest", "random", "farthest"]
    assert all(row["set"] == 7 and 1 <= row["tokens_per_round"] <= 6 for row in rows)
    distances = engine.experts.distances[0]
    far = stand_ins.farthest(0, [1, 4], distances)
    assert far == [1 if row[1] > row[4] else 4 for row in distances]
    assert stand_ins.spread_of_distances(engine) > 1
