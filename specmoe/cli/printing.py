"""What commands print: one JSON object with ``--json``, text without; progress on stderr, only when
that is a terminal.

Comes in: what a command found. Goes out: lines. ``commands``, ``decoding`` and ``planning`` call
these.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable


def emit(args: Namespace, found: dict, text: Callable[[], str]) -> None:
    from ..lab.writing import plain

    print(json.dumps(plain(found)) if args.json else text())


def one_line(found: dict) -> str:
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def table(rows: list[dict]) -> str:
    if not rows:
        return "none"
    import pandas as pd

    return pd.DataFrame(rows).to_string(
        index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"
    )


def progress(unit: str) -> Callable | None:
    """A line on stderr that is written over; None when nobody watches."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int, what: str = "") -> None:
        end = "\n" if done >= total else ""
        print(f"\r\033[K{done}/{total} {unit} {what}", end=end, file=sys.stderr, flush=True)

    return show


def lines_done() -> Callable[[int], None] | None:
    """The same for a job, whose length nobody knows."""
    if not sys.stderr.isatty():
        return None
    return lambda done: print(f"\r\033[K{done} lines ", end="", file=sys.stderr, flush=True)


def training_progress() -> Callable | None:
    if not sys.stderr.isatty():
        return None
    return lambda phase, share, loss: print(f"{phase} {share:.0%} loss {loss:.3f}", file=sys.stderr)
