"""Sweeps: every setting once, a row as soon as it is over, goes on where it stopped, and no worker
that dies takes more than its own run with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

import specmoe
from specmoe.cli import parser as cli
from specmoe.errors import OptionError
from specmoe.lab import sweep as sweeps
from specmoe.lab.sweep import cluster

GRID = {"model": ["a", "b"], "seed": [0, 1, 2]}


def lines(folder) -> list[dict]:
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def double(settings: dict) -> dict:
    return {"doubled": 2 * settings["seed"]}


def deadly(settings: dict) -> dict:
    """Seed 1 kills its process, always; seed 2 the first time only."""
    if settings["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    mark = settings["folder"] + "/died"
    if settings["seed"] == 2 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid()}


# ---- the grid ----


def test_a_grid_is_every_combination_once_and_what_a_method_does_not_read_is_left_out():
    grid = {"model": "m", "method": ["on_demand", "specmoe"], "gamma": [2, 4, 4], "seed": [0]}
    settings = list(sweeps.settings_of(grid).values())
    assert settings == [
        {"model": "m", "method": "on_demand", "seed": 0},
        {"model": "m", "method": "specmoe", "gamma": 2, "seed": 0},
        {"model": "m", "method": "specmoe", "gamma": 4, "seed": 0},
    ]
    turned = dict(reversed(grid.items()))
    assert set(sweeps.settings_of(turned)) == set(sweeps.settings_of(grid))


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({}, "the grid is empty"),
        ([], "no dict of lists"),
        ({"model": ["m"], "gamma": []}, "no value for gamma"),
        ({"model": ["m"], "gama": [1]}, "unknown option 'gama': did you mean 'gamma'"),
        ({"model": ["m"], "token": ["hf_secret"]}, "rows would show a token: set HF_TOKEN"),
        ({"gamma": [1]}, "names no model"),
        ({"model": ["m"], "method": ["specmoe"], "gamma": [2, -1]}, "gamma=-1 must be at least 0"),
        ({"model": ["m"], "store": ["dsk"]}, "did you mean 'disk'"),
        ({"model": ["m"], "repeats": [0]}, "repeats=0"),
        ({"model": ["m"], "draft_set": [len]}, "no text, number or flag"),
        ({"model": [3]}, "model=3"),
        ({"model": ["m"], "seed": list(range(501))}, r"501 runs, more than 500.*--yes"),
    ],
)
def test_a_bad_grid_is_one_sentence_before_anything_is_written(tmp_path, grid, said):
    with pytest.raises(OptionError, match=said):
        specmoe.sweep(grid, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_large_grid_runs_when_it_is_meant(tmp_path):
    grid = {"seed": list(range(sweeps.MOST + 1))}
    frame = specmoe.sweep(grid, out=tmp_path, run=double, yes=True)
    assert len(frame) == sweeps.MOST + 1


def test_a_grid_file_is_read_with_numbers_as_one_writes_them(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("model: [m]\nlink_bytes_per_s: [2.5e8, 1e9]\nrevision: '1e5'\ngamma: [null]\n")
    read = {"model": ["m"], "link_bytes_per_s": [2.5e8, 1e9], "revision": "1e5", "gamma": [None]}
    assert sweeps.read_grid(file) == read
    bad = {
        "- 1": "no grid",
        "": "no grid",
        "just words": "no grid",
        "a: [": "cannot be read as YAML",
        "gamma: [2]\nmodel: m\ngamma: [4]": "has 'gamma' twice: write it once",
    }
    for text, said in bad.items():
        file.write_text(text)
        with pytest.raises(OptionError, match=said):
            sweeps.read_grid(file)
    with pytest.raises(OptionError, match="there is no file .*none.yaml: name one"):
        sweeps.read_grid(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match="cannot be read as YAML"):
        sweeps.read_grid(tmp_path)


# ---- rows ----


def test_rows_come_one_by_one_and_a_second_call_runs_only_what_is_missing(tmp_path):
    ran, seen = [], []

    def run(settings: dict) -> dict:
        seen.append(len(lines(tmp_path)))
        ran.append(settings["seed"])
        if settings["seed"] == 1:
            raise ValueError("no\ngood")
        return double(settings)

    frame = specmoe.sweep({"seed": [0, 1]}, out=tmp_path, run=run)
    assert seen == [0, 1] and ran == [0, 1]
    assert [row.get("error") for row in lines(tmp_path)] == [None, "ValueError: no good"]
    assert frame["doubled"].tolist()[0] == 0 and frame["error"].tolist()[1] == "ValueError: no good"
    # killed while it wrote: the half line is cut off, its run runs again
    with open(tmp_path / "rows.jsonl", "r+b") as file:
        file.truncate(os.path.getsize(tmp_path / "rows.jsonl") - 5)
    frame = specmoe.sweep({"seed": [0, 1, 2]}, out=tmp_path, run=run)
    assert ran == [0, 1, 1, 2] and frame["seed"].tolist() == [0, 1, 2]
    assert [row["settings"]["seed"] for row in lines(tmp_path)] == [0, 1, 2]


def test_the_folder_of_another_sweep_is_refused_and_left_as_it_is(tmp_path):
    specmoe.sweep({"seed": [5]}, out=tmp_path, run=double)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(OptionError, match="is of another sweep .*seed=5"):
        specmoe.sweep({"seed": [1]}, out=tmp_path, run=double)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    (tmp_path / "rows.jsonl").write_text("mine\nand mine")
    with pytest.raises(OptionError, match="not what a sweep writes"):
        specmoe.sweep({"seed": [1]}, out=tmp_path, run=double)
    assert (tmp_path / "rows.jsonl").read_text() == "mine\nand mine"


def test_a_file_for_a_folder_and_what_is_no_executor_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match="file, which is a file: name a folder"):
        specmoe.sweep({"seed": [1]}, out=tmp_path / "file", run=double)
    assert (tmp_path / "file").read_text() == "mine"
    for executor in (4, SimpleNamespace(submit=double)):  # a number of workers, a client of dask
        with pytest.raises(OptionError, match="is none of concurrent.futures: give a Process"):
            specmoe.sweep({"seed": [1]}, executor, out=tmp_path / "out", run=double)
    assert not (tmp_path / "out").exists()


def test_two_sweeps_on_one_file_are_refused(tmp_path):
    def nested(settings: dict) -> dict:
        return {"rows": len(specmoe.sweep({"seed": [0]}, out=tmp_path, run=double))}

    frame = specmoe.sweep({"seed": [0]}, out=tmp_path, run=nested)
    assert "another sweep is writing" in frame["error"][0]


def test_without_a_folder_the_same_grid_finds_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []
    for grid in ({"seed": [1, 2]}, {"seed": [2, 1]}, {"seed": [3]}):
        specmoe.sweep(grid, run=lambda settings: ran.append(settings["seed"]) or {})
    assert ran == [1, 2, 3] and len(list((tmp_path / "sweeps").iterdir())) == 2


# ---- executors ----


def test_threads_run_a_sweep_in_the_order_in_which_they_finish(tmp_path):
    first = threading.Event()

    def run(settings: dict) -> dict:
        if settings["seed"] == 0:
            assert first.wait(20)
        return double(settings)

    with ThreadPoolExecutor(2) as pool:
        grid, told = {"seed": [0, 1]}, lambda *row: first.set()
        frame = specmoe.sweep(grid, pool, out=tmp_path, run=run, progress=told)
    assert [row["settings"]["seed"] for row in lines(tmp_path)] == [1, 0]
    assert frame["doubled"].tolist() == [0, 2]


def test_no_more_runs_are_in_flight_than_allowed(tmp_path):
    running, most, lock = [], [0], threading.Lock()

    def run(settings: dict) -> dict:
        with lock:
            running.append(1)
            most[0] = max(most[0], len(running))
        time.sleep(0.01)
        running.pop()
        return {}

    with ThreadPoolExecutor(4) as pool:
        specmoe.sweep({"seed": [*range(6)]}, pool, out=tmp_path, run=run, in_flight=lambda: 1)
    assert most == [1]


def test_a_process_that_dies_costs_one_more_try_then_a_row_with_its_error(tmp_path):
    grid = {"seed": [0, 1, 2, 3], "folder": [str(tmp_path)]}
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        frame = specmoe.sweep(grid, pool, out=tmp_path / "out", run=deadly, in_flight=lambda: 1)
    assert frame["error"].notna().tolist() == [False, True, False, False]
    assert "died twice" in frame["error"][1]
    assert len(lines(tmp_path / "out")) == 4


def test_a_run_that_cannot_travel_is_one_sentence(tmp_path):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(OptionError, match="cannot be sent to a worker"):
            specmoe.sweep({"seed": [0]}, pool, out=tmp_path, run=lambda settings: {})


def test_a_worker_of_another_version_ends_the_sweep(tmp_path, monkeypatch):
    from specmoe.lab.sweep.run import attempt

    with pytest.raises(OptionError, match="has specmoe 0.*and this process 0.0.1: install"):
        attempt("0.0.1", double, {"seed": 0})
    client = SimpleNamespace(nthreads=lambda: {"tcp://w": 1}, run=lambda ask: {"tcp://w": "0.0.1"})
    with pytest.raises(OptionError, match="worker tcp://w has specmoe 0.0.1 and this process"):
        cluster.check_workers(client)

    def none(ask):
        raise ModuleNotFoundError("No module named 'specmoe'")

    client.run = none
    with pytest.raises(OptionError, match="a worker cannot import specmoe .*: install it there"):
        cluster.check_workers(client)


# ---- dask ----


def test_a_scheduler_that_does_not_answer_is_said_within_ten_seconds():
    with socket.socket() as silent:
        # takes the connection and never says a word
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        began_s = time.monotonic()
        with pytest.raises(OptionError, match=f"scheduler {address} cannot be reached"):
            with cluster.dask_executor(address):
                pass
    assert time.monotonic() - began_s < 10 + 5  # said within 10 s; 5 for a busy machine


def test_a_host_whose_name_is_looked_up_for_ever_is_not_waited_for(monkeypatch):
    found, over, ask = [], threading.Event(), socket.getaddrinfo

    def slow(*host, flags=0, **more):
        if flags & socket.AI_NUMERICHOST:
            return ask(*host, flags=flags, **more)
        over.wait(30)
        found.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(cluster, "REACHED_WITHIN_S", 0.1)
    try:
        with pytest.raises(OptionError, match="scheduler tcp://nowhere.invalid:1 cannot be reach"):
            with cluster.dask_executor("tcp://nowhere.invalid:1"):
                pass
        assert not found
    finally:
        over.set()


def test_a_worker_of_a_cluster_killed_in_the_middle_costs_no_row(tmp_path):
    def run(settings: dict) -> dict:  # by value: the workers know nothing of this file
        import os
        import signal
        import time

        if settings["seed"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        return {"pid": os.getpid()}

    killed = []

    def kill_one(done: int, total: int, row: dict) -> None:
        if not killed:
            killed.append(row["result"]["pid"])
            os.kill(killed[0], signal.SIGKILL)

    with cluster.dask_executor(workers=2) as (executor, in_flight):
        frame = specmoe.sweep(
            {"seed": [*range(6)]},
            executor,
            out=tmp_path,
            run=run,
            in_flight=in_flight,
            progress=kill_one,
        )
    assert killed and frame["error"].isna().tolist() == [True] * 3 + [False] + [True] * 2
    assert "died twice" in frame["error"][3]
    assert len(lines(tmp_path)) == 6 and set(frame["pid"].dropna()) > set(killed)


# ---- the command ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "2", "--scheduler", "tcp://a:1"], "leave one out"),
        (["--workers", "0"], "--workers 0"),
        (["--scheduler", "a b"], "scheduler a b cannot be reached"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, capsys, words, said):
    (tmp_path / "grid.yaml").write_text("model: [tiny-skewed]\n")
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.strip().splitlines()) == 1


LARGE = f"model: m\nseed: {[*range(501)]}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no grid: write lines such as"),
        ("model: []", "the grid has no value for model"),
        ("model: m\nmodel: n", "has 'model' twice"),
        ("model: m\ngama: 2", "did you mean 'gamma'"),
        ("model: m\nseed: 2020-01-01", "in the grid is no text, number or flag"),
        (LARGE, "the grid has 501 runs, more than 500: give fewer values, or say yes (--yes)"),
    ],
    ids=["empty", "no value", "twice", "unknown", "a date", "large"],
)
def test_what_is_wrong_with_a_grid_is_one_line_of_the_command(tmp_path, capsys, text, said):
    (tmp_path / "grid.yaml").write_text(text)
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_yes_is_taken_for_a_large_grid(tmp_path, monkeypatch, capsys):
    def given(grid, *, yes, **_):
        raise OptionError(f"{len(grid['seed'])} runs, yes={yes}")

    monkeypatch.setattr(sweeps, "sweep", given)
    (tmp_path / "grid.yaml").write_text(LARGE)
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--yes"]) == 2
    assert "501 runs, yes=True" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["sweep"], ["sweep", "-q"], ["-q", "sweep"]], ids=" ".join)
def test_rows_are_told_as_they_end_unless_quiet_is_asked_for(tmp_path, monkeypatch, capsys, words):
    def given(grid, *, progress, **_):
        raise OptionError("told" if progress else "silent")

    monkeypatch.setattr(sweeps, "sweep", given)
    (tmp_path / "grid.yaml").write_text("model: [tiny-skewed]\n")
    assert cli.main([*words, str(tmp_path / "grid.yaml")]) == 2
    assert capsys.readouterr().err.endswith("silent\n" if "-q" in words else "told\n")


def test_the_command_measures_a_shipped_model_and_goes_on(tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(
        "model: [tiny-skewed, no-such-model]\nmethod: [on_demand, specmoe]\ngamma: 2\n"
        "draft_experts: 4\nstore: memory\nmax_new_tokens: 4\nnum_prompts: 1\n"
    )
    words = ["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 1
    captured = capsys.readouterr()
    assert "[4/4]" in captured.err and "no-such-model" in captured.out
    rows = lines(tmp_path / "out")
    assert [bool(row.get("error")) for row in rows] == [False, False, True, True]
    assert all(row["result"]["tokens_per_second"] > 0 for row in rows[:2])
    assert cli.main([*words, "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "" and len(json.loads(captured.out)["rows"]) == 4
