"""``python -m specmoe.lab.bench.real make DIR [--model olmoe] [--layers N]``: speed at real size.

Comes in: a folder. Goes out: a checkpoint of a real model's shape with random weights. ``run DIR``
makes it in DIR where it is missing and measures our methods and their peers on it; ``speed DIR``
measures our methods against what memory and disk give in the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..entry import leave
from ..writing import check_folder
from . import real_grid, real_speed, results
from .real_checkpoint import SHAPES, make_checkpoint


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.command == "make":
        print(make_checkpoint(options.folder, options.model, options.layers))
        return 0
    if options.command == "speed":
        real_speed.measure(options.folder, options.parts, options.tokens, options.out)
        return 0
    narrowed = {name: getattr(options, name) for name in ("batches", "shares", "what", "repeats")}
    chosen = real_grid.cells(**{name: value for name, value in narrowed.items() if value})
    place = real_grid.Place(options.folder)
    more = {name: getattr(options, name) for name in ("keep", "estimate", "most_s")}
    real_grid.run(place, chosen, check_folder(options.out), **more)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.bench.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a checkpoint with random weights")
    make.add_argument("folder", type=Path)
    make.add_argument("--model", choices=SHAPES, default="olmoe")
    make.add_argument("--layers", type=int, help="fewer than the model has")
    run = commands.add_parser("run", help="measure what is missing; says first what it needs")
    run.add_argument("folder", type=Path)
    run.add_argument("--batches", nargs="+", type=int, choices=real_grid.BATCHES)
    run.add_argument("--shares", nargs="+", type=int, choices=real_grid.SHARES)
    run.add_argument(
        "--what", nargs="+", choices=[*real_grid.OURS, real_grid.FIXED, *real_grid.PEERS]
    )
    run.add_argument("--repeats", type=int)
    run.add_argument("--out", type=Path, default=results.FOLDER)
    run.add_argument("--keep", action="store_true", help="keep rows of other code of the engine")
    run.add_argument("--most-s", type=float, default=1e9, help="begin no cell that takes longer")
    run.add_argument("--estimate", action="store_true", help="only say what it needs")
    speed = commands.add_parser("speed", help="our methods against memory and disk")
    speed.add_argument("folder", type=Path)
    in_place = [name for name in real_speed.PARTS if name != "first_token_packed"]
    speed.add_argument("--parts", nargs="+", choices=real_speed.PARTS, default=in_place)
    speed.add_argument("--tokens", type=int, default=24)
    speed.add_argument("--out", type=Path, help="a file of results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    leave(main)
