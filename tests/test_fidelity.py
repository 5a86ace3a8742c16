"""Counts of the simulator and of a replay equal the engine's own, exactly, on prompts that no shipped
recording has seen: two shipped models, every method, two evictions, one row and four.

A replay is given the routings of a run *without* a pool and says what each pool would have read;
the engine then runs with that pool.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from itertools import product

import pytest

import specmoe
from specmoe.lab import replay
from specmoe.lab.simulate import PRESETS, Recording, preset, simulate
from specmoe.lab.simulate import shipped as recorded
from specmoe.offload.pool import ResidentPool
from specmoe.options import METHODS

MODELS = {"tiny-skewed": 4, "tiny-translate": 8}  # draft experts
ROWS = {1: 2, 4: 5}  # in flight -> prompts, so that a row is refilled
EVICTIONS = ("lru", "decayed")
SEED, NEW_TOKENS = 4711, 6
MOST_RECORDED = recorded.QUEUE_BATCHES * max(recorded.BATCHES)


@cache
def engine_of(model: str) -> specmoe.Engine:
    return specmoe.load(model, store="memory", draft_experts=MODELS[model])


@pytest.fixture(scope="module", autouse=True)
def close_engines():
    yield
    for model in MODELS:
        engine_of(model).close()
    engine_of.cache_clear()


@cache
def run_of(model: str, rows: int, method: str, eviction: str = "temporal"):
    engine = engine_of(model)
    prompts = recorded.prompts_for(engine, ROWS[rows], SEED)
    how = {"gamma": 3} if method == "specmoe" else {}
    size = {"batch_size": rows, "max_new_tokens": NEW_TOKENS}
    return engine.generate(prompts, method=method, eviction=eviction, **how, **size)


@contextmanager
def only_what_is_kept():
    """The engine's spare slots hold an old expert until they are wanted; here they do not, as in a
    replay."""
    request = ResidentPool.request

    def strict(pool, layer, experts, keep, later=()):
        yield from request(pool, layer, experts, keep, later)
        for key in [k for k in pool.tier.resident if k.layer == layer and k.expert not in keep]:
            pool.tier.evict(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResidentPool, "request", strict)
        yield


@pytest.mark.long  # the recordings' own prompts are 768 for each model
@pytest.mark.parametrize("model", MODELS)
def test_the_prompts_are_in_no_recording(model):
    engine = engine_of(model)
    seen = recorded.prompts_for(engine, MOST_RECORDED)
    assert len(seen) == MOST_RECORDED
    assert not set(seen) & set(recorded.prompts_for(engine, max(ROWS.values()), SEED))


@pytest.mark.parametrize(("model", "rows", "method"), [*product(MODELS, ROWS, METHODS)])
def test_the_simulator_moves_what_the_engine_counted(model, rows, method):
    engine, output = engine_of(model), run_of(model, rows, method)
    stats, made = output.stats, Recording.of(output, engine.info)
    assert made.num_new_tokens == stats.num_new_tokens and made.num_reads == stats.num_fetches
    assert made.experts.sum() == stats.num_hits + stats.num_misses > 0
    assert made.hits.sum() == stats.num_hits and len(made.rows) == stats.num_rounds
    for name in ("h100", "laptop"):
        run = simulate(made, preset(name))
        assert (run.num_new_tokens, run.fetched_bytes) == (
            stats.num_new_tokens,
            stats.fetched_bytes,
        ), PRESETS[name]


@pytest.mark.parametrize(("model", "rows", "eviction"), [*product(MODELS, ROWS, EVICTIONS)])
def test_a_replay_of_a_run_without_a_pool_says_what_the_pool_reads(model, rows, eviction):
    engine, frame = engine_of(model), run_of(model, rows, "on_demand").trace.to_frame()
    hits = misses = 0
    for layer in engine.experts.draft_layers:
        requests = replay.layer_requests(frame, layer, engine.info["experts"])
        # a prefill fills an empty pool and changes no other
        asked = requests[:1] + replay.decoding(requests)[0]
        for held in replay.replay_pool(asked, engine.info["cached_experts"], eviction)[1:]:
            hits, misses = hits + held.hits, misses + held.misses
    with only_what_is_kept():
        stats = run_of.__wrapped__(model, rows, "cached", eviction).stats
    assert (hits, misses) == (stats.num_hits, stats.num_misses) and hits and misses
