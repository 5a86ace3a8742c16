"""The cache folder: packed experts that are kept, listed and removed; only what specmoe wrote is
ever touched.

Comes in: the environment. Goes out: ``cache_folder`` for ``packing``, ``cached`` and ``remove`` for
the command line.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OptionError, SpecMoEError, StoreError, nearest
from .layout import FORMAT, PackedExperts, open_packed

# All that specmoe ever writes into a packed folder; nothing else in it is touched.
OURS = {
    "experts.bin",
    "manifest.json",
    "manifest.json.partial",
    "affinity.npy",
    "affinity.npy.partial",
    "journal",
    "journal.partial",
    "lock",
}
MAX_LINE = 2**26  # bytes of a manifest


def cache_folder() -> Path:
    """Where experts are kept: $SPECMOE_CACHE, $XDG_CACHE_HOME/specmoe or ~/.cache/specmoe."""
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    default = Path(xdg) / "specmoe" if os.path.isabs(xdg) else "~/.cache/specmoe"
    try:
        return Path(os.environ.get("SPECMOE_CACHE") or default).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(
            f"there is no home folder to keep packed experts in ({error}): set $SPECMOE_CACHE"
        ) from error


def cached() -> list[PackedExperts]:
    """Every packed copy in the cache that can be opened."""
    found = []
    for folder in _folders():
        with suppress(SpecMoEError, OSError):
            found.append(open_packed(folder))
    return found


def _folders() -> list[Path]:
    """The folders in the cache that specmoe wrote, finished or not."""
    root = cache_folder()
    found = root.iterdir() if root.is_dir() else []
    return sorted(folder for folder in found if is_ours(folder))


def is_ours(folder: Path) -> bool:
    """Whether specmoe wrote this folder of the cache: its manifest or its journal says so, or,
    where they were damaged, its name and the names of all its files do."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if is_journal(folder / "manifest.json") or is_journal(folder / "journal"):
        return True
    names = {path.name for path in folder.iterdir()}
    return bool(re.search(r"-[0-9a-f]{12}(\.partial)?$", folder.name)) and names <= OURS


def is_journal(file: Path) -> bool:
    """Whether the first line is an object that names our format (so does a manifest)."""
    try:
        with open(file, "rb") as stream:
            head = json.loads(stream.readline(MAX_LINE))
        return isinstance(head, dict) and head.get("format") == FORMAT
    except (OSError, ValueError, RecursionError):
        return False


def entries() -> list[dict]:
    """One row for each packed copy: name, size, model, experts, last used, state, path."""
    return [_entry(folder) for folder in _folders()]


def _entry(folder: Path) -> dict:
    sizes = [path.stat().st_size for path in folder.iterdir() if path.name in OURS]
    row = {"name": folder.name, "bytes": sum(sizes), "model": None, "layers": None, "experts": None}
    try:
        packed = open_packed(folder)
        row |= {"model": packed.source["name"], "layers": len(packed.layers)}
        row |= {"experts": packed.num_experts, "state": "whole"}
    except (SpecMoEError, OSError):
        row["state"] = "unfinished" if (folder / "journal").is_file() else "unusable"
    newest = max(path.stat().st_mtime for path in [folder, *folder.glob("manifest.json")])
    used = datetime.datetime.fromtimestamp(newest).isoformat(" ", "seconds")
    return {**row, "last_used": used, "path": str(folder)}


def remove(names: list[str] | None = None) -> list[dict]:
    """Remove packed copies by name, None: all; returns their rows. An unknown name removes none."""
    rows = {row["name"]: row for row in entries()}
    for name in names or []:
        if name not in rows:
            hint = nearest(name, rows) if rows else "it is empty"
            raise OptionError(f"{name!r} is no packed copy in {cache_folder()}: {hint}")
    chosen = list(rows.values()) if names is None else [rows[name] for name in dict.fromkeys(names)]
    for row in chosen:
        try:
            remove_packed(Path(row["path"]))
        except OSError as error:
            raise StoreError(f"cannot remove {row['path']} ({error})") from error
    if names is None:
        _forget_stamps()
    return chosen


def _forget_stamps() -> None:
    for file in (cache_folder() / "stamps").glob("*.json*"):
        file.unlink(missing_ok=True)


def remove_packed(folder: Path) -> None:
    """Remove what specmoe wrote in ``folder``, and the folder if that is all there is.

    The manifest and the journal go last: what a killed removal leaves can be recognised.
    """
    there = [path for path in folder.iterdir() if path.name in OURS]
    for path in sorted(there, key=lambda path: path.name in ("manifest.json", "journal")):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody keeps files of his own in it
        folder.rmdir()


@contextmanager
def free_of_readers(file: Path) -> Iterator[bool]:
    """Whether no engine reads ``file`` (see ``hold``); as long as this lasts none begins to."""
    with open(file, "rb") as stream:
        yield _lock(stream.fileno(), "LOCK_EX")


def hold(file: int) -> None:
    """Let nobody take over the packed copy behind this file descriptor as long as it is open."""
    _lock(file, "LOCK_SH")


def _lock(file: int, how: str) -> bool:
    """No lock without ``fcntl``, nor on a file system without locks."""
    try:
        import fcntl

        fcntl.flock(file, getattr(fcntl, how) | fcntl.LOCK_NB)
        return True
    except (ImportError, OSError):
        return False


def write_whole(file: Path, content: bytes) -> None:
    """Write ``file`` so that it is there whole or not at all, however the process ends."""
    partial = file.with_name(file.name + ".partial")
    with open(partial, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def force_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
