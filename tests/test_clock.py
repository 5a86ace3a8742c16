"""Probes of this machine, the constants fitted to them, and the comparison with the clock."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from made_recordings import INFO, SIZE, recording

import specmoe
from specmoe.errors import OptionError
from specmoe.lab.simulate import Recording, fit_machine, probe_machine, quiet, simulate
from specmoe.lab.simulate.clock import errors, write_results
from specmoe.lab.simulate.lanes import Lanes
from specmoe.lab.simulate.machine import mean_probes
from specmoe.lab.simulate.shipped import prompts_for

# ---- probes of this machine ----


def made_up_probes(factors=(1.25, 1.5), read_s: float = 2.0) -> dict:
    """Timings as they would be if every part cost exactly this."""
    layer = lambda e, p: 1 + 3 * e + 0.5 * p  # noqa: E731
    cases = [
        (e, e * n)
        for e, n in ((1, 1), (2, 1), (8, 1), (4, 4), (8, 4), (2, 16), (8, 16), (1, 64), (4, 64))
    ]
    waves = [
        [
            e,
            p,
            e,
            layer(e, p) + e * 0.7 + -(-e // 4) * 0.25 + e * read_s,
            -(-e // 4) * 0.25 + e * read_s,
        ]
        for e, p in cases
    ]
    return {
        "reads": [[n, 0.5 + 2 * n] for n in (1, 4, 16)],
        "waves": waves,
        "guess": [[1, 0.1], [16, 0.25]],
        "stream": [
            [e, p, r, *streamed(e, r, layer(e, p), factors, read_s)]
            for e, p in cases
            for r in (e, e // 2)
        ],
        "resident": [[e, p, layer(e, p)] for e, p in cases],
        "draft": [[1, 2.0], [16, 5.0], [64, 5.0 + 48 * 0.2]],
        "passes": [
            [r, b, p, 1 + 0.1 * r * b + 0.01 * p] for r in (1, 16) for b in (1, 5) for p in (16, 64)
        ],
        "steps": [[r, p, 1 + 0.1 * r + 0.01 * p] for r in (1, 16) for p in (16, 64)],
        "keep": [0.02],
        "prepare": [0.04],
        "record_bytes": 100,
        "num_readers": 4,
        "expert_flops_per_token": 10,
        "model": "m",
    }


def streamed(
    experts: int, reads: int, layer_s: float, factors, read_s: float
) -> tuple[float, float]:
    """Seconds, and waits of them, of a layer that computes while it reads, one record at a time."""
    lanes = Lanes(read_s, 0.25, *factors)
    lanes.compute(1)
    lanes.take(experts - reads, 0, reads, (layer_s - 1) / experts, 0.7, lanes.ask(0, reads))
    return lanes.now_s, lanes.wait_s


def test_computing_and_reading_slow_each_other_down_only_while_both_work():
    lanes = Lanes(1.0, 0.0, compute_factor=2.0, link_factor=1.5)
    lanes.ask(0, 2)  # 2 s of reading
    lanes.compute(1.0)  # 2 s on the clock, in which the link does 2 / 1.5
    assert lanes.now_s == pytest.approx(2) and lanes.demand_s == pytest.approx(2 - 2 / 1.5)
    lanes.stand(lanes.demand_s)  # nobody computes: the rest at its own pace
    lanes.compute(1.0)  # nothing to read
    assert lanes.now_s == pytest.approx(2 + 2 / 3 + 1) and lanes.wait_s == pytest.approx(2 / 3)
    assert lanes.busy_s == pytest.approx(2)


def test_a_fit_finds_the_constants_that_made_its_timings():
    fitted = fit_machine(made_up_probes())
    assert fitted.link_bytes_per_s == pytest.approx(50) and fitted.link_latency_s == pytest.approx(
        0.5
    )
    assert fitted.layer_overhead_s == pytest.approx(
        1
    ) and fitted.expert_overhead_s == pytest.approx(3)
    assert fitted.flop_per_s == pytest.approx(20)
    parts = fitted.parts
    assert (parts.latency_s, parts.read_s, parts.wave_overhead_s) == pytest.approx((0.25, 2, 0.7))
    assert (parts.contention, parts.link_contention) == (
        1.25,
        1.5,
    ) and parts.read_overhead_s == pytest.approx(0.7)
    assert parts.keep_s == 0.02 and parts.prepare_s == 0.04


def test_the_mean_of_two_probings_is_of_every_timing():
    one, two = made_up_probes(), made_up_probes(read_s=4.0)
    merged = mean_probes([one, two])
    assert merged["waves"][0] == pytest.approx(
        [(a + b) / 2 for a, b in zip(one["waves"][0], two["waves"][0])]
    )
    assert merged["model"] == "m" and fit_machine(merged).parts.read_s == pytest.approx(3)


def test_probed_parts_are_met_between_and_beyond_what_was_timed():
    parts = fit_machine(made_up_probes()).parts
    assert parts.layer(3, 6) == pytest.approx(1 + 9 + 3) and parts.layer(2, 200) == pytest.approx(
        1 + 6 + 100
    )
    assert parts.draft_layer(6, 4) == pytest.approx(3) and parts.draft_layer(
        128, 4
    ) == pytest.approx(5 + 112 * 0.2)
    assert parts.layer(0, 0) == pytest.approx(1)
    assert parts.verify_trunk(8, 3, 40) == pytest.approx(1 + 2.4 + 0.4)
    assert parts.verify_trunk(64, 9, 100) == pytest.approx(1 + 57.6 + 1)
    assert parts.draft_trunk(64, 16) == pytest.approx(1 + 6.4 + 0.16) and parts.guess(
        8
    ) == pytest.approx(0.17)


def test_a_probed_machine_replays_its_own_model_part_by_part():
    """Two layers of 3 and 2 experts, one token each: waves of all reads, then trunk, layers, and
    what a read costs."""
    machine = fit_machine(made_up_probes())
    run = simulate(recording("on_demand", [[3, 2]], [[0, 0]], [[3, 2]]), machine)
    trunk_s = 1 + 0.1 * 4 + 0.01 * 16
    assert run.wait_s == pytest.approx(2 * 0.25 + 5 * 2)
    assert run.seconds == pytest.approx(run.wait_s + trunk_s + 2 * 1 + 5 * 3.5 + 5 * 0.7)


def test_computing_is_slower_while_records_are_read():
    """The same counts on the same machine, probed with and without what readers take from it."""
    run = recording("cached", [[6, 6]], [[3, 3]], [[3, 3]])
    alone, shared = (
        simulate(run, fit_machine(made_up_probes((factor, 1.0)))) for factor in (1.0, 1.5)
    )
    assert alone.seconds < shared.seconds < 1.5 * alone.seconds


def test_a_probed_machine_on_a_faster_link_is_never_slower():
    machine = fit_machine(made_up_probes())
    for method in ("on_demand", "cached"):
        run = recording(method, [[3, 2]], [[0, 0]], [[3, 2]])
        seconds = [
            simulate(run, replace(machine, link_bytes_per_s=50.0 * times)).seconds
            for times in (0.5, 1, 2)
        ]
        assert seconds == sorted(seconds, reverse=True) and seconds[0] > seconds[2]


def test_a_machine_probed_with_another_model_is_refused():
    machine = fit_machine(made_up_probes() | {"model": "other"})
    run = recording("cached", [[3, 2]], [[0, 0]], [[3, 2]])
    with pytest.raises(OptionError, match="probed with 'other', the recording is of 'm'"):
        simulate(run, machine)
    assert simulate(run, machine, SIZE).seconds > 0, "at a size of its own, plain rates serve"


@pytest.mark.parametrize("name", ["tiny-skewed", "tiny-translate"])
def test_probes_time_every_part_and_leave_the_engine_as_it_was(name):
    with specmoe.load(name, draft_experts=2, store="memory") as engine:
        prompts = prompts_for(engine, 2)
        before = engine.generate(
            prompts, method="specmoe", gamma=3, max_new_tokens=8, seed=0
        ).sequences
        probes = probe_machine(engine, prompts[0], repeats=1)
        after = engine.generate(
            prompts, method="specmoe", gamma=3, max_new_tokens=8, seed=0
        ).sequences
        assert [list(row) for row in after] == [list(row) for row in before]
        assert all(
            row[-1] > 0
            for part in ("reads", "passes", "steps", "resident", "draft")
            for row in probes[part]
        )
        assert all(
            0 < reads <= experts
            for part in ("waves", "stream")
            for experts, _, reads, *_ in probes[part]
        )
        assert all(
            0 <= wait <= seconds
            for part in ("waves", "stream")
            for *_, seconds, wait in probes[part]
        )
        output = engine.generate(prompts, method="specmoe", gamma=3, max_new_tokens=8)
        run = simulate(Recording.of(output, engine.info), fit_machine(probes))
        assert run.num_new_tokens == output.stats.num_new_tokens and run.seconds > run.wait_s >= 0


def test_probes_of_an_encoder_decoder_want_a_source():
    with specmoe.load("tiny-translate", draft_experts=2, store="memory") as engine:
        with pytest.raises(OptionError, match="need a source"):
            probe_machine(engine)


# ---- against the clock ----


def test_what_ran_beside_other_work_is_run_again_and_the_quietest_is_kept(monkeypatch):
    shares = iter([0.0, 9.0, 0.0, 5.0, 0.0, 7.0])  # looking, working, looking, working ...

    def fake_watched(work):
        return work(), next(shares)

    monkeypatch.setattr(quiet, "_watched", fake_watched)
    results = iter("abc")
    assert quiet.quietly(lambda: next(results), patience_s=60) == ("b", 5.0)
    shares = iter([0.0, 0.1])
    assert quiet.quietly(lambda: "once", patience_s=60) == ("once", 0.1)


def test_where_nothing_tells_of_other_work_things_run_once(monkeypatch, tmp_path):
    monkeypatch.setattr(quiet, "STAT", tmp_path / "none")
    count = []
    assert math.isnan(quiet.quietly(lambda: count.append(1), patience_s=0.1)[1]) and len(count) == 1


def clock_rows(*rows) -> pd.DataFrame:
    """(method, batch, link, error) at a measured speed of 100."""
    frame = pd.DataFrame(rows, columns=["method", "batch", "link", "error"]).assign(
        measured=100.0, model="m"
    )
    return frame.assign(predicted=100 * (1 + frame["error"]))


def test_errors_against_the_clock_are_of_medians_and_name_the_worst_case(tmp_path):
    frame = clock_rows(
        ("cached", 1, "native", 0.1),
        ("cached", 1, "native", -0.3),
        ("cached", 1, "native", 0.2),
        ("specmoe", 16, "native", -0.4),
        ("resident", 1, "0.25 GB/s", 0.05),
    )
    found = errors(frame)
    case = ["m", "specmoe", "16"]
    assert found["native"] == {
        "median": pytest.approx(0.25),
        "worst": pytest.approx(0.4),
        "worst_case": case,
    }
    assert found["0.25 GB/s"]["worst"] == pytest.approx(0.05)
    told = json.loads(
        write_results(
            frame, INFO, {"date": "today"}, tmp_path / "results" / "clock.json"
        ).read_text()
    )
    assert told["machine"]["date"] == "today" and len(told["runs"]) == 5 and len(told["rows"]) == 3
    assert told["errors"] == found


def test_comparing_again_replaces_the_rows_of_that_model_and_link_only(tmp_path):
    path, frame = (
        tmp_path / "clock.json",
        clock_rows(("cached", 1, "native", 0.1), ("cached", 1, "0.25 GB/s", 0.1)),
    )
    write_results(frame, INFO, {"date": "one"}, path)
    write_results(frame, INFO | {"name": "other"}, {"date": "two"}, path)
    write_results(clock_rows(("cached", 1, "native", 0.3)), INFO, {"date": "three"}, path)
    told = json.loads(path.read_text())
    assert sorted((row["model"], row["link"], row["error"]) for row in told["rows"]) == [
        ("m", "0.25 GB/s", 0.1),
        ("m", "native", 0.3),
        ("other", "0.25 GB/s", 0.1),
        ("other", "native", 0.1),
    ]
    assert told["measured"]["m, native"] == "three" and told["measured"]["m, 0.25 GB/s"] == "one"
