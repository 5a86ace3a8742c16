"""Where the workshop's material lies, and where its output may go.

Comes in: folders as a user named them. Goes out: a root with ``notebooks/`` and ``tutorials/``, a
folder that can be written; else one sentence.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ...errors import OptionError, path_of
from ...shipped import checkout, package_path


def material(named: str | os.PathLike | None = None) -> Path:
    """``named``, else the checkout that this package runs from, else the current folder."""
    places = [checkout() or package_path().parent, Path.cwd()]
    if named is not None:
        places = [path_of(named, "a folder")]
    for place in places:
        if (place / "notebooks").is_dir() and (place / "tutorials").is_dir():
            return place
    raise OptionError(
        f"{places[0]} has no notebooks/ and tutorials/: name a checkout of specmoe with --root DIR"
    )


def writable(named: str | os.PathLike) -> Path:
    """The folder, made if need be; one sentence where nothing can be written to it."""
    folder = path_of(named, "a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            return folder
    except OSError as failure:
        raise OptionError(
            f"nothing can be written to {folder} ({failure.strerror}): name another folder with "
            "--out DIR"
        ) from None


def notebook_cells(path: Path) -> list[Any]:
    """The cells of a notebook, their texts joined."""
    import nbformat

    if not path.is_file():
        raise OptionError(f"there is no notebook {path}: correct the plan in tutorials/slides.json")
    return nbformat.read(path, as_version=4).cells


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise OptionError(
            f"{path} cannot be read ({failure}): restore it from the repository"
        ) from None
