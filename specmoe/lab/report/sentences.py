"""What a report concludes, in sentences that follow the numbers.

Comes in: the rows of a bench, or counts of ``metrics``. Goes out: Markdown for the notebook, and
a table. Nothing here knows which method ought to win.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ..figures import as_table, show_number
from ..metrics import PARTS, dead_experts, skewness, top_share

# speeds nearer than this are level, and so are those whose repeats reach each other's median
LEVEL = 1.1
_NAMES = {
    "label": "method",
    "batch": "batch",
    "gamma": "gamma",
    "tokens_per_second": "tokens/s",
    "speedup_over_on_demand": "times on_demand",
    "fetched_bytes_per_token": "KiB read per token",
    "tokens_per_round": "tokens per round",
    "acceptance_rate": "accepted / drafted",
    "wait_share": "waiting (share)",
    "prefetch_recall": "prefetch recall",
    "prefetch_precision": "prefetch precision",
    "prefill_s": "prefill (s)",
    "same_tokens_as_plain": "same tokens",
}


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _of(part: pd.DataFrame, label: str, column: str) -> float:
    """The value of one method in a batch; nan where it was not run."""
    found = part.loc[part["label"] == label, column]
    return float(found.iloc[0]) if len(found) else math.nan


def say_same_tokens(rows) -> str:
    """Did every run give the tokens of plain decoding?"""
    table = as_table(rows)
    wrong = table[table["same_tokens_as_plain"] == False]  # noqa: E712 - None means: not compared
    checked = table["same_tokens_as_plain"].notna()
    if len(wrong):
        names = ", ".join(
            f"{label} at batch {batch}" for label, batch in zip(wrong["label"], wrong["batch"])
        )
        return (
            f"**Different tokens** from plain decoding: {names}. Its speed means nothing until "
            "that is explained."
        )
    if not checked.all():
        return (
            f"{checked.sum()} of {len(table)} runs were compared with plain decoding, and gave "
            "the same tokens."
        )
    return f"All {len(table)} runs gave exactly the tokens of plain decoding."


def say_speed(rows) -> str:
    """Who is fastest under the budget at each batch, and where specmoe stands."""
    table = as_table(rows)
    lines = []
    for batch, part in table[table["method"] != "resident"].groupby("batch"):
        part = part.sort_values("tokens_per_second", ascending=False)
        best = part.iloc[0]
        level = part[level_with(part, best)]["label"].tolist()
        base = _of(part, "on_demand", "tokens_per_second")
        names = " and ".join(f"`{label}`" for label in level)
        lines.append(
            f"batch {batch}: {names} {'are level in front' if len(level) > 1 else 'is fastest'}, "
            f"{show_number(best['tokens_per_second'])} "
            f"tokens/s{_times(best['tokens_per_second'], base)}" + _others(part, level, base)
        )
    return _bullets(lines)


def level_with(part: pd.DataFrame, best: pd.Series) -> pd.Series:
    """Which methods of a batch cannot be told from the best one."""
    level = part["tokens_per_second"] * LEVEL >= best["tokens_per_second"]
    if {"tokens_per_second_min", "tokens_per_second_max"} <= set(part.columns):
        up = part["tokens_per_second_max"] >= best["tokens_per_second"]
        level |= up & (best["tokens_per_second_min"] <= part["tokens_per_second"])
    return level


def _times(value: float, base: float) -> str:
    return f", {value / base:.2f} times `on_demand`" if base > 0 and value != base else ""


def _others(part: pd.DataFrame, level: list[str], base: float) -> str:
    """Where specmoe stands when it is not in front, or what it leaves behind when it is."""
    speed = _of(part, "specmoe", "tokens_per_second")
    if math.isnan(speed):
        return "."
    if "specmoe" not in level:
        return f"; `specmoe` gets {show_number(speed)}{_times(speed, base)}."
    behind = part[~part["label"].isin(level)]
    if not len(behind):
        return "."
    label, speed = behind.iloc[0][["label", "tokens_per_second"]]
    return f"; next is `{label}`{_times(speed, base)}."


def say_growth(rows) -> str:
    """Bytes for one new token of every row: the paper's measure of how traffic grows with the
    batch."""
    table, column = as_table(rows), "fetched_bytes_per_token"
    table = table[table["method"] != "resident"]
    small, large = table["batch"].min(), table["batch"].max()
    if small == large:
        return ""
    work = table.assign(work=table[column] * table["batch"])
    work = work.pivot_table(index="label", columns="batch", values="work")
    ratios = (work[large] / work[small]).reindex(table["label"].unique()).dropna()
    said = ", ".join(
        f"`{label}` {ratio:.1f} times" for label, ratio in ratios.items() if math.isfinite(ratio)
    )
    return f"From batch {small} to {large} the bytes for one token of every row grow: {said}."


def say_time(shares) -> str:
    """What each method spends most of its time on, at the largest batch. ``shares``:
    ``metrics.table``."""
    table = as_table(shares)
    part = table[table["batch"] == table["batch"].max()]
    names = {
        "draft": "drafting",
        "verify": "computing the full model",
        "wait": "waiting for reads",
        "rest": "the rest",
    }
    lines = []
    for _, row in part.iterrows():
        most = max(PARTS, key=lambda name: row[f"{name}_share"])
        share = 100 * row[f"{most}_share"]
        rest = "" if most == "wait" else f"; most goes into {names[most]} ({share:.0f} %)"
        lines.append(f"`{row['label']}`: {_waiting(row)} waiting for reads{rest}.")
    return f"At batch {part['batch'].iloc[0]}:\n\n{_bullets(lines)}"


def _waiting(row: pd.Series) -> str:
    """``31 %``, with the range of the repeats where they differ."""
    most = f"{100 * row['wait_share']:.0f} %"
    known = [name for name in ("wait_share_min", "wait_share_max") if name in row]
    ends = [f"{100 * row[name]:.0f}" for name in known]
    return f"{most} ({ends[0]} to {ends[1]})" if len(set(ends)) == 2 else most


def say_oracle(shares) -> str:
    """What `overlapped` could reach at best: computed from its own reads and computing, not
    measured."""
    table = as_table(shares)
    lines = []
    for _, row in table[table["method"] == "overlapped"].iterrows():
        seconds = row["oracle_overlap_seconds"] + row["rest_share"] * row["decode_seconds"]
        if not seconds > 0:
            continue
        best, real = (row["new_tokens"] / each for each in (seconds, row["decode_seconds"]))
        lines.append(
            f"batch {row['batch']}: {show_number(best)} tokens/s, {show_number(real)} measured."
        )
    said = (
        "If `overlapped` hid every read as far as computing allows, guessing nothing wrong "
        "(**computed**, not measured):"
    )
    return f"{said}\n\n{_bullets(lines)}" if lines else ""


def say_use(counts: pd.DataFrame, num: int, layers: int | None = None) -> str:
    """How uneven the use of experts is, and what the ``num`` hottest would cover; ``layers`` are
    those of the whole model, where not all of them decode."""
    num_experts = counts.shape[1]
    unused = int(dead_experts(counts).sum())
    decoding = layers is not None and layers != len(counts)
    of_layers = f" (those of the {len(counts)} MoE layers that decode)" if decoding else ""
    rest = f"{unused} of {counts.size} experts{of_layers} were not called at all"
    rest = rest if unused else "every expert was called"
    return (
        f"Mean Gini of expert use: **{skewness(counts):.2f}** (0 is even use, "
        f"{1 - 1 / num_experts:.2f} one expert for everything). The {num} most used of "
        f"{num_experts} experts take {100 * top_share(counts, num):.0f} % of a layer's expert "
        f"calls ({100 * num / num_experts:.0f} % if use were even); {rest}."
    )


def number_table(rows) -> pd.DataFrame:
    """All numbers of the rows for people: named columns, bytes in KiB."""
    table = as_table(rows)
    table["fetched_bytes_per_token"] = table["fetched_bytes_per_token"] / 2**10
    table = table[[name for name in _NAMES if name in table]].rename(columns=_NAMES)
    return table.map(_cell).set_index(["batch", "method"])


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return show_number(value) if isinstance(value, float) else value
