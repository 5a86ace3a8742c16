"""``python -m specmoe.lab.paper``: measure, record, write ``docs/reproduction.md``.

``document`` executes the notebook ``paper`` in place and exports it: the page is the notebook.
``measure`` takes up where it stopped and says how many runs are missing; its exit code is 3 while
some are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from ..markdown import write_page
from .measure import measure
from .numbers import RESULTS
from .record import record
from .settings import RERUNS, plan, plan_low_skew


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.paper", description=__doc__)
    parser.add_argument("command", choices=("document", "measure", "record"))
    parser.add_argument("how_much", nargs="?", choices=RERUNS[1:], default="full")
    parser.add_argument(
        "--only", choices=("counted", "timed"), help="runs that need no clock, or those that do"
    )
    parser.add_argument("--seconds", type=float, help="begin no further run after so many seconds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    if given.command == "measure":
        return _measure(given)
    if given.command == "record":
        record()
    else:
        print(f"wrote {write_page('paper', 'reproduction.md').name}")
    return 0


def _measure(given: argparse.Namespace) -> int:
    runs = plan(how_much=given.how_much) + plan_low_skew(given.how_much)
    if given.only:
        runs = [run for run in runs if (run.regime == "count") == (given.only == "counted")]
    missing = measure(
        runs,
        given.out,
        given.seconds,
        lambda done, of, key: print(f"{done} of {of}: {key}", flush=True),
    )
    print(f"{missing} of {len(runs)} runs are missing")
    return 3 if missing else 0


if __name__ == "__main__":
    leave(main)
