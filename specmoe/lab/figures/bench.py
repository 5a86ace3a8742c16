"""Figures of a bench: speed, bytes, tokens per round, time, use of experts.

Comes in: the rows of a bench (dicts or a frame: method, batch, tokens_per_second, ...) or a frame
of ``metrics``. Goes out: the ``Axes`` drawn on.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from ...errors import OptionError
from ..metrics import PARTS, dead_experts, gini, skewness
from .base import (
    DARK,
    GREY,
    METHOD_COLORS,
    MINUS,
    PART_COLORS,
    PART_NAMES,
    TIMES,
    as_table,
    bars_by_batch,
    batch_panels,
    caption,
    dress_panels,
    method_labels,
    need_columns,
    size_unit,
    styled,
    titled,
)


@styled
def throughput(rows, ax=None):
    """Decoding speed by method and batch (tokens per second), with the ratio to on_demand at the
    same batch. Lines at the bars' ends reach from the slowest to the fastest repeat."""
    table = as_table(rows)
    need_columns(table, "tokens_per_second")
    title = "Decoding speed (in brackets: times on_demand)"

    def times(value, base):
        return f"{value / base:.2f}{TIMES}"

    return bars_by_batch(table, "tokens_per_second", "tokens per second", title, times, ax)


@styled
def bytes_per_token(rows, ax=None):
    """Bytes read from slow memory per new token, prefetched ones included, with the change against
    on_demand."""
    table = as_table(rows)
    need_columns(table, "fetched_bytes_per_token")
    table = table[table["method"] != "resident"]
    if not len(table):
        raise OptionError("method='resident' reads nothing while decoding: run another one too")
    moved = table["fetched_bytes_per_token"]
    # no bar below 1 of its unit
    unit, name = size_unit(float(moved[moved > 0].min()) if moved.any() else 1)
    title = "Expert bytes read from slow memory (in brackets: against on_demand)"

    def change(value, base):
        return f"{100 * (value / base - 1):+.0f} %".replace("-", MINUS)

    ends = {"moved_min": "fetched_bytes_per_token_min", "moved_max": "fetched_bytes_per_token_max"}
    known = {end: table[name] / unit for end, name in ends.items() if name in table}
    table = table.assign(moved=moved / unit, **known)
    return bars_by_batch(table, "moved", f"{name} per new token", title, change, ax)


@styled
def tokens_per_round(rows, ax=None):
    """New tokens per row and round (accepted + 1) of the methods that draft; 1 is plain
    decoding. Lines at the bars' ends reach from the least to the most of the repeats."""
    table = as_table(rows)
    need_columns(table, "tokens_per_round")
    drafting = table[table["method"].isin(["specmoe", "auto"])]
    if not len(drafting):
        raise OptionError(
            "no row of a method that drafts (specmoe, auto), so there are no rounds to show"
        )
    own = ax is None
    if own:
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    x, y = "batch", "tokens_per_round"
    sns.barplot(
        drafting, x=x, y=y, hue="label", palette=METHOD_COLORS, saturation=1, errorbar=None, ax=ax
    )
    for bars, (_, part) in zip(list(ax.containers), drafting.groupby("label", sort=False)):
        _reach_of_bars(ax, bars, part.sort_values("batch"), y)
        ax.bar_label(bars, fmt="%.2f", padding=5)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1.2)
    ax.set(xlabel="batch (rows in flight)", ylabel="tokens per row and round")
    ax.set_ylim(0, max(1.2, drafting[y].max()) * 1.15)
    ax.legend(title=None, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return titled([ax], own, "Tokens per round (dashed: without drafting)", caption(drafting))


@styled
def time_shares(shares, ax=None, about=None):
    """Where the decoding time goes (%): stacked by method and batch.

    ``shares`` have draft_share, verify_share (computing only), wait_share and rest_share, as
    ``metrics.table`` gives them; ``about`` are the bench's rows, for the caption. The line at the
    end of the waiting reaches as far as the repeats differ in it.
    """
    table = as_table(shares)
    need_columns(table, *(f"{part}_share" for part in PARTS))
    panels, batches = batch_panels(table, ax)
    labels = method_labels(table)
    # a legend names no part that occurs nowhere
    parts = [part for part in PARTS if (table[f"{part}_share"] > 0.0005).any()]
    for panel, batch in zip(panels, batches):
        part = (
            table[table["batch"] == batch]
            .drop_duplicates("label")
            .set_index("label")
            .reindex(labels)
        )
        _stack(panel, part, parts)
        panel.set_xlim(0, 100)
    dress_panels(panels, batches, labels, "% of decoding time")
    handles, names = panels[0].get_legend_handles_labels()
    if ax is None:
        panels[0].figure.legend(handles, names, loc="outside right upper", frameon=False)
    else:
        panels[-1].legend(handles, names, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return titled(
        panels, ax is None, "Where the time goes", caption(table if about is None else about)
    )


def _stack(panel: Axes, part: pd.DataFrame, parts: list[str]) -> None:
    left = np.zeros(len(part))
    for name in parts:
        share = 100 * part[f"{name}_share"].fillna(0).to_numpy(dtype=float)
        panel.barh(
            range(len(part)), share, 0.72, left, color=PART_COLORS[name], label=PART_NAMES[name]
        )
        covered = _reach_of_waiting(panel, part, left + share) if name == "wait" else 0 * share
        color = "white" if name in DARK else "black"
        look = {"ha": "center", "va": "center", "fontsize": "small", "color": color}
        for row, (value, free) in enumerate(zip(share, share - covered, strict=True)):
            if free >= 8:  # there is room for the number beside what covers the end of the bar
                panel.text(left[row] + free / 2, row, f"{value:.0f}", **look)
        left += share


def _reach_of_waiting(panel: Axes, part: pd.DataFrame, ends: np.ndarray) -> np.ndarray:
    """How far the repeats lie below and above the median, drawn where the waiting ends. Returns
    what of each bar it covers."""
    if not {"wait_share_min", "wait_share_max"} <= set(part.columns):
        return np.zeros(len(part))
    reach = [
        part["wait_share"] - part["wait_share_min"],
        part["wait_share_max"] - part["wait_share"],
    ]
    reach = 100 * np.array(reach, dtype=float)
    panel.errorbar(
        ends,
        range(len(part)),
        xerr=np.nan_to_num(reach).clip(min=0),
        fmt="none",
        ecolor="black",
        capsize=3,
    )
    return np.nan_to_num(reach[0]).clip(min=0)


def _reach_of_bars(ax: Axes, bars, part: pd.DataFrame, y: str) -> None:
    if not {f"{y}_min", f"{y}_max"} <= set(part.columns):
        return
    reach = np.array([part[y] - part[f"{y}_min"], part[f"{y}_max"] - part[y]], dtype=float)
    middle = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    # a label stands above what the bar carries
    bars.errorbar = ax.errorbar(
        middle, part[y], yerr=reach.clip(min=0), fmt="none", ecolor=GREY, capsize=3
    )


@styled
def expert_use(counts: pd.DataFrame, ax=None):
    """How unevenly the experts of each MoE layer are used: share of the layer's expert calls (%),
    experts sorted by use; ``counts`` as of ``metrics.expert_use``. The dashed line is even use."""
    if not len(counts) or not counts.to_numpy().sum():
        raise OptionError(
            "the counts are empty: no token was sent to any expert (was the trace on?)"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    dead = dead_experts(counts)
    rank = np.arange(1, counts.shape[1] + 1)
    for color, (layer, use) in zip(sns.color_palette("viridis", len(counts)), counts.iterrows()):
        share = 100 * np.sort(use.to_numpy())[::-1] / max(1, use.sum())
        name = f"layer {layer}: Gini {gini(use):.2f}, {dead[layer]} unused"
        ax.plot(rank, share, marker="o", markersize=4, color=color, label=name)
    ax.axhline(
        100 / counts.shape[1], color=GREY, linestyle="--", linewidth=1.2, label="even use: Gini 0"
    )
    ax.set(
        xlabel="experts of the layer, most used first (rank)",
        ylabel="% of the layer's expert calls",
    )
    ax.set_ylim(0, None)
    title = f"Expert use per MoE layer: mean Gini {skewness(counts):.2f}"
    ax.set_title(title, fontweight="bold", loc="left")
    many = {"loc": "upper left", "bbox_to_anchor": (1, 1), "ncols": 1 + len(counts) // 20}
    ax.legend(
        frameon=False, fontsize="small", **(many if len(counts) > 8 else {"loc": "upper right"})
    )
    return ax


@styled
def settings_map(table: pd.DataFrame):
    """Every run of a sweep, a panel for each batch: bytes read per new token against tokens per
    second. Colours are methods, marks numbers of draft experts N."""
    need_columns(table, "fetched_bytes_per_token")
    need_columns(table, "tokens_per_second")
    table = table[table["method"] != "resident"]
    moved = table["fetched_bytes_per_token"]
    unit, name = size_unit(float(moved[moved > 0].min()) if moved.any() else 1)
    shown = pd.DataFrame(
        {
            f"{name} per new token": moved / unit,
            "tokens per second": table["tokens_per_second"],
            "method": table["method"],
            "N": table["draft_experts"].astype(int).astype(str),
            "batch": table["batch_size"],
        }
    )
    places = {"x": f"{name} per new token", "y": "tokens per second", "col": "batch"}
    looks = {"hue": "method", "style": "N", "palette": METHOD_COLORS, "s": 110}
    scales = {"sharex": False, "sharey": False}
    grid = sns.relplot(shown, **places, **looks, facet_kws=scales, height=4, col_wrap=2)
    grid.set(xlim=(0, None), ylim=(0, None))
    grid.figure.suptitle(
        "Every setting: bytes read and speed", fontweight="bold", x=0.02, y=1.02, ha="left"
    )
    return grid.axes.flat
