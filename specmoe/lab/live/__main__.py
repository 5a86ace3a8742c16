"""``python -m specmoe.lab.live --out specmoe.html``: the page that needs no kernel and no network."""

from __future__ import annotations

import argparse

from ..entry import leave
from .page import make_page, measure_clock


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.live", description=__doc__)
    parser.add_argument("--out", default="specmoe.html", help="the file to write")
    measure = "measure the clock's rounds again, on this machine"
    parser.add_argument("--measure", action="store_true", help=measure)
    args = parser.parse_args()
    if args.measure:
        measure_clock()
    path = make_page(args.out)
    print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    leave(main)
