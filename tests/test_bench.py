"""The bench compares like with like, and says when tokens differ. A fake engine first, the real one
at the end."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from fake_engine import FakeEngine

from specmoe.errors import OptionError
from specmoe.lab.bench import methods as bench
from specmoe.lab.bench.methods import run_bench
from specmoe.lab.bench.rows import Repeats, beside
from specmoe.lab.bench.window import steady_speed
from specmoe.lab.writing import plain

EXAMINE = bench.doctor.examine
TIMED = 20  # new tokens of a timed run; a warm-up has fewer


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch):
    """The machine is the doctor's business; measuring it takes seconds."""
    monkeypatch.setattr(bench.doctor, "examine", lambda **options: {"cpu": "a fake", "cores": 2})


def run(engine=None, **options):
    """Options of ``run_bench`` under their names, all others those of ``generate``."""
    own = {"batch": [2], "methods": ["on_demand", "cached", "specmoe"]}
    own |= {name: options.pop(name) for name in (*own, "repeats", "load") if name in options}
    return run_bench(engine or FakeEngine(), **own, generate={"max_new_tokens": TIMED, **options})


def timed(engine) -> list[str]:
    return [options["method"] for _, options in engine.calls if options["max_new_tokens"] == TIMED]


def row_of(result, method: str) -> dict:
    [row] = [row for row in result.rows if row["method"] == method]
    return row


# Alternation, medians, warm-up


def test_repeats_alternate_between_methods():
    engine = FakeEngine()
    run(engine, repeats=3)
    assert timed(engine) == ["on_demand", "cached", "specmoe"] * 3


def test_every_method_is_warmed_up_once_per_batch_before_anything_is_timed():
    engine = FakeEngine()
    run(engine, batch=[2, 5], repeats=1)
    kinds = ["timed" if o["max_new_tokens"] == TIMED else "warm" for _, o in engine.calls]
    assert kinds == (["warm"] * 3 + ["timed"] * 3) * 2
    assert [len(prompts) for prompts, o in engine.calls if o["max_new_tokens"] != TIMED] == [
        2
    ] * 3 + [5] * 3


def test_a_compiled_engine_is_warmed_up_with_the_shapes_of_the_timed_runs():
    engine = FakeEngine()
    engine.options = type("Options", (), {"compile": True})
    run(engine, repeats=1, methods=["on_demand"])
    assert [options["max_new_tokens"] for _, options in engine.calls] == [TIMED, TIMED]


def test_figures_are_medians_and_the_speedup_is_their_ratio():
    seconds = {"timed_tokens": TIMED, "on_demand": [10.0, 90.0, 20.0], "specmoe": [5.0, 4.0, 1.0]}
    result = run(FakeEngine(seconds), methods=["on_demand", "specmoe"], repeats=3)
    tokens = 4 * TIMED
    plain, fast = row_of(result, "on_demand"), row_of(result, "specmoe")
    assert plain["tokens_per_second"] == tokens / 20
    assert (plain["seconds"], plain["seconds_min"], plain["seconds_max"]) == (20, 10, 90)
    assert fast["tokens_per_second"] == tokens / 4
    assert (fast["tokens_per_second_min"], fast["tokens_per_second_max"]) == (
        tokens / 5,
        tokens / 1,
    )
    assert fast["speedup_over_on_demand"] == 5.0 and plain["speedup_over_on_demand"] == 1.0
    assert (fast["wait_share"], fast["draft_share"], fast["verify_share"]) == (0.25, 0.125, 0.5)
    assert fast["fetched_bytes_per_token"] == 100


def frame_of(*rounds: tuple[int, int, float]) -> pd.DataFrame:
    """Rounds of (rows, tokens, seconds)."""
    frame = pd.DataFrame(rounds, columns=["size", "count", "seconds"])
    return frame.assign(kind="round")


def test_the_steady_speed_leaves_out_the_cold_start_and_the_tail():
    cold, warm, tail = (2, 1, 9.0), (2, 10, 1.0), (1, 1, 5.0)
    assert steady_speed(frame_of(cold, cold, warm, warm, warm, warm, tail), 2) == 10.0
    assert steady_speed(frame_of(tail), 2) is None


def repeats_of(*speeds: float | None) -> Repeats:
    return Repeats(steady=list(speeds))


def test_the_steady_ratio_has_an_interval_and_a_control():
    plain = repeats_of(10.0, 20.0, 40.0)
    row = beside(repeats_of(30.0, 60.0, 120.0), plain)
    assert (row["steady_tokens_per_second"], row["steady_over_on_demand"]) == (
        60.0,
        pytest.approx(3),
    )
    assert row["steady_over_on_demand_low"] == pytest.approx(3), "a drift that both meet is none"
    assert row["control_spread"] == pytest.approx(2.0), "neighbours are twice apart"
    apart = beside(repeats_of(30.0, 90.0, 120.0), plain)
    assert apart["steady_over_on_demand_low"] < 3 < apart["steady_over_on_demand_high"]
    alone = beside(repeats_of(30.0), repeats_of(10.0))
    assert alone["steady_over_on_demand"] == pytest.approx(3)
    assert alone["steady_over_on_demand_low"] is None is alone["control_spread"]
    assert beside(repeats_of(None), plain)["steady_over_on_demand"] is None
    assert beside(plain, None)["steady_over_on_demand"] is None


def test_without_on_demand_there_is_no_speedup():
    result = run(methods=["specmoe"])
    assert result.rows[0]["speedup_over_on_demand"] is None
    assert result.rows[0]["same_tokens_as_plain"] is True


# Prompts


@pytest.mark.parametrize("batch, num", [(1, 4), (2, 4), (3, 6), (10, 20)])
def test_two_batches_of_prompts_and_at_least_four_keep_the_batch_full(batch, num):
    engine = FakeEngine()
    result = run(engine, batch=[batch], repeats=1)
    given = [prompts for prompts, options in engine.calls if options["max_new_tokens"] == TIMED]
    assert [len(prompts) for prompts in given] == [num] * 3
    assert given[0] == given[1] == given[2], "all methods must get the same prompts"
    assert len(set(given[0])) > 1
    assert all(row["num_prompts"] == num and row["kept_full"] for row in result.rows)


def test_few_prompts_are_repeated_and_their_number_can_be_set():
    engine = FakeEngine()
    run(engine, prompts=["a", "b", "c"], methods=["on_demand"], repeats=1)
    run(engine, prompts=["a", "b", "c"], methods=["on_demand"], repeats=1, num_prompts=2)
    timed_prompts = [p for p, o in engine.calls if o["max_new_tokens"] == TIMED]
    assert timed_prompts == [["a", "b", "c", "a"], ["a", "b"]]


def test_the_seed_chooses_the_held_out_prompts():
    prompts = []
    for seed in (0, 0, 1):
        engine = FakeEngine()
        run(engine, seed=seed, methods=["on_demand"], repeats=1)
        prompts.append(engine.calls[-1][0])
    assert prompts[0] == prompts[1] != prompts[2]


def test_a_model_without_tokenizer_gets_token_ids_inside_its_vocabulary():
    engine = FakeEngine(text=False)
    engine.decoder = type("Decoder", (), {"vocab_size": 11})
    run(engine, methods=["on_demand"], repeats=1)
    assert all(0 <= token < 11 for prompt in engine.calls[-1][0] for token in prompt)


# Same tokens


@pytest.mark.parametrize("methods", [["on_demand", "cached", "specmoe"], ["cached", "specmoe"]])
def test_a_method_whose_tokens_differ_is_named(methods):
    result = run(FakeEngine(wrong="cached"), methods=methods)
    assert {row["method"]: row["same_tokens_as_plain"] for row in result.rows} == {
        method: method != "cached" for method in methods
    }


def test_one_wrong_repeat_is_enough():
    engine = FakeEngine()
    generate = engine.generate

    def wrong_once(prompts, **options):
        engine.wrong = "specmoe" if timed(engine).count("specmoe") == 1 else None
        return generate(prompts, **options)

    engine.generate = wrong_once
    result = run(engine, repeats=3)
    assert row_of(result, "specmoe")["same_tokens_as_plain"] is False
    assert row_of(result, "cached")["same_tokens_as_plain"] is True


def test_coupled_sampling_is_compared_and_rejection_sampling_is_not():
    coupled = run(temperature=0.7)
    rejection = run(temperature=0.7, accept_rule="rejection")
    assert row_of(coupled, "specmoe")["same_tokens_as_plain"] is True
    assert row_of(rejection, "specmoe")["same_tokens_as_plain"] is None
    assert row_of(rejection, "cached")["same_tokens_as_plain"] is True


def test_temperature_zero_is_greedy_and_others_sample():
    for temperature, sampled in ((0.0, False), (0.7, True)):
        engine = FakeEngine()
        run(engine, temperature=temperature)
        assert all(options.get("do_sample", False) is sampled for _, options in engine.calls)


# Options


def test_cached_is_measured_once_per_eviction():
    engine = FakeEngine()
    result = run(engine, methods=["on_demand", "cached"], eviction=["temporal", "lru"], repeats=2)
    assert [(row["method"], row["eviction"]) for row in result.rows] == [
        ("on_demand", None),
        ("cached", "temporal"),
        ("cached", "lru"),
    ]
    assert set(result.traces) == {("on_demand", 2), ("cached:temporal", 2), ("cached:lru", 2)}
    evictions = [o["eviction"] for _, o in engine.calls if o["method"] == "cached"]
    assert evictions == ["temporal", "lru"] * 3


def test_gamma_is_fixed_for_specmoe_only():
    engine = FakeEngine()
    result = run(engine, methods=["on_demand", "specmoe", "auto"], gamma=5)
    assert {options["method"]: options.get("gamma") for _, options in engine.calls} == {
        "on_demand": None,
        "specmoe": 5,
        "auto": None,
    }
    assert row_of(result, "specmoe")["gamma"] == 5


def test_only_resident_is_outside_the_budget():
    result = run(methods=["on_demand", "specmoe", "resident"])
    budgets = {row["method"]: row["fast_memory_bytes"] for row in result.rows}
    assert budgets == {"on_demand": 65536, "specmoe": 65536, "resident": None}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"methods": ["specmo"]}, "did you mean 'specmoe'"),
        ({"methods": []}, "methods is empty"),
        ({"generate": {"eviction": "lur"}}, "did you mean 'lru'"),
        ({"batch": [0]}, "batch=0"),
        ({"batch": []}, "batch"),
        ({"repeats": 0}, "repeats=0"),
        ({"generate": {"max_new_tokens": 0}}, "max_new_tokens=0"),
        ({"generate": {"gamma": -1}}, "gamma=-1"),
        ({"generate": {"gamma": -1}, "methods": ["cached"]}, "gamma=-1"),
        ({"generate": {"temperature": -0.5}}, "temperature=-0.5"),
        ({"generate": {"draft_set": "hot"}}, "draft_set='hot'"),
        ({"generate": {"substitute": "nearest"}}, "substitute='nearest'"),
        ({"generate": {"new_tokens": 8}}, "did you mean 'max_new_tokens'"),
        ({"generate": {"batch_size": 8}}, "batch_size is not said in generate: batch names it"),
        ({"generate": ["gamma"]}, "must be a dict"),
        ({"load": {"fast_memory": "2 parsec"}}, "fast_memory"),
        ({"load": {"link_bytes_per_s": 0}}, "link_bytes_per_s=0"),
        ({"load": {"store": "tape"}}, "store='tape'"),
        ({"load": {"readers": 3}}, "did you mean 'num_readers'"),
        ({"load": "disk"}, "must be a dict"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(options, said, monkeypatch):
    monkeypatch.setattr(
        "specmoe.engine.engine.load", lambda *a, **k: pytest.fail("loaded all the same")
    )
    with pytest.raises(OptionError, match=said.replace("(", r"\(")):
        run_bench("tiny-skewed", **options)


@pytest.mark.parametrize("options", [{"prompts": []}, {"num_prompts": 0}])
def test_empty_prompts_are_refused(options):
    with pytest.raises(OptionError, match="prompts"):
        run(**options)


# The engine


def test_a_loaded_engine_is_used_and_left_open():
    engine = FakeEngine()
    run(engine)
    assert engine.num_closed == 0
    with pytest.raises(OptionError, match="draft_experts"):
        run(engine, load={"draft_experts": 2})


def test_an_engine_loaded_by_name_is_loaded_once_and_closed_even_after_a_failure(monkeypatch):
    engine, loads = FakeEngine(), []

    def load(model, **options):
        loads.append((model, options))
        return engine

    monkeypatch.setattr("specmoe.engine.engine.load", load)
    run_bench(
        "some-model", ["on_demand", "specmoe"], [1, 2], load={"fast_memory": "1MiB"}, repeats=1
    )
    assert loads == [("some-model", {"fast_memory": "1MiB"})]
    assert engine.num_closed == 1
    engine.interrupt_at = len(engine.calls) + 2
    with pytest.raises(KeyboardInterrupt):
        run_bench("some-model", methods=["on_demand", "specmoe"], batch=[1], repeats=1)
    assert engine.num_closed == 2


# What comes out


def test_the_result_is_one_strict_json_object():
    result = run()
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert list(found) == ["machine", "model", "rows"]
    assert found["machine"]["store"]["reads"] == "direct"
    assert found["model"]["fast_memory_bytes"] == 65536
    assert found["rows"][0]["prefetch_precision"] is None, "NaN is no JSON"
    contract = {
        "method",
        "batch",
        "gamma",
        "draft_experts",
        "tokens_per_second",
        "speedup_over_on_demand",
        "fetched_bytes_per_token",
        "tokens_per_round",
        "acceptance_rate",
        "wait_share",
        "same_tokens_as_plain",
    }
    assert all(contract <= set(row) for row in found["rows"])
    assert list(result.to_frame()["method"]) == ["on_demand", "cached", "specmoe"]


def test_plain_turns_numpy_and_torch_scalars_into_numbers():
    import numpy
    import torch

    value = {
        "a": numpy.float32(0.5),
        "b": torch.tensor(3),
        "c": float("inf"),
        "d": (1, None, True),
        "e": {1},
    }
    assert plain(value) == {"a": 0.5, "b": 3, "c": None, "d": [1, None, True], "e": "{1}"}


def test_the_trace_of_the_last_repeat_is_kept():
    engine = FakeEngine()
    result = run(engine, repeats=3)
    # three warm-ups, then three times three
    last_calls = {"on_demand": 10, "cached": 11, "specmoe": 12}
    for method, call in last_calls.items():
        assert list(result.traces[method, 2]["size"]) == [call]


@pytest.mark.parametrize("methods", [["on_demand", "specmoe"], ["specmoe"]])
def test_progress_counts_every_run(methods):
    engine, told = FakeEngine(), []
    run(engine, methods=methods, batch=[1, 2], progress=lambda *news: told.append(news))
    assert [done for done, _, _ in told] == list(range(len(engine.calls)))
    assert {total for _, total, _ in told} == {len(engine.calls)}


# The real engine


def test_the_real_bench_gives_the_same_tokens_from_every_method(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path))
    monkeypatch.setattr(bench.doctor, "examine", EXAMINE)
    result = run_bench(
        "tiny-balanced",
        batch=[2],
        load={"draft_experts": 3},
        generate={"max_new_tokens": 5, "gamma": 3, "num_prompts": 3},
        repeats=1,
    )
    rows = {row["method"]: row for row in result.rows}
    assert list(rows) == list(bench.ALL_METHODS)
    assert all(row["same_tokens_as_plain"] is True for row in result.rows)
    assert all(row["kept_full"] for row in result.rows)
    assert {row["num_new_tokens"] for row in result.rows} == {rows["on_demand"]["num_new_tokens"]}
    assert (
        rows["resident"]["fetched_bytes_per_token"]
        == 0
        < rows["on_demand"]["fetched_bytes_per_token"]
    )
    assert rows["specmoe"]["tokens_per_round"] > 1 == rows["on_demand"]["tokens_per_round"]
    budget = result.model["fast_memory_bytes"]
    held = {name: row["peak_fast_expert_bytes"] for name, row in rows.items() if name != "resident"}
    assert all(num_bytes <= budget for num_bytes in held.values()), held
    assert all(
        0 <= row[share] <= 1 for row in result.rows for share in ("wait_share", "draft_share")
    )
    assert result.machine["disk"]["reads"] and result.machine["store"]["reads"]
    json.dumps(result.to_json(), allow_nan=False)
    assert not list(tmp_path.rglob("specmoe-doctor-*"))
