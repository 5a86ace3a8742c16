"""The table of pools: what is counted, what the page says of it, what the engine does with the eviction that it chose."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PROMPTS, tokens_of

from specmoe.lab import pools
from specmoe.lab.bench import pairs, results
from specmoe.lab.bench.methods import RIVAL
from specmoe.lab.markdown import markdown_table
from specmoe.offload import policies
from specmoe.offload.evictions import make_policy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pools.md"


@pytest.fixture(scope="module")
def shipped():
    return pools.against_today(pools.shipped())


def test_the_page_has_the_table_that_the_results_give():
    table = pools.by_model_and_batch(pools.shipped())
    assert markdown_table(table, "fetched, over the best of four") in PAGE.read_text("utf-8")


def test_what_the_page_says_of_the_table(shipped):
    mean, worst = shipped.mean(), shipped.max()
    others = [*pools.TODAY, "least_stale", "guarded"]
    assert mean["decayed"] < 1 and all(worst["decayed"] < worst[other] for other in others)
    assert (shipped["decayed"] > 1.0).mean() < 0.2, "worse than the best of four at few points"
    assert shipped["decayed"].min() < 0.95, "earns its lines somewhere"
    assert mean["least_stale"] > mean["lru"] and shipped["least_stale"].min() > 0.97
    assert abs(mean["guarded"] - mean["lru"]) < 0.01 and shipped["guarded"].min() > 0.97
    assert (shipped.drop(columns="belady").ge(shipped["belady"], axis=0)).all(axis=None)
    best = shipped[[*pools.TODAY]].idxmin(axis=1)
    assert best.nunique() > 2 and RIVAL == mean.drop("belady").idxmin()


def test_the_page_says_what_the_clock_says():
    page, files = PAGE.read_text("utf-8"), results.read_all()
    assert pairs.with_clock(page, files) == page, "run: python -m specmoe.lab.bench.page"
    assert pairs.pool_words(files) in " ".join(page.split())
    old = page.replace(pairs.CLOCK, f"{pairs.CLOCK} it is\n  otherwise")
    assert pairs.with_clock(old, files) == page != old


def test_what_the_page_says_of_the_engine():
    table = pools.against_today(pools.shipped("engine"))
    page = PAGE.read_text("utf-8")
    said = markdown_table(
        pools.by_point(pools.shipped("engine")), "fetched in the engine, over the best of four"
    )
    assert said in page
    less = table["decayed"] < table["temporal"]
    even = table.index.get_level_values("model") == "tiny-balanced"
    assert less[~even].all() and not less[even].any()


def test_experts_in_turn_are_the_cliff_of_all_but_the_guard_and_lfu():
    turn = [[int(expert == step % 8) for expert in range(8)] for step in range(400)]
    hits = {name: policies.replay(turn, make_policy(name, 1, 8, 6))[0] for name in ("lru", "lfu")}
    assert policies.replay(turn, make_policy("decayed", 1, 8, 6))[0] == hits["lru"] == 0
    assert policies.replay(turn, make_policy("temporal", 1, 8, 6))[0] == 0
    future = [[policies.needed_of(counts) for counts in turn]]
    bound = policies.replay(turn, policies.Belady(1, 8, 6, future))[0]
    assert policies.replay(turn, pools.Guarded(1, 8, 6))[0] > 0.95 * bound
    assert hits["lfu"] > 0.95 * bound


def test_decayed_forgets_slowly_and_follows_fast():
    policy = make_policy("decayed", 1, 4, 1)
    for _ in range(60):
        kept = policy.keep(0, [2, 1, 0, 0], set())
    assert kept == {0}
    # one step of something else is not a new subject; twenty are, where LFU would wait for sixty
    assert policy.keep(0, [0, 1, 0, 1], {0}) == {0}
    for _ in range(20):
        kept = policy.keep(0, [0, 0, 0, 2], kept)
    assert kept == {3}
    # what was used over the whole text comes before what was used once
    policy.keep(0, [0, 0, 1, 0], {3})
    for _ in range(10):
        policy.keep(0, [0, 0, 0, 0], {3})
    assert policy.keep(0, [0, 0, 0, 0], {0, 2}) == {0}


def test_a_table_of_any_model_has_the_engines_own_counts(tiny, open_engine):
    model = str(tiny("mixtral"))
    table = pools.table_of_pools(model, [2], [2, 7], ["decayed", "lru", "belady"], num_prompts=3)
    by = table.set_index(["kept", "eviction"])["fetched_per_token"]
    assert by[2, "belady"] <= by[2, "decayed"] and by[7, "decayed"] < by[2, "decayed"]
    engine = open_engine()
    plain = {"method": "cached", "max_new_tokens": 12, "batch_size": 2, "eos_token_id": []}
    outputs = [engine.generate(PROMPTS, eviction=name, **plain) for name in ("decayed", "temporal")]
    assert tokens_of(outputs[0]) == tokens_of(outputs[1])
    rows = pools.in_the_engine(model, 1, 2, ["decayed", "static"])
    assert [row["eviction"] for row in rows] == ["decayed", "static"]
    assert all(row["fetched_per_token"] > 0 for row in rows)
