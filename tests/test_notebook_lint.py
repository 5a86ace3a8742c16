"""Committed notebooks keep the rules of ``notebook_lint``, and a notebook that breaks one of them
is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from notebook_lint import MAX_OUTPUT_BYTES, WIDGETS, broken_rules, lint_file

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("tutorials/**/*.ipynb")])


def made(*cells, **metadata):
    """A good notebook, and ``cells`` after its parameters."""
    first = new_code_cell("gamma = 3", execution_count=1, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[first, *cells], metadata={**KERNEL, **metadata})


def executed(source: str, *outputs, count: int | None = 2):
    return new_code_cell(source, execution_count=count, outputs=list(outputs))


def shown(text: str, kind: str = "text/html"):
    return new_output("display_data", data={kind: text})


def printed(text: str):
    return new_output("stream", name="stdout", text=text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_notebook_breaks_no_rule(path):
    if ".ipynb_checkpoints" in path.parts:
        pytest.skip("Jupyter's own copy")
    assert lint_file(path) == []


BROKEN = {
    "was not executed": made(executed("x = 1", count=None)),
    "out of order": made(executed("x = 1", count=3), executed("y = 1", count=2)),
    "shows nothing": made(executed("print(gamma)")),
    "failed: ValueError": made(
        executed("f()", new_output("error", ename="ValueError", evalue="no", traceback=[]))
    ),
    "has 21 lines": made(executed("x = 1\n" * 21)),
    "defines class Pool": made(executed("class Pool:\n    pass")),
    "defines draw of 6 lines": made(executed("def draw():\n" + "    x = 1\n" * 5)),
    "builds draw by hand, and no assert": made(
        new_code_cell(
            "def draw():\n" + "    x = 1\n" * 9, execution_count=2, metadata={"tags": ["by-hand"]}
        ),
        executed("draw()", count=3),
    ),
    "three loops": made(
        executed("for i in x:\n    for j in i:\n        for k in j:\n            f(k)")
    ),
    "outputs take": made(executed("x = 1", printed("a" * (MAX_OUTPUT_BYTES + 1)))),
    "fetches https://cdn.example/x.js": made(
        executed("x = 1", shown('<script src="https://cdn.example/x.js">'))
    ),
    "fetches //cdn.example/x.css": made(
        executed("x = 1", shown("<link rel='stylesheet' href='//cdn.example/x.css'>"))
    ),
    "fetches https://e.example/f.woff": made(
        executed("x = 1", shown("<style>a{src:url(https://e.example/f.woff)}</style>"))
    ),
    "fetches https://e.example/x.png": made(
        executed("x = 1", shown("![x](https://e.example/x.png)", "text/markdown"))
    ),
    "path of this machine: /home/ada/x": made(executed("x = 1", printed("wrote /home/ada/x"))),
    "lacks `state`": made(widgets={WIDGETS: {"version_major": 2}}),
    "no cell is tagged": new_notebook(cells=[executed("x = 1", count=1)], metadata=KERNEL),
    "names no kernel": made(kernelspec={"name": "ir", "display_name": "R"}),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_notebook_is_found_and_nothing_else_is_said_of_it(words):
    (problem,) = broken_rules(BROKEN[words])
    assert words in problem


def test_what_is_allowed_passes():
    state = {"state": {}, "version_major": 2, "version_minor": 0}
    svg = '<svg xmlns="http://www.w3.org/2000/svg"></svg><a href="https://arxiv.org">paper</a>'
    notebook = made(
        executed("# only a comment", count=None),
        executed(
            "def add(a, b):\n    return a + b\n\n\nadd(1, 2)",
            printed("3 at 10/100/1000 MB/s"),
            shown(svg),
        ),
        executed(
            "for i in range(3):\n    for j in range(3):\n        print(i)", printed("0"), count=3
        ),
        executed("%matplotlib inline", count=4),
        new_code_cell(
            "def draw():\n" + "    x = 1\n" * 9, execution_count=5, metadata={"tags": ["by-hand"]}
        ),
        executed("assert draw() is None", count=6),
        widgets={WIDGETS: state},
    )
    assert broken_rules(notebook) == []


def test_an_exercise_may_wait_for_its_reader_but_not_grow():
    waiting = new_notebook(cells=[new_code_cell("class Mine:\n    ...")], metadata=KERNEL)
    assert broken_rules(waiting, exercise=True) == [] and len(broken_rules(waiting)) == 3
    assert broken_rules(waiting, tutorial=True) == ["cell 1 was not executed"]
    long = new_notebook(cells=[new_code_cell("x = 1\n" * 30)], metadata=KERNEL)
    assert broken_rules(long, exercise=True) == ["cell 1 has 30 lines: at most 20"]


def test_the_notebook_that_builds_may_define_and_no_other():
    built = made(executed("class Pool:\n    pass" + "\n" * 24 + "x = 1"))
    assert broken_rules(built, builds=True) == [] and len(broken_rules(built)) == 2
    long = made(executed("x = 1\n" * 36))
    assert broken_rules(long, builds=True) == ["cell 2 has 36 lines: at most 35"]


def test_there_are_notebooks_to_look_at():
    assert NOTEBOOKS
