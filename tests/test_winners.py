"""Simulated numbers of the paper's machine, and the map of winners: cells, marks, refusals."""

from __future__ import annotations

import importlib
from dataclasses import replace

import matplotlib
import pandas as pd
import pytest

from specmoe.errors import OptionError
from specmoe.lab import paper
from specmoe.lab.figures.winners import map_of_winners
from specmoe.lab.paper import settings, simulated
from specmoe.lab.paper.record import own_recordings, record_model
from specmoe.lab.simulate import PRESETS, recordings, simulate

# the function has its module's name
winners = importlib.import_module("specmoe.lab.paper.winners")
matplotlib.use("agg")


# ---- simulated ----


def test_what_repeats_may_be_left_out_of_the_replay():
    """The recorded layers alone, with their share of the trunk, take their share of the time of
    all."""
    run = next(each for each in recordings(settings.MAIN, 4, 16, "specmoe"))
    size, hardware = simulated.SIZES[settings.MAIN], PRESETS["h100"]
    part, machine, share = winners.layer_share(size, hardware, run.experts.shape[1])
    assert share == pytest.approx(1 / 3)
    whole = simulate(run, hardware, size).tokens_per_second
    assert simulate(run, machine, part).tokens_per_second * share == pytest.approx(whole, rel=0.02)


def test_a_thinned_recording_runs_at_the_speed_of_the_whole():
    run = next(each for each in recordings(settings.MAIN, 4, 1, "on_demand"))
    size, hardware = simulated.SIZES[settings.MAIN], PRESETS["h100"]
    small = winners.thin(run)
    assert len(small.rows) == winners.ROUNDS < len(run.rows)
    whole = simulate(run, hardware, size).tokens_per_second
    assert simulate(small, hardware, size).tokens_per_second == pytest.approx(whole, rel=0.1)


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    chosen = [
        each for each in paper.map_recordings((settings.MAIN,)) if each.info["draft_experts"] == 4
    ]
    return paper.winners(chosen, balances=(100.0, PRESETS["h100"].balance))


def test_a_cell_is_the_speed_at_the_papers_size(cells):
    row = cells[(cells["batch"] == 64) & (cells["balance"] > 1000)].iloc[0]
    run = winners.thin(next(each for each in recordings(settings.MAIN, 4, 64, "on_demand")))
    speed = simulate(run, PRESETS["h100"], simulated.SIZES[settings.MAIN]).tokens_per_second
    assert row["on_demand"] == pytest.approx(speed, rel=0.02)


def test_cells_name_the_fastest_at_equal_memory(cells):
    methods = [name for name in ("on_demand", "overlapped", "cached", "specmoe") if name in cells]
    assert len(methods) == 4 and "resident" not in cells
    assert (cells[methods].idxmax(axis=1) == cells["winner"]).all() and (cells["margin"] >= 1).all()
    faster = cells[cells["balance"] < 1000].set_index("batch")[methods]
    assert len(faster) == len(settings.BATCHES)


def test_the_machine_that_the_papers_numbers_imply_gives_its_on_demand():
    """By construction, if our model needs as many distinct experts: 28 GB are 70 of 128."""
    numbers = simulated.simulated_numbers()
    ours = paper.value_of(numbers, "implied", "on_demand", "speed at batch 256", "simulated")
    assert ours.value == pytest.approx(28.6, rel=0.05)
    shares = simulated.replayed(
        simulated.IMPLIED, lambda each: each.migration_share, ("on_demand",)
    )
    assert shares["on_demand"][256] == pytest.approx(0.9011, abs=0.02)


def test_simulated_numbers_say_so_and_name_the_hardware():
    numbers = simulated.simulated_numbers()
    assert {each.kind for each in numbers} == {"simulated"}
    assert all("H100" in each.note or "GB/s" in each.note for each in numbers)


def test_unequal_memory_is_only_in_lines_that_ask_for_it():
    plain, larger = (
        simulated.chosen(settings.MAIN, "cached", 4, **each) for each in ({}, {"budget": "tenth"})
    )
    assert plain and larger
    assert {each.info["slots"] for each in larger} != {each.info["slots"] for each in plain}
    assert not set(map(id, plain)) & set(map(id, larger))


# ---- the figure ----


def two_by_four() -> pd.DataFrame:
    """on_demand is ahead at small balances, specmoe, ten times as fast, at large ones."""
    rows = [
        ("tiny-translate", 4, 10.0**k, b, 1.0, 0.1 if k < 2 else 10.0)
        for k in range(1, 5)
        for b in (1, 16)
    ]
    return pd.DataFrame(
        rows, columns=["model", "draft_experts", "balance", "batch", "on_demand", "specmoe"]
    )


def test_the_map_names_each_winner_and_marks_machines():
    points = pd.DataFrame(
        [("tiny-translate", 4, 100.0, 16, "specmoe")],
        columns=["model", "draft_experts", "balance", "batch", "winner"],
    )
    (ax,) = map_of_winners(
        two_by_four(), {"laptop": 300.0}, points, {"tiny-translate": "128 experts"}, None
    )
    said = {text.get_text() for text in ax.texts}
    assert {"laptop", "128 experts"} <= said
    assert any(words.startswith("specmoe\nup to 10.0") for words in said)
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 1


def test_a_larger_lead_is_a_stronger_colour():
    (ax,) = map_of_winners(two_by_four())
    picture = ax.images[0].get_array()
    # near the border of the regions it is pale
    assert picture[0, -1].sum() < picture[0, picture.shape[1] * 18 // 100].sum()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"columns": ["model", "draft_experts", "batch"]}, "no 'balance'"),
        ({"columns": ["model", "draft_experts", "balance", "batch"]}, "name no method"),
        ({"batches": [1]}, "at least two batches"),
    ],
)
def test_a_map_of_too_little_is_refused(given, words):
    frame = two_by_four()
    frame = (
        frame[given["columns"]]
        if "columns" in given
        else frame[frame["batch"].isin(given["batches"])]
    )
    with pytest.raises(OptionError, match=words):
        map_of_winners(frame)


def test_another_model_is_simulated_at_its_own_size(tmp_path, monkeypatch):
    """``-p model=...``: recordings of its own runs, on the map and on the paper's machine."""
    monkeypatch.setattr(importlib.import_module("specmoe.lab.paper.record"), "FEW", (1, 4))
    monkeypatch.setattr(importlib.import_module("specmoe.lab.paper.measure"), "TOKENS", 24)
    record_model("tiny-balanced", 2, tmp_path)
    runs = own_recordings(tmp_path)
    stranger = [replace(each, info=each.info | {"name": "mine"}) for each in runs]
    assert simulated.size_of(stranger[0]).expert_bytes == stranger[0].info["record_bytes"]
    numbers = simulated.simulated_numbers(stranger)
    assert {each.table for each in numbers} == {"throughput", "ssd", "migration"}
    assert all("its own size" in each.note for each in numbers)
    assert set(paper.winners(stranger, [100.0])["model"]) == {"mine"}
