"""The packed copies that are kept: what ``specmoe cache`` lists and removes, and ``specmoe verify``
reads."""

from __future__ import annotations

import datetime
import re
import zlib
from pathlib import Path

from ..checkpoint.cache import OURS, cache_folder, folders, is_journal, remove_packed
from ..checkpoint.packed import PackedExperts, open_packed
from ..checkpoint.reporting import Progress, reporting
from ..errors import OptionError, SpecMoEError, StoreError, door, nearest


def entries() -> list[dict]:
    """One row for each packed copy: name, size, model, experts, last used, state, path."""
    return [_entry(folder) for folder in folders() if _is_ours(folder)]


def _is_ours(folder: Path) -> bool:
    """Whether specmoe wrote this folder of the cache: its manifest or its journal says so, or,
    where they were damaged, its name and the names of all its files do."""
    if is_journal(folder / "manifest.json") or is_journal(folder / "journal"):
        return True
    names = {path.name for path in folder.iterdir()}
    return bool(re.search(r"-[0-9a-f]{12}(\.partial)?$", folder.name)) and names <= OURS


def _entry(folder: Path) -> dict:
    ours = [path for path in folder.iterdir() if path.name in OURS]
    files = [file for path in ours for file in (path.rglob("*") if path.is_dir() else [path])]
    sizes = [file.stat().st_size for file in files if file.is_file()]
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
        for file in (cache_folder() / "stamps").glob("*"):
            file.unlink(missing_ok=True)
    return chosen


def verify_packed(packed: PackedExperts, progress: Progress = None) -> list[tuple[int, int]]:
    """Read every record; returns the (layer, expert) of those whose checksum does not fit."""
    bad = []
    with (
        open(packed.data_file, "rb") as file,
        reporting(progress, packed.data_bytes, "verifying") as report,
    ):
        for number in range(len(packed.layers) * packed.num_experts):
            layer, expert = divmod(number, packed.num_experts)
            buffer = bytearray(packed.bytes_of(layer))
            with door(f"{packed.data_file} could not be read", "check the disk", StoreError):
                count = file.readinto(buffer)
            if count != len(buffer) or zlib.crc32(buffer) != packed.checksums[layer][expert]:
                bad.append((layer, expert))
            report(file.tell())
    return bad
