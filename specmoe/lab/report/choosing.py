"""What the reports *my model's best settings* and *the hot experts of my prompts* say.

Comes in: the frame of a sweep, or counts of expert use. Goes out: sentences, the best setting, and
tables. The notebooks ``best_settings`` and ``hot_experts`` call these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ...options import parse_bytes
from ..words import markdown_rows, show_bytes, show_number

BYTES, SPEED = "fetched_bytes_per_token", "tokens_per_second"
HEAD = "batch, N, reads least, bytes per token, of `cached`, fastest here, tokens/s".split(", ")


def to_widen(model: str, expert_bytes: str | None) -> str | None:
    """``expert_bytes`` where the experts of ``model`` are smaller and can be widened, else None."""
    from ...checkpoint import resolve
    from ...checkpoint.files import open_checkpoint
    from ...checkpoint.plan import plan_experts
    from ...checkpoint.rest import packed_plan

    wanted = parse_bytes("expert_bytes", expert_bytes)
    if wanted is None:
        return None
    folder = resolve(model)
    if packed_plan(folder):  # packed experts stay as wide as they are
        return None
    layout = plan_experts(open_checkpoint(folder)).layout
    return None if layout.is_low_bit or layout.payload_bytes >= wanted else expert_bytes


def best_of(part: pd.DataFrame) -> dict[str, Any]:
    """The setting that read the least per token: method, N, gamma (None unless it drafts) and what
    it read."""
    row = part.loc[part[BYTES].idxmin()]
    return {
        "method": row["method"],
        "draft_experts": int(row["draft_experts"]),
        "gamma": int(row["gamma"]) if row["method"] == "specmoe" else None,
        BYTES: round(float(row[BYTES]), 1),
    }


def say_best(table: pd.DataFrame) -> str:
    """For each batch, and each N with its fast memory: what read the least, what was fastest."""
    rows = []
    for (batch, num), part in table.groupby(["batch_size", "draft_experts"]):
        least, fastest = part.loc[part[BYTES].idxmin()], part.loc[part[SPEED].idxmax()]
        pool = part[part["method"] == "cached"][BYTES].min()
        share = f"{least[BYTES] / pool:.2f}" if pool > 0 else ""
        rows.append(
            [
                *(batch, num, _setting(least), show_bytes(least[BYTES]), share),
                *(_setting(fastest), show_number(fastest[SPEED])),
            ]
        )
    return markdown_rows(HEAD, rows)


def _setting(row: pd.Series) -> str:
    drafted = f", gamma {int(row['gamma'])}" if row["method"] == "specmoe" else ""
    return f"`{row['method']}`{drafted}"


def hot_experts(use: pd.DataFrame, num: int) -> pd.DataFrame:
    """The ``num`` most used experts of each layer, and the share of its calls (0 .. 1) that they
    take; ``use`` as of ``metrics.expert_use``."""
    order = np.argsort(-use.to_numpy(), axis=1, kind="stable")[:, :num]
    shares = [_share(row, chosen) for row, chosen in zip(use.to_numpy(), order)]
    named = [", ".join(str(use.columns[place]) for place in row) for row in order]
    return pd.DataFrame({"hottest": named, "share": np.round(shares, 2)}, index=use.index)


def hot_by_prompt(uses: Sequence[pd.DataFrame], num: int) -> pd.DataFrame:
    """For each prompt's counts, the share of its calls, mean over layers, that go to the ``num``
    experts of each layer that are hottest over all prompts, and to its own."""
    everything = sum(uses[1:], uses[0]).to_numpy()
    common = np.argsort(-everything, axis=1, kind="stable")[:, :num]
    rows = []
    for use in uses:
        counts = use.to_numpy()
        own = np.argsort(-counts, axis=1, kind="stable")[:, :num]
        rows.append(
            [
                np.mean([_share(row, chosen) for row, chosen in zip(counts, sets)])
                for sets in (common, own)
            ]
        )
    frame = pd.DataFrame(rows, columns=["hot over all", "its own hottest"])
    return frame.rename_axis("prompt")


def _share(row: np.ndarray, chosen: np.ndarray) -> float:
    return float(row[chosen].sum() / max(1, row.sum()))
