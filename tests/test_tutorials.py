"""The exercises: notebooks agree with their source, every check names the mistake, and no stub
passes."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import wrong_answers
import wrong_engines
import wrong_rounds
import yaml
from mistakes_page import CHECKS, PAGE, diagnosis, row
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from specmoe.engine.engine import load
from specmoe.errors import OptionError
from specmoe.lab import exercises
from specmoe.lab.exercises import (
    ExerciseError,
    calling,
    capstone,
    leaderboard,
    otter,
    parts,
    planning,
    rollback,
    verdict,
    workload,
)
from specmoe.lab.exercises.build import build, differences, read_source, sources_of
from specmoe.lab.exercises.nbgrader import export
from specmoe.lab.simulate import simulate
from specmoe.offload.votes import Votes

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
SOURCES = sources_of(TUTORIALS)
WRONG = [(check, name) for check, answers in CHECKS.items() for name in answers]


def run_cells(source: Path, left_out: str) -> None:
    """Run the code of one of the two notebooks here, without a kernel."""
    names: dict = {}
    for cell in read_source(source):
        if not cell.markdown and cell.tag != left_out:
            exec(compile(cell.text, source.name, "exec"), names)


def test_there_are_fourteen_exercises_and_each_names_its_check():
    used = [re.search(r"\bcheck_\w+", source.read_text(encoding="utf-8"))[0] for source in SOURCES]
    assert used == list(CHECKS) and len(used) == 14
    assert [getattr(exercises, check) for check in used] == list(exercises.EXERCISES)


def test_the_page_of_wrong_answers_has_each_with_its_diagnosis():
    """Numbers may depend on the machine that wrote the page; names and diagnoses do not."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith("| ") and "wrong answer" not in line]
    assert len(told) == len(WRONG)
    for line, (check, name) in zip(told, WRONG):
        words = row("", CHECKS[check][name][1])[5:-2]
        assert line.startswith(f"| {name} |") and words in line


@pytest.mark.parametrize(
    ("check", "name"), WRONG, ids=[f"{check[6:]}-{name}" for check, name in WRONG]
)
def test_a_plausible_wrong_answer_is_caught_and_the_message_names_it(check, name):
    sentence = diagnosis(check, name)
    assert CHECKS[check][name][1] in sentence


@pytest.mark.parametrize("check", CHECKS)
def test_there_are_ten_wrong_answers_or_more_and_hardly_two_get_one_message(check):
    words = [sentence for _, sentence in CHECKS[check].values()]
    assert len(words) >= 10 and len(set(words)) >= len(words) - 3


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


@pytest.mark.long  # the committed ones are what the sources give, and hold "Passed"
def test_solutions_run_once_under_nbval(tmp_path):
    """One after the other in one notebook: starting a kernel takes longer than most of them."""
    whole = new_notebook()
    for source in SOURCES:
        solved = nbformat.read(TUTORIALS / "solutions" / f"{source.stem}.ipynb", as_version=4)
        own = [cell for cell in solved.cells if cell.cell_type == "code"]
        whole.cells += [new_code_cell("%reset -f"), *own]
    nbformat.write(whole, tmp_path / "solutions.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=TUTORIALS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(whole.cells)} passed" in done.stdout


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


def test_the_broken_engine_shows_its_four_bugs_one_after_the_other():
    """As a student mends them, from the first that the check names to the last."""
    [cell] = [cell for cell in read_source(SOURCES[13]) if "def broken" in cell.text]
    mends = (
        ("the same text", "model.draft(text)", "model.draft(text + drafted)"),
        ("behind the first rejection", "sum(", "wrong_engines.prefix(drafted, target) or 0 * sum("),
        ("keys that stand", "forget(accepted)", "forget(len(drafted) - accepted)"),
        ("room for", "range(gamma)", "range(min(gamma, num_new + len(prompt) - len(text) - 1))"),
    )
    left, code = {words for words, _, _ in mends}, cell.text
    while left:
        names: dict = {"wrong_engines": wrong_engines}
        exec(code, names)
        with pytest.raises(ExerciseError) as caught:
            exercises.check_repair(names["broken"])
        [found] = [mend for mend in mends if mend[0] in caught.value.sentence]
        left.remove(found[0])
        assert found[1] in code
        code = code.replace(found[1], found[2])
    exec(code, names)
    assert exercises.check_repair(names["broken"]).points == 3


def test_reading_ahead_is_the_engines_own_order():
    draw = random.Random(3)
    for _ in range(50):
        votes = Votes(3, 5)
        votes.counts = [[draw.choice([0, 0, 1, 2, 3]) for _ in range(5)] for _ in range(3)]
        votes.quorum = draw.choice([1, 2])
        wanted = [tuple(key) for key in votes.after(-1)]
        assert parts.read_ahead(votes.counts, set(), votes.quorum, 99) == wanted


def test_every_exercise_has_a_slot_in_a_plan():
    plans = json.loads((TUTORIALS / "slides.json").read_text(encoding="utf-8"))
    said = " ".join(
        part.get("text", "") + part.get("notes", "")
        for plan in plans.values()
        for part in plan["parts"]
    )
    missing = [one.stem for one in SOURCES if f"tutorials/exercises/{one.stem}.ipynb" not in said]
    assert missing == []


BAD_ANSWERS = {
    "a class": (type("Table", (), {}), "is a class"),
    "a generator": (lambda d, r: (e for e in r), "make a list of it"),
    "prints": (lambda d, r: print(r) or r, "your function prints"),
    "raises": (lambda d, r: 1 / 0, "raised ZeroDivisionError"),
    "random": (lambda d, r: [random.randrange(4) for _ in d], "random numbers of its own"),
    "one argument": (lambda d: d, "takes 1 arguments and is called with 2"),
    "a text": (lambda d, r: "0033", "wrong form"),
    "fractions": (lambda d, r: [0.5, 0.5, 3.0, 3.0], "wrong form"),
    "not called": ([0, 0, 3, 3], "leave out its brackets"),
    "changed": (lambda d, r: r.append(0) or r, "changes its argument residents"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_what_is_no_answer_at_all_is_told_in_one_sentence(name):
    answer, words = BAD_ANSWERS[name]
    with pytest.raises(ExerciseError) as caught:
        exercises.check_nearest(answer)
    assert words in caught.value.sentence and "\n" not in caught.value.sentence


def yields(*given):
    yield from given


NO_FUNCTIONS = {
    "a class": (dict, "is a class"),
    "a generator function": (yields, "yields or awaits"),
    "a generator": (yields(), "leave out its brackets"),
}


@pytest.mark.parametrize("name", NO_FUNCTIONS)
@pytest.mark.parametrize("check", CHECKS)
def test_every_check_tells_a_class_and_a_generator_in_one_sentence(check, name, tmp_path):
    """And such an answer never reaches the leaderboard."""
    answer, words = NO_FUNCTIONS[name]
    board = tmp_path / "room.jsonl"
    with pytest.raises(ExerciseError) as caught:
        getattr(exercises, check)(answer, board=board)
    assert words in caught.value.sentence and "\n" not in str(caught.value)
    assert not board.exists()


@pytest.mark.parametrize("name", NO_FUNCTIONS)
def test_graded_cells_tell_a_class_and_a_generator_in_one_sentence(name, tmp_path):
    answer, words = NO_FUNCTIONS[name]
    cells = nbformat.read(export(TUTORIALS, tmp_path)[8], as_version=4).cells
    [graded] = [cell.source for cell in cells if cell.metadata["nbgrader"]["grade"]]
    with pytest.raises(ExerciseError, match=words):
        exec(graded, {"check_rollback": exercises.check_rollback, "next_block": answer})
    names: dict = {}
    tests = _between(
        nbformat.read(otter.export(TUTORIALS, tmp_path)[8], as_version=4).cells, "TESTS"
    )
    exec(tests[0].source, names)
    with pytest.raises(ExerciseError, match=words):
        names["test_pass"](answer)


@pytest.mark.parametrize("board", [dict, yields(), 7])
def test_a_board_that_is_no_file_name_is_one_sentence(board):
    with pytest.raises(OptionError, match="is no name of a leaderboard file") as caught:
        exercises.Exercise("rollback", rollback.check_rollback)(parts.next_block, board=board)
    assert "\n" not in str(caught.value)


def test_a_generator_function_and_a_loop_without_end_are_told(monkeypatch):
    def yields(distances, residents):
        yield 0

    def ends_never(distances, residents):
        while True:
            pass

    with pytest.raises(ExerciseError, match="yields"):
        exercises.check_nearest(yields)
    task = calling.Task("f", ("distances", "residents"), "a list", seconds=1)
    with pytest.raises(ExerciseError, match="within 1 seconds"):
        task.call(ends_never, [], [])


def test_the_failing_call_is_printed_with_what_was_answered_and_what_is_right():
    with pytest.raises(ExerciseError) as caught:
        exercises.check_nearest(lambda distances, residents: [0, 0, 1, 1])
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  table(distances=[[0.0, 1.0, 4.0, 6.0]")
    assert lines[1].endswith("residents=[0, 3])")
    assert lines[2:] == ["  your answer: [0, 0, 1, 1]", "  expected:    [0, 0, 3, 3]"]


def test_an_answer_that_remembers_between_calls_is_told():
    seen: list = []

    def remembers(alpha, gamma):
        seen.append(alpha)
        return sum(alpha**i for i in range(gamma + 1)) + (len(seen) > 40)

    with pytest.raises(ExerciseError, match="remembers something between calls"):
        exercises.check_expected_tokens(remembers)


def test_hints_give_the_tier_where_no_number_does():
    check = exercises.Exercise("rollback", rollback.check_rollback)
    assert check(parts.next_block).tier == "excellent"
    assert "nudge" in repr(check.hint(1)) and check(parts.next_block).tier == "good"
    check.hint(3)
    assert check(parts.next_block).tier == "pass" and check(parts.next_block).points == 1
    for level in (0, 4, True, "1"):
        with pytest.raises(ExerciseError, match="there is no hint"):
            check.hint(level)


def test_a_scale_names_its_limits_and_the_best_tier_reached():
    scale = verdict.Scale("MB", (60.0, 50.0, 40.0))
    assert [scale.tier(score) for score in (61, 60, 50, 40)] == [None, "pass", "good", "excellent"]
    assert str(scale) == "pass up to 60 MB, good up to 50 MB, excellent up to 40 MB"


def test_the_capstones_machine_decodes_as_the_engine_does():
    """Its plain tokens are the engine's own, so that "exact" means the package's text."""
    with load("tiny-skewed", store="memory") as engine:
        output = workload.generate(
            engine, max_new_tokens=capstone.NUM_NEW, method="on_demand", batch_size=4
        )
    new = [
        list(map(int, row))[num:] for row, num in zip(output.sequences, output.num_prompt_tokens)
    ]
    tokens, num_bytes = capstone.reference(4, 0, False)
    assert tokens == new
    assert capstone.reference(4, 5, True) == (new, pytest.approx(num_bytes * 0.44, rel=0.02))


def test_the_leaderboard_holds_everybodys_best(tmp_path, monkeypatch):
    board = tmp_path / "room.jsonl"
    monkeypatch.setenv("SPECMOE_LEADERBOARD", str(board))
    monkeypatch.setenv("SPECMOE_NAME", "Ada, of row 2")
    check = exercises.Exercise("rollback", rollback.check_rollback)
    check(parts.next_block)
    check.hint(3)
    check(parts.next_block)
    monkeypatch.setenv("SPECMOE_NAME", "Bob")
    check(parts.next_block)
    with pytest.raises(ExerciseError):
        check(lambda *given: [])
    table = leaderboard.standings(board)
    assert table["name"].tolist() == ["Ada, of row 2", "Bob"] and len(leaderboard.read(board)) == 3
    assert table["points"].tolist() == [3, 1] and table["rollback"].tolist() == [
        "excellent",
        "pass",
    ]
    for text in ("", "no json", '{"name": "x"}'):
        board.write_text(text)
        with pytest.raises(OptionError, match="room.jsonl"):
            leaderboard.standings(board)
    passed = check(parts.next_block, board=tmp_path / "no" / "folder")
    assert "not on the leaderboard" in repr(passed)


def test_the_nbgrader_course_locks_the_text_and_grades_the_check(tmp_path):
    written = export(TUTORIALS, tmp_path / "course")
    assert [path.stem for path in written] == [source.stem for source in SOURCES]
    for path in written:
        cells = nbformat.read(path, as_version=4).cells
        found = [cell.metadata["nbgrader"] for cell in cells]
        ids = [one["grade_id"] for one in found]
        assert len(set(ids)) == len(ids) and all(one["schema_version"] == 3 for one in found)
        assert all(one["locked"] != one["solution"] for one in found)
        [graded] = [cell for cell in cells if cell.metadata["nbgrader"]["grade"]]
        assert graded.source.startswith("check_") and graded.source.endswith(").points")
        for cell in cells:
            inside = "### BEGIN SOLUTION" in cell.source and "### END SOLUTION" in cell.source
            assert inside == cell.metadata["nbgrader"]["solution"]
            assert "](../" not in cell.source
        names: dict = {}
        for cell in cells:  # with its marks the instructor's copy is still Python
            if cell.metadata["nbgrader"]["solution"]:
                exec(compile("import torch\n" + cell.source, path.name, "exec"), names)


def test_the_otter_assignments_are_in_the_documented_format(tmp_path):
    """As its documentation has it: raw YAML cells open and close blocks, in this order; the
    configuration comes first; three tests of a point each call the check."""
    written = otter.export(TUTORIALS, tmp_path)
    assert [path.stem for path in written] == [source.stem for source in SOURCES]
    for path in written:
        cells = nbformat.read(path, as_version=4).cells
        raw = [cell.source.splitlines()[0] for cell in cells if cell.cell_type == "raw"]
        assert raw == ["# ASSIGNMENT CONFIG", *(f"# {one}" for one in OTTER_BLOCKS)]
        config, question = (yaml.safe_load(cells[i].source) for i in (0, _begin(cells, "QUESTION")))
        assert config["name"] == path.stem and config["tests"] == {"ok_format": False}
        assert question["points"] == 3 and cells[0].cell_type == "raw"
        solved = _between(cells, "SOLUTION")
        assert solved and all("    # BEGIN SOLUTION\n" in cell.source for cell in solved)
        names: dict = {}
        for cell in solved:  # the marks are comments: the master notebook runs as it is
            exec(compile("import torch\n" + cell.source, path.name, "exec"), names)
        assert callable(names[question["name"]])
        tests = [cell.source for cell in _between(cells, "TESTS")]
        heads = [yaml.safe_load(one.split('"""')[1].partition("\n")[2]) for one in tests]
        assert heads == [{"points": 1}] * 3 and len(set(tests)) == 3
        assert not any("](../" in cell.source for cell in cells)


OTTER_BLOCKS = [
    "BEGIN QUESTION",
    "BEGIN SOLUTION",
    "END SOLUTION",
    "BEGIN TESTS",
    "END TESTS",
    "END QUESTION",
]


def _begin(cells, block: str) -> int:
    return next(i for i, cell in enumerate(cells) if cell.source.startswith(f"# BEGIN {block}"))


def _between(cells, block: str) -> list:
    end = next(i for i, cell in enumerate(cells) if cell.source == f"# END {block}")
    return [cell for cell in cells[_begin(cells, block) + 1 : end] if cell.cell_type == "code"]


def test_otters_tests_give_a_point_for_each_tier(tmp_path):
    cells = nbformat.read(otter.export(TUTORIALS, tmp_path)[8], as_version=4).cells
    names: dict = {}
    for cell in _between(cells, "TESTS"):
        exec(cell.source, names)
    tests = [names[f"test_{tier}"] for tier in ("pass", "good", "excellent")]
    exercises.check_rollback.hints_read = 1
    try:
        tests[0](parts.next_block)
        tests[1](parts.next_block)
        with pytest.raises(AssertionError):
            tests[2](parts.next_block)
        with pytest.raises(ExerciseError, match="one position early"):
            tests[0](wrong_rounds.ROLLBACK["one early"][0])
    finally:
        exercises.check_rollback.hints_read = 0


def test_an_exported_notebook_grades_a_right_and_a_wrong_answer_in_a_kernel(tmp_path):
    """What nbgrader does: run all cells, take the number that the graded cell shows; an error is
    nought points."""
    [path] = [p for p in export(TUTORIALS, tmp_path) if p.stem == "09_kv_rollback"]
    notebook = nbformat.read(path, as_version=4)
    solved, graded = (
        next(cell for cell in notebook.cells if cell.metadata["nbgrader"][kind])
        for kind in ("solution", "grade")
    )
    early = solved.source.replace("start + 1 + number", "start + number")
    assert early != solved.source
    notebook.cells += [nbformat.v4.new_code_cell(text) for text in (early, graded.source)]
    NotebookClient(notebook, timeout=120, allow_errors=True).execute()
    [right], [wrong] = graded.outputs, notebook.cells[-1].outputs
    assert right["data"]["text/plain"] == "3"
    assert wrong["output_type"] == "error" and wrong["ename"] == "ExerciseError"
    assert "one position early" in "".join(wrong["traceback"])


@pytest.mark.parametrize("grader", [export, otter.export])
def test_a_course_into_a_file_is_refused(tmp_path, grader):
    (tmp_path / "course").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        grader(TUTORIALS, tmp_path / "course")
