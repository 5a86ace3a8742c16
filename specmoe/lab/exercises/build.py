"""One source, two notebooks: the exercise with its stub, and the solution.

Comes in: ``source/NN_name.py`` in percent format, whose cells are headed ``# %% [markdown]``
(comment lines), ``# %%`` (code of both), ``# %% stub`` (code of the exercise only) or ``# %%
solution`` (code or, with ``[markdown]``, text of the solution only). Goes out:
``exercises/NN_name.ipynb`` without outputs, by design: the student runs it; and
``solutions/NN_name.ipynb``, executed where asked. ``python -m specmoe.lab.exercises build
tutorials`` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import OptionError
from ..writing import write_whole

KINDS = ("exercise", "solution")
LEFT_OUT = {"exercise": "solution", "solution": "stub"}
HEADER = re.compile(r"^# %%(?P<words>.*)$")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class Cell(NamedTuple):
    """One cell of a source: ``tag`` is "", "stub" or "solution"."""

    markdown: bool
    tag: str
    text: str


def read_source(path: Path) -> list[Cell]:
    """The cells of a source file. Raises ``OptionError`` for a heading it does not know, or a
    source without both tags."""
    cells: list[Cell] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        header = HEADER.match(line)
        if header:
            words = set(header["words"].split())
            if not words <= {"[markdown]", "stub", "solution"} or len(words - {"[markdown]"}) > 1:
                raise OptionError(
                    f"{path.name}: unknown cell heading {line!r}: use [markdown], stub or solution"
                )
            cells.append(Cell("[markdown]" in words, "".join(words - {"[markdown]"}), ""))
        elif cells:
            cells[-1] = cells[-1]._replace(
                text=f"{cells[-1].text}{_shown(line, cells[-1].markdown)}\n"
            )
    missing = {"stub", "solution"} - {cell.tag for cell in cells}
    if missing:
        raise OptionError(f"{path.name} has no cell headed '# %% {sorted(missing)[0]}'")
    return [cell._replace(text=cell.text.strip()) for cell in cells]


def _shown(line: str, markdown: bool) -> str:
    return (
        line[2:] if markdown and line.startswith("# ") else "" if markdown and line == "#" else line
    )


def notebook_of(path: Path, kind: str):
    """The notebook "exercise" or "solution" of a source, not executed."""
    from nbformat import v4

    cells = []
    for number, cell in enumerate(cell for cell in read_source(path) if cell.tag != LEFT_OUT[kind]):
        make = v4.new_markdown_cell if cell.markdown else v4.new_code_cell
        tags = {"tags": [cell.tag]} if cell.tag else {}
        cells.append(make(cell.text, id=f"cell-{number:02d}", metadata=tags))
    return v4.new_notebook(cells=cells, metadata=METADATA)


def target_of(folder: Path, source: Path, kind: str) -> Path:
    """Where the notebook of a source lies."""
    return folder / f"{kind}s" / f"{source.stem}.ipynb"


def sources_of(folder: Path) -> list[Path]:
    """The sources of a tutorials folder, in order; ``OptionError`` where there are none."""
    sources = sorted(folder.glob("source/*.py"))
    if not sources:
        raise OptionError(
            f"there is no source/*.py in {folder}: name the folder that holds the tutorials"
        )
    return sources


def build(folder: Path, execute: bool = True, names: Sequence[str] = ()) -> list[Path]:
    """Write the notebooks of the sources (all, or those whose file name begins with one of
    ``names``); run solutions."""
    written = []
    for source in sources_of(folder):
        if names and not source.name.startswith(tuple(names)):
            continue
        for kind in KINDS:
            notebook, target = notebook_of(source, kind), target_of(folder, source, kind)
            if kind == "solution" and execute:
                notebook = _executed(notebook, folder)
            write(notebook, target)
            written.append(target)
    return written


def write(notebook, target: Path) -> None:
    """Write ``notebook`` as GitHub and git like it, with a newline at the end."""
    import nbformat

    nbformat.validate(notebook)
    write_whole(target, nbformat.writes(notebook, indent=1, ensure_ascii=False) + "\n")


def _executed(notebook, folder: Path):
    """A copy with outputs; the clock times of its cells are left out."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = METADATA
    return notebook


def differences(folder: Path) -> list[str]:
    """One sentence for each committed notebook that does not have the cells of its source."""
    import nbformat

    wrong = []
    for source in sources_of(folder):
        for kind in KINDS:
            target = target_of(folder, source, kind)
            wanted = [(cell.cell_type, cell.source) for cell in notebook_of(source, kind).cells]
            found = nbformat.read(target, as_version=4).cells if target.exists() else []
            if [(cell.cell_type, cell.source) for cell in found] != wanted:
                wrong.append(
                    f"{target.relative_to(folder)} is not what source/{source.name} "
                    "gives: build it again"
                )
    return wrong
