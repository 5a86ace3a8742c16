"""The exercises for otter-grader: master notebooks in the format of Otter Assign.

Comes in: a tutorials folder. Goes out: ``NN_name/NN_name.ipynb``, one assignment each, for ``otter
assign NN_name.ipynb dist``: raw cells open and close its blocks, the solution's body stands between
marks that it takes out, and three tests give a point each, for pass, good and excellent. ``python
-m specmoe.lab.exercises otter tutorials DIR`` calls it.
"""

from __future__ import annotations

import re
from pathlib import Path

from .build import METADATA, Cell, read_source, sources_of
from .nbgrader import POINTS, marked, unlinked, write_each

BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
CONFIG = """# ASSIGNMENT CONFIG
name: {name}
init_cell: true
check_all_cell: false
export_cell:
  pdf: false
generate: true
tests:
  ok_format: false"""
QUESTION = f"# BEGIN QUESTION\nname: {{name}}\npoints: {POINTS}"
TEST = '''""" # BEGIN TEST CONFIG
points: 1
""" # END TEST CONFIG
def test_{tier}({answer}):
    from specmoe.lab.exercises import {check}
    assert {check}({answer}).points >= {points}'''
TIERS = ("pass", "good", "excellent")


def notebook_of(source: Path):
    """The master notebook of one exercise."""
    from nbformat import v4

    cells = [v4.new_raw_cell(CONFIG.format(name=source.stem))]
    parts = [cell for cell in read_source(source) if cell.tag != "stub"]
    solutions = [cell for cell in parts if cell.tag == "solution" and not cell.markdown]
    check = next(cell for cell in parts if cell.text.startswith("check_"))
    for cell in parts:
        if cell.tag == "solution" or cell is check:
            continue
        make = v4.new_markdown_cell if cell.markdown else v4.new_code_cell
        cells.append(make(unlinked(cell.text) if cell.markdown else cell.text))
    cells += _question(v4, source.stem, solutions, check)
    for number, cell in enumerate(cells):
        cell["id"] = f"{source.stem[:2]}-{number:02d}"
    return v4.new_notebook(cells=cells, metadata=METADATA)


def _question(v4, name: str, solutions: list[Cell], check: Cell) -> list:
    """The block of the one question: solution cells, then tests."""
    called, answer = re.fullmatch(r"(check_\w+)\((\w+)\)", check.text).groups()
    tests = [
        TEST.format(tier=tier, answer=answer, check=called, points=points)
        for points, tier in enumerate(TIERS, 1)
    ]
    return [
        v4.new_raw_cell(QUESTION.format(name=answer)),
        v4.new_raw_cell(BEGIN),
        *(v4.new_code_cell(marked(cell.text, BEGIN, END)) for cell in solutions),
        v4.new_raw_cell(END),
        v4.new_raw_cell("# BEGIN TESTS"),
        *map(v4.new_code_cell, tests),
        v4.new_raw_cell("# END TESTS"),
        v4.new_raw_cell("# END QUESTION"),
    ]


def export(tutorials: Path, folder: Path) -> list[Path]:
    """Write every assignment into a folder of its own below ``folder``."""
    names = [source.stem for source in sources_of(tutorials)]
    targets = [folder / name / f"{name}.ipynb" for name in names]
    return write_each(tutorials, targets, notebook_of)
