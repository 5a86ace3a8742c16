"""What commands print: one JSON object with ``--json``, text without; progress on stderr, only when
that is a terminal.

Comes in: what a command found. Goes out: lines. ``commands``, ``decoding`` and ``planning`` call
these.
"""

from __future__ import annotations

import json
import os
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


def quiet() -> bool:
    """``--quiet``, or tqdm's own switch, which that sets."""
    return bool(os.environ.get("TQDM_DISABLE"))


def watched() -> bool:
    return sys.stderr.isatty() and not quiet()


def progress(unit: str) -> Callable | None:
    """A bar on stderr, told ``(done, total, what)``; None when nobody watches."""
    if not watched():
        return None
    from tqdm import tqdm

    bar = tqdm(unit=f" {unit}", leave=False)

    def show(done: int, total: int | None = None, what: str = "") -> None:
        bar.total = total
        bar.set_postfix_str(what, refresh=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def training_progress() -> Callable | None:
    if not watched():
        return None
    return lambda phase, share, loss: print(f"{phase} {share:.0%} loss {loss:.3f}", file=sys.stderr)
