"""``specmoe sweep``: every setting of a grid, measured.

Comes in: the namespace that ``parser`` parsed. Goes out: an exit code; rows go to a file as they
finish, their table is printed.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import ExitStack

from ..errors import OptionError
from . import printing

SHOWN = ("tokens_per_second", "fetched_bytes_per_token", "tokens_per_round", "error")


def sweep(args: Namespace) -> int:
    """1 when any run ended in an error."""
    given = vars(args)
    if "scheduler" in given and "workers" in given:
        raise OptionError("--workers starts processes here and --scheduler has some: leave one out")
    if given.get("workers", 1) < 1:
        raise OptionError(f"--workers {args.workers} must be at least 1")
    from ..lab import sweep as sweeps

    grid, yes = sweeps.read_grid(args.grid), given.get("yes", False)
    # what is wrong with the grid is said before any process starts
    settings = sweeps.settings_of(grid, yes)
    how = {"out": given.get("out"), "yes": yes, "progress": None if printing.quiet() else _tell}
    with ExitStack() as stack:
        if "scheduler" in given or "workers" in given:
            from ..lab.sweep.cluster import dask_executor

            found = dask_executor(given.get("scheduler"), given.get("workers"))
            how["executor"], how["in_flight"] = stack.enter_context(found)
        frame = sweeps.sweep(grid, **how)
    names = list(dict.fromkeys(name for one in settings.values() for name in one))
    varied = [name for name in names if frame[name].astype(str).nunique() > 1]
    rows = frame.to_dict("records")
    shown = [name for name in (*(varied or names[:1]), *SHOWN) if name in frame]
    printing.emit(args, {"rows": rows}, lambda: printing.table(frame[shown].to_dict("records")))
    return int(frame["error"].notna().any())


def _tell(done: int, total: int, row: dict) -> None:
    said = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    speed = row.get("result", {}).get("tokens_per_second")
    came = row.get("error") or (f"{speed:.4g} tokens/s" if speed else "done")
    print(f"[{done}/{total}] {said}: {came}", file=sys.stderr, flush=True)
