"""``python -m specmoe.lab.exercises build tutorials [NN ...]``: write the notebooks of the sources,
solutions executed.

``python -m specmoe.lab.exercises compare tutorials``: say which notebooks differ from their source;
exit code 1 if any does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from .build import build, differences


def main(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.exercises", description="exercises from their sources"
    )
    parser.add_argument("command", choices=["build", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="beginnings of file names, such as 01; none: all")
    parser.add_argument("--no-run", action="store_true", help="leave the solutions without outputs")
    given = parser.parse_args(arguments)
    if given.command == "compare":
        wrong = differences(given.folder)
        print("\n".join(wrong) or "every notebook agrees with its source")
        return int(bool(wrong))
    print("\n".join(map(str, build(given.folder, not given.no_run, given.names))))
    return 0


if __name__ == "__main__":
    leave(main)
