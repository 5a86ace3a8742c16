"""The data of the map of winners: which method is fastest where, simulated.

Comes in: recordings of several methods at equal fast memory. Goes out: a frame, which figures draw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from ...errors import OptionError
from .hardware import Hardware
from .recording import Recording
from .replay import simulate
from .sizes import ModelSize


def winners(
    recordings: Iterable[Recording],
    hardware: Hardware,
    size: ModelSize | None = None,
    balances: Iterable[float] = (10, 100, 1000, 10000, 100000),
) -> pd.DataFrame:
    """One row per model, draft_experts (N), balance (FLOP per byte of the link) and batch: tokens
    per second of each method, the winner, and margin (its speed over the next one's).

    The link is made slower or faster to reach a balance; all else is ``hardware``'s. ``resident``
    is left out: it has more memory. ``OptionError`` when runs that are compared have different fast
    memory.
    """
    groups: dict[tuple, list[Recording]] = {}
    for recording in recordings:
        if recording.method != "resident":
            key = (recording.info["name"], recording.info["draft_experts"], recording.batch)
            groups.setdefault(key, []).append(recording)
    rows = []
    for (model, draft_experts, batch), runs in groups.items():
        if len({run.info["slots"] for run in runs}) > 1:
            raise OptionError(
                f"runs of {model!r} at batch {batch} have different fast memory: "
                "compare them at equal slots"
            )
        for balance in balances:
            machine = replace(hardware, link_bytes_per_s=hardware.flop_per_s / balance)
            speeds: dict[str, float] = {}
            for run in runs:  # several runs of one method (cached by evictions): the better
                speeds[run.method] = max(
                    speeds.get(run.method, 0.0), simulate(run, machine, size).tokens_per_second
                )
            best, *others = sorted(speeds, key=speeds.get, reverse=True)
            margin = speeds[best] / speeds[others[0]] if others else float("nan")
            rows.append(
                {
                    "model": model,
                    "draft_experts": draft_experts,
                    "batch": batch,
                    "balance": balance,
                    "winner": best,
                    "margin": margin,
                    **speeds,
                }
            )
    if not rows:
        raise OptionError(
            "no recordings to compare: give runs of at least one method other than 'resident'"
        )
    return pd.DataFrame(rows)
