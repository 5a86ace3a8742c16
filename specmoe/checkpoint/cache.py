"""The folder of packed copies, and how files come and go in it: only what specmoe wrote is ever
touched, and nothing is there half."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .packed import FORMAT

# All that specmoe ever writes into a packed folder; nothing else in it is touched.
OURS = {"experts.bin", "manifest.json", "affinity.npy", "journal", "lock"}
OURS |= {"manifest.json.partial", "affinity.npy.partial", "journal.partial"}
OURS |= {"model", "model.partial"}  # folders: see ``rest``
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


def folders() -> list[Path]:
    """What may be packed copies; a link would lead out of the cache."""
    root = cache_folder()
    there = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in there if folder.is_dir() and not folder.is_symlink()]


def is_journal(file: Path) -> bool:
    """Whether the first line is an object that names our format (so does a manifest)."""
    try:
        with open(file, "rb") as stream:
            head = json.loads(stream.readline(MAX_LINE))
        return isinstance(head, dict) and head.get("format") == FORMAT
    except (OSError, ValueError, RecursionError):
        return False


def remove_packed(folder: Path) -> None:
    """Remove what specmoe wrote in ``folder``, and the folder if that is all there is."""
    # the manifest and the journal go last: what a killed removal leaves can be recognised
    there = [path for path in folder.iterdir() if path.name in OURS]
    for path in sorted(there, key=lambda path: path.name in ("manifest.json", "journal")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    # where somebody keeps files of his own in it, it stays
    with suppress(OSError):
        folder.rmdir()


def lock(file: int, how: str, wait: bool = False) -> bool:
    """Hold the file behind a descriptor while it is open: ``LOCK_SH`` (as engines do, so that no
    packing takes the copy over) or ``LOCK_EX``. False where another process has it, without
    ``fcntl``, and on a file system without locks."""
    try:
        import fcntl

        fcntl.flock(file, getattr(fcntl, how) | (0 if wait else fcntl.LOCK_NB))
        return True
    except (ImportError, OSError):
        return False


def write_whole(file: Path, content: bytes) -> None:
    """Write ``file`` so that it is there whole or not at all, however the process ends."""
    partial = file.with_name(file.name + ".partial")
    try:
        with open(partial, "wb") as stream:
            stream.write(content)
            force(stream)
        os.replace(partial, file)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def force(stream) -> None:
    """Force what was written to ``stream`` to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def force_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
