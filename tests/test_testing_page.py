"""What docs/testing.md says about the tests: every test it names is there, and its numbers are
those of the last run."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import guards
import mutate
import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
FOUND = json.loads((ROOT / "docs/results/mutation.json").read_text(encoding="utf-8"))
SURVIVORS = [row for row in FOUND["rows"] if row["verdict"] == "survived"]


def functions_of_the_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    return {
        node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }


def test_every_test_that_the_page_names_is_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 50
    assert not named - functions_of_the_tests()


def test_every_promise_and_every_kind_of_fault_has_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    promises = [
        row for row in rows if row.count("|") == 4 and not row.startswith(("|---", "| promise"))
    ]
    kinds = [row for row in promises if re.match(r"\| \d+ \|", row)]
    assert [int(row.split("|")[1]) for row in kinds] == list(range(1, 15))
    assert all("`test_" in row for row in promises if row in kinds or row.startswith("| The"))


def test_the_page_says_how_many_bugs_were_caught_and_which_were_not():
    caught = sum(row["verdict"] == "caught" for row in FOUND["rows"])
    assert FOUND["bugs"] == len(FOUND["rows"]) >= 80 and FOUND["caught"] == caught
    assert f"**{caught} of {FOUND['bugs']}**" in PAGE
    for row in SURVIVORS:
        assert f"| `{row['file'].removeprefix('specmoe/')}` | `{shown(row)}` |" in PAGE


def shown(row: dict) -> str:
    """A bug in the cell of a table."""
    old, new = (" ".join(row[name].split()).replace("|", "\\|") for name in ("old", "new"))
    return f"{old} -> {new}"


def test_bugs_were_drawn_from_every_target():
    judged = {row["file"] for row in FOUND["rows"]}
    assert judged == {f"specmoe/{name}.py" for name in mutate.TARGETS}


# ---- the tool itself


@pytest.mark.parametrize(
    ("statement", "new"),
    [
        ("return a < b", "(a <= b)"),
        ("return a + 1", "(a - 1)"),
        ("return a and b", "(a or b)"),
        ("return not a", "(a)"),
        ("return 3", "4"),
        ("free(a)", "pass"),
        ("return min(a, b)", "max"),
    ],
)
def test_each_kind_of_bug_is_planted(statement, new):
    assert new in [bug.new for bug in mutate.bugs_in("x.py", f"def f(a, b):\n    {statement}\n")]


@pytest.mark.parametrize(
    "statement",
    [
        "return [a] * b",
        "return f'{1 + 2}'",
        "a: Annotated[int, 3] = b",
        "raise StoreError(a + b[:120])",
        "return StoreError(a + b[:120])",
        "warnings.warn(a, stacklevel=2)",
    ],
)
def test_nothing_is_planted_where_nobody_would_have_to_notice(statement):
    text = f"def f(a, b):\n    {statement}\n"
    assert not list(mutate.bugs_in("x.py", text))


def test_what_makes_a_message_is_left_alone():
    body = "(a):\n    a = str(a)[:120]\n    return a\n"
    assert list(mutate.bugs_in("x.py", "def f" + body))
    for name in ("def f(a) -> errors.StoreError:" + body[4:], "def __repr__" + body):
        assert not list(mutate.bugs_in("x.py", name))


def test_the_condition_of_an_error_is_planted():
    text = "def f(a):\n    if a < 3:\n        raise ValueError(a + 1)\n"
    bugs = list(mutate.bugs_in("x.py", text))
    assert {bug.new for bug in bugs} == {"(a <= 3)", "4"}
    assert {bug.lines for bug in bugs} == {(2, 2)}


def test_a_planted_bug_is_the_only_change():
    text = "def f(ä, b):\n    return ä < b or b == 1\n"
    bugs = list(mutate.bugs_in("x.py", text))
    for bug in bugs:
        changed = bug.planted(text)
        assert changed == text[: bug.start] + bug.new + text[bug.end :] != text
        compile(changed, "x.py", "exec")
    assert len(bugs) == 4


def test_the_same_bugs_are_drawn_everywhere_and_more_are_those_and_others():
    few, more = mutate.draw(3, "votes"), mutate.draw(5, "votes")
    assert few == mutate.draw(3, "votes") and len(few) == 3 and set(few) < set(more)
    assert len({bug.name for bug in mutate.draw(10**6, "")}) == len(mutate.draw(10**6, ""))


MODULE = """def half(a):
    if a < 0:
        return (
            -half(-a)
        )
    return a // 2
"""
TESTS = """import time, threading, mod, pytest
@pytest.fixture
def three(): return mod.half(7)
def test_fixture(three): assert three == 3
def test_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(mod.half(-2)))
    thread.start(); thread.join()
    assert seen == [-1]
def test_elsewhere(): pass
def test_hangs(): assert mod.half(5) == 2
def test_fails(): assert mod.half(2) == 3
"""


def in_a_process(folder: Path, lines: str) -> int:
    begin = "from pathlib import Path; import guards; here = Path('.').resolve()\n"
    path = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-c", begin + lines]
    return subprocess.run(command, cwd=folder, env=path, timeout=300).returncode


def test_what_each_test_runs_is_known(tmp_path):
    (tmp_path / "mod.py").write_text(MODULE)
    (tmp_path / "test_mod.py").write_text(TESTS)
    in_a_process(tmp_path, "guards.record(here, 'test_mod.py', ['mod.py'], Path('out.json'))")
    known = json.loads((tmp_path / "out.json").read_text())
    ran = {name.split("::")[1]: row["lines"] for name, row in known.items()}
    assert ran == {
        "test_fixture": {"mod.py": [2, 6]},
        "test_thread": {"mod.py": [2, 3, 4, 6]},
        "test_elsewhere": {},
        "test_hangs": {"mod.py": [2, 6]},
    }


TRY_OUT = """
old = (here / 'mod.py').read_text()
def task(trials):
    def ask(new, *names):
        plant = lambda: guards.swap(here / 'mod.py', old, new)
        limits = {f'tests/test_mod.py::test_{name}': 2 for name in names}
        status, first = trials.try_out(plant, limits)
        with open('out', 'a') as out:
            print(status, first, file=out)
    ask(old.replace('//', '/'), 'elsewhere', 'fixture', 'fails')
    ask(old, 'fixture', 'thread')
    ask(old.replace('-half', 'half'), 'fixture', 'elsewhere')
    ask(old.replace('-half', 'half'), 'fixture', 'thread')
    ask(old.replace('-half', '__import__("os").abort() or half'), 'elsewhere', 'thread')
    ask(old.replace('if a < 0:', 'while a == 5:').replace('return (', '('), 'elsewhere', 'hangs')
guards.collect(here, 'test_mod', guards.Trials(task, here / 'heard'))
"""


def test_bugs_are_tried_out_one_after_the_other_on_those_who_are_asked(tmp_path):
    (tmp_path / "mod.py").write_text(MODULE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/conftest.py").write_text("")
    (tmp_path / "tests/test_mod.py").write_text(TESTS)
    assert in_a_process(tmp_path, TRY_OUT) == 0
    assert (tmp_path / "out").read_text().splitlines() == [
        "1 tests/test_mod.py::test_fixture",
        "0 ",
        "0 ",
        "1 tests/test_mod.py::test_thread",
        "-6 tests/test_mod.py::test_thread",
        "None tests/test_mod.py::test_hangs",
    ]


def test_of_the_tests_that_run_a_line_each_function_is_asked_once_before_one_is_asked_again():
    def row(seconds, *lines):
        return {"seconds": seconds, "lines": {"mod.py": list(lines)}}

    known = {
        "a.py::test_one[1]": row(2, 5),
        "a.py::test_one[2]": row(1, 5),
        "a.py::test_slow": row(20, 6),
        "b.py::test_both": row(5, 5, 6),
        "b.py::test_elsewhere": row(1, 7),
    }
    order = ["a.py::test_one[2]", "a.py::test_slow", "a.py::test_one[1]", "b.py::test_both"]
    assert guards.choose(known, "mod.py", range(5, 7)) == order
    known["a.py::test_slow"]["seconds"] = guards.ASKED_S
    order.remove("a.py::test_slow")
    assert guards.choose(known, "mod.py", range(5, 7)) == order
    assert guards.choose({"a.py::test_slow": row(10**6, 5)}, "mod.py", range(5, 7)), "never none"


BUG = mutate.Bug("specmoe/x.py", "f", 0, 2, (2, 2), 20, 21, "a", "(not a)")


@pytest.fixture
def small_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "ROOT", tmp_path / "root")
    for name in ("specmoe", "tests", "docs"):
        (tmp_path / "root" / name).mkdir(parents=True)
    for name in ("README.md", "pyproject.toml", "specmoe/x.py", "specmoe/y.py"):
        (tmp_path / "root" / name).write_text(f"def f(a): return a  # {name}")
    return tmp_path


def workplace(small_tree, renew=False) -> mutate.Workplace:
    return mutate.Workplace(small_tree / "work", renew)


def test_a_run_goes_on_where_it_stopped_and_a_renewed_one_judges_what_may_have_changed(small_tree):
    def names() -> list[str]:
        return [row["file"][-4:] + row["verdict"] for row in work.rows().values()]

    work = workplace(small_tree)
    work.add(BUG, "caught", "tests/a.py::test_one")
    work.add(replace(BUG, number=1), "survived", "3 tests")
    work.add(replace(BUG, file="specmoe/y.py"), "caught", "it hangs")
    (small_tree / "root/specmoe/y.py").write_text("def f(a): return 2 * a")
    with pytest.raises(SystemExit, match="another run"):
        workplace(small_tree)
    work.lock.close()
    work = workplace(small_tree)
    assert names() == ["x.pycaught", "x.pysurvived", "y.pycaught"]
    work.lock.close()
    work = workplace(small_tree, renew=True)
    assert names() == ["x.pycaught"]


def test_a_run_that_was_ended_leaves_no_bug_in_the_tree(small_tree):
    work = workplace(small_tree)
    path = work.tree / BUG.file
    text = path.read_text()
    bug = replace(BUG, start=text.index("a  #"), end=text.index("  #"))
    with work.planted(bug):
        assert path.read_text() == "def f(a): return (not a)  # specmoe/x.py"
    assert path.read_text() == text
    path.write_text("a bug is left")
    work.lock.close()
    assert (workplace(small_tree).tree / BUG.file).read_text() == text


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ([(0, "")], ("survived", "2 tests")),
        ([(1, "a::test_b"), (0, "")], ("caught", "a::test_b")),
        ([(-11, "a::test_b"), (0, "")], ("caught", "a::test_b")),
        ([(-6, ""), (0, "")], ("caught", "the process of its tests ends")),
        ([(None, "a::test_b"), (0, "")], ("caught", "a::test_b hangs")),
        ([(1, "a::test_b"), (1, "a::test_b"), (0, "")], ("survived", "1 tests")),
        ([(1, "a::test_b"), (1, "a::test_b"), (1, "a::test_c"), (0, "")], ("caught", "a::test_c")),
        (
            [(None, "a::test_b"), (None, "a::test_b")],
            ("not judged", "its tests are slow, or end without a failure"),
        ),
    ],
    ids=["pass", "fail", "crash", "end", "hang", "unsound", "unsound, then fail", "slow"],
)
def test_a_bug_is_caught_only_by_tests_that_pass_in_a_third_of_the_time_without_it(ends, verdict):
    asked = []

    def try_out(plant, limits):
        asked.append((plant is planted, list(limits.values())))
        return ends[sum(type(one) is tuple for one in asked) - 1]

    @contextmanager
    def in_file():
        """A module that is imported late comes from its file: there is no bug left for others."""
        asked.append("planted")
        yield planted
        asked.append("gone")

    trials, planted = SimpleNamespace(try_out=try_out), object()
    bug = replace(BUG, file="specmoe/engine/run.py")
    row = {"seconds": 15, "lines": {"specmoe/engine/run.py": [2]}}
    known = {"a::test_b": row, "a::test_c": row}
    assert mutate.judge(trials, bug, in_file, known) == verdict
    again = [30] if ends[0][1] else [30, 30]
    assert asked[:4] == ["planted", (True, [90, 90]), "gone", (False, again)][: len(asked)]
    assert sum(type(one) is tuple for one in asked) == len(ends)
    assert mutate.judge(trials, bug, in_file, {}) == ("survived", "no test runs it")
