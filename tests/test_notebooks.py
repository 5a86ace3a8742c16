"""Every teaching notebook runs from top to bottom with small parameters, its own checks hold, and the key numbers that it
prints as its last line are what they claim."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from specmoe.report.run import widget_errors

FOLDER = Path(__file__).parent.parent / "notebooks"
ELSEWHERE = {
    "report": "executed by tests/test_report.py",
    "paper": "a reproduction of many minutes, its parts are tested with the report's",
}
SMALL = {  # short runs on which the notebook's own asserts still have something to stand on
    "00_start_here": {"new_tokens": 16},
    "01_why_offloading_hurts": {"new_tokens": 12},
    "02_experts_in_slow_memory": {"new_tokens": 12},
    "03_hot_experts": {"new_tokens": 16},
    "04_self_draft": {"new_tokens": 16, "num_draft": [1, 4], "seeds": [0]},
    "05_batched_verification": {"new_tokens": 16, "batch_sizes": [1, 16], "num_sentences": 48},
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def numbers(notebook) -> dict:
    """The JSON that the last code cell prints."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs][-1]
    return json.loads("".join(output.text for output in cell.outputs if output.output_type == "stream").splitlines()[-1])


def leaves(value):
    """Every number, text and truth value of nested lists and dicts."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]


@pytest.fixture(autouse=True)
def quiet_threads(monkeypatch):
    """Torch's threads sleep while they wait; on two cores spinning ones make a run many times slower."""
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_its_key_numbers_hold(name, tmp_path):
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    import papermill

    target = tmp_path / f"{name}.ipynb"
    notebook = papermill.execute_notebook(
        FOLDER / f"{name}.ipynb", target, parameters=SMALL.get(name, {}), cwd=FOLDER, progress_bar=False,
        kernel_name="python3", log_output=False,
    )  # fmt: skip
    assert widget_errors(notebook) == []
    found = numbers(notebook)
    assert found, "no key numbers"
    assert not [leaf for leaf in leaves(found) if isinstance(leaf, float) and not math.isfinite(leaf)]
    CLAIMS.get(name, lambda found: None)(found)


def check_start(found):
    assert found["same_tokens"] is True
    assert found["rounds"][1] < found["rounds"][0] and found["fetches"][1] < found["fetches"][0]
    assert found["tokens_per_round"] > 1.5 and found["bytes_saved"] > 0.2


def check_pool(found):
    assert all(pool < none for pool, none in zip(found["misses_temporal"], found["misses_on_demand"], strict=True))
    assert all(bound <= lru for bound, lru in zip(found["belady"], found["lru"], strict=True))
    assert found["hit_rate"][-1] < found["hit_rate"][0]


def check_hot(found):
    assert found["gini"] > found["gini_balanced"] and found["hits_of_last_step"] > found["hits_of_chance"]


def check_draft(found):
    ways = found["substitutes"]
    assert ways["no_experts"] < ways["drop"] < ways["affinity"]
    assert found["translation"]["no_experts"] > 1.1, "dense layers alone draft something"


def check_batch(found):
    assert found["saved_by_pool"]["16"] < found["saved_by_pool"]["1"]
    assert found["rounds_refilled_and_apart"][0] < found["rounds_refilled_and_apart"][1]


def check_hurts(found):
    assert found["requests_per_read"][0] < found["requests_per_read"][-1] and found["share_touched"] < 0.5


CLAIMS = {
    "00_start_here": check_start,
    "01_why_offloading_hurts": check_hurts,
    "02_experts_in_slow_memory": check_pool,
    "03_hot_experts": check_hot,
    "04_self_draft": check_draft,
    "05_batched_verification": check_batch,
}
