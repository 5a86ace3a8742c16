"""What docs/testing.md says about the tests: every test it names is there, and its numbers are
those of the last run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

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


def test_bugs_were_drawn_from_most_targets():
    judged = {row["file"] for row in FOUND["rows"]}
    assert judged <= {f"specmoe/{name}.py" for name in mutate.TARGETS} and len(judged) > 10


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
    ["return [a] * b", "return f'{1 + 2}'", "a: Annotated[int, 3] = b"],
)
def test_nothing_is_planted_where_nobody_would_have_to_notice(statement):
    text = f"def f(a, b):\n    {statement}\n"
    assert not list(mutate.bugs_in("x.py", text))


def test_a_planted_bug_is_the_only_change(tmp_path):
    text = "def f(ä, b):\n    return ä < b or b == 1\n"
    bugs = list(mutate.bugs_in("x.py", text))
    for bug in bugs:
        (tmp_path / "x.py").write_text(text, encoding="utf-8")
        bug.plant(tmp_path)
        changed = (tmp_path / "x.py").read_text(encoding="utf-8")
        assert changed == text[: bug.start] + bug.new + text[bug.end :] != text
        compile(changed, "x.py", "exec")
    assert len(bugs) == 4


def test_the_same_bugs_are_drawn_everywhere():
    assert mutate.draw(3, "votes") == mutate.draw(3, "votes") and len(mutate.draw(3, "votes")) == 3
