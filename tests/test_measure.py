"""Measuring the paper's runs again: what is planned, which rounds count, how a measurement is taken
up again."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import pandas as pd
import pytest

from specmoe.errors import SpecMoEError
from specmoe.lab import paper
from specmoe.lab.bench.runs import Run
from specmoe.lab.bench.window import full_window
from specmoe.lab.paper import __main__ as command
from specmoe.lab.paper import settings
from specmoe.lab.paper.measure import (
    COUNTED,
    _units,
    generate,
    keep,
    load_engine,
    queue_of,
    result_file,
    tenth,
)
from specmoe.trace import COLUMNS


def test_a_plan_has_no_run_twice_and_quick_is_smaller():
    full, quick = settings.plan(), settings.plan(how_much="quick")
    assert len({run.key for run in full}) == len(full)
    assert len(quick) < len(full) / 2
    assert {run.batch for run in full} == {1, 4, 16, 64, 128, 256}
    assert {run.prompt_set for run in full} == set(range(5))
    assert tenth(128) == 13


def test_what_is_compared_on_the_clock_alternates_whatever_its_memory_or_n():
    timed = [run for run in settings.plan() if (run.regime, run.batch) == ("throttled", 256)]
    [unit] = _units(timed)
    assert {(run.method, run.budget) for run in unit} >= {
        ("cached", "draft"),
        ("cached", "tenth"),
        ("specmoe", "tenth"),
    }
    assert {run.draft_experts for run in unit} == {2, 4, 8, 16} and len(
        {run.draft_set for run in unit}
    ) == 3
    assert [
        len(unit) for unit in _units([run for run in settings.plan() if run.regime == "count"])
    ][:3] == [1, 1, 1]


def test_counting_leaves_the_machine_of_what_was_timed(tmp_path, monkeypatch):
    run, measure = Run("tiny-skewed", "specmoe", 1), sys.modules[keep.__module__]
    for regime, cpu in (("throttled", "old"), ("count", "new"), ("throttled", "new")):
        file = result_file(tmp_path, "tiny-skewed", "tiny-skewed")
        monkeypatch.setattr(measure, "this_machine", lambda cpu=cpu: {"cpu": cpu})
        runs = [replace(run, regime=regime)]
        keep(file, runs, [{"tokens_per_second": 1.0}], {"experts": 32})
        kept = json.loads((tmp_path / "tiny-skewed.json").read_text(encoding="utf-8"))["machine"][
            "cpu"
        ]
        assert kept == ("new" if (regime, cpu) == ("throttled", "new") else "old")


def test_only_rounds_with_a_full_batch_count():
    frame = pd.DataFrame(
        [
            (0, "verify", "fetch", 0, 100),
            (0, "verify", "round", 6, 2),
            (1, "verify", "fetch", 0, 1000),
            (1, "verify", "round", 3, 1),
            (-1, "prefill", "fetch", 0, 5),
        ],
        columns=["round", "phase", "kind", "count", "size"],
    )
    frame = frame.reindex(columns=COLUMNS).fillna({"seconds": 1.0})
    output = SimpleNamespace(trace=SimpleNamespace(to_frame=lambda: frame), sequences=[[1], [2]])
    found = full_window(output, 2)
    assert {name: found[name] for name in COUNTED[:-1]} == {
        "tokens_per_round": 3.0,
        "fetched_bytes_per_token": 100 / 6,
        "full_rounds": 1,
        "tokens": 6,
    }
    nothing = full_window(output, 5)
    assert (nothing["tokens"], nothing["full_rounds"], nothing["tokens_per_second"]) == (0, 0, None)


def test_a_measurement_goes_on_where_it_stopped(tmp_path):
    runs = [Run("tiny-skewed", method, 4, gamma=3) for method in ("on_demand", "specmoe")]
    assert paper.measure(runs[:1], tmp_path) == 0
    first = (tmp_path / "tiny-skewed.json").read_text(encoding="utf-8")
    seen = []
    assert paper.measure(runs, tmp_path, progress=lambda *what: seen.append(what)) == 0
    assert [(done, of) for done, of, _ in seen] == [(1, 2)]
    rows = paper.load_results(tmp_path)["tiny-skewed"]["rows"]
    assert list(rows) == [run.key for run in runs]
    assert rows[runs[0].key] == json.loads(first)["rows"][runs[0].key]
    assert rows[runs[0].key]["tokens_digest"] == rows[runs[1].key]["tokens_digest"]
    assert paper.measure(runs + [replace(runs[0], batch=2)], tmp_path, seconds=-1) == 1


def test_only_rounds_with_a_full_batch_are_timed(tmp_path):
    run = Run("tiny-skewed", "on_demand", 4)
    with load_engine("tiny-skewed", run) as loaded:
        output = generate(loaded, run, queue_of(loaded, run))
    found, frame = full_window(output, 4), output.trace.to_frame()
    full = frame[(frame["kind"] == "round") & (frame["size"] == 4)]
    assert found["tokens_per_second"] == pytest.approx(full["count"].sum() / full["seconds"].sum())
    assert 0 < found["full_rounds"] == len(full) < (frame["kind"] == "round").sum() + 1


def test_methods_on_the_clock_decode_the_same_text_and_keep_their_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("specmoe.lab.paper.measure"), "TOKENS", 16)
    base = Run(
        "tiny-skewed", "on_demand", 2, "throttled", draft_experts=None, gamma=3, temperature=1.0
    )
    assert paper.measure([base, replace(base, method="specmoe")], tmp_path) == 0
    rows = pd.DataFrame(paper.load_results(tmp_path)["tiny-skewed"]["rows"].values())
    assert rows["tokens_digest"].nunique() == 1
    assert (
        rows["tokens_per_second"]
        .between(rows["tokens_per_second_min"], rows["tokens_per_second_max"])
        .all()
    )
    assert (rows["link_bytes_per_s"] == settings.LINK).all() and rows["slots"].nunique() == 1


def test_a_measurement_that_is_not_done_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "plan", lambda how_much: [Run("tiny-skewed", "on_demand", 1, gamma=1)]
    )
    monkeypatch.setattr(command, "plan_low_skew", lambda how_much: [])
    assert command.main(["measure", "--seconds", "-1", "--out", str(tmp_path)]) == 3
    assert "1 of 1 runs are missing" in capsys.readouterr().out


def test_an_unknown_model_is_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(SpecMoEError, match="no-such-model"):
        paper.open_results(model="no-such-model", out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_of_other_weights_are_dropped(tmp_path):
    (tmp_path / "tiny-skewed.json").write_text(
        json.dumps({"weights_sha256": "other", "rows": {"a": {}}})
    )
    assert result_file(tmp_path, "tiny-skewed", "tiny-skewed").rows == {}


def test_a_committed_row_has_the_key_of_the_run_that_it_describes():
    names = [field.name for field in fields(Run) if field.name != "part"]
    found = [rows for content in paper.load_results().values() for rows in content["rows"].items()]
    assert len(found) > 100
    assert all(Run(**{name: row[name] for name in names}).key == key for key, row in found)


CHECKED = {
    "tiny-skewed": Run("tiny-skewed", "specmoe", 1, draft_experts=None, gamma=5),
    "tiny-translate": Run("tiny-translate", "specmoe", 1, prompt_set=1),
}


@pytest.mark.parametrize("model", CHECKED)
def test_the_engine_still_counts_what_the_paper_counted(model, tmp_path):
    """One prompt set, with drafts: text, tokens and rounds are the same, and bytes to a hundredth
    (those of tiny-translate are older than the engine, and a thousandth apart)."""
    run = CHECKED[model]
    kept = paper.load_results()[model]["rows"][run.key]
    assert paper.measure([run], tmp_path) == 0
    [row] = paper.load_results(tmp_path)[model]["rows"].values()
    moved = "fetched_bytes_per_token"
    same = [name for name in COUNTED if name != moved]
    assert {name: row[name] for name in same} == {name: kept[name] for name in same}
    assert row[moved] == pytest.approx(kept[moved], rel=0.01)
