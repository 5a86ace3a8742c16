"""The exercises as an nbgrader course: ``source/specmoe/NN_name.ipynb`` with its cells tagged.

Comes in: a tutorials folder. Goes out: notebooks in which every solution stands between nbgrader's
marks (``nbgrader generate_assignment specmoe`` takes it out), what the text says is locked, and the
check is a graded cell whose value, 1 to 3 by tier, nbgrader takes as points. ``python -m
specmoe.lab.exercises nbgrader tutorials DIR`` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ...errors import OptionError
from .build import METADATA, Cell, read_source, sources_of, write

ASSIGNMENT, POINTS, SCHEMA = "specmoe", 3, 3
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CONFIG = """c = get_config()
c.CourseDirectory.course_id = "specmoe"
c.ExecutePreprocessor.timeout = 900
"""


def tags(name: str, cell_type: str, solution: bool = False, grade: bool = False) -> dict:
    """nbgrader's metadata of one cell, schema version 3."""
    found = {
        "grade": grade,
        "grade_id": name,
        "locked": not solution,
        "schema_version": SCHEMA,
        "solution": solution,
        "task": False,
        "cell_type": cell_type,
    }
    return {"nbgrader": found | ({"points": POINTS} if grade else {})}


def marked(code: str, begin: str = BEGIN, end: str = END) -> str:
    """A solution with its body between a grader's marks: the ``def`` line stays in the student's
    copy."""
    lines = code.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("def "))
    body = "\n".join(lines[first + 1 :])
    return "\n".join([*lines[: first + 1], f"    {begin}", body, f"    {end}"])


def notebook_of(source: Path):
    """The instructor's notebook of one exercise."""
    from nbformat import v4

    cells = []
    for number, cell in enumerate(read_source(source)):
        if cell.tag == "stub" or (cell.tag == "solution" and cell.markdown):
            continue
        cells.append(_cell(v4, cell, f"{source.stem[:2]}-{number:02d}"))
    return v4.new_notebook(cells=cells, metadata=METADATA)


def _cell(v4, cell: Cell, name: str):
    if cell.markdown:
        return v4.new_markdown_cell(unlinked(cell.text), id=name, metadata=tags(name, "markdown"))
    if cell.tag == "solution":
        found = tags(name, "code", solution=True)
        return v4.new_code_cell(marked(cell.text), id=name, metadata=found)
    if cell.text.startswith("check_"):
        found = tags(name, "code", grade=True)
        return v4.new_code_cell(f"{cell.text}.points", id=name, metadata=found)
    return v4.new_code_cell(cell.text, id=name, metadata=tags(name, "code"))


def unlinked(text: str) -> str:
    """The notebooks lie elsewhere: names, no links."""
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text)


def export(tutorials: Path, folder: Path) -> list[Path]:
    """Write a course into ``folder``; a configuration that is there stays."""
    targets = [
        folder / "source" / ASSIGNMENT / f"{one.stem}.ipynb" for one in sources_of(tutorials)
    ]
    written = write_each(tutorials, targets, notebook_of)
    config = folder / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG, encoding="utf-8")
    return written


def write_each(tutorials: Path, targets: list[Path], make: Callable) -> list[Path]:
    """``make(source)`` of every source as one of ``targets``, their folders made."""
    for source, target in zip(sources_of(tutorials), targets, strict=True):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(make(source), target)
        except OSError as failure:
            raise OptionError(
                f"{target.parent} cannot be written ({failure.strerror}): name a folder"
            ) from None
    return targets
