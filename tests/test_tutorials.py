"""The exercises: notebooks agree with their source, every check names the mistake, and no stub
passes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import wrong_answers

from specmoe.errors import OptionError
from specmoe.lab import exercises
from specmoe.lab.exercises import ExerciseError, planning
from specmoe.lab.exercises.build import build, differences, read_source, sources_of
from specmoe.lab.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
SOURCES = sources_of(TUTORIALS)
CHECKS = {
    "check_nearest": wrong_answers.NEAREST,
    "check_eviction": wrong_answers.EVICTION,
    "check_acceptance": wrong_answers.ACCEPTANCE,
    "check_sampling": wrong_answers.SAMPLING,
    "check_coalescing": wrong_answers.COALESCING,
    "check_draft_set": wrong_answers.DRAFT_SET,
    "check_planner": wrong_answers.PLANNER,
}
WRONG = [(check, name) for check, answers in CHECKS.items() for name in answers]


def run_cells(source: Path, left_out: str) -> None:
    """Run the code of one of the two notebooks here, without a kernel."""
    names: dict = {}
    for cell in read_source(source):
        if not cell.markdown and cell.tag != left_out:
            exec(compile(cell.text, source.name, "exec"), names)


def test_there_are_seven_exercises_and_each_names_its_check():
    used = [re.search(r"\bcheck_\w+", source.read_text(encoding="utf-8"))[0] for source in SOURCES]
    assert used == list(CHECKS)


@pytest.mark.parametrize(
    ("check", "name"), WRONG, ids=[f"{check[6:]}-{name}" for check, name in WRONG]
)
def test_a_plausible_wrong_answer_is_caught_and_the_message_names_it(check, name):
    answer, words = CHECKS[check][name]
    with pytest.raises(ExerciseError) as caught:
        getattr(exercises, check)(answer)
    assert words in str(caught.value)


@pytest.mark.parametrize("check", CHECKS)
def test_there_are_ten_wrong_answers_or_more_and_no_two_get_one_message(check):
    words = [sentence for _, sentence in CHECKS[check].values()]
    assert len(words) >= 10 and len(set(words)) == len(words)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_an_empty_stub_is_told_that_it_returns_nothing(source):
    with pytest.raises(ExerciseError, match="you return nothing yet"):
        run_cells(source, left_out="solution")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "empty",
    [lambda *given: None, lambda *given: [], lambda *given: 0, 7],
    ids=["None", "list", "0", "7"],
)
def test_no_check_is_passed_by_an_answer_without_content(check, empty):
    with pytest.raises(ExerciseError):
        getattr(exercises, check)(empty)


def test_drafting_as_hot_temporal_does_is_recognised_by_its_score():
    from specmoe.speculate.draft_sets import HotTemporal

    def same(layer, counts, num_draft, memory):
        policy = memory.setdefault("policy", HotTemporal(4, len(counts), num_draft))
        return policy.keep(layer, counts, set(range(len(counts))))

    with pytest.raises(ExerciseError, match="exactly what HotTemporal does"):
        exercises.check_draft_set(same)


def test_an_eviction_that_is_valid_but_worse_than_lru_is_told_both_scores():
    def lowest_numbers(counts, resident, memory, num_kept):
        last = memory.setdefault("last", {})
        memory["step"] = memory.get("step", 0) + 1
        here = {e for e, count in enumerate(counts) if count} | resident
        last.update({e: memory["step"] for e, count in enumerate(counts) if count >= 4})
        return set(sorted(here, key=lambda e: (-last.get(e, 0), e != 0, -e))[:num_kept])

    with pytest.raises(ExerciseError, match="not far enough below LRU"):
        exercises.check_eviction(lowest_numbers)


def test_a_planner_is_scored_by_the_simulator_on_recorded_runs():
    """Right on the small tables, plain decoding on the recorded ones: only ``specmoe.lab.simulate``
    can tell."""
    right = wrong_answers.by(
        lambda one, rate: (one["bytes"] / rate + one["compute_s"]) / one["tokens"]
    )
    with pytest.raises(ExerciseError, match="a recorded one is not"):
        exercises.check_planner(lambda rounds, rate: right(rounds, rate) if len(rounds) < 6 else 0)
    passed = exercises.check_planner(right)
    run = planning.recorded_rounds()[0]
    played = simulate(run, planning.machine(1e9), planning.size_of(run))
    plain_ms = 1e3 * played.batch * played.seconds / played.num_new_tokens
    assert passed.scores.set_index("link").loc["SSD 1 GB/s", "gamma_0_ms"] == round(plain_ms, 2)


def test_committed_notebooks_are_what_their_sources_give():
    assert differences(TUTORIALS) == []


def test_a_changed_notebook_or_source_is_noticed(tmp_path):
    (tmp_path / "source").mkdir()
    copy = tmp_path / "source" / SOURCES[0].name
    copy.write_text(SOURCES[0].read_text(encoding="utf-8"), encoding="utf-8")
    build(tmp_path, execute=False)
    assert differences(tmp_path) == []
    copy.write_text(
        copy.read_text(encoding="utf-8").replace("**Goal.**", "**Aim.**"), encoding="utf-8"
    )
    assert len(differences(tmp_path)) == 2


@pytest.mark.parametrize("text", ["# %% slution\n1", "# %% stub\n1", "# %% solution\n1"])
def test_a_source_with_a_wrong_or_missing_heading_is_refused(tmp_path, text):
    path = tmp_path / "01_x.py"
    path.write_text(text)
    with pytest.raises(OptionError, match="# %%"):
        read_source(path)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebooks_hold_what_a_room_needs(source):
    exercise = nbformat.read(TUTORIALS / "exercises" / f"{source.stem}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in exercise.cells)
    for part in (
        "**Goal.**",
        "**Difficulty**",
        "**Time**",
        "hint(1)",
        "](../../notebooks/",
        "return None",
    ):
        assert part in text, part
    assert not any(cell.get("outputs") for cell in exercise.cells), (
        "exercises are committed unexecuted, by design"
    )
    assert not any("solution" in cell.metadata.get("tags", []) for cell in exercise.cells)
    solved = TUTORIALS / "solutions" / f"{source.stem}.ipynb"
    code = [cell for cell in nbformat.read(solved, as_version=4).cells if cell.cell_type == "code"]
    assert "Passed" in str(code[-1].outputs) and all(cell.execution_count for cell in code)
    assert all(len(cell.source.splitlines()) <= 20 for cell in code)
    assert solved.stat().st_size < 20_000


def test_solution_notebooks_run_once_under_nbval():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "-c",
        "/dev/null",
        "--rootdir",
        str(TUTORIALS),
        str(TUTORIALS / "solutions"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=TUTORIALS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{3 * len(SOURCES)} passed" in done.stdout


def test_the_readme_names_every_exercise_and_commands_that_exist():
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    assert all(source.stem in text for source in SOURCES)
    commands = [
        line
        for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    pips = [shlex.split(line) for line in commands if " -m pip " in line]
    assert {words[words.index("pip") + 1] for words in pips} == {"download", "install"}
    for words in pips:  # pip reads its options before it does anything; --help ends it there
        done = subprocess.run(
            [sys.executable, "-m", *words[words.index("pip") :], "--help"], capture_output=True
        )
        assert done.returncode == 0, words
    offline = [words for words in pips if "--no-index" in words]
    assert offline and all("--find-links" in words for words in offline)
