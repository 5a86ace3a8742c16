"""The packed copies that are kept: what ``specmoe cache`` lists and removes."""

from __future__ import annotations

import datetime
from pathlib import Path

from ..checkpoint.cache import OURS, cache_folder, our_folders, remove_packed
from ..checkpoint.layout import open_packed
from ..errors import OptionError, SpecMoEError, StoreError, nearest


def entries() -> list[dict]:
    """One row for each packed copy: name, size, model, experts, last used, state, path."""
    return [_entry(folder) for folder in our_folders()]


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
        for file in (cache_folder() / "stamps").glob("*.json*"):
            file.unlink(missing_ok=True)
    return chosen
