"""How long each teaching notebook takes on this machine: what a plan may count on.

Comes in: a checkout, a file. Goes out: that file, with seconds for each notebook, its slowest cell,
and the machine. Worth something only where nothing else runs; the load before and after is kept
beside the numbers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from ...errors import OptionError, check_choice, path_of
from ..machine import doctor, rooms
from . import places


def measure(root: Path, target: Path, only: Sequence[str] = ()) -> dict:
    """Run the notebooks one after the other and write ``target`` after each; those measured before
    and not asked for now stay in it."""
    target = path_of(target, "a file")
    places.writable(target.parent)
    paths = {path.stem: path for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))}
    if not paths:
        raise OptionError(f"{root / 'notebooks'} has no numbered notebooks: name another --root")
    for name in only:
        check_choice("--only", name, paths)
    found = places.read_json(target) if target.is_file() and only else {"notebooks": {}}
    found["machine"] = doctor.describe()
    for name in only or paths:
        found["notebooks"][name] = _time(paths[name])
        found["notebooks"] = dict(sorted(found["notebooks"].items()))
        target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _time(path: Path) -> dict:
    load_before, began_s = _load(), time.perf_counter()
    cells = rooms.run_notebook(path).cells
    seconds = time.perf_counter() - began_s
    places_s = [(cell_seconds(cell), place) for place, cell in enumerate(cells)]
    slowest_s, place = max(places_s)
    return {
        "seconds": round(seconds, 1),
        "slowest_cell": place,
        "slowest_cell_seconds": round(slowest_s, 1),
        "load_before_and_after": [load_before, _load()],
    }


def cell_seconds(cell) -> float:
    """Between the kernel's two messages; 0 for a cell that was not run."""
    from datetime import datetime

    spoken = cell.metadata.get("execution", {})
    ends = [spoken.get(f"iopub.status.{word}") for word in ("busy", "idle")]
    if None in ends:
        return 0.0
    busy, idle = (datetime.fromisoformat(end.replace("Z", "+00:00")) for end in ends)
    return (idle - busy).total_seconds()


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
