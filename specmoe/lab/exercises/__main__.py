"""``python -m specmoe.lab.exercises build tutorials [NN ...]``: write the notebooks of the sources,
solutions executed.

``compare tutorials``: say which notebooks differ from their source; exit code 1 if any does.
``nbgrader tutorials DIR``: write an nbgrader course; ``otter tutorials DIR``: the same for
otter-grader. ``leaderboard FILE``: print the room's best.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from . import nbgrader, otter
from .build import build, differences
from .leaderboard import standings

GRADERS = {"nbgrader": nbgrader, "otter": otter}


def main(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    given = _parser().parse_args(arguments)
    if given.command == "compare":
        wrong = differences(given.folder)
        print("\n".join(wrong) or "every notebook agrees with its source")
        return int(bool(wrong))
    if given.command == "leaderboard":
        print(standings(given.file).to_string(index=False))
        return 0
    if given.command == "build":
        written = build(given.folder, not given.no_run, given.names)
    else:
        written = GRADERS[given.command].export(given.folder, given.out)
    print("\n".join(map(str, written)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.exercises", description="exercises from their sources"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build", help="write the notebooks of the sources")
    one.add_argument("folder", type=Path)
    one.add_argument("names", nargs="*", help="beginnings of file names, such as 01; none: all")
    one.add_argument("--no-run", action="store_true", help="leave the solutions without outputs")
    one = commands.add_parser("compare", help="which notebooks differ from their source")
    one.add_argument("folder", type=Path)
    for grader in GRADERS:
        one = commands.add_parser(grader, help=f"write the exercises for {grader}")
        one.add_argument("folder", type=Path, help="the tutorials")
        one.add_argument("out", type=Path, help="where to")
    one = commands.add_parser("leaderboard", help="print the room's best")
    one.add_argument("file", type=Path)
    return parser


if __name__ == "__main__":
    leave(main)
