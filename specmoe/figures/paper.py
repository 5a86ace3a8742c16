"""Figures of the reproduction: the paper's numbers and ours side by side, lines against batch, the map of winners.

Comes in: frames of ``specmoe.reproduction`` (numbers with table, label, measure, value, kind; batch x method). Goes out: the
``Axes`` drawn on. A kind has one mark everywhere: paper an open diamond, measured a filled circle, simulated a triangle.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap

from ..errors import OptionError
from .base import COLORS, GREY, METHOD_COLORS, need_columns, show_number, styled, titled

KIND_MARKS = {
    "paper": ("D", "white", COLORS[3]),
    "measured": ("o", COLORS[0], COLORS[0]),
    "simulated": ("^", COLORS[2], COLORS[2]),
}
DASHES = ("-", "--", ":", "-.")
LINK_MARKS = "^osDv"


@styled
def against_paper(numbers: pd.DataFrame, measure: str, ax=None, title: str | None = None):
    """One row per label: the paper's value, the measured one with its reach over prompt sets, the simulated one.

    ``numbers``: rows of one table with label, measure, value, kind, unit, low, high.
    """
    need_columns(numbers, "label", "measure", "value", "kind", "low", "high")
    part = numbers[numbers["measure"] == measure]
    if not len(part):
        raise OptionError(f"no number is called {measure!r}: there are {', '.join(sorted(set(numbers['measure'])))}")
    labels, own = list(dict.fromkeys(part["label"])), ax is None
    if own:
        _, ax = plt.subplots(figsize=(8.5, 1.7 + 0.62 * len(labels)), layout="constrained")
    kinds = [kind for kind in KIND_MARKS if kind in set(part["kind"])]
    for place, kind in enumerate(kinds):
        _marks(ax, part[part["kind"] == kind], labels, kind, 0.3 * (place - (len(kinds) - 1) / 2))
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.set_xlabel(f"{measure} ({part['unit'].iloc[0]})")
    ax.margins(x=0.18)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    note = "lines: smallest to largest over prompt sets or repeats" if part["low"].notna().any() else ""
    return titled([ax], own, title or measure[0].upper() + measure[1:], note)


def _marks(ax, part: pd.DataFrame, labels: list[str], kind: str, shift: float) -> None:
    marker, face, edge = KIND_MARKS[kind]
    at = np.array([labels.index(label) for label in part["label"]]) + shift
    low, high = (part[name].astype(float).fillna(part["value"]) for name in ("low", "high"))
    ax.hlines(at, low, high, color=edge, linewidth=2)
    ax.plot(
        part["value"], at, marker, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.8, markersize=8, label=kind
    )
    for value, end, place in zip(part["value"], high, at):
        words = f"{value:.2f}" if abs(value) < 20 else show_number(value)
        ax.annotate(words, (end, place), (9, 0), textcoords="offset points", va="center", fontsize="small", color=edge)


@styled
def by_batch(lines: pd.DataFrame, ylabel: str, title: str, note: str = "", ax=None):
    """``lines`` [batch x method]: one line each, both axes logarithmic, named at its end."""
    if not len(lines) or not lines.notna().any().any():
        raise OptionError("there is nothing to draw: no method was measured at any batch")
    own = ax is None
    if own:
        _, ax = plt.subplots(figsize=(9.5, 5), layout="constrained")
    seen: dict[str, int] = {}
    ends = []
    for name in lines.columns[lines.notna().any()]:
        values, method = lines[name].dropna(), _method(name)
        style = DASHES[seen.setdefault(method, 0) % len(DASHES)]
        seen[method] += 1
        ax.plot(values.index, values, style, marker="o", markersize=5, linewidth=2.2, color=METHOD_COLORS[method])
        ends.append((float(values.iloc[-1]), int(values.index[-1]), name, METHOD_COLORS[method]))
    ax.set(xscale="log", yscale="log", xlabel="batch (rows in flight)", ylabel=ylabel)
    ax.set_xticks(lines.index, [str(batch) for batch in lines.index])
    ax.minorticks_off()
    _name_ends(ax, ends)
    return titled([ax], own, title, note)


def _method(name: str) -> str:
    """The method whose colour a line has: "cached, equal bytes" -> "cached", "oracle" -> "overlapped"."""
    first = name.split(",")[0].split(":")[0].split(" ")[0]
    return {"oracle": "overlapped"}.get(first, first)


def _name_ends(ax, ends: list[tuple]) -> None:
    """Names right of the lines' ends, moved apart where they would overlap."""
    bottom, top = np.log10(ax.get_ylim())
    gap, last = 0.062 * (top - bottom), -np.inf
    right = max(end[1] for end in ends)
    for value, _, name, color in sorted(ends, key=lambda end: end[0]):
        last = max(np.log10(value), last + gap)
        ax.annotate(
            name, (right, 10**last), (10, 0), textcoords="offset points", va="center", color=color, annotation_clip=False
        )


@styled
def clock_scatter(rows: pd.DataFrame, ax=None):
    """Predicted against measured tokens per second: a panel per ``model`` (if named), a mark per link, a colour per method.
    The line is a perfect prediction, the band 25 % either way."""
    need_columns(rows, "measured", "predicted", "method", "link")
    models = list(dict.fromkeys(rows["model"])) if "model" in rows else [None]
    axes = [ax] if ax is not None else _clock_axes(len(models))
    for axis, model in zip(axes, models if ax is None else [None]):
        _clock_panel(axis, rows if model is None else rows[rows["model"] == model], model)
    axes[0].set_ylabel("simulated tokens per second")
    _clock_legend(axes[-1], rows)
    return titled(axes, ax is None, "The simulator against our own clock", "band: 25 % off; every method at batch 1, 16, 64")


def _clock_axes(num: int) -> list:
    size = (3 + 4.4 * num, 5)
    return list(plt.subplots(1, num, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")[1].flat)


def _clock_panel(ax, rows: pd.DataFrame, model: str | None) -> None:
    for marker, (_, part) in zip(LINK_MARKS, rows.groupby("link")):
        colors = [METHOD_COLORS[method] for method in part["method"]]
        ax.scatter(part["measured"], part["predicted"], 70, colors, marker=marker, edgecolors="black", linewidths=0.6)
    values = rows[["measured", "predicted"]]
    ends = np.array([values.min().min() / 1.4, values.max().max() * 1.4])
    ax.plot(ends, ends, "--", color=GREY, linewidth=1.2)
    ax.fill_between(ends, 0.75 * ends, 1.25 * ends, color=GREY, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="measured tokens per second", title=model or "")


def _clock_legend(ax, rows: pd.DataFrame) -> None:
    """Links by mark, methods by colour, beside the last panel."""
    shown = {"color": "white", "linestyle": "", "markeredgecolor": "black", "markersize": 8}
    links = [
        plt.Line2D([], [], marker=mark, label=link, **shown) for mark, link in zip(LINK_MARKS, sorted(set(rows["link"])))
    ]
    used = [name for name in METHOD_COLORS if name in set(rows["method"])]
    methods = [plt.Line2D([], [], **shown | {"color": METHOD_COLORS[name]}, marker="s", label=name) for name in used]
    ax.legend(handles=[*links, *methods], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


# ---- the map of winners ------------------------------------------------------------------------------------


@styled
def map_of_winners(
    cells: pd.DataFrame, machines: dict[str, float] | None = None, points: pd.DataFrame | None = None, ax=None
):
    """Who is fastest at equal fast memory: balance (FLOP per byte) x batch, a panel for each ``panel`` of ``cells``.

    ``cells``: panel, balance, batch, method (the winner), speedup (its speed over on_demand). ``machines``: name -> balance.
    ``points``: measured panel, balance, batch, method, laid on it in the winner's colour.
    """
    need_columns(cells, "panel", "balance", "batch", "method", "speedup")
    panels = list(dict.fromkeys(cells["panel"]))
    axes = [ax] if ax is not None else _map_axes(len(panels))
    methods = [name for name in METHOD_COLORS if name in set(cells["method"])]
    for axis, panel in zip(axes, panels):
        _map_panel(axis, cells[cells["panel"] == panel], methods, sorted(set(cells["batch"])))
        axis.set_title(panel, pad=20)
        axis.set_ylabel("batch" if axis.get_subplotspec() is None or axis.get_subplotspec().is_first_col() else "")
        _mark_machines(axis, machines or {})
        if points is not None:
            _mark_points(axis, points[points["panel"] == panel], sorted(set(cells["batch"])))
    laid = "circles: measured; rest simulated" if points is not None and len(points) else "all simulated"
    note = f"colour: the fastest method; numbers: times on_demand; {laid}; overlapped: oracle"
    return titled(list(axes), ax is None, "The map of winners: fastest method at equal fast memory", note)


def _map_axes(num: int) -> list:
    columns = min(num, 2)
    rows = -(-num // columns)
    size = (2 + 4.8 * columns, 1.6 + 3.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained")
    for extra in axes.flat[num:]:
        extra.remove()
    return list(axes.flat[:num])


def _map_panel(ax, part: pd.DataFrame, methods: list[str], batches: list[int]) -> None:
    winner = part.pivot_table(index="batch", columns="balance", values="method", aggfunc="first").reindex(batches)
    speedup = part.pivot_table(index="batch", columns="balance", values="speedup", aggfunc="first").reindex(batches)
    codes = winner.map(methods.index, na_action="ignore").to_numpy(dtype=float)  # nan: not counted
    x = np.log10(winner.columns.to_numpy(dtype=float))
    step = (x[1] - x[0]) if len(x) > 1 else 1
    edges = np.concatenate([x - step / 2, x[-1:] + step / 2])
    colors = ListedColormap([METHOD_COLORS[name] for name in methods])
    rows = np.arange(len(winner) + 1) - 0.5
    ax.pcolormesh(
        edges, rows, codes, cmap=colors, vmin=-0.5, vmax=len(methods) - 0.5, alpha=0.8, edgecolor="white", linewidth=0.6
    )
    _name_regions(ax, codes, x, methods)
    for row, column in np.argwhere(np.isfinite(codes)):
        if column % max(1, len(x) // 4) == 1:
            words = f"{speedup.iloc[row, column]:.1f}"
            ax.text(x[column], row - 0.3, words, ha="center", va="center", fontsize="x-small")
    ax.set_yticks(range(len(winner)), [str(batch) for batch in winner.index])
    ticks = range(int(np.ceil(edges[0])), int(edges[-1]) + 1)
    ax.set_xticks(list(ticks), [f"$10^{tick}$" for tick in ticks])
    ax.set_xlabel("balance (FLOP per byte)")
    ax.grid(False)


def _name_regions(ax, codes: np.ndarray, x: np.ndarray, methods: list[str]) -> None:
    """Each method's name once, in the cell of its region that is nearest to the region's middle."""
    for code in np.unique(codes[np.isfinite(codes)]):
        where = np.argwhere(codes == code)
        row, column = where[np.abs(where - np.median(where, axis=0)).sum(axis=1).argmin()]
        ax.text(x[column], row + 0.18, methods[int(code)], ha="center", va="center", fontweight="bold", fontsize="medium")


def _mark_machines(ax, machines: dict[str, float]) -> None:
    top = ax.get_ylim()[1]
    for place, (name, balance) in enumerate(sorted(machines.items(), key=lambda item: item[1])):
        ax.axvline(np.log10(balance), color="black", linewidth=1.4, linestyle=DASHES[1 + place % 3])
        words = {
            "textcoords": "offset points",
            "va": "bottom",
            "ha": "center",
            "fontsize": "small",
            "annotation_clip": False,
        }
        ax.annotate(name, (np.log10(balance), top), (0, 3), color=GREY, **words)


def _mark_points(ax, points: pd.DataFrame, batches: list[int]) -> None:
    for row in points.itertuples():
        if row.batch in batches:
            at = (np.log10(row.balance), batches.index(row.batch))
            ax.plot(
                *at,
                "o",
                markersize=12,
                markerfacecolor=METHOD_COLORS[row.method],
                markeredgecolor="black",
                markeredgewidth=1.8,
            )
