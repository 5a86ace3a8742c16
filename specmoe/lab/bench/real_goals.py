"""What is asked at real size, and what was measured of it: over the peers, and one row at a time
against what memory and disk give.

Comes in: the contents of ``results/real.json`` and ``results/real_speed.json``. Goes out: frames of
words. Pure functions; ``real_page`` has the speeds.
"""

from __future__ import annotations

import pandas as pd

from .cells import among, divide
from .real_grid import BATCHES, OURS, SHARES
from .real_page import MISSING, NAMES, rows_of, speed

# over llama.cpp wherever at most half fits; over it at one cell; over accelerate by batch
OVER_LLAMA, OVER_LLAMA_AT, OVER_ACCELERATE = 1.0, {(12, 16): 3.0}, {1: 20.0, 4: 10.0, 16: 6.0}
# what, the goal, where its value stands in the rows of ``real_speed``
AGAINST_FLOORS = (
    ("resident: weights touched / memory's rate / time", "≥ 0.6", "resident resident share_of_floor"),
    ("cached, all experts here: the same", "≥ 0.6", "all_here cached share_of_floor"),
    ("cached at 3 GiB: the same", "≥ 0.6", "methods cached share_of_floor"),
    ("cached at 3 GiB: the same without its waits", "≥ 0.6", "methods cached share_without_waits"),
    ("on_demand: raw reads / time", "≥ 0.9", "methods on_demand share_of_floor"),
    ("a prompt of 32 tokens: time / raw reads", "≤ 1.3", "prefill over"),
    ("most memory beyond trunk and budget", "≤ 400 MiB", "first_token over_bytes"),
    ("first token, distances unknown", "≤ 20 s", "first_token since_load_s"),
    ("the same of a packed model", "≤ 20 s", "first_token_packed since_load_s"),
    ("cached, a core taken by others: time / time alone", "≤ 2.5", "beside cached times"),
    ("specmoe, the same", "≤ 2.5", "beside specmoe times"),
    ("on_demand, the same", "≤ 2.5", "beside on_demand times"),
)  # fmt: skip


def goals(content: dict) -> pd.DataFrame:
    """The goals of real size, and what was measured of them."""
    cells = [(s, b) for s in sorted(SHARES, reverse=True) if s <= 50 for b in sorted(BATCHES)]
    over_llama = dict.fromkeys(cells, OVER_LLAMA) | OVER_LLAMA_AT
    rows = [_goal(content, *cell, "llama", over_llama[cell]) for cell in cells]
    rows += [_goal(content, *cell, "accelerate", OVER_ACCELERATE[cell[1]]) for cell in cells]
    return pd.DataFrame(rows)


def _goal(content: dict, share: int, batch: int, peer: str, goal: float) -> dict:
    ours = max((speed(content, share, batch, what) or 0.0 for what in OURS), default=0.0)
    theirs = speed(content, share, batch, peer)
    ratio, most = divide(ours, theirs), divide(most_by_reads(content, share, batch), theirs)
    return {
        "what": f"best of ours / {NAMES[peer]}, {share} %, B = {batch}",
        "goal": f"≥ {goal:g}×",
        "measured": f"{ratio:.2f}×" if ratio else MISSING,
        "met": {True: "yes", False: "no"}[ratio >= goal] if ratio else "",
        "our fewest bytes would allow": f"{most:.1f}×" if most else "",
    }


def most_by_reads(content: dict, share: int, batch: int) -> float | None:
    """Tokens per second of whichever of ours reads least, were it nothing but reads, at the highest
    rate at which any process read the disk."""
    rows = content.get("rows", {}).values()
    every = [row for row in rows if row.get("fetched_bytes") and row.get("seconds")]
    rate = among(max, (row["fetched_bytes"] / row["seconds"] for row in every))
    ours = [row for what in OURS for row in rows_of(content, share, batch, what) if row in every]
    return divide(rate, among(min, (r["fetched_bytes"] / r["num_new_tokens"] for r in ours)))


def floor_goals(rows: dict) -> pd.DataFrame:
    """One row at a time, against memory and disk: what is asked, what was measured, and what a share
    of the floor would be at most, were every token nothing but what it reads and touches."""
    found = []
    for what, goal, path in AGAINST_FLOORS:
        value = rows
        for name in path.split():
            value = value.get(name, {})
        sign, most, unit = [*goal.split(), ""][:3]
        shown, met = MISSING, ""
        if value != {}:
            value = value / 2**20 if unit == "MiB" else value
            shown = f"{value:.3g} {unit}".strip()
            met = "yes" if (value >= float(most) if sign == "≥" else value <= float(most)) else "no"
        part, name, last = [*path.split(), ""][:3]
        most = rows.get(part, {}).get(name, {}).get("most") if last == "share_of_floor" else None
        found.append({"what": what, "goal": goal, "measured": shown, "met": met})
        found[-1]["it could be"] = f"{most:.2f}" if most else ""
    return pd.DataFrame(found)
