"""What the lab writes: every place that cannot be written to is one typed sentence, before minutes
are spent where that can be known, and what was there before stays."""

from __future__ import annotations

import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from specmoe import checkpoint as checkpoints
from specmoe import tiny as shipped_models
from specmoe.errors import CheckpointError, OptionError, SpecMoEError, StoreError, path_of
from specmoe.lab import compiling, markdown, report, writing
from specmoe.lab.bench import gpu, page, results, run, settings
from specmoe.lab.bench.runs import Run
from specmoe.lab.exercises import build
from specmoe.lab.machine import doctor
from specmoe.lab.paper import page as paper_page
from specmoe.lab.simulate import clock, recording, shipped
from specmoe.tiny.making import training

# A function of this name hides the module.
paper_measure = importlib.import_module("specmoe.lab.paper.measure")

ROOT = Path(__file__).resolve().parents[1]


def save_metrics(folder) -> None:
    report.save_metrics(folder, {"a": 1})


def export_paper(folder) -> None:
    paper_page.export(folder, [], {})


def bench_results(folder) -> None:
    results.part_file("part", settings.QUICK, path_of(folder), code="code").add({})


def paper_results(folder) -> None:
    file = paper_measure.result_file(path_of(folder), "tiny-balanced", "tiny-balanced")
    file.add({"a run": {"tokens": 1}})


def clock_results(folder) -> None:
    row = {"model": "m", "link": "native", "method": "cached", "batch": 1}
    frame = pd.DataFrame([row | {"measured": 1.0, "predicted": 1.0, "error": 0.0}])
    clock.write_results(frame, {"name": "m"}, {}, path_of(folder) / "clock.json")


def recordings(folder) -> None:
    some = recording.load_all(next(shipped.FOLDER.glob("*.npz")))[:1]
    recording.save_all(some, path_of(folder) / "some.npz")


def exercise(folder) -> None:
    build.write(nbformat.v4.new_notebook(), path_of(folder) / "lesson.ipynb")


def checkpoint(folder) -> None:
    def write(staging: Path) -> None:
        with open(staging / "config.json", "wb") as file:
            writing._put("{}", file)

    training.save_whole(path_of(folder), write)


def pack(folder) -> None:
    checkpoints.pack("tiny-balanced", folder)


# Writer -> the file that it leaves in its folder.
WRITERS = {
    save_metrics: "metrics.json",
    export_paper: "metrics.json",
    bench_results: "part.json",
    paper_results: "tiny-balanced.json",
    clock_results: "clock.json",
    recordings: "some.npz",
    exercise: "lesson.ipynb",
    checkpoint: "config.json",
}
NO_NAMES = {"null byte": "a\0b", "half a surrogate pair": "\ud800", "number": 3, "list": ["a"]}


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    for module in (results, paper_measure):
        monkeypatch.setattr(module, "machine", lambda measured=False: {"cpu": "some"})


def one_sentence(failure: SpecMoEError) -> str:
    said = str(failure)
    assert said.isprintable() and said
    return said


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_each_writer_makes_its_folder_and_leaves_one_file(writer, tmp_path):
    writer(tmp_path / "new" / "folder")
    assert set(contents(tmp_path)) == {"new", "new/folder", f"new/folder/{WRITERS[writer]}"}


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_place_that_cannot_be_written_to_is_one_sentence_and_keeps_what_it_has(
    writer, tmp_path, monkeypatch
):
    name = WRITERS[writer]
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken" / name / "inside").mkdir(parents=True)
    before = contents(tmp_path)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "taken"):
        with pytest.raises((OptionError, StoreError)) as refused:
            writer(folder)
        assert str(folder) in one_sentence(refused.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_a_full_or_failing_disk_is_one_sentence_and_the_old_file_stays(
    writer, number, tmp_path, monkeypatch
):
    writer(tmp_path)
    before = contents(tmp_path)

    def fail(content, file):
        file.write(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "_put", fail)
    with pytest.raises(StoreError, match="could not be written.*make room") as refused:
        writer(tmp_path)
    assert os.strerror(number) in one_sentence(refused.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=list(NO_NAMES))
@pytest.mark.parametrize(
    "writer",
    [save_metrics, export_paper, writing.check_folder, writing.write_whole]
    + [checkpoints.open_packed, pack],
)
def test_what_is_no_name_is_one_sentence(writer, name):
    arguments = (name, "text") if writer is writing.write_whole else (name,)
    with pytest.raises(OptionError, match="is no name of a f.*give a path as text") as refused:
        writer(*arguments)
    one_sentence(refused.value)


def test_packing_over_a_file_is_refused_and_the_file_stays(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="file is no folder: name one"):
        pack(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"precious"}


def test_a_home_that_nobody_has_is_one_sentence():
    with pytest.raises(OptionError, match="is no name of a folder"):
        pack("~nobody-of-this-name/packed")


def test_a_link_stays_a_link_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "metrics.json").symlink_to(tmp_path / "real" / "m.json")
    report.save_metrics(tmp_path, {"a": 1})
    assert (tmp_path / "metrics.json").is_symlink()
    assert json.loads((tmp_path / "real" / "m.json").read_text()) == {"a": 1}


def test_somebody_elses_partial_file_is_left_alone(tmp_path):
    (tmp_path / "part.partial").write_text("precious")
    bench_results(tmp_path)
    assert (tmp_path / "part.partial").read_text() == "precious"


# Asked before anything is measured, trained or run


def never(*_, **__):
    raise AssertionError("it should have been refused before")


def gpu_script(folder) -> None:
    gpu.main(["--device", "cpu", "--out", str(folder)])


def bench_script(folder) -> None:
    run.main(["--length", "quick", "--out", str(folder)])


def paper_run(folder) -> None:
    paper_measure.measure([Run("tiny-balanced", "specmoe", 1)], folder)


def record(folder) -> None:
    shipped.record_shipped("tiny-balanced", 2, folder)


def against_the_clock(folder) -> None:
    clock.compare_shipped("tiny-balanced", None, path=folder / "clock.json")


def train(folder) -> None:
    shipped_models.train_shipped("tiny-balanced", folder)


def whole_report(folder) -> None:
    report.run_report("report", {}, folder)


EARLY = [gpu_script, bench_script, paper_run, record, against_the_clock, train, whole_report]


@pytest.mark.parametrize("measuring", EARLY, ids=lambda measuring: measuring.__name__)
def test_what_could_not_be_kept_is_not_measured(measuring, tmp_path, monkeypatch):
    for place in (gpu, run):
        monkeypatch.setattr(place, "run" if place is gpu else "measure", never)
    for place in ("engine.engine", "lab.simulate.clock"):
        monkeypatch.setattr(f"specmoe.{place}.load", never)
    monkeypatch.setattr(paper_measure, "load_engine", never)
    monkeypatch.setattr("specmoe.tiny.making.train.train", never)
    monkeypatch.setattr("specmoe.lab.report.run._execute", never)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OptionError) as refused:
        measuring(tmp_path / "file" / "below" / "it")
    assert str(tmp_path / "file" / "below" / "it") in one_sentence(refused.value)


def test_a_command_of_the_lab_ends_with_one_line_and_code_two(tmp_path):
    (tmp_path / "file").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-m", "specmoe.lab.bench.run", "--length", "quick"]
        + ["--out", str(tmp_path / "file")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: nothing can be written into") and "Trace" not in done.stderr
    )
    assert done.stderr.count("\n") == 1


# Files of results that are none

SPOILT = {
    "no text": b"\xff\xfe\x00",
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "no object": b"[1]",
}


@pytest.mark.parametrize("content", SPOILT.values(), ids=list(SPOILT))
def test_results_that_are_none_are_named_and_left_alone(content, tmp_path):
    for name in ("part.json", "tiny-balanced.json", "clock.json"):
        (tmp_path / name).write_bytes(content)
    before = contents(tmp_path)
    for writer in (bench_results, paper_results, clock_results, results.read_all):
        with pytest.raises(OptionError, match="is no file of results.*take it away") as refused:
            writer(tmp_path)
        one_sentence(refused.value)
    assert contents(tmp_path) == before


# The doctor


@pytest.fixture
def no_probes(monkeypatch):
    for name in ("compute_rates", "memory_copy_rate"):
        monkeypatch.setattr(doctor.probes, name, lambda *_: {"fp32_flop_per_s": 1.0})
    monkeypatch.setattr(doctor.probes, "disk_rates", lambda folder, *_: {"folder": str(folder)})


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=list(NO_NAMES))
def test_the_doctor_refuses_what_is_no_folder(name, no_probes):
    with pytest.raises(OptionError, match="is no name of a folder") as refused:
        doctor.examine(directory=name)
    one_sentence(refused.value)


@pytest.mark.parametrize("size", [0, -1, "much", float("nan"), "9" * 400, [1]])
def test_the_doctor_refuses_a_record_of_no_size(size, no_probes):
    with pytest.raises(OptionError, match="record_bytes=") as refused:
        doctor.examine(record_bytes=size)
    one_sentence(refused.value)


def test_without_a_home_the_doctor_still_answers_and_says_so(no_probes, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "SPECMOE_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: never_known(uid))
    found = doctor.examine()
    assert "SPECMOE_CACHE" in found["disk"]["failed"]
    assert found["compute"] == {"fp32_flop_per_s": 1.0}


def never_known(uid):
    raise KeyError(f"uid not found: {uid}")


def test_what_the_doctor_says_stays_on_its_line(no_probes, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/a\n\x1b[2Jb")

    def fail(*_):
        raise RuntimeError("first\nsecond \x1b[31m")

    monkeypatch.setattr(doctor.probes, "compute_rates", fail)
    found = doctor.examine()
    assert found["compute"]["failed"].isprintable()
    lines = doctor.to_table(found).splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == len(list(doctor._flat(found)))


def test_the_pages_and_the_tables_of_compiling_are_written_through_the_same_door(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("precious")
    monkeypatch.setattr(markdown, "DOCS", tmp_path / "file")
    monkeypatch.setattr(markdown, "need", lambda module: pytest.fail("executed"))
    with pytest.raises(OptionError, match="nothing can be written into the folder .*file"):
        page.main()
    monkeypatch.setattr(compiling, "RESULTS", tmp_path / "file" / "compiling.json")
    monkeypatch.setattr(compiling, "describe", dict)
    frame = pd.DataFrame({"x": np.ones(1)}, index=pd.Index(["a"], name="engine"))
    monkeypatch.setattr(compiling, "measure_draft", lambda: frame)
    with pytest.raises(StoreError, match="compiling.json could not be written"):
        compiling.main()
