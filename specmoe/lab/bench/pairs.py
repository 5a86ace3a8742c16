"""Methods side by side, batch by batch, with the interval of every ratio; pools by the clock.

Comes in: the contents of the result files. Goes out: frames of words, and sentences that hold for
whatever was measured. The notebook ``performance`` shows them, docs/pools.md has one of the
sentences. Nothing is measured here.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable
from itertools import product

import pandas as pd

from .cells import SKEWED, TRANSLATE, Measured, auto_over_best, best_single, bytes_of, share_of
from .control import Ratio, words
from .outcomes import Outcome
from .settings import BATCHES, EVICTIONS, LINKS, POOL_BATCHES
from .tables import LINK_NAMES

MODELS = (TRANSLATE, SKEWED)
GOAL = 0.97  # of auto over the best single method
OVER = {"best cached": "cached", "on-demand": "on_demand", "resident": "resident"}
DEFAULT, OURS = "temporal", "decayed"  # evictions
CLOCK = "By the clock"  # a sentence of docs/pools.md begins so


def pair_frame(files: dict[str, dict]) -> pd.DataFrame:
    """auto over the best single method and specmoe over others, each with its interval, beside what
    two arms of specmoe give (A/A)."""
    found, rows = Measured(files), []
    for at in product(MODELS, LINKS, BATCHES):
        best = best_single(found, *at)
        if best is not None:
            model, link, batch = at
            others = {
                f"specmoe / {name}": _said(found.ratio(*at, "specmoe", what))
                for name, what in OVER.items()
            }
            rows.append(
                {"model": model, "link": LINK_NAMES[link], "B": batch}
                | {"auto / best single": _said(auto_over_best(found, *at)), "which is": best}
                | others
                | {"A/A": _apart(found.spread(*at))}
            )
    return pd.DataFrame(rows)


def auto_words(files: dict[str, dict]) -> str:
    """In how many cells auto is at ``GOAL`` of the best single method, and where it is the least."""
    found = Measured(files)
    cells = {at: auto_over_best(found, *at) for at in product(MODELS, LINKS, BATCHES)}
    known = {at: ratio for at, ratio in cells.items() if ratio is not None}
    if not known:
        return ""
    above, below = _sides(known.values(), GOAL)
    model, link, batch = worst = min(known, key=lambda at: known[at].value)
    return (
        f"In {above} of {len(known)} cells `auto` is surely at {GOAL} of the best single method or "
        f"above, in {below} surely below it; in the other {len(known) - above - below} the interval "
        f"holds {GOAL}, or the two arms of one method lie as far apart. It is at "
        f"{statistics.median(ratio.value for ratio in known.values()):.2f}× in the median, and at "
        f"{words(known[worst])} at least: {model}, {LINK_NAMES[link]}, B = {batch}."
    )


def pool_frame(files: dict[str, dict]) -> pd.DataFrame:
    """Evictions of one pool in turn: speed over the default's, bytes, waiting, A/A."""
    found, rows = Measured(files), []
    for model, batch, eviction in product(MODELS, POOL_BATCHES, EVICTIONS):
        at = (model, "native", batch)
        slices = found.rows(*at, eviction, "pools")
        if slices:
            ratio = found.ratio(*at, eviction, DEFAULT, "pools")
            rows.append(
                {
                    "model": model,
                    "B": batch,
                    "eviction": eviction,
                    "tokens/s": f"{found.speed(*at, eviction, 'pools'):.1f}",
                    f"over {DEFAULT}": _said(ratio),
                    "MiB per token": f"{statistics.median(map(bytes_of, slices)) / 2**20:.3f}",
                    "waiting": f"{statistics.median(map(share_of('wait_s'), slices)):.1%}",
                    "A/A": _apart(found.spread(*at, "pools")),
                }
            )
    return pd.DataFrame(rows)


def pool_words(files: dict[str, dict]) -> str:
    """What the clock says of our eviction over the fastest of the others."""
    found, said, ratios = Measured(files), [], []
    for model, batch in product(MODELS, POOL_BATCHES):
        at = (model, "native", batch)
        speeds = {one: found.speed(*at, one, "pools") for one in EVICTIONS if one != OURS}
        known = {one: speed for one, speed in speeds.items() if speed is not None}
        best = max(known, key=known.get) if known else ""
        ratio = found.ratio(*at, OURS, best, "pools")
        if ratio is not None:
            ratios.append(ratio)
            said.append(f"{_plain(ratio)} of `{best}` on {model} with {batch} rows")
    if not said:
        return f"{CLOCK}, nothing has been measured yet."
    ahead, behind = _sides(ratios, 1.0)
    return (
        f"{CLOCK}, in turn, experts of 3 MiB on a disk as it is, `{OURS}` is at "
        f"{', at '.join(said)}, in each case the fastest of the other four: surely ahead in {ahead} "
        f"of {len(said)}, surely behind in {behind}."
    )


def with_clock(page: str, files: dict[str, dict]) -> str:
    """docs/pools.md with today's ``pool_words``."""
    whole = {"break_on_hyphens": False, "break_long_words": False}
    said = textwrap.fill(f"- {pool_words(files)}", 118, subsequent_indent="  ", **whole)
    return re.sub(rf"(?m)^- {CLOCK}.*\n(?:  .*\n)*", lambda _: f"{said}\n", page)


def _sides(ratios: Iterable[Ratio], goal: float) -> tuple[int, int]:
    """How many are surely at ``goal`` or above, and how many surely below."""
    known = [ratio for ratio in ratios if ratio.low is not None]
    said = Counter(Outcome("", goal, True).verdict_of(ratio) for ratio in known)
    return said["yes"], said["no"]


def _said(ratio: Ratio | None) -> str:
    return words(ratio) + " (old)" * ratio.old if ratio is not None else ""


def _plain(ratio: Ratio) -> str:
    """Without a sign."""
    return words(ratio).replace("×", "")


def _apart(spread: float | None) -> str:
    return f"± {spread - 1:.1%}" if spread else ""
