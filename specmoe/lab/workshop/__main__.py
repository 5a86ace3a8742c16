"""``python -m specmoe.lab.workshop slides --out DIR``: slides and handout, from the notebooks.

``usb --out DIR``: a kit for a room without a network. ``times --out FILE``: how long each notebook
takes here.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from ..entry import leave
from . import places, slides, times, usb
from .wheels import PLATFORMS


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.workshop", description="what an instructor needs"
    )
    parser.add_argument("--root", metavar="DIR", help="a checkout of specmoe (default: this one)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    deck = commands.add_parser("slides", help="slides of every plan, and the handout, as HTML")
    deck.add_argument("--out", metavar="DIR", default="reports/slides")
    kit = commands.add_parser("usb", help="a kit for a room without a network")
    kit.add_argument("--out", metavar="DIR", required=True)
    kit.add_argument("--platforms", metavar="NAMES", default=",".join(PLATFORMS))
    kit.add_argument("--python", metavar="VERSIONS", default=_this_python())
    kit.add_argument("--dry-run", action="store_true", help="only say what would be done")
    clock = commands.add_parser("times", help="how long each notebook takes on this machine")
    clock.add_argument("--out", metavar="FILE", default="docs/results/notebook_times.json")
    clock.add_argument("--only", metavar="NAMES", default="")
    return parser


def _this_python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main(arguments: list[str] | None = None) -> int:
    """The exit code of one command line."""
    given = build_parser().parse_args(arguments)
    root = places.material(given.root)
    lines = {"slides": _slides, "usb": _usb, "times": _times}[given.command](root, given)
    print("\n".join(lines))
    return 0


def _slides(root: Path, given: argparse.Namespace) -> list[str]:
    return [str(path) for path in slides.make(root, places.writable(given.out))]


def _usb(root: Path, given: argparse.Namespace) -> list[str]:
    kit = usb.Kit(root, Path(given.out), _words(given.platforms), _words(given.python))
    if given.dry_run:
        return usb.plan(kit)
    found = usb.build(kit)
    return [f"{given.out}: {found['bytes'] / 1e6:.0f} MB, see {Path(given.out) / 'README.txt'}"]


def _times(root: Path, given: argparse.Namespace) -> list[str]:
    found = times.measure(root, Path(given.out), _words(given.only))
    return [f"{one['seconds']:7.1f} s  {name}" for name, one in found["notebooks"].items()]


if __name__ == "__main__":
    leave(main)
