"""Every teaching notebook runs from top to bottom once: those whose facts repeat exactly under
nbval, which compares every output with the committed one; the others by papermill with small
parameters. The key numbers in the last line hold."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import look_inside
import nbformat
import pytest

from specmoe.errors import OptionError
from specmoe.lab import foresight
from specmoe.lab.report.parameters import report_parameters, typed_parameters
from specmoe.lab.report.run import widget_errors

FOLDER = Path(__file__).parent.parent / "notebooks"
ELSEWHERE = {
    "report": "executed by tests/test_report.py",
    "best_settings": "executed by tests/test_report_choosing.py",
    "hot_experts": "executed by tests/test_report_choosing.py",
    "paper": "executed by tests/test_reproduction.py",
    "performance": "executed by tests/test_benchmarks.py",
}
EXACT = [
    "00_start_here",
    "01_specmoe_from_scratch",
    "02_why_offloading_hurts",
    "03_experts_in_slow_memory",
    "04_hot_experts",
    "05_self_draft",
    "06_batched_verification",
    "07_sampling_without_bias",
    "10_real_machines",
    "13_your_own",
]
SANITIZE = Path(__file__).parent / "nbval_sanitize.cfg"
SMALL = {  # short runs on which the notebook's own asserts still have something to stand on
    "08_overlap_and_prefetch": {"new_tokens": 20},
    "09_when_does_it_pay": {
        "batch_sizes": [1, 4],
        "prompt_sets": [0],
        "balances": [10.0, 100000.0],
        "turned": [1, 64],
    },
    "12_eager_and_compiled": {"counts": [16]},
    "11_your_model": {"draft_choices": [2, 8], "gammas": [4], "new_tokens": 16},
}
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def numbers(notebook) -> dict:
    """The JSON that the last code cell prints."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.outputs][-1]
    return json.loads(
        "".join(
            output.text for output in cell.outputs if output.output_type == "stream"
        ).splitlines()[-1]
    )


def leaves(value):
    """Every number, text and truth value of nested lists and dicts."""
    parts = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    )
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]


@pytest.fixture(autouse=True)
def quiet_threads(monkeypatch):
    """Torch's threads sleep while they wait; beside other tests spinning ones make a run many times
    slower."""
    monkeypatch.setenv("OMP_WAIT_POLICY", os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))


# The longest, of which parts are tested elsewhere: every night (`make notebooks`) is enough.
NIGHTLY = (
    "05_self_draft",
    "06_batched_verification",
    "09_when_does_it_pay",
    "12_eager_and_compiled",
)
EACH = [pytest.param(name, marks=pytest.mark.long) if name in NIGHTLY else name for name in NAMES]


@pytest.mark.parametrize("name", EACH)
def test_notebook_runs_and_its_key_numbers_hold(name, tmp_path):
    if name in ELSEWHERE:
        pytest.skip(ELSEWHERE[name])
    if name in EXACT:
        done = exactly(FOLDER / f"{name}.ipynb")
        assert done.returncode == 0, done.stdout[-4000:]
        check_run(name, nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
        return
    import papermill

    target = tmp_path / f"{name}.ipynb"
    notebook = papermill.execute_notebook(
        FOLDER / f"{name}.ipynb",
        target,
        parameters=SMALL.get(name, {}),
        cwd=FOLDER,
        progress_bar=False,
        kernel_name="python3",
        log_output=False,
        execution_timeout=300,
    )
    check_run(name, notebook)


def exactly(path: Path) -> subprocess.CompletedProcess:
    """Run ``path`` under nbval: every output but pictures must be the committed one."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval",
        "--nbval-cell-timeout=600",
        f"--nbval-sanitize-with={SANITIZE}",
        "-c",
        "/dev/null",
        "--rootdir",
        str(path.parent),
        str(path),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=path.parent)


def check_run(name: str, notebook) -> None:
    assert widget_errors(notebook) == []
    found = numbers(notebook)
    assert found, "no key numbers"
    assert not [
        leaf for leaf in leaves(found) if isinstance(leaf, float) and not math.isfinite(leaf)
    ]
    CLAIMS.get(name, lambda found: None)(found)


def check_start(found):
    assert found["same_tokens"] is True
    assert found["rounds"][1] < found["rounds"][0] and found["fetches"][1] < found["fetches"][0]
    assert found["tokens_per_round"] > 1.5 and found["bytes_saved"] > 0.2
    for one_row, more_rows in found["fewer_than_cached"]:
        assert one_row < 0 and more_rows > 10, "the pool with one row, speculation with more"


def check_scratch(found):
    assert found["same_text"] is True
    assert found["reads"]["rounds, hot_temporal: SpecMoE"] < found["reads"]["on demand"] / 2
    assert found["saved_against_the_rival"][1] > found["saved_against_the_rival"][0] > 0
    assert found["rounds"][1] < found["rounds"][0]


def check_pool(found):
    assert all(
        pool < none
        for pool, none in zip(found["misses_temporal"], found["misses_on_demand"], strict=True)
    )
    assert len(found["belady"]) == len(found["lru"])
    assert all(bound <= lru for bound, lru in zip(found["belady"], found["lru"], strict=True))
    assert found["hit_rate"][-1] < found["hit_rate"][0]
    first, later = found["per_step_first_and_later"]
    assert first > later, "a new prompt brings misses"
    assert all(6 < num <= 8 for num in found["lru_as_good_as_belady_with_4"])


def check_hot(found):
    assert (
        found["gini"] > found["gini_balanced"]
        and found["hits_of_last_step"] > found["hits_of_chance"]
    )
    change, sets = found["change_at_the_turn"], found["tokens_per_round"]
    assert change["fixed"] < -0.1 < change["temporal"], "only the fixed set loses at the turn"
    assert min(found["lead_of_temporal"]["8"]) > 0
    hot = [*leaves(sets["hot_temporal"]), *leaves(sets["hot_global"])]
    assert min(hot) > 1.5 * max(leaves(sets["random"]))


def check_draft(found):
    ways, by_num = found["substitutes"], list(found["tokens_per_round_by_n"].values())
    assert ways["no_experts"] < ways["drop"] < ways["affinity"]
    assert by_num == sorted(by_num) and by_num[1] - by_num[0] > by_num[-1] - by_num[-2]
    gains = found["affinity_over_random"], found["affinity_over_random_translating"]
    assert min(leaves(list(gains))) > 0, "affinity leads in every set of prompts"
    means = [sum(each) / len(each) for each in gains]
    assert abs(means[0] - means[1]) < 5, "and by about as much on both models"
    assert found["replaced_choices"][0] < found["replaced_choices"][1]
    assert found["translation"]["no_experts"] > 1.1, "dense layers alone draft something"


def check_batch(found):
    assert found["saved_by_pool"]["16"] < found["saved_by_pool"]["1"]
    assert found["rounds_refilled_and_apart"][0] < found["rounds_refilled_and_apart"][1]
    assert found["reads_by_hand"] == sorted(found["reads_by_hand"], reverse=True)
    assert found["round_ahead_of_pool_with_many_rows"]
    falls = {name: found[name]["1"] - found[name]["16"] for name in ("saved", "saved_by_pool")}
    assert 2 * falls["saved"] < falls["saved_by_pool"], "a round's saving falls much less"


def check_hurts(found):
    assert (
        found["requests_per_read"][0] < found["requests_per_read"][-1]
        and found["share_touched"] < 0.5
    )
    assert found["mixtral_gb_per_token"] == 22.55 and 100 < found["tokens_per_s_at_most"] < 120


def check_sampling(found):
    shares = found["accepted_share"]
    assert (
        found["sound_samplers_pass"]
        and found["biased_sampler_caught"]
        and found["coupled_texts_same_as_plain"]
    )
    assert shares["no residual"] == shares["rejection"] > shares["coupled"]
    coupling, best = found["accepted_by_coupling_and_at_best"]
    assert coupling < best and not found["rejection_texts_same_as_plain"]


def check_overlap(found):
    assert found["same_tokens"] is True
    assert found["oracle_recall"] > 0.5 and found["oracle_precision"] > 0.5
    assert set(found["main_loss"].values()) == {foresight.FEW}
    assert found["one_row_reads_more_ahead"] is True
    assert all(reads > 0 for reads in found["fetches_without_prefetch"])


def check_pays(found):
    chosen, per_round = found["planner_choices"], found["tokens_per_round_by_n"]
    assert (
        chosen["slow link, draft 2 %"]
        > chosen["draft 20 %"]
        > chosen["fast link, draft 100 %"]
        == 0
    )
    assert found["same_tokens"] and found["fewest_bytes_win_on_slowest_link"]
    assert found["ahead_with_several_rows_on_slowest_link"]
    assert found["by_hand_fastest"]["1 GB/s"] == "specmoe"
    assert found["by_hand_fastest"]["20 GB/s"] == "cached"
    assert found["skewness"]["tiny-skewed"] > 2 * found["skewness"]["tiny-balanced"]
    assert found["cells"] == 2 * 2 * 2
    assert per_round["16.0"] > per_round["2.0"] > 1


def check_machines(found):
    need, by_method = found["GB_per_token"], found["GB_per_token_by_method"]
    assert need["gpt-oss-120b"] < need["Qwen3-30B-A3B"] < need["DeepSeek-V3"] < need["Mixtral-8x7B"]
    assert by_method == sorted(by_method, reverse=True), "on demand, pool, round"
    even, skewed = found["misses"]["tiny-balanced"], found["misses"]["tiny-skewed"]
    assert all(few < many for few, many in zip(skewed, even, strict=True))
    speeds = found["tokens_per_second_on_demand"]
    assert sorted(speeds, key=speeds.get) == sorted(need, key=need.get, reverse=True)
    assert 0.8 < found["link_decides"] <= 1


def check_compiled(found):
    assert found["same_tokens"] and found["many_operator_calls"]
    assert found["shapes_up_to_300_tokens"] == 6 and 0 <= found["relative_difference"] < 0.05
    assert found["rounds_that_pay"] > 1


def check_own_model(found):
    assert found["exact"] and found["same_tokens_in_every_run"] and found["methods"] == 5
    assert 0 < found["skewness"] < found["skewness_of_trained"] < 1
    number, gamma, over = found["best"]
    assert (number, gamma) in {(2, 4), (8, 4)} and over > 0


def check_your_own(found):
    """What notebook 13's prose says of a user's parts."""
    assert found["same_text"] is True
    misses, tokens = found["misses"], found["tokens_per_round"]
    assert misses["belady"] < misses["decayed"] < misses["lru"] <= misses["this_step"]
    assert misses["this_step"] < misses["least_stale"]
    assert tokens["draft"] < 1.5 < tokens["nothing of yours"] <= tokens["substitute"] + 0.2
    assert found["live_and_shipped"][0] == found["live_and_shipped"][-1]
    assert found["yours_on_the_map"] < 2


CLAIMS = {
    "00_start_here": check_start,
    "01_specmoe_from_scratch": check_scratch,
    "02_why_offloading_hurts": check_hurts,
    "03_experts_in_slow_memory": check_pool,
    "04_hot_experts": check_hot,
    "05_self_draft": check_draft,
    "06_batched_verification": check_batch,
    "07_sampling_without_bias": check_sampling,
    "08_overlap_and_prefetch": check_overlap,
    "09_when_does_it_pay": check_pays,
    "10_real_machines": check_machines,
    "12_eager_and_compiled": check_compiled,
    "11_your_model": check_own_model,
    "13_your_own": check_your_own,
}


def test_make_compares_the_same_notebooks_exactly():
    makefile = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    line = next(line for line in makefile.splitlines() if line.startswith("EXACT_NOTEBOOKS"))
    assert line.split(":=")[1].split() == EXACT


def test_every_teaching_notebook_has_claims():
    assert set(CLAIMS) == set(NAMES) - set(ELSEWHERE)


CHANGED = {"a fact": ("print(6 * 7)", "41"), "a digit that counts": ("print(0.1234)", "0.1235")}


@pytest.mark.parametrize("name", CHANGED)
def test_the_exact_comparison_notices(name, tmp_path):
    source, committed = CHANGED[name]
    assert exactly(committed_notebook(tmp_path, source, committed)).returncode == 1


def test_the_exact_comparison_lets_clocks_and_paths_pass(tmp_path):
    source = "print('2026-01-02 03:04:05', '/tmp/elsewhere/x', 0.12345678, object())"
    committed = "2025-09-09 09:09:09 /home/ada/y 0.12349999 <object object at 0x7f0000000000>"
    assert exactly(committed_notebook(tmp_path, source, committed)).returncode == 0


def committed_notebook(folder: Path, source: str, printed: str) -> Path:
    """A notebook of one cell whose committed output is ``printed``."""
    output = nbformat.v4.new_output("stream", name="stdout", text=printed + "\n")
    cell = nbformat.v4.new_code_cell(source, execution_count=1, outputs=[output])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
    return path


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ELSEWHERE)))
def test_an_unknown_or_mistyped_parameter_is_named_with_the_nearest(name):
    known = report_parameters(name)
    first = next(iter(known))
    with pytest.raises(OptionError, match=f"no parameter '{first}x': did you mean '{first}'"):
        typed_parameters(name, {f"{first}x": 1})
    number = next(key for key, declared in known.items() if "int" in declared["type"])
    with pytest.raises(OptionError, match=f"parameter {number}='many' is not a"):
        typed_parameters(name, {number: "many"})


def test_a_key_number_that_breaks_a_claim_is_noticed():
    """The claims themselves can fail."""
    committed = {
        name: numbers(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)) for name, *_ in BROKEN
    }
    check_sampling(committed["07_sampling_without_bias"])
    for name, key, value in BROKEN:
        with pytest.raises(AssertionError):
            CLAIMS[name](committed[name] | {key: value})


BROKEN = [
    ("01_specmoe_from_scratch", "saved_against_the_rival", [0.1, 0.05]),
    ("03_experts_in_slow_memory", "misses_temporal", [9999, 1]),
    ("00_start_here", "fewer_than_cached", [[-10.3, 25.0], [1.1, 31.1]]),
    ("02_why_offloading_hurts", "mixtral_gb_per_token", 180.0),
    ("03_experts_in_slow_memory", "belady", [9999, 1, 1, 1, 1, 1, 1]),
    ("03_experts_in_slow_memory", "per_step_first_and_later", [0.8, 1.2]),
    ("04_hot_experts", "gini", 0.01),
    ("04_hot_experts", "change_at_the_turn", {"fixed": -0.2, "lfu": 0.0, "temporal": -0.2}),
    ("05_self_draft", "affinity_over_random", [0.05, -0.01, 0.04]),
    ("05_self_draft", "replaced_choices", [0.5, 0.3]),
    ("06_batched_verification", "saved_by_pool", {"1": 0.1, "16": 0.9}),
    ("06_batched_verification", "reads_by_hand", [3, 7, 12]),
    ("06_batched_verification", "round_ahead_of_pool_with_many_rows", False),
    ("07_sampling_without_bias", "biased_sampler_caught", False),
    ("10_real_machines", "GB_per_token_by_method", [3.6, 2.1, 2.4]),
    ("10_real_machines", "link_decides", 0.4),
    ("13_your_own", "same_text", False),
    ("13_your_own", "live_and_shipped", [1.2129, 1.3]),
    ("07_sampling_without_bias", "accepted_by_coupling_and_at_best", [0.7, 0.6]),
    (
        "07_sampling_without_bias",
        "accepted_share",
        {"no residual": 0.5, "rejection": 0.4, "coupled": 0.3},
    ),
]


GUESSED = [  # every *Predict* of these is followed by a cell to write a guess into
    "00_start_here",
    "02_why_offloading_hurts",
    "03_experts_in_slow_memory",
    "04_hot_experts",
    "05_self_draft",
    "06_batched_verification",
    "07_sampling_without_bias",
    "08_overlap_and_prefetch",
    "09_when_does_it_pay",
    "11_your_model",
    "12_eager_and_compiled",
    "13_your_own",
]


@pytest.mark.parametrize("name", GUESSED)
def test_every_predict_takes_a_guess_which_the_next_output_compares(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    asked = [i for i, cell in enumerate(cells) if "> **Predict.**" in cell.source]
    assert asked
    for i in asked:
        assert cells[i + 1].source.startswith("guess = None"), cells[i].source[-200:]
        shown = "".join(output.get("text", "") for output in cells[i + 2].outputs)
        assert "compare(guess, " in cells[i + 2].source and "No guess was made" in shown


@pytest.mark.parametrize("name", NAMES)
def test_the_source_that_a_notebook_shows_is_that_of_today(name):
    """``python tests/look_inside.py`` writes it again."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    for output, now in look_inside.shown(notebook):
        assert look_inside.committed(output) == now
