"""The harness: what is measured, resumed, summed; the page agrees with the results. Tiny settings,
no clock asserted."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specmoe import checkpoint
from specmoe.lab import report
from specmoe.lab.bench import (
    cells,
    control,
    floors,
    gpu,
    gpu_numbers,
    low_bit,
    offload,
    outcomes,
    page,
    pairs,
    parts,
    pictures,
    results,
    run,
    settings,
    tables,
)
from specmoe.lab.bench.methods import ALL_METHODS
from specmoe.lab.bench.runs import Run, in_turn
from specmoe.lab.bench.settings import Length
from specmoe.lab.bench.window import EndlessQueue, Window, measure, staggered
from specmoe.lab.bench.workplace import Workplace
from specmoe.lab.floor import Rates, floor
from specmoe.lab.markdown import DOCS, page_of, pictures_of
from specmoe.lab.writing import read_object
from specmoe.speculate.loop import Sequence

TINY = Length("tiny", 0.02, 3, 0.0, (4,), count_s=0.02, throttled=(4,))
PROBE = {
    "random_bytes_per_s": {"1": 1e9, "2": 2e9},
    "sequential_bytes_per_s": 1.5e9,
    "fp32_flop_per_s": 1e11,
    "bf16_flop_per_s": 2e11,
    "fp32_flop_per_byte": 50.0,
}
MODEL = {
    "flops_per_token": {"trunk": 1e6, "experts": 9e6},
    "top_k": 2,
    "record_bytes": 1e6,
    "decoding_layers": 3,
    "dtype": "float32",
}
# ten tokens of four rows in two rounds of four draft steps each
SUMS = {
    "num_new_tokens": 10,
    "fetched_bytes": 4e9,
    "num_prefetches": 0,
    "row_rounds": 4,
    "num_drafted": 16,
    "num_rounds": 2,
    "num_steps": 8,
    "num_hits": 30,
    "num_misses": 10,
}


# ---- what is measured


def names_of(part: str, length=settings.FULL, batches=None) -> list[str]:
    """Methods of the first group of a part, in the order of its slices."""
    return [run.method for run in settings.groups([part], length, batches)[0]]


@pytest.mark.parametrize("length", [settings.FULL, settings.QUICK])
def test_every_run_of_every_part_is_in_one_group_and_has_an_expected_time(length):
    groups = settings.groups(settings.PARTS, length)
    keys = [(run.part, run.key) for group in groups for run in group]
    assert len({*keys}) == len(keys)
    assert {part for part, _ in keys} == {*settings.PARTS}
    for group in groups:
        assert len({(run.part, run.model, run.regime, run.batch) for run in group}) == 1
        assert settings.expected_s(group, length) > 0


def test_methods_take_turns_forwards_and_backwards_after_a_probe():
    once = [*settings.METHODS]
    assert names_of("skewed-throttled", batches=[64]) == ["probe", *(once + once[::-1]) * 3]
    assert names_of("skewed-native") == [
        "probe",
        *([*once, "resident"] + ["resident", *once[::-1]]) * 3,
    ]


def test_every_part_that_compares_speeds_runs_one_method_twice():
    compared = {*settings.PARTS} - {"evictions", "growth", "drafting"}
    for length, part in (
        (length, part) for length in settings.LENGTHS.values() for part in compared
    ):
        methods = {run.method for run in settings.cells(part, length)}
        [again] = [name for name in methods if name.endswith(settings.AGAIN)]
        assert again.removesuffix(settings.AGAIN) in methods


def test_pools_take_turns_in_every_model_and_batch_and_one_of_them_twice():
    groups = settings.groups(["pools"], settings.FULL)
    assert {(group[0].model, group[0].batch) for group in groups} == {
        (model.name, batch) for model in settings.MODELS.values() for batch in (16, 64)
    }
    once = [*settings.EVICTIONS, f"decayed{settings.AGAIN}"]
    assert all([run.method for run in group] == (once + once[::-1]) * 3 for group in groups)


def test_what_the_targets_ask_comes_first_and_an_hour_holds_it():
    groups = settings.groups(settings.PARTS, settings.FULL)
    spent, first = 0.0, {}
    for group in groups:
        spent += settings.expected_s(group, settings.FULL)
        first.setdefault((group[0].part, group[0].batch), spent)
    assert groups[0][0].part == "evictions", "it says which pool is the best"
    large = [first[part, batch] for part in settings.TIMED for batch in (16, 64, 256)]
    assert max(large) < first["translate-native", 1] < 3600
    assert first["low_bit", 64] < 3600


def test_the_full_length_measures_for_twenty_to_thirty_seconds():
    assert 20 <= settings.FULL.slice_s * settings.FULL.repeats <= 30
    assert settings.FULL.batches == (1, 4, 16, 64, 256) and settings.FULL.repeats >= control.LEAST


def test_quick_is_expected_to_take_less_than_ten_minutes():
    plan = settings.groups(settings.PARTS, settings.QUICK)
    assert sum(settings.expected_s(group, settings.QUICK) for group in plan) < 600


def test_the_estimate_is_printed_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "measure_group", lambda *_: pytest.fail("measured"))
    assert run.main(["--estimate", "--out", str(tmp_path), "--only", "growth"]) == 0
    assert capsys.readouterr().out.startswith("4 of 4 cells to measure, about ")


def test_files_of_other_results_in_the_folder_are_no_part_of_the_table(capsys):
    """`real_speed.json` has rows of a kind of its own."""
    assert run.main(["--estimate", "--only", "growth"]) == 0
    assert "specmoe / on-demand" in capsys.readouterr().out
    others = {"real_speed": {"rows": {"a": {"seconds": 1}}}, "gpu": {"rows": [1]}}
    assert cells.Measured(others).cells == {}


def test_a_committed_row_has_the_key_of_the_run_that_it_describes():
    names = {"link": "regime", "what": "method", "slice": "prompt_set"}
    files = [content for content in results.read_all().values() if "rows" in content]
    assert len(files) > 5
    for content in files:
        for key, row in content["rows"].items():
            told = {names.get(name, name): row[name] for name in ("part", "model", "batch", *names)}
            assert Run(**told).key == key and Run(**told).row().items() <= row.items()


def test_runs_take_turns_after_one_warm_up_each():
    seen = []
    found = in_turn(
        "ab", 2, lambda run: seen.append(run), lambda run, turn: seen.append(run) or turn
    )
    assert (seen, found) == (list("ababab"), [[0, 1], [0, 1]])


# ---- the window


def rows_of(num: int, length: int = 3) -> list[Sequence]:
    return [Sequence(prompt, [prompt] * length, length + 10) for prompt in range(num)]


def test_the_queue_never_ends_and_gives_fresh_rows():
    rows = rows_of(3)
    queue = EndlessQueue([], rows)
    taken = [queue.popleft() for _ in range(7)]
    assert [row.prompt for row in taken] == [0, 1, 2, 0, 1, 2, 0] and len(queue) == 3
    taken[0].tokens.append(99)
    assert rows[0].tokens == [0, 0, 0] == taken[3].tokens


def test_the_first_rows_are_taken_once_and_stand_inside_their_own_texts():
    rows, texts = rows_of(4), [[7] * 10 for _ in range(4)]
    first = staggered(rows, texts, 4, seed=1)
    assert sorted(len(row.tokens) - 3 for row in first) == [1, 3, 5, 7] and all(
        row.room > 0 for row in first
    )
    queue = EndlessQueue(first, rows)
    assert [len(queue.popleft().tokens) > 3 for _ in range(8)] == [True] * 4 + [False] * 4


@pytest.fixture(scope="module")
def place():
    place = Workplace(num_prompts=6)
    yield place
    place.close()


@pytest.mark.parametrize("model", ["tiny-skewed", "tiny-translate"])
@pytest.mark.parametrize("method", ["on_demand", "cached", "specmoe"])
def test_a_window_counts_full_rounds_only(place, model, method):
    texts = place.texts(model)
    engine = place.engine(model, "count", store="memory", expert_bytes=None)
    window = Window(3, 0.05, 0.0, texts)
    sums = measure(engine, place.prompts(model), window, method=method, max_new_tokens=8)
    assert sums["row_rounds"] == 3 * sums["num_rounds"] >= 3
    assert sums["num_new_tokens"] >= sums["row_rounds"] and sums["seconds"] >= 0.05
    assert sums["fetched_bytes"] == sums["num_fetches"] * engine.store.record_bytes
    assert sums["draft_s"] + sums["verify_s"] <= sums["seconds"]
    assert not engine.turns.is_taken() and engine.store.is_idle(), "the engine is free again"


def test_prefill_is_not_throttled_and_decoding_is(place, monkeypatch):
    texts, link = place.texts("tiny-skewed"), []
    engine = place.engine(
        "tiny-skewed", "count", store="memory", expert_bytes=None, link_bytes_per_s=1e9
    )
    prefill, step = engine.decoder.prefill, engine.decoder.forward
    note = lambda what: link.append((what, engine.store.link.bytes_per_s))  # noqa: E731
    monkeypatch.setattr(
        engine.decoder, "prefill", lambda *given: note("prefill") or prefill(*given)
    )
    monkeypatch.setattr(engine.decoder, "forward", lambda *given: note("step") or step(*given))
    measure(engine, place.prompts("tiny-skewed"), Window(2, 0.01, 0.0, texts), method="on_demand")
    assert set(link) == {("prefill", None), ("step", 1e9)}
    assert engine.store.link.bytes_per_s == 1e9


def test_static_eviction_is_calibrated_before_the_window(place):
    texts = place.texts("tiny-skewed")
    engine = place.engine("tiny-skewed", "count", store="memory", expert_bytes=None)
    engine.hotness = None
    measure(
        engine,
        place.prompts("tiny-skewed"),
        Window(2, 0.01, 0.0, texts),
        method="cached",
        eviction="static",
    )
    assert engine.hotness is not None


# ---- whole parts, resumed


def measured(tmp_path, part: str, place, length: Length = TINY) -> dict:
    """The first group of a part with four rows, or all runs of a part of single runs."""
    file = results.part_file(part, length, tmp_path)
    here = parts.Shared(length, place, {})
    groups = settings.groups([part], length)
    for group in groups if len(groups[0]) == 1 else groups[:1]:
        group = [replace(cell, batch=min(4, cell.batch)) for cell in group]
        rows = parts.measure_group(here, group, file)
        run.keep(file, group, rows)
        assert run.brief(group, rows)
    return read_object(tmp_path / f"{part}.json")


@pytest.fixture
def not_widened(monkeypatch):
    for module in ("settings", "workplace"):
        monkeypatch.setattr(f"specmoe.lab.bench.{module}.EXPERT_BYTES", None)


def test_a_speed_part_measures_probe_and_methods_and_its_table_is_whole(
    tmp_path, place, not_widened, monkeypatch
):
    monkeypatch.setattr(parts, "PROBE_S", 0.01)
    content = measured(tmp_path, "skewed-native", place)
    assert {row["what"] for row in content["rows"].values()} == {
        "probe",
        *settings.METHODS,
        "resident",
    }
    assert len({row["slice"] for row in content["rows"].values()}) == TINY.repeats == 3
    rows = cells.cell_rows({"skewed-native": content}, "tiny-skewed", "native")
    assert [row["method"] for row in rows] == [
        "on_demand",
        "cached (temporal)",
        "specmoe",
        "auto",
        "resident",
        "specmoe_again",
    ]
    assert all(row["over"].low <= row["over"].value <= row["over"].high for row in rows)
    assert all(row["over"].spread >= 1 for row in rows)
    assert all(row["measured_over_floor"] > 1 for row in rows), "nothing is faster than its floor"


@pytest.mark.parametrize("part", ["growth", "drafting", "tracing", "pools"])
def test_the_other_parts_measure(tmp_path, place, not_widened, part):
    rows = measured(tmp_path, part, place)["rows"].values()
    assert rows and all(row["num_new_tokens"] > 0 and row["commit"] for row in rows)
    if part == "drafting":
        assert all(0 < row["draft_expert_s"] < row["draft_s"] for row in rows)
    if part == "pools":
        names = {row["what"]: row["eviction"] for row in rows}
        assert set(names) == {*settings.EVICTIONS, f"decayed{settings.AGAIN}"}
        assert all(name.removesuffix(settings.AGAIN) == kept for name, kept in names.items())


def test_the_peer_with_everything_in_memory_decodes_as_many_tokens(place):
    for what in ("resident", "transformers"):
        row = parts.peers.measure_resident(
            place, Run("tiny-skewed", what, 2, "memory", part="resident"), TINY
        )
        assert row["num_new_tokens"] % 2 == 0 and row["tokens_per_second"] > 0
    parts.peers.close()


ROW = {"tokens_per_second": 1.0, "seconds": 1.0, "num_new_tokens": 1}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def interrupted(_, group, file):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(group[0].key)
        return {run.key: ROW for run in group}

    monkeypatch.setattr(run, "measure_group", interrupted)
    arguments = ["--only", "resident", "--out", str(tmp_path), "--length", "quick"]
    with pytest.raises(KeyboardInterrupt):
        run.main(arguments)
    first = list(asked)
    asked.clear()
    monkeypatch.setattr(
        run,
        "measure_group",
        lambda _, group, file: {asked.append(each.key) or each.key: ROW for each in group},
    )
    monkeypatch.setattr(tables, "text", lambda _: "")
    assert run.main(arguments) == 0
    everything = [group[0].key for group in settings.groups(["resident"], settings.QUICK)]
    assert first + asked == everything and len(first) == 2
    assert list(read_object(tmp_path / "resident.json")["rows"]) == everything


def test_no_cell_begins_that_would_end_too_late(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "measure_group", lambda *_: pytest.fail("measured"))
    arguments = ["--only", "tracing", "--out", str(tmp_path), "--minutes", "0.01"]
    assert run.main(arguments) == 0
    assert "no time for tracing tiny-skewed, B = 16" in capsys.readouterr().out


def test_rows_of_other_code_or_other_lengths_are_measured_again(tmp_path):
    cell = Run("tiny-skewed", "trace_on", 16, "native", part="tracing")
    results.part_file("tracing", TINY, tmp_path, code="old").add(
        {cell.key: {"tokens_per_second": 1.0}}
    )
    assert results.part_file("tracing", TINY, tmp_path, code="old").has(cell)
    assert not results.part_file("tracing", TINY, tmp_path, code="new").has(cell)
    assert not results.part_file("tracing", replace(TINY, slice_s=9.0), tmp_path, code="old").has(
        cell
    )
    assert results.part_file("tracing", TINY, tmp_path, code="new", keep=True).has(cell)


def test_what_other_code_left_stays_until_its_cell_is_measured_again(tmp_path):
    def row(what: str, batch: int) -> dict:
        cell = Run("tiny-skewed", what, batch, "native", part="skewed-native")
        return {cell.key: cell.row() | ROW}

    old = results.part_file("skewed-native", TINY, tmp_path, code="old")
    old.add(
        row("overlapped", 4) | row("specmoe", 4) | row("specmoe", 64), machine={"cpu": "before"}
    )
    new = results.part_file("skewed-native", TINY, tmp_path, code="new")
    cell = Run("tiny-skewed", "specmoe", 4, "native", part="skewed-native")
    assert len(new.rows) == 3 and not new.has(cell)
    run.keep(
        new,
        [cell, replace(cell, prompt_set=1)],
        dict.fromkeys(row("specmoe", 4), ROW) | {replace(cell, prompt_set=1).key: ROW},
    )
    content = read_object(tmp_path / "skewed-native.json")
    assert {(r["what"], r["batch"], r["code"]) for r in content["rows"].values()} == {
        ("specmoe", 4, "new"),
        ("specmoe", 64, "old"),
    }
    assert content["before"]["machine"] == {"cpu": "before"} != content["machine"]
    found = cells.Measured({"skewed-native": content})
    place = ("tiny-skewed", "native")
    assert [found.is_old(found.rows(*place, batch, "specmoe")) for batch in (4, 64)] == [
        False,
        True,
    ]


# ---- the tables, by hand


def test_a_floor_is_the_longer_of_link_and_arithmetic():
    sums = SUMS
    found, flops = floors.floor(sums, MODEL, PROBE, None), MODEL["flops_per_token"]
    drafted_s = (flops["trunk"] + flops["experts"] / MODEL["top_k"]) * 16 / 2e11 / 10
    assert found["link_s"] == pytest.approx(4e9 / 2e9 / 10)
    assert found["compute_s"] == pytest.approx(1e7 * 20 / 1e11 / 10 + drafted_s)
    assert floors.floor(sums, MODEL, PROBE, 1e9)["link_s"] == pytest.approx(0.4)
    assert (
        floors.floor({**sums, "fetched_bytes": 0}, MODEL, PROBE, None)["floor_s"]
        == found["compute_s"]
    )


def test_drafting_adds_to_the_reads_that_cannot_be_asked_for_earlier():
    sums = SUMS
    found = floors.floor(sums, MODEL, PROBE, None)
    verified_s = 1e7 * 20 / 1e11 / 10
    assert found["floor_s"] == pytest.approx(found["link_s"] + found["compute_s"] - verified_s)
    all_ahead = {**sums, "num_prefetches": 4e9 / MODEL["record_bytes"]}
    assert floors.floor(all_ahead, MODEL, PROBE, None)["floor_s"] == pytest.approx(found["link_s"])
    plain = {**sums, "num_drafted": 0}
    assert floors.floor(plain, MODEL, PROBE, None)["floor_s"] == pytest.approx(found["link_s"])


def test_weights_touched_take_their_time_once_the_memorys_rate_is_known():
    # ten passes of half a million fp32 weights; 40 experts asked for, and 3 layers of 8 draft steps
    touched = 10 * 2e6 + (40 + 3 * 8) * 1e6
    assert floors.touched_bytes(SUMS, MODEL) == (touched, 10)
    quiet = SUMS | {"fetched_bytes": 0, "num_drafted": 0}
    slow = PROBE | {"memory_bytes_per_s": 1e9}
    found = floors.floor(quiet, MODEL, slow, None)
    assert found["memory_s"] == found["floor_s"] == pytest.approx(touched / 1e9 / 10)
    assert found["limit"] == "memory" and found["compute_s"] < found["memory_s"]
    assert floors.floor(quiet, MODEL, PROBE, None)["memory_s"] == 0
    # what a cache of 8 MB holds may be there since the pass before
    cached = floors.floor(quiet, MODEL, slow | {"cache_bytes": 8e6}, None)
    assert cached["memory_s"] == pytest.approx((touched - 10 * 8e6) / 1e9 / 10)
    held = floors.floor(quiet, MODEL, slow | {"cache_bytes": 1e9}, None)
    assert held["memory_s"] == 0
    # bf16 matrices of an fp32 model are half as many bytes
    half = MODEL | {"trunk_bytes": 6e6, "trunk_weights": 3e6}
    assert floors.touched_bytes(SUMS, half)[0] == 10 * 1e6 + 64e6


@pytest.mark.parametrize(
    "work, limit, seconds",
    [
        ((8e9, 1e11, 1e9), "link", 4.0),
        ((8e9, 1e12, 1e9), "compute", 10.0),
        ((8e9, 1e11, 1e11), "memory", 5.0),
    ],
)
def test_the_floor_of_everything_is_its_slowest_part(work, limit, seconds):
    found = floor(*work, Rates(2e9, 1e11, 2e10))
    assert (found.limit, found.seconds) == (limit, seconds)


def row(
    what: str,
    batch: int,
    speed: float,
    seconds: float = 1.0,
    part: str = "translate-native",
    slice: int = 0,
    **more,
) -> dict:
    model, _, link = part.partition("-")
    model, link = (f"tiny-{model}", link) if link else ("tiny-skewed", "native")
    sums = {
        "num_new_tokens": speed * seconds,
        "seconds": seconds,
        "fetched_bytes": 1e8,
        "num_prefetches": 0,
        "row_rounds": 10,
        "num_drafted": 0,
        "num_rounds": 10,
        "num_hits": 0,
        "num_misses": 0,
        "wait_s": 0.04,
        "draft_s": 0.3,
        "verify_s": 0.5,
        "gamma": 0.0,
        "eviction": "lru",
    }
    run = Run(model, what, batch, link, prompt_set=slice, part=part)
    return {**run.row(), "tokens_per_second": speed, **sums, **more}


def files_of(*rows: dict) -> dict:
    files: dict[str, dict] = {}
    for each in rows:
        content = files.setdefault(
            each["part"], {"rows": {}, "models": {"tiny-translate": MODEL, "tiny-skewed": MODEL}}
        )
        content["rows"][f"{each['model']}/{each['batch']}/{each['what']}/{each['slice']}"] = each
    return files


def outcome(files: dict, words: str) -> outcomes.Outcome:
    [found] = [each for each in tables.targets(files) if words in each.name]
    return found


@pytest.mark.parametrize("num", [3, 6, 30])
def test_an_interval_holds_the_ratio_and_shrinks_with_what_is_paired(num):
    """A machine that drifts by a factor of ten changes both, and not their ratio."""
    drift = [10 ** (turn / num) for turn in range(num)]
    wobble = [1 + 0.01 * (-1) ** turn for turn in range(num)]
    ours = [2 * a * b for a, b in zip(drift, wobble)]
    ratio = control.paired(ours, drift)
    assert ratio.low < ratio.value < ratio.high and ratio.value == pytest.approx(2, rel=0.01)
    assert ratio.high / ratio.low < 1.1
    apart = control.paired(ours, drift[::-1])
    assert apart.high / apart.low > 2


def test_an_interval_is_students():
    ratio = control.paired([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    half = math.log(2) * 4.30 / math.sqrt(3)
    assert ratio.value == pytest.approx(2.0)
    assert math.log(ratio.high / 2) == pytest.approx(half) == -math.log(ratio.low / 2)
    few = control.paired([1.0, 4.0], [1.0, 1.0])
    assert (few.value, few.low, few.high) == (pytest.approx(2.0), None, None)
    assert control.paired([3.0], [1.0, 2.0, 9.0]).value == 1.5, "of medians"


def test_nothing_is_claimed_inside_the_spread_of_two_arms_of_one_method():
    wobble = (0.9, 1.0, 1.1)

    def of(speed: float, again: float) -> outcomes.Outcome:
        rows = [
            row(what, 256, value * part, slice=turn)
            for turn, part in enumerate(wobble)
            for what, value in (
                ("on_demand", 100.0),
                ("specmoe", speed),
                ("specmoe_again", speed * again),
            )
        ]
        return outcome(files_of(*rows), "translate, native: specmoe / on-demand, B = 256")

    assert [of(520.0, again).verdict for again in (1.0, 1.03, 1.05)] == [
        "yes",
        "yes",
        "within the spread",
    ]
    assert [of(480.0, again).verdict for again in (1.0, 1 / 1.03, 1 / 1.05)] == [
        "no: not reached",
        "no: not reached",
        "within the spread",
    ]
    found = of(520.0, 1.05)
    assert found.found.spread == pytest.approx(1.05)
    shown = outcomes.target_frame([found]).iloc[0]
    assert (shown["met"], shown["A/A"]) == ("within the spread", "± 5.0%")
    assert shown["measured"] == "5.20× (5.20 to 5.20)"


def test_two_arms_that_scatter_have_a_wide_spread_even_where_their_mean_is_one():
    still, scattered = [1.0] * 4, [0.8, 1.25, 0.8, 1.25]
    assert control.spread_of(still, still) == 1.0
    assert control.spread_of(still, scattered) > 1.2
    assert control.spread_of([1.0, 1.0], [1.1, 0.8]) == pytest.approx(1.25)
    assert control.spread_of([], []) is None


def test_old_rows_are_said_to_be_old_and_do_not_stand_beside_new_ones():
    new, old = {"code": "new", "measured": "2026-11-26"}, {"code": "old", "measured": "2026-11-25"}
    files = files_of(
        row("on_demand", 64, 100.0, **new),
        row("specmoe", 64, 500.0, **new),
        row("on_demand", 256, 100.0, **old),
        row("specmoe", 256, 900.0, **old),
    )
    best = outcome(files, "translate, native: specmoe / on-demand, best batch")
    assert (best.measured, best.verdict) == (pytest.approx(5.0), "no: not reached")
    assert best.note == "B = 64: 5.00; old: B = 256: 9.00"
    alone = outcome(files, "translate, native: specmoe / on-demand, B = 256")
    assert (alone.measured, alone.verdict) == (pytest.approx(9.0), "yes (old)")


def turns_of(batch: int = 64, part: str = "translate-native", **speeds: list[float]) -> list[dict]:
    """A row per method and turn."""
    return [
        row(what, batch, speed, part=part, slice=turn)
        for what, values in speeds.items()
        for turn, speed in enumerate(values)
    ]


DRIFT = [100.0, 200.0, 400.0, 800.0, 1600.0]
TIMES = lambda factor, speeds=DRIFT: [factor * speed for speed in speeds]  # noqa: E731


def test_a_ratio_is_of_the_same_turns_where_some_were_not_measured():
    rows = turns_of(256, on_demand=DRIFT)[1:] + turns_of(256, specmoe=TIMES(5))[:-1]
    ratio = outcome(files_of(*rows), "translate, native: specmoe / on-demand, B = 256").found
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(5.0),) * 3


def test_auto_stands_beside_one_method_for_the_whole_cell_turn_by_turn():
    """specmoe has the fastest turn of all, and cached is the fastest of the cell."""
    specmoe = [3 * DRIFT[0], *TIMES(0.5, DRIFT[1:])]
    rows = turns_of(cached=DRIFT, specmoe=specmoe, on_demand=TIMES(0.1), auto=TIMES(0.98))
    files = files_of(*rows)
    place = (cells.Measured(files), "tiny-translate", "native", 64)
    assert cells.best_single(*place) == "cached"
    ratio = cells.auto_over_best(*place)
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(0.98),) * 3
    shown = pairs.pair_frame(files).iloc[0]
    assert shown["auto / best single"] == "0.98× (0.98 to 0.98)" and shown["which is"] == "cached"
    assert len(pairs.pair_frame(files)) == 1 and not shown["specmoe / resident"]


def test_every_pair_of_the_page_has_its_interval_and_its_control():
    wobble = [1.0, 1.1, 0.9]
    again = {"specmoe_again": TIMES(515.0, wobble)}
    speeds = {"on_demand": 100.0, "cached": 250.0, "resident": 1000.0, "auto": 480.0}
    methods = {what: [speed] * 3 for what, speed in speeds.items()}
    shown = pairs.pair_frame(
        files_of(*turns_of(specmoe=TIMES(500.0, wobble), **again, **methods))
    ).iloc[0]
    for over, value in (("on-demand", "4.98×"), ("best cached", "1.99×"), ("resident", "0.50×")):
        assert shown[f"specmoe / {over}"].startswith(f"{value} ("), over
    assert " to " in shown["auto / best single"] and shown["A/A"] == "± 3.0%"


def test_the_page_counts_where_auto_is_surely_near_the_best():
    sure, wide = [1.0, 1.0, 1.0], [0.8, 1.0, 1.3]
    rows = [
        *turns_of(4, cached=sure, auto=TIMES(1.05, sure)),
        *turns_of(16, cached=sure, auto=TIMES(0.9, sure)),
        *turns_of(64, cached=sure, auto=wide),
    ]
    said = pairs.auto_words(files_of(*rows))
    assert said.startswith("In 1 of 3 cells") and "in 1 surely below" in said
    assert "in the other 1 the interval" in said and "0.90× (0.90 to 0.90) at least" in said
    assert pairs.auto_words({}) == "" and pairs.pair_frame({}).empty
    few = files_of(row("cached", 4, 1.0), row("auto", 4, 2.0))
    assert pairs.auto_words(few).startswith("In 0 of 1 cells"), (
        "without an interval nothing is sure"
    )


def test_a_target_of_every_batch_is_met_where_each_of_them_surely_is():
    sure, missed = control.Ratio(1.0, 0.99, 1.01), control.Ratio(0.9, 0.89, 0.91)
    wide, apart = control.Ratio(1.1, 0.9, 1.3), control.Ratio(1.0, 0.99, 1.01, spread=1.05)

    def of(*ratios: control.Ratio) -> str:
        values = dict(enumerate(ratios))
        return outcomes.of_batches(outcomes.Outcome("", 0.97, True), values, min).verdict

    assert of(sure) == "yes" and of(sure, wide) == "within the interval"
    assert of(sure, wide, apart) == "within the spread"
    assert of(apart, sure, missed, wide) == "no: not reached"
    best = outcomes.of_batches(outcomes.Outcome("", 0.97, True), {1: missed, 4: sure}, max)
    assert best.verdict == "yes", "of the best batch one is enough"


def test_a_missed_target_says_whether_the_floor_forbids_it():
    def of(moved: float) -> str:
        rows = [row("on_demand", 256, 100.0), row("probe", 256, 0.0, **PROBE)]
        rows.append(row("specmoe", 256, 200.0, fetched_bytes=moved))
        return outcome(files_of(*rows), "translate, native: specmoe / on-demand, B = 256").verdict

    # 200 tokens over 2 GB/s: at the floor 10 and 2 times on-demand, where 5 are asked
    assert of(4e8) == "no: not reached" and of(2e9) == "no: the floor forbids it"


def test_no_floor_is_higher_than_what_was_reached():
    """A disk that got faster after the probe: on-demand read 4 GB/s where the probe saw two."""
    rows = [row("on_demand", 64, 100.0, fetched_bytes=4e9), row("probe", 64, 0.0, **PROBE)]
    files = files_of(*rows, row("specmoe", 64, 400.0, fetched_bytes=8e8))
    found = {each["method"]: each for each in cells.cell_rows(files, "tiny-translate", "native")}
    assert found["on_demand"]["measured_over_floor"] == pytest.approx(1.0)
    assert found["specmoe"]["floor_s"] == pytest.approx(8e8 / 4e9 / 400)


def test_a_link_that_was_set_is_the_floors_whatever_the_disk_did_at_the_probe():
    slow = PROBE | {"random_bytes_per_s": {"1": 1e7}, "sequential_bytes_per_s": 1e7}
    assert floors.floor(SUMS, MODEL, slow, 1e9)["link_s"] == pytest.approx(0.4)
    assert floors.link_rate(None, slow) == 1e7
    assert floors.link_rate(None, slow | {"reached_bytes_per_s": 2e8}) == 2e8


def test_the_row_of_bytes_has_the_oracles_and_beladys(monkeypatch):
    def of(least: float) -> outcomes.Outcome:
        monkeypatch.setattr(tables.bound, "over_on_demand", lambda: {10: 0.2, 32: least})
        rows = [row("on_demand", 256, 100.0), row("specmoe", 256, 300.0, fetched_bytes=6e7)]
        return outcome(files_of(*rows), "translate: bytes per token, specmoe / on-demand")

    assert of(0.1).measured == pytest.approx(0.2)
    assert of(0.1).verdict == "no: not reached" and of(0.16).verdict == "no: the floor forbids it"
    said = "oracle's draft and Belady's pool: 0.20× (10 tokens), 0.10× (32 tokens)"
    assert of(0.1).floor == said


def test_the_time_at_a_slow_link_stands_over_the_floor_of_the_same_slice():
    part = "translate-throttled"
    rows = turns_of(64, part, specmoe=DRIFT) + [row("probe", 64, 0.0, part=part, **PROBE)]
    for turn, each in enumerate(rows[:-1]):  # 0.1 to 0.5 GB at 0.25 GB/s in 0.5 to 2.5 s
        each["fetched_bytes"], each["seconds"] = (turn + 1) * 1e8, (turn + 1) * 0.5
        each["num_new_tokens"] = each["tokens_per_second"] * each["seconds"]
    found = outcome(files_of(*rows), "translate, 0.25 GB/s: specmoe's time / its floor")
    assert (found.measured, found.found.low) == (pytest.approx(1.25), pytest.approx(1.25))
    assert found.verdict == "no: not reached"


def test_a_store_of_few_bits_has_the_bound_of_its_reads():
    part = "low_bit"
    rows = [
        {**each, "link": "throttled"}
        for each in turns_of(16, part, bf16=[10.0] * 3, int4=[20.0] * 3)
    ]
    found = outcome(files_of(*rows), "store of 4 bits")
    # of 0.1 GB for ten tokens a quarter, at 0.25 GB/s
    assert found.bound == pytest.approx(10.0) and found.verdict == "no: not reached"


def test_pools_by_the_clock_stand_beside_the_default_and_the_fastest_of_the_others():
    speeds = dict.fromkeys(("static", "temporal", "lru"), DRIFT) | {"lfu": TIMES(1.2)}
    arms = {"decayed": TIMES(1.26), "decayed_again": TIMES(1.26)}
    files = files_of(*turns_of(16, "pools", **speeds, **arms))
    shown = pairs.pool_frame(files).set_index("eviction")
    assert list(shown.index) == list(settings.EVICTIONS)
    assert shown.loc["decayed", "over temporal"] == "1.26× (1.26 to 1.26)"
    said = pairs.pool_words(files)
    assert "`decayed` is at 1.05 (1.05 to 1.05) of `lfu` on tiny-skewed with 16 rows" in said
    assert said.endswith("surely ahead in 1 of 1, surely behind in 0.")
    page = pairs.with_clock("- one\n- By the clock, it\n  was so.\n- two\n", files)
    assert " ".join(page.split()) == f"- one - {said} - two" and len(page.splitlines()) > 3
    assert "nothing has been measured" in pairs.pool_words({}) and pairs.pool_frame({}).empty


def test_one_model_in_three_stores_holds_the_same_numbers():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) / 50
    whole, scales = low_bit.rounded(weight)
    made = (whole * scales[..., None]).flatten(1)
    assert torch.equal(made, made.to(torch.bfloat16).float()), "exact in bf16"
    assert (made - weight).abs().max() < weight.abs().max() / 10
    for bits in (4, 8):
        words = low_bit.packed(whole.flatten(1), bits).to(torch.int64)
        fields = (words[..., None] >> torch.arange(0, 32, bits)) % (1 << bits) - (1 << (bits - 1))
        assert torch.equal(fields.flatten(1), whole.flatten(1).to(torch.int64))


def test_targets_are_made_of_medians_and_say_which_batches():
    files = files_of(
        row("on_demand", 256, 100.0),
        row("on_demand", 256, 110.0, slice=1),
        row("on_demand", 256, 400.0, slice=2),
        row("specmoe", 256, 605.0),
        row("on_demand", 1, 10.0),
        row("specmoe", 1, 20.0),
    )
    found = outcome(files, "translate, native: specmoe / on-demand, B = 256")
    assert found.measured == pytest.approx(5.5) and found.met
    mean = outcome(files, "translate, native: specmoe / on-demand, mean")
    assert mean.measured == pytest.approx((5.5 + 2.0) / 2) and mean.note == "B = 1: 2.00, 256: 5.50"


def test_auto_is_compared_with_the_fastest_single_method():
    files = files_of(
        row("on_demand", 4, 10), row("cached", 4, 40), row("specmoe", 4, 30), row("auto", 4, 38)
    )
    found = outcome(files, "translate, native: auto")
    assert found.measured == pytest.approx(0.95) and found.met is False
    assert outcome(files, "translate, native: specmoe / best cached, B >= 16").measured is None


def test_a_ratio_at_the_floor_uses_the_floor_of_specmoe_and_the_speed_of_the_other():
    files = files_of(
        row("on_demand", 256, 100.0),
        row("specmoe", 256, 200.0),
        row("probe", 256, 0.0, **PROBE),
    )
    floor_s = max(1e8 / 2e9, 1e7 * 10 / 1e11) / 200
    assert cells.Measured(files).ratio_at_floor(
        "tiny-translate", "native", 256, "on_demand"
    ) == pytest.approx(1 / (floor_s * 100))


def test_shares_and_what_was_not_measured():
    files = files_of(row("specmoe", 64, 100.0, seconds=2.0))
    assert outcome(files, "translate, native: waiting").measured == pytest.approx(0.02)
    assert outcome(files, "translate, native: drafting").measured == pytest.approx(0.15)
    missing = outcome(files, "tracing on / off")
    assert missing.measured is None
    assert list(outcomes.target_frame([missing])["measured"]) == ["not measured"]
    assert "not measured" in tables.text(files) and "not measured" in tables.text({})


def test_best_cached_is_the_eviction_that_fetches_least():
    rows = {
        Run("tiny-skewed", f"cached:{name}", 4, part="evictions").key: {"bytes_per_token": moved}
        for name, moved in (("lru", 3.0), ("temporal", 2.0), ("static", 4.0))
    }
    shared, cell = parts.Shared(TINY, None, rows), Run("tiny-skewed", "cached", 4)
    assert parts.best_eviction(shared, cell) == "temporal"
    rows[Run("tiny-skewed", "cached:lfu", 4, part="evictions").key] = {"bytes_per_token": 1.0}
    assert parts.best_eviction(shared, cell) == "lfu"
    assert parts.best_eviction(shared, replace(cell, batch=8)) == "temporal"


# ---- the page


@pytest.fixture(scope="module")
def performance(tmp_path_factory) -> dict:
    """The notebook as `specmoe report run performance` executes it on the committed results."""
    folder = tmp_path_factory.mktemp("performance") / "out"
    html = report.run_report("performance", out_dir=folder)
    assert report.external_loads(html.read_text(encoding="utf-8")) == []
    return json.loads((folder / "performance.ipynb").read_text(encoding="utf-8"))


def test_the_performance_page_is_the_notebook_and_the_notebook_agrees_with_the_results(performance):
    committed = json.loads((report.notebooks_dir() / "performance.ipynb").read_text("utf-8"))
    written = (DOCS / "performance.md").read_text(encoding="utf-8")
    say = "run: python -m specmoe.lab.bench.page"
    assert written == page_of(committed) == page_of(performance), say
    for name, picture in pictures_of(committed).items():
        assert (DOCS / "images" / name).read_bytes() == picture, say


def test_the_page_opens_with_five_numbers_and_keeps_every_target():
    written = (DOCS / "performance.md").read_text(encoding="utf-8")
    first, second = written.split("## Targets")[0], written.split("## Targets")[1].split("##")[0]
    rows = [line for line in first.splitlines() if line.startswith("| ")][2:]
    why = {"no: not reached", "no: the floor forbids it"}
    said = {"yes", "within the spread", "within the interval", *why}
    said |= {f"{words} (old)" for words in said}
    assert len(rows) == 5 and {row.split(" | ")[3].strip(" |") for row in rows} <= said
    names = [outcome.name for outcome in tables.targets(results.read_all())]
    assert len(names) == 39 and all(f"| {name} |" in second for name in names)


def test_what_the_page_says_in_words_is_in_the_results():
    files = results.read_all()
    found, models = cells.Measured(files), (cells.TRANSLATE, cells.SKEWED)
    for model, batch in itertools.product(models, (64, 256)):
        ratio = found.ratio(model, "native", batch, "resident", "specmoe")
        assert ratio.low < 1, "resident is not surely faster"
    other = outcome(files, "translate, native: of drafting, what is not expert arithmetic")
    assert all(share.value > 0.5 for share in other.each), "more than half"
    reached = {
        (model, batch): cells.achieved(found, model, "throttled", batch, "specmoe")
        for model in models
        for batch in (16, 256)
    }
    assert all(reached[model, 16] > 0.85 > reached[model, 256] for model in models)
    assert reached[cells.SKEWED, 256] == pytest.approx(0.5, abs=0.1)


def test_a_number_that_changes_in_the_results_changes_the_page():
    files = files_of(
        row("on_demand", 256, 100.0), row("specmoe", 256, 605.0), row("probe", 256, 0.0, **PROBE)
    )
    name = "translate, native: specmoe / on-demand, B = 256"

    def shown() -> list:
        frame = outcomes.target_frame(tables.targets(files))
        return frame[frame["what"] == name][["measured", "met"]].values.tolist()

    assert shown() == [["6.05×", "yes"]]
    files["translate-native"]["rows"]["tiny-translate/256/specmoe/0"]["tokens_per_second"] = 300.0
    assert shown() == [["3.00×", "no: not reached"]]


def test_another_machine_has_its_own_numbers(tmp_path):
    there = files_of(row("on_demand", 256, 100.0), row("specmoe", 256, 404.0))
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "translate-native.json").write_text(
        json.dumps(there["translate-native"]), encoding="utf-8"
    )
    [files] = results.read_elsewhere(tmp_path)
    assert "4.04×" in list(outcomes.target_frame(tables.targets(files))["measured"])


def test_the_page_says_on_which_gpu_what_ran():
    written = (DOCS / "performance.md").read_text(encoding="utf-8")
    found = results.read_all()["gpu"]
    assert page.gpu_words(found) in written and found["about"]["name"] in page.gpu_words(found)
    assert all(words in written for words in page.gpu_frames(found))
    assert page.gpu_words({}).startswith("No GPU has run")
    # a run that was ended before that part
    assert page.gpu_words({"about": found["about"]}).endswith("Tokens were not compared.")
    assert page.gpu_frames({}) == {} == page.gpu_frames({"about": {"device": "cpu"}})


def test_figures_are_drawn_for_what_is_there():
    files = files_of(row("on_demand", 4, 10), row("specmoe", 4, 30), row("probe", 4, 0.0, **PROBE))
    files |= files_of(row("on_demand", 64, 10, part="skewed-native"))
    probe = row("probe", 64, 0.0, part="skewed-native", **PROBE)
    files["skewed-native"]["rows"]["probe"] = probe
    for draw in (pictures.speedups, pictures.over_floor):
        axes = draw(files).axes
        ticks = [text.get_text() for text in axes[2].get_xticklabels()]
        assert len(axes) == 4 and ticks == ["4", "64"], "of every panel"


def test_results_files_are_small_and_name_no_folder_of_a_machine():
    for file in results.FOLDER.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert len(text) < 500_000 and not any(word in text for word in ("/work", "/tmp", "/root"))
        assert json.loads(text)


# ---- the GPU script, small


@pytest.mark.long
def test_the_gpu_script_runs_on_a_cpu_and_writes_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SMALL", replace(gpu.SMALL, batches=(2,)))
    monkeypatch.setattr(
        gpu, "compiled", lambda found, scale: {"plain_step_s": 3.0, "compiled_step_s": 1.0}
    )
    before = os.environ["SPECMOE_CACHE"]
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == [] and found["left_out"] == [] and found["about"]["device"] == "cpu"
    assert os.environ["SPECMOE_CACHE"] == before
    met = {row["name"]: row["met"] for row in found["targets"]}
    assert met["prompts with the CPU's fp32 tokens, every method"], "the same tokens on every path"
    assert met["plain / compiled draft step"]
    for model in ("tiny-translate", "tiny-balanced"):
        part = found[f"speed {model}"]
        assert {row["method"] for row in part["rows"]} == set(ALL_METHODS)
        assert (
            all(row["measured_over_floor"] > 0 for row in part["rows"])
            and part["copies"]["pageable_bytes_per_s"] > 0
        )
    shown = page.gpu_frames({**found, "about": {"device": "cuda", "name": "this one"}})
    assert len(shown["Targets, this one"]) == len(found["targets"])
    [rows] = [frame for words, frame in shown.items() if words.startswith("tiny-balanced")]
    assert list(rows["method"]) == sorted(ALL_METHODS)


def test_the_gpu_script_leaves_out_what_it_has_no_time_for(tmp_path, monkeypatch):
    for part in ("correctness", "compiled", "low_bit", "speed"):
        monkeypatch.setattr(gpu, part, lambda *_: {})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--minutes", "0"]) == 0
    left_out = json.loads((tmp_path / "gpu.json").read_text())["left_out"]
    assert left_out == list(gpu.parts_of(gpu.SMALL))


def test_what_the_gpu_script_found_stays_whatever_the_next_part_does(tmp_path, monkeypatch):
    """Each part has the folder to itself; a library that was compiled there is a file, and stays."""
    out, seen = tmp_path / "out", []

    def makes_a_folder(found, *_):
        place = Path(os.environ["SPECMOE_CACHE"])
        seen.append(sorted(child.name for child in place.iterdir()))
        (place / "packed").mkdir()
        (place / "library.so").touch()
        return {"rows": [], "copies": {"share": 1.0}, "plain_step_s": 3.0, "compiled_step_s": 1.0}

    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "speed", makes_a_folder)
    monkeypatch.setattr(
        gpu, "correctness", lambda *_: [{"dtype": "float32", "same": 3, "prompts": 4}]
    )
    monkeypatch.setattr(gpu, "low_bit", lambda *_: {})
    monkeypatch.setattr(gpu, "compiled", ended)
    call = ["--device", "cpu", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        gpu.main(call)
    assert seen == [[], ["library.so"]]
    found = json.loads((out / "gpu.json").read_text())
    assert set(gpu.parts_of(gpu.SMALL)) - set(found) == {"compiled"}
    monkeypatch.setattr(gpu, "compiled", makes_a_folder)
    monkeypatch.setattr(gpu, "correctness", ended)  # is not asked for again
    assert gpu.main([*call, "--parts", "compiled"]) == 0
    again = json.loads((out / "gpu.json").read_text())
    assert again["correctness"] == found["correctness"]
    measured = {row["name"]: row["measured"] for row in again["targets"]}
    assert measured["plain / compiled draft step"] == 3
    assert measured["prompts with the CPU's fp32 tokens, every method"] == 0.75
    monkeypatch.setattr(gpu, "code_digest", lambda: "another")
    assert gpu.main([*call, "--parts", "compiled"]) == 0
    assert "correctness" not in json.loads((out / "gpu.json").read_text())


def test_a_part_of_the_gpu_script_that_fails_is_told_and_the_next_runs(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "correctness", broken)
    for part in ("compiled", "speed"):
        monkeypatch.setattr(gpu, part, lambda *_: {"rows": [], "copies": {"share": 1.0}})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        found["failed"] == ["correctness: RuntimeError: out of memory"]
        and "speed tiny-balanced" in found
    )


def test_first_divergences_are_positions():
    found = gpu_numbers.compare([[1, 2, 3], [4, 5], [6, 7]], [[1, 9, 3], [4, 5], [6]])
    assert found == {"prompts": 3, "same": 1, "first_divergences": [1, 1]}


# ---- the peer with its experts on disk


def test_the_widened_checkpoint_gives_transformers_the_same_tokens(tmp_path):
    peer = parts.peers.Transformers
    folder = offload.widened_checkpoint("tiny-skewed", tmp_path / "widened", 2**18)
    config = json.loads((folder / "config.json").read_text())
    assert 3 * 2 * config["hidden_size"] * config["intermediate_size"] >= 2**18
    batch = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        logits = [
            peer(path).model(batch).logits for path in (checkpoint.resolve("tiny-skewed"), folder)
        ]
    assert torch.allclose(*logits, atol=1e-5)


def test_accelerate_is_told_to_keep_everything_but_experts_in_memory(tmp_path):
    folder = offload.widened_checkpoint("tiny-skewed", tmp_path / "widened", 2**17)
    places = offload.placements(folder)
    on_disk = [name for name, place in places.items() if place == "disk"]
    assert len(on_disk) == 4 and all(name.endswith(".experts") for name in on_disk)
    assert {"model.embed_tokens", "model.norm", "lm_head"} <= set(places) - set(on_disk)


def test_the_peer_runs_once_in_our_memory_and_once_with_nothing_in_the_page_cache(monkeypatch):
    jobs, what = [], [cell.method for cell in settings.cells("offload", settings.FULL)]
    monkeypatch.setattr(offload, "widened_checkpoint", lambda *_: None)
    monkeypatch.setattr(offload, "_in_a_process", lambda job: jobs.append(job) or {})
    cell = Run("tiny-skewed", "accelerate", 16, "native", part="offload")
    rows = {replace(cell, method="specmoe").key: {"limit_bytes": 7}}
    place = SimpleNamespace(prompts=lambda model: [], texts=lambda model: [])
    for method in ("accelerate", "accelerate_uncached", "specmoe_again"):
        assert what.count(method) == 3
        offload.measure_offload(place, replace(cell, method=method), settings.FULL, rows)
    assert [(job["what"], job.get("limit_bytes")) for job in jobs] == [
        ("accelerate", 7),
        ("accelerate", None),
        ("specmoe", None),
    ]


def test_a_run_that_its_limit_kills_gets_a_higher_one_and_the_row_says_which(monkeypatch):
    tried = []

    def in_a_process(job):
        tried.append(job["limit_bytes"])
        if len(tried) < 3:
            raise subprocess.CalledProcessError(-9, "killed")
        return {"limit_bytes": job["limit_bytes"]}

    monkeypatch.setattr(offload, "_in_a_process", in_a_process)
    assert offload._until_it_lives({"limit_bytes": 1000}, "limit_bytes") == {"limit_bytes": 1562.5}
    assert tried == [1000, 1250, 1562.5]


def test_without_a_control_group_files_are_dropped_from_the_page_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(offload, "GROUPS", tmp_path / "no such folder")
    group = offload.Group("none")
    group.enter()
    assert not group.there
    group.remove()
    (tmp_path / "file").write_bytes(b"x" * 5000)
    offload.drop_page_cache(tmp_path)


def test_digits_of_the_code_are_those_of_its_c_too_and_not_of_the_lab(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "package_path", lambda: tmp_path)
    for name in ("model/a.py", "model/a.c", "lab/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    found = [results.code_digest()]
    for name in ("model/a.py", "model/a.c", "lab/b.py"):
        (tmp_path / name).write_text("two")
        found.append(results.code_digest())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_rows_of_a_code_that_differs_only_for_one_part_are_old_in_that_part_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "SAME", {"1": ("2", ("low_bit",))})
    for part in ("low_bit", "growth"):
        content = {"part": part, "rows": {"a": {"code": "1"}, "b": {"code": "0"}}}
        (tmp_path / f"{part}.json").write_text(json.dumps(content))
    found = results.read_all(tmp_path)
    assert {part: found[part]["rows"]["a"]["code"] for part in found} == {
        "low_bit": "1",
        "growth": "2",
    }
    assert found["growth"]["rows"]["b"]["code"] == "0"
