"""The fewest bytes of any lossless method: by hand, against trying everything, and beside the
engine's own counts."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from conftest import NEW_TOKENS, PROMPTS
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.lab import bound
from specmoe.lab.markdown import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bytes.md"


def of_layer(*steps: str) -> list[set[tuple[int, int]]]:
    return [{(0, int(expert)) for expert in step} for step in steps]


def test_reads_by_hand():
    # it begins with 0 and 1; 2 passes through, because 0 is asked for again first
    assert bound.fewest_reads(of_layer("0", "1", "2", "0"), 2) == 1
    # three experts in turn and room for two: one read in every second step
    assert bound.fewest_reads(of_layer("0", "1", "2", "0", "1", "2"), 2) == 2
    # a step may ask for more than there is room for
    assert bound.fewest_reads(of_layer("012", "012"), 1) == 4
    assert bound.fewest_reads(of_layer("012", "012"), 3) == 0


def least_of_all(steps: list[set], slots: int) -> int:
    """The same by trying every content after every step."""
    keys = sorted(set().union(*steps))
    costs = {frozenset(each): 0 for each in combinations(keys, min(slots, len(keys)))}
    for step in steps:
        after: dict[frozenset, int] = {}
        for held, cost in costs.items():
            there = sorted(held | step)
            for kept in combinations(there, min(slots, len(there))):
                read = cost + len(step - held)
                after[frozenset(kept)] = min(read, after.get(frozenset(kept), read))
        costs = after
    return min(costs.values())


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=6),
    slots=st.integers(1, 3),
)
def test_no_pool_reads_less(steps, slots):
    keyed = [{(0, expert) for expert in step} for step in steps]
    assert bound.fewest_reads(keyed, slots) == least_of_all(keyed, slots)


def test_every_method_of_a_run_reads_at_least_the_bound(open_engine, monkeypatch):
    monkeypatch.setattr(bound, "NEW_TOKENS", NEW_TOKENS)
    engine = open_engine("mixtral", draft_experts=2)
    rows = {row["method"]: row for row in bound.count(engine, PROMPTS[:4], 2, gamma=4)}
    assert rows["oracle"]["over_oracle"] == 1.0
    assert min(row["over_oracle"] for row in rows.values()) == 1.0
    # the pool's part and the draft's part
    assert rows["Belady's pool"]["bytes_per_token"] <= rows["specmoe"]["bytes_per_token"]
    assert rows["oracle's draft"]["tokens_per_round"] > rows["specmoe"]["tokens_per_round"]


def test_the_largest_batch_has_a_bound_for_each_length_of_draft(open_engine, monkeypatch):
    monkeypatch.setattr(bound, "NEW_TOKENS", NEW_TOKENS)
    engine = open_engine("mixtral", draft_experts=2)
    found = bound.count_largest(engine, PROMPTS[:4], 2, (1, 4))
    assert set(found) == {"1", "4"} and all(0 < over <= 1 for over in found.values())
    assert found["4"] < found["1"], "more tokens of one read"


def test_the_page_shows_what_was_counted():
    rows = bound.shipped()
    assert set(rows["model"]) == set(bound.PER_LAYER)
    assert set(rows["batch"]) == set(bound.BATCHES)
    assert (rows["over_oracle"] >= 1).all()
    assert markdown_table(bound.table(rows)) in PAGE.read_text(encoding="utf-8")


def test_what_the_page_says_in_words():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for length, over in bound.over_on_demand().items():
        assert f"{over:.2f} with drafts of {length}" in page.replace("of on-demand's bytes ", "")
    rows = bound.shipped().set_index(["method", "model", "batch"])["over_oracle"]
    met = rows["specmoe"][rows["specmoe"] <= 1.5]
    assert set(met.index) == {(m, b) for m in ("tiny-skewed", "tiny-translate") for b in (16, 64)}
    assert rows["specmoe"].max() < 2.4 and (rows["specmoe, reading ahead"] <= 1.5).sum() == 1
    skewed = rows["Belady's pool"].drop("tiny-balanced", level="model")
    assert skewed.max() < 1.255
    ahead = rows["cached"] < rows["specmoe"]
    assert set(ahead[ahead].index) == {
        ("tiny-skewed", 1),
        ("tiny-translate", 1),
        ("tiny-translate", 4),
    }
