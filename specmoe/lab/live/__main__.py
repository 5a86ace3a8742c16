"""``python -m specmoe.lab.live --out specmoe.html``: the page that needs no kernel and no network."""

from __future__ import annotations

import argparse

from ..entry import leave
from .page import make_page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.live", description=__doc__)
    parser.add_argument("--out", default="specmoe.html", help="the file to write")
    path = make_page(parser.parse_args().out)
    print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    leave(main)
