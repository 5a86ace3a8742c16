"""``python -m specmoe.simulate record [MODEL N]``: make the shipped recordings again."""

from __future__ import annotations

import argparse

from .shipped import SHIPPED, record_shipped


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m specmoe.simulate", description=__doc__)
    parser.add_argument("command", choices=["record"])
    parser.add_argument("model", nargs="?", choices=list(SHIPPED))
    parser.add_argument("draft_experts", nargs="?", type=int)
    given = parser.parse_args()
    for model in [given.model] if given.model else SHIPPED:
        for number in [given.draft_experts] if given.draft_experts else SHIPPED[model]:
            path = record_shipped(model, number)
            print(f"wrote {path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
