"""The simulator against cases computed by hand, against the trace it replays, and against bad
input."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_recordings import SECONDS, SIZE, recording

import specmoe
from specmoe.errors import OptionError
from specmoe.lab.simulate import (
    PAPER_SIZES,
    PRESETS,
    Hardware,
    ModelSize,
    Recording,
    preset,
    simulate,
    winners,
)
from specmoe.lab.simulate.lanes import NOTHING, Lanes
from specmoe.lab.simulate.machine import fit_machine
from specmoe.lab.simulate.recording import load_all, save_all
from specmoe.lab.simulate.shipped import (
    BATCHES,
    BUDGET_BATCHES,
    BUDGET_N,
    BUDGETS,
    FOLDER,
    GAMMAS,
    SHIPPED,
    budgets,
    recordings,
)


def test_on_demand_reads_a_wave_and_only_then_computes_it():
    run = simulate(recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]), SECONDS, SIZE)
    assert run.seconds == pytest.approx(3 + 3 + 2 + 2)
    assert run.wait_s == pytest.approx(5) and run.migration_share == pytest.approx(0.5)
    halves = simulate(
        recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]), replace(SECONDS, num_readers=2), SIZE
    )
    assert halves.seconds == pytest.approx(10), (
        "smaller waves move and compute as much, one after the other"
    )


def test_cached_computes_hits_and_arrivals_while_the_next_record_is_read():
    run = simulate(recording("cached", [[3, 2]], [[1, 0]], [[2, 2]]), SECONDS, SIZE)
    # Layer 0: the hit until 1, arrivals at 1 and 2 computed until 3; layer 1: arrivals at 4 and 5,
    # computed until 6.
    assert run.seconds == pytest.approx(6) and run.wait_s == pytest.approx(1)
    assert run.link_busy_s == pytest.approx(4)


def test_resident_only_computes():
    run = simulate(recording("resident", [[3, 2]], [[3, 2]], [[0, 0]]), SECONDS, SIZE)
    assert (
        run.seconds == pytest.approx(5) and run.wait_s == run.link_busy_s == run.fetched_bytes == 0
    )


def test_overlapped_reads_the_next_layer_while_this_one_computes():
    run = simulate(recording("overlapped", [[3, 2]], [[0, 0]], [[3, 0]], [[0, 2]]), SECONDS, SIZE)
    # Layer 0: arrivals at 1, 2, 3, computed until 4; the guesses of layer 1 cross from 3 to 5, then
    # 2 s of arithmetic.
    assert run.seconds == pytest.approx(7)


def test_specmoe_reads_ahead_from_the_first_draft_step_on():
    run = simulate(
        recording("specmoe", [[2, 2]], [[1, 1]], [[0, 0]], [[1, 1]], [[1, 1]]), SECONDS, SIZE
    )
    # Draft: 2 steps of 2 layers, 4 s; half of the guesses queue at 2, half at 4. Layer 0's are all
    # here at 4.5 ...
    assert run.draft_s == pytest.approx(4)
    assert run.seconds == pytest.approx(8) and run.wait_s == pytest.approx(0)


def test_latency_is_paid_once_per_burst():
    slow = replace(SECONDS, link_latency_s=0.25)
    run = simulate(recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]), slow, SIZE)
    assert run.seconds == pytest.approx(10.5)


def test_the_oracle_takes_the_longer_of_reading_and_computing():
    run = simulate(
        recording("on_demand", [[3, 2], [1, 1]], [[0, 0], [0, 1]], [[3, 2], [1, 0]]),
        SECONDS,
        SIZE,
        "oracle",
    )
    assert run.seconds == pytest.approx(5 + 2)
    fast = simulate(
        recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]),
        replace(SECONDS, flop_per_s=1e9),
        SIZE,
        "oracle",
    )
    assert fast.seconds == pytest.approx(5)


def test_another_models_layers_repeat_the_recorded_ones():
    size = replace(SIZE, num_layers=4, expert_bytes=200)
    run = simulate(recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]), SECONDS, size)
    assert run.fetched_bytes == 10 * 200 and run.seconds == pytest.approx(20 + 10)


# ---- real runs ----


@pytest.fixture(scope="module")
def runs():
    with specmoe.load("tiny-skewed", draft_experts=4, store="memory") as engine:
        prompts, found = ["def area(self):\n", "The train leaves", "3 + 4 = "], {}
        for method in ("on_demand", "cached", "overlapped", "specmoe", "resident"):
            found[method] = engine.generate(prompts, method=method, max_new_tokens=8, batch_size=3)
        yield engine.info, found


def floor_seconds(recording: Recording, hardware: Hardware, size: ModelSize | None = None) -> float:
    """What no schedule can beat: max(bytes / link, FLOP / rate) of all decoding reads and all
    passes, without overhead or latency, perfectly overlapped."""
    recorded = recording.experts.shape[1]
    own = ModelSize.of(recording.info)
    size = size or own
    num_layers = recorded if size == own else size.num_layers
    layers = np.arange(num_layers) * recorded // num_layers
    reads = (recording.fetches + recording.prefetches)[:, layers].sum()
    drafted = recording.drafting.sum()
    routed = recording.pairs[:, layers].sum() + drafted * size.top_k * num_layers
    trunk = (recording.live.sum() + drafted) * size.trunk_flops_per_token
    flop_s = (trunk + routed * size.expert_flops_per_token) / hardware.flop_per_s
    return float(max(reads * size.expert_bytes / hardware.link_bytes_per_s, flop_s))


def test_tokens_and_bytes_are_the_runs_own(runs):
    info, outputs = runs
    for method, output in outputs.items():
        made = Recording.of(output, info)
        run = simulate(made, PRESETS["laptop"])
        assert run.num_new_tokens == output.stats.num_new_tokens
        assert (
            run.fetched_bytes
            == made.fetched_bytes
            == output.trace.to_frame()
            .query("phase != 'prefill' and kind in ('fetch', 'prefetch')")["size"]
            .sum()
        )
        assert run.seconds >= floor_seconds(made, PRESETS["laptop"]) > 0, method


def test_a_recording_comes_back_from_its_file(runs, tmp_path):
    info, outputs = runs
    made = Recording.of(outputs["specmoe"], info)
    path = made.save(tmp_path / "run.npz")
    assert path.stat().st_size < 200_000
    assert simulate(Recording.load(path), PRESETS["h100"]) == simulate(made, PRESETS["h100"])


def test_several_recordings_come_back_from_one_file(runs, tmp_path):
    info, outputs = runs
    made = [
        Recording.of(output, info, number=place) for place, output in enumerate(outputs.values())
    ]
    for old, new in zip(made, load_all(save_all(made, tmp_path / "runs.npz")), strict=True):
        assert (
            simulate(new, PRESETS["h100"]) == simulate(old, PRESETS["h100"])
            and new.settings == old.settings
        )
        assert (new.positions == old.positions).all() and (new.drafting == old.drafting).all()


def test_full_keeps_the_rounds_with_every_row_in_flight(runs):
    info, outputs = runs
    made = Recording.of(outputs["specmoe"], info)
    cut = replace(
        made, rows=np.where(np.arange(len(made.rows)) == 1, made.batch - 1, made.batch)
    ).full()
    assert len(cut.rows) == len(made.rows) - 1 and (cut.rows == made.batch).all()
    assert cut.num_new_tokens == made.num_new_tokens - made.committed[1] and len(
        cut.drafting
    ) == len(cut.fetches) == len(cut.rows)


def test_attention_looks_as_far_as_the_longest_row_with_its_block(runs):
    info, outputs = runs
    plain = Recording.of(outputs["on_demand"], info)
    longest = max(len(tokens) for tokens in outputs["on_demand"].sequences)
    assert plain.positions[-1] == longest - 1 and (np.diff(plain.positions) == 1).all()
    drafted = Recording.of(outputs["specmoe"], info)
    assert drafted.positions[0] == plain.positions[0] + drafted.gammas[0]


# ---- shipped recordings ----


def test_every_shipped_recording_is_of_a_full_batch_at_equal_fast_memory():
    found = recordings()
    assert {(each.info["name"], each.info["draft_experts"]) for each in found} == {
        (model, number) for model, numbers in SHIPPED.items() for number in numbers
    }
    for each in found:
        assert (each.rows == each.batch).all() and len(each.rows) >= 5, (each.method, each.batch)
        assert (each.hits + each.fetches <= each.experts).all() and (
            each.committed >= each.rows
        ).all()
    frame = winners(found, PRESETS["h100"])  # refuses runs with different fast memory
    assert set(frame["batch"]) == set(BATCHES) and {
        "on_demand",
        "cached",
        "overlapped",
        "specmoe",
    } <= set(frame)


def test_the_shipped_budgets_have_every_n_at_every_size_of_fast_memory():
    found = budgets()
    assert all((each.rows == each.batch).all() and len(each.rows) >= 5 for each in found)
    rooms = sorted({each.info["slots"] for each in found})
    assert len(rooms) == len(BUDGETS)
    drafted = [
        (each.batch, each.info["draft_experts"], each.info["slots"], int(each.gammas.max()))
        for each in found
        if each.method == "specmoe"
    ]
    assert sorted(drafted) == sorted(product(BUDGET_BATCHES, BUDGET_N, rooms, GAMMAS))
    kept = [(each.batch, each.info["slots"]) for each in found if each.method == "cached"]
    assert sorted(kept) == sorted(product(BUDGET_BATCHES, rooms))
    # more room, fewer reads: of a pool, and of a round with the same draft
    for method in ("cached", "specmoe"):
        for batch in BUDGET_BATCHES:
            reads = [
                each.num_reads / each.num_new_tokens
                for each in sorted(found, key=lambda each: each.info["slots"])
                if (each.method, each.batch) == (method, batch)
                and each.info["draft_experts"] == BUDGET_N[0]
                and (method == "cached" or each.gammas.max() == GAMMAS[0])
            ]
            assert reads == sorted(reads, reverse=True), (method, batch)


def test_shipped_recordings_are_small():
    sizes = [path.stat().st_size for path in FOLDER.rglob("*.npz")]
    assert max(sizes) < 300_000 and sum(sizes) < 3_000_000


def test_a_recording_that_is_not_shipped_is_refused_with_what_is_there():
    assert {each.method for each in recordings("tiny-translate", 4, 64)} == {
        "on_demand",
        "cached",
        "overlapped",
        "specmoe",
    }
    with pytest.raises(OptionError, match="draft_experts=3.*tiny-translate with N = 2 or 4"):
        recordings("tiny-translate", 3)


def test_winners_names_the_fastest_of_each_cell(runs):
    info, outputs = runs
    frame = winners(
        [Recording.of(output, info) for output in outputs.values()],
        PRESETS["h100"],
        balances=[10, 1e5],
    )
    assert list(frame["balance"]) == [10, 1e5] and "resident" not in frame
    for row in frame.itertuples():
        speeds = sorted(
            (getattr(row, name) for name in ("on_demand", "cached", "overlapped", "specmoe")),
            reverse=True,
        )
        assert getattr(row, row.winner) == speeds[0] and row.margin == pytest.approx(
            speeds[0] / speeds[1]
        )


# ---- monotonicity ----


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_faster_link_or_faster_arithmetic_never_slows_a_method(data):
    method = data.draw(
        st.sampled_from(["on_demand", "cached", "overlapped", "specmoe", "resident"])
    )
    rounds, counts = data.draw(st.integers(1, 4)), st.integers(0, 6)
    table = {
        name: np.array(
            data.draw(
                st.lists(st.lists(counts, min_size=2, max_size=2), min_size=rounds, max_size=rounds)
            )
        )
        for name in ("hits", "fetches", "ahead", "wasted")
    }
    if method in ("on_demand", "cached", "resident"):
        table["ahead"] = table["wasted"] = table["hits"] * 0
    experts = table["hits"] + table["fetches"] + table["ahead"]
    drafting = [[2, 1]] * rounds if method == "specmoe" else None
    made = recording(
        method, experts, table["hits"], table["fetches"], table["ahead"] + table["wasted"], drafting
    )
    times = data.draw(st.floats(1, 20))
    base = replace(SECONDS, link_latency_s=0.3, layer_overhead_s=0.1, step_overhead_s=0.1)
    for name in ("link_bytes_per_s", "flop_per_s"):
        better = replace(base, **{name: getattr(base, name) * times})
        assert simulate(made, better, SIZE).seconds <= simulate(made, base, SIZE).seconds * (
            1 + 1e-9
        )


# ---- bad input ----


def test_a_rate_that_is_left_out_is_named():
    with pytest.raises(
        OptionError, match="flop_per_s=None of hardware 'mine' must be a number above zero"
    ):
        Hardware("mine", link_bytes_per_s=1e9, link_latency_s=0.0, memory_bytes_per_s=1e11)
    with pytest.raises(OptionError, match="link_latency_s=None of hardware 'mine'"):
        Hardware("mine", link_bytes_per_s=1e9, flop_per_s=1e12, memory_bytes_per_s=1e11)


@pytest.mark.parametrize("name", ["link_bytes_per_s", "flop_per_s", "memory_bytes_per_s"])
@pytest.mark.parametrize("rate", [0, -1, None, float("nan"), "fast"])
def test_hardware_without_a_rate_is_refused(name, rate):
    with pytest.raises(OptionError, match=f"{name}=.*above zero"):
        replace(SECONDS, **{name: rate})


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'h200'"):
        preset("h20")
    assert all("assumed" in hardware.source for hardware in PRESETS.values())


def test_a_trace_of_another_model_is_refused(runs):
    info, outputs = runs
    for change in ({"experts": 4}, {"layers": 2}, {"record_bytes": 7}):
        with pytest.raises(OptionError, match="trace of another model"):
            Recording.of(outputs["on_demand"], info | change)
    with pytest.raises(OptionError, match="recording is of a model with name="):
        Recording.of(outputs["on_demand"], info).check(info | {"name": "other"})


def test_a_recording_of_another_version_or_no_recording_is_refused(runs, tmp_path, monkeypatch):
    info, outputs = runs
    monkeypatch.setattr("specmoe.lab.simulate.recording.FORMAT", 0)
    path = Recording.of(outputs["cached"], info).save(tmp_path / "old.npz")
    monkeypatch.undo()
    with pytest.raises(OptionError, match="version 0"):
        Recording.load(path)
    (tmp_path / "no.npz").write_bytes(b"nothing")
    with pytest.raises(OptionError, match="no.npz is not a recording"):
        Recording.load(tmp_path / "no.npz")


def test_parts_that_were_not_probed_are_named():
    with pytest.raises(OptionError, match="lack 'reads'"):
        fit_machine({"passes": [[1, 1.0]]})


def test_presets_and_sizes_name_where_their_numbers_come_from():
    for described in (*PRESETS.values(), *PAPER_SIZES.values()):
        assert "https://" in described.source, described.name


@settings(max_examples=60, deadline=None)
@given(
    reads=st.integers(0, 6),
    hits=st.integers(0, 3),
    work_s=st.floats(0, 3),
    factors=st.tuples(st.floats(1, 3), st.floats(1, 3)),
)
def test_reads_that_nothing_was_guessed_beside_are_summed_as_the_lanes_sum(
    reads, hits, work_s, factors
):
    """To the last bit: the written-out loop is only faster."""
    quick, plain = (Lanes(1.0, 0.25, *factors) for _ in range(2))
    quick.ask(0, reads)
    quick.take(hits, 0, reads, work_s, 0.125, 0.0)
    plain.ask(0, reads)
    plain.compute(hits * work_s)
    for left_s in range(reads - 1, -1, -1):
        if plain.demand_s > left_s + NOTHING:
            plain.stand(plain.demand_s - left_s)
        plain.compute(work_s + 0.125)
    assert vars(quick) == vars(plain)
