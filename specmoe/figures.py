"""Figures: a frame in, matplotlib ``Axes`` out.

Comes in: the rows of a bench (dicts or a frame: method, batch, tokens_per_second, ...) or a frame of ``metrics``.
Goes out: the ``Axes`` drawn on. Notebooks and reports show them; the widgets put sliders in front of them.

A method has one colour everywhere, from seaborn's colour-blind palette. Styles live in a context, so nobody's own
settings change. Figures by batch have one panel per batch, each on its own scale, because batches differ by orders
of magnitude and methods do not: give ``ax`` one ``Axes`` per batch to draw into a figure of your own.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from .config import METHODS
from .errors import OptionError, check_choice
from .metrics import PARTS, dead_experts, gini, skewness

_COLORS = sns.color_palette("colorblind")
METHOD_COLORS = {  # in the order of every figure, top to bottom
    "on_demand": _COLORS[7],
    "overlapped": _COLORS[2],
    "cached": _COLORS[1],
    "specmoe": _COLORS[0],
    "auto": _COLORS[4],
    "resident": _COLORS[5],
}
ORDER = tuple(METHOD_COLORS)
PART_COLORS = {"draft": _COLORS[9], "verify": "#44546a", "wait": _COLORS[3], "rest": "#d4d4d4"}
PART_NAMES = {"draft": "drafting", "verify": "full model", "wait": "waiting for reads", "rest": "the rest"}
_DARK = ("verify", "wait")  # parts whose labels are white
_GREY = "#505050"
_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_TIMES, _MINUS, _GAMMA = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{GREEK SMALL LETTER GAMMA}"


def _styled(draw):
    """Run a figure function inside our style; the caller's settings come back afterwards."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        quiet = {"axes.spines.top": False, "axes.spines.right": False, "grid.color": "#e4e4e4"}
        with sns.axes_style("whitegrid", quiet), sns.plotting_context("notebook", font_scale=1.1):
            return draw(*args, **kwargs)

    return styled


def compact_png(axes, dots_per_inch: int = 144) -> bytes:
    """The figure of ``axes`` as a PNG of 128 colours: sharp on a projector, small in a notebook."""
    from PIL import Image

    drawn, packed = io.BytesIO(), io.BytesIO()
    np.atleast_1d(axes)[0].figure.savefig(drawn, format="png", dpi=dots_per_inch, bbox_inches="tight")
    picture = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    picture.save(packed, format="png", optimize=True)
    return packed.getvalue()


def show(axes) -> None:
    """In a notebook: display the figure of ``axes`` as ``compact_png``, with its title as alternative text; close it."""
    from IPython.display import Image, display

    figure = np.atleast_1d(axes)[0].figure
    title = figure.get_suptitle() or np.atleast_1d(axes)[0].get_title(loc="left")
    said = ". ".join(words for words in (title, figure.get_supxlabel()) if words)
    display(Image(compact_png(axes), width=int(72 * figure.get_figwidth()), alt=f"Figure: {said}"))
    plt.close(figure)


# ---- words -------------------------------------------------------------------------------------------------


def size_unit(num_bytes: float) -> tuple[int, str]:
    """The largest unit that leaves at least 1 of it: ``(1048576, "MiB")``."""
    return next((unit for unit in _SIZES if num_bytes >= unit[0]), _SIZES[-1])


def show_bytes(num_bytes: float) -> str:
    """``"1.5 MiB"``."""
    unit, name = size_unit(num_bytes)
    return f"{show_number(num_bytes / unit)} {name}"


def show_number(value: float) -> str:
    """Three digits that count, never an exponent: ``1234``, ``41.3``, ``0.052``."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def as_table(rows: Iterable[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Bench rows as a frame, batches ascending and methods in ``ORDER``, with a ``label``: the method, and its
    eviction where ``cached`` was run with several."""
    table = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows)).copy()
    if not len(table) or not {"method", "batch"} <= set(table.columns):
        raise OptionError("there is nothing to draw: give the rows of a bench, each with method and batch")
    for method in table["method"].unique():
        check_choice("method", method, METHODS)
    table["label"] = table["method"]
    cached = table["method"] == "cached"
    if "eviction" in table and table.loc[cached, "eviction"].nunique() > 1:
        table.loc[cached, "label"] = "cached:" + table.loc[cached, "eviction"].astype(str)
    table["_order"] = table["method"].map(ORDER.index)
    table = table.sort_values(["batch", "_order"], kind="stable", ignore_index=True)
    return table.drop(columns="_order")


def _labels(table: pd.DataFrame) -> list[str]:
    """Labels of a table, top to bottom; a batch may lack some."""
    return list(dict.fromkeys(sorted(table["label"], key=lambda label: ORDER.index(label.split(":")[0]))))


def caption(rows, model: str | None = None) -> str:
    """What one must know to read a figure: fast memory, the settings of drafting, whether the batch was kept full."""
    table = as_table(rows)
    offloaded = table[table["method"] != "resident"]
    drafting = table[table["method"] == "specmoe"]
    said = [model] if model else []
    if fast := _values(offloaded, "fast_memory_bytes"):
        said.append(f"{' or '.join(show_bytes(size) for size in fast)} of fast memory for experts")
    named = [f"N = {' or '.join(f'{n:g}' for n in num)}"] if (num := _values(drafting, "draft_experts")) else []
    if drafted := _values(drafting.round({"gamma": 1}), "gamma"):
        span = f" = {drafted[0]:g}" if len(drafted) == 1 else f" {drafted[0]:g} to {drafted[-1]:g} on average"
        named.append(_GAMMA + span)
    said += [f"specmoe: {', '.join(named)}"] if named else []
    if "kept_full" in table:
        said.append(_fullness(offloaded if len(offloaded) else table))
    if len(offloaded) < len(table):
        said.append("resident: all experts in memory")
    return "; ".join(said)


def _values(table: pd.DataFrame, name: str) -> list:
    return sorted(table[name].dropna().unique().tolist()) if name in table else []


def _fullness(table: pd.DataFrame) -> str:
    short = sorted(set(table.loc[~table["kept_full"].astype(bool), "batch"]))
    if not short:
        return "batch kept full"
    every = len(short) == table["batch"].nunique()
    return "batch not kept full" if every else f"batch kept full except at {', '.join(map(str, short))}"


# ---- panels ------------------------------------------------------------------------------------------------


def _panels(table: pd.DataFrame, ax) -> tuple[list[Axes], list[int]]:
    """One ``Axes`` per batch: those given, or those of a new figure."""
    batches = sorted(table["batch"].unique().tolist())
    if ax is None:
        size = (2.0 + 3.2 * len(batches), 1.8 + 0.42 * table["label"].nunique())
        _, axes = plt.subplots(1, len(batches), figsize=size, squeeze=False, layout="constrained")
        return list(axes[0]), batches
    axes = list(np.atleast_1d(ax))
    if len(axes) != len(batches):
        raise OptionError(f"ax holds {len(axes)} Axes for {len(batches)} batches {batches}: give one for each")
    return axes, batches


def _dress(panels: list[Axes], batches: list[int], labels: list[str], xlabel: str) -> None:
    for place, (panel, batch) in enumerate(zip(panels, batches)):
        panel.set_yticks(range(len(labels)), labels if place == 0 else [""] * len(labels))
        panel.set_ylim(len(labels) - 0.45, -0.55)
        panel.set(xlabel=xlabel, title=f"batch {batch}")
        panel.grid(False, axis="y")
        panel.locator_params(axis="x", nbins=4)


def _note(axes: list[Axes], own: bool, title: str, note: str):
    """Title and caption, on our figure or at the given ``Axes``; a lone panel comes back as a plain ``Axes``."""
    if own:
        axes[0].figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
        axes[0].figure.supxlabel(note, fontsize="small", color=_GREY, x=0.01, ha="left")
    else:
        axes[-1].set_xlabel(f"{axes[-1].get_xlabel()}\n({note})")
    return axes[0] if len(axes) == 1 else np.array(axes, dtype=object)


def _need(table: pd.DataFrame, *names: str) -> None:
    for name in names:
        if name not in table:
            raise OptionError(f"the rows have no {name!r}; they have {', '.join(map(str, table.columns))}")


def _bars(table: pd.DataFrame, value: str, xlabel: str, title: str, compare, ax):
    """Bars of ``value`` by method, a panel per batch, each labelled with its number and ``compare(value, base)``,
    where base is on_demand's value in the same batch."""
    panels, batches = _panels(table, ax)
    labels = _labels(table)
    for panel, batch in zip(panels, batches):
        part = table[table["batch"] == batch].drop_duplicates("label").set_index("label")[value].reindex(labels)
        colors = [METHOD_COLORS[label.split(":")[0]] for label in labels]
        reach = _reach(table[table["batch"] == batch], value, labels)
        bars = panel.barh(range(len(labels)), part.fillna(0), 0.72, color=colors, xerr=reach, ecolor=_GREY)
        for bar, label in zip(bars, labels):
            bar.set_hatch("//" if label == "resident" else None)
        base = part.get("on_demand", np.nan)
        words = [_bar_words(label, part[label], base, compare) for label in labels]
        panel.bar_label(bars, words, padding=4, fontsize="small")
        ends = part.fillna(0).to_numpy(dtype=float) + (0 if reach is None else reach[1])
        panel.set_xlim(0, 1.5 * (ends.max() or 1))
    _dress(panels, batches, labels, xlabel)
    return _note(panels, ax is None, title, caption(table))


def _reach(part: pd.DataFrame, value: str, labels: list[str]) -> np.ndarray | None:
    """How far the repeats lie below and above each median; None where the rows do not say, or did not repeat."""
    ends = [f"{value}_min", f"{value}_max"]
    if not set(ends) <= set(part.columns):
        return None
    part = part.drop_duplicates("label").set_index("label").reindex(labels).fillna(dict.fromkeys([value, *ends], 0))
    reach = np.array([part[value] - part[ends[0]], part[ends[1]] - part[value]], dtype=float).clip(min=0)
    return reach if reach.any() else None


def _bar_words(label: str, value: float, base: float, compare) -> str:
    if np.isnan(value):
        return "not run"
    ratio = base > 0 and label != "on_demand"
    return show_number(value) + (f"  ({compare(value, base)})" if ratio else "")


# ---- the figures -------------------------------------------------------------------------------------------


@_styled
def throughput(rows, ax=None):
    """Decoding speed by method and batch (tokens per second), with the ratio to on_demand at the same batch. Lines at
    the bars' ends reach from the slowest to the fastest repeat."""
    table = as_table(rows)
    _need(table, "tokens_per_second")
    title = "Decoding speed (in brackets: times on_demand)"

    def times(value, base):
        return f"{value / base:.2f}{_TIMES}"

    return _bars(table, "tokens_per_second", "tokens per second", title, times, ax)


@_styled
def bytes_per_token(rows, ax=None):
    """Bytes read from slow memory per new token, prefetched ones included, with the change against on_demand."""
    table = as_table(rows)
    _need(table, "fetched_bytes_per_token")
    table = table[table["method"] != "resident"]
    if not len(table):
        raise OptionError("method='resident' reads nothing while decoding: run another one too")
    moved = table["fetched_bytes_per_token"]
    unit, name = size_unit(float(moved[moved > 0].min()) if moved.any() else 1)  # no bar below 1 of its unit
    title = "Expert bytes read from slow memory (in brackets: against on_demand)"

    def change(value, base):
        return f"{100 * (value / base - 1):+.0f} %".replace("-", _MINUS)

    table = table.assign(moved=moved / unit)
    return _bars(table, "moved", f"{name} per new token", title, change, ax)


@_styled
def tokens_per_round(rows, ax=None):
    """New tokens per row and round (accepted + 1) of the methods that draft; 1 is plain decoding."""
    table = as_table(rows)
    _need(table, "tokens_per_round")
    drafting = table[table["method"].isin(["specmoe", "auto"])]
    if not len(drafting):
        raise OptionError("no row of a method that drafts (specmoe, auto), so there are no rounds to show")
    own = ax is None
    if own:
        _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    x, y = "batch", "tokens_per_round"
    sns.barplot(drafting, x=x, y=y, hue="label", palette=METHOD_COLORS, saturation=1, errorbar=None, ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.2f", padding=3)
    ax.axhline(1, color=_GREY, linestyle="--", linewidth=1.2)
    ax.set(xlabel="batch (rows in flight)", ylabel="tokens per row and round")
    ax.set_ylim(0, max(1.2, drafting[y].max()) * 1.15)
    ax.legend(title=None, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _note([ax], own, "Tokens per round (dashed: without drafting)", caption(drafting))


@_styled
def time_shares(shares, ax=None, about=None):
    """Where the decoding time goes (%): stacked by method and batch.

    ``shares`` have draft_share, verify_share (computing only), wait_share and rest_share, as ``metrics.table`` gives
    them; ``about`` are the bench's rows, for the caption.
    """
    table = as_table(shares)
    _need(table, *(f"{part}_share" for part in PARTS))
    panels, batches = _panels(table, ax)
    labels = _labels(table)
    for panel, batch in zip(panels, batches):
        part = table[table["batch"] == batch].drop_duplicates("label").set_index("label").reindex(labels)
        _stack(panel, part)
        panel.set_xlim(0, 100)
    _dress(panels, batches, labels, "% of decoding time")
    handles, names = panels[0].get_legend_handles_labels()
    if ax is None:
        panels[0].figure.legend(handles, names, loc="outside right upper", frameon=False)
    else:
        panels[-1].legend(handles, names, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _note(panels, ax is None, "Where the time goes", caption(table if about is None else about))


def _stack(panel: Axes, part: pd.DataFrame) -> None:
    left = np.zeros(len(part))
    for name in PARTS:
        share = 100 * part[f"{name}_share"].fillna(0).to_numpy(dtype=float)
        bars = panel.barh(range(len(part)), share, 0.72, left, color=PART_COLORS[name], label=PART_NAMES[name])
        words = [f"{value:.0f}" if value >= 8 else "" for value in share]
        color = "white" if name in _DARK else "black"
        panel.bar_label(bars, words, label_type="center", fontsize="small", color=color)
        left += share


@_styled
def expert_use(counts: pd.DataFrame, ax=None):
    """How unevenly the experts of each MoE layer are used: share of the layer's expert calls (%), experts sorted by
    use; ``counts`` as of ``metrics.expert_use``. The dashed line is even use."""
    if not len(counts) or not counts.to_numpy().sum():
        raise OptionError("the counts are empty: no token was sent to any expert (was the trace on?)")
    if ax is None:
        _, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    dead = dead_experts(counts)
    rank = np.arange(1, counts.shape[1] + 1)
    for color, (layer, use) in zip(sns.color_palette("viridis", len(counts)), counts.iterrows()):
        share = 100 * np.sort(use.to_numpy())[::-1] / max(1, use.sum())
        name = f"layer {layer}: Gini {gini(use):.2f}, {dead[layer]} unused"
        ax.plot(rank, share, marker="o", markersize=4, color=color, label=name)
    ax.axhline(100 / counts.shape[1], color=_GREY, linestyle="--", linewidth=1.2, label="even use: Gini 0")
    ax.set(xlabel="experts of the layer, most used first (rank)", ylabel="% of the layer's expert calls")
    ax.set_ylim(0, None)
    title = f"Expert use per MoE layer: mean Gini {skewness(counts):.2f}"
    ax.set_title(title, fontweight="bold", loc="left")
    many = {"loc": "upper left", "bbox_to_anchor": (1, 1), "ncols": 1 + len(counts) // 20}
    ax.legend(frameon=False, fontsize="small", **(many if len(counts) > 8 else {"loc": "upper right"}))
    return ax
