"""``python -m specmoe.lab.bench.real make DIR [--model olmoe] [--layers N]``: speed at real size.

Comes in: a folder. Goes out: a checkpoint of a real model's shape with random weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from .real_checkpoint import SHAPES, make_checkpoint


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print(make_checkpoint(options.folder, options.model, options.layers))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.bench.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a checkpoint with random weights")
    make.add_argument("folder", type=Path)
    make.add_argument("--model", choices=SHAPES, default="olmoe")
    make.add_argument("--layers", type=int, help="fewer than the model has")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    leave(main)
