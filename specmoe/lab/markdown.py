"""The pages of ``docs/`` that are notebooks: a frame and an executed notebook as Markdown.

Comes in: a frame, or a notebook. Goes out: Markdown. A page is the notebook's prose and what its
cells show, without the code. Of the pictures a page has those whose cell carries a tag
``picture:NAME``, and they lie in ``docs/images`` as they are in the notebook: the page cannot say
anything else than the notebook does.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import OptionError
from ..shipped import checkout, notebooks_dir, package_path
from .report.parameters import need
from .words import markdown_rows
from .writing import check_folder, write_whole

DOCS = package_path().parent / "docs"
PICTURE = "picture:"


def markdown_table(frame: pd.DataFrame, index: str = "") -> str:
    """A frame as Markdown, its index as the first column where that is given a name."""
    shown = frame.reset_index(names=index) if index else frame
    return markdown_rows(shown.columns, shown.itertuples(index=False))


def page_of(notebook: Mapping[str, Any]) -> str:
    """The page that an executed notebook is; links from ``notebooks/`` become links from
    ``docs/``."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(_text(cell["source"]))
        else:
            parts += _shown(cell)
    return "\n\n".join(part.strip() for part in parts).replace("](../docs/", "](") + "\n"


def pictures_of(notebook: Mapping[str, Any]) -> dict[str, bytes]:
    """The pictures of the page by name."""
    return {
        name: base64.b64decode(_text(output["data"]["image/png"]))
        for cell in notebook["cells"]
        for name, output in _pictures(cell)
    }


def write_page(name: str, page: str) -> Path:
    """Execute the notebook ``name`` in place, and write it to ``docs/<page>`` with its pictures."""
    if checkout() is None:
        raise OptionError("pages of docs/ are written in a checkout of specmoe: run this there")
    path, docs = notebooks_dir() / f"{name}.ipynb", check_folder(DOCS)
    nbformat, nbclient = need("nbformat"), need("nbclient")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=None, record_timing=False, resources=where)
    client.execute()
    write_whole(path, nbformat.writes(notebook) + "\n")
    for picture, content in pictures_of(notebook).items():
        write_whole(docs / "images" / picture, content)
    return write_whole(docs / page, page_of(notebook))


def _shown(cell: Mapping[str, Any]) -> Iterator[str]:
    for name, output in _pictures(cell):
        yield f"![{output['metadata']['image/png']['alt']}](images/{name})"
    for output in cell["outputs"]:
        if "text/markdown" in output.get("data", {}):
            yield _text(output["data"]["text/markdown"])


def _pictures(cell: Mapping[str, Any]) -> list[tuple[str, dict]]:
    tags = cell["metadata"].get("tags", [])
    names = [tag.removeprefix(PICTURE) for tag in tags if tag.startswith(PICTURE)]
    drawn = [one for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    return list(zip(names, drawn))


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
