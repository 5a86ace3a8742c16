"""Files that the lab writes: whole or not at all, and a failure is one sentence.

Comes in: a path, and text or bytes. Goes out: the file, at the end of its path, or a
``SpecMoEError``; nothing of ours is left beside it. ``report``, ``bench``, ``paper`` and
``simulate`` call these.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import OptionError, StoreError, door, path_of

REMEDY = "make room there, or name another place that may be written to"


def check_folder(name: Any) -> Path:
    """The folder, made where it is missing, once a file could be written into it: asked before
    minutes are spent on what could not be kept."""
    folder = path_of(name, "a folder")
    said = f"nothing can be written into the folder {folder}"
    with door(said, REMEDY, OptionError):
        if folder.is_file():
            raise OptionError(f"{said}, which is a file: name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"specmoe")
    return folder


def write_whole(name: Any, content: str | bytes | Callable[[BinaryIO], object]) -> Path:
    """``content`` at ``name``, or, where that fails, what was there before. A function writes into
    the file that it is given. The folder is made where it is missing."""
    path = path_of(name)
    with door(f"{path} could not be written", REMEDY, StoreError):
        # A link stays one: what it leads to is what is replaced.
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file, so that renaming it is one step; the name is nobody's but ours.
        partial = path.with_name(f".specmoe-{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                _put(content, file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _put(content: str | bytes | Callable[[BinaryIO], object], file: BinaryIO) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def read_object(name: Any) -> dict:
    """The JSON object in a file of results; an empty one where there is no file."""
    path = path_of(name)
    with door(f"{path} is no file of results", "take it away, or name another place", OptionError):
        if not path.exists():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}, not an object")
        return found


def plain(value):
    """``value`` as JSON can hold it: numpy and torch scalars become numbers, a frame its rows, what
    is not finite None."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if hasattr(value, "columns"):
        value = value.to_dict("records")
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def save_metrics(out_dir: str | Path | None, numbers: dict) -> None:
    """Write ``metrics.json`` into ``out_dir``; nothing where a notebook runs by hand (``None``)."""
    if out_dir is not None:
        text = json.dumps(plain(numbers), indent=1, allow_nan=False)
        write_whole(path_of(out_dir, "a folder") / "metrics.json", text + "\n")
