"""``python -m specmoe.lab.workshop slides --out DIR``: slides and handout, from the notebooks.

``usb --out DIR``: a kit for a room without a network. ``times --out FILE``: how long each notebook
takes here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from . import places, slides


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.workshop", description="what an instructor needs"
    )
    parser.add_argument("--root", metavar="DIR", help="a checkout of specmoe (default: this one)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    deck = commands.add_parser("slides", help="slides of every plan, and the handout, as HTML")
    deck.add_argument("--out", metavar="DIR", default="reports/slides")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    given = build_parser().parse_args(arguments)
    root = places.material(given.root)
    print("\n".join(map(str, slides.make(root, places.writable(Path(given.out))))))
    return 0


if __name__ == "__main__":
    leave(main)
