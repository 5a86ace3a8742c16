"""Figures of the reproduction: the paper's numbers and ours side by side, lines against batch, the
simulator's errors.

Comes in: frames of ``specmoe.lab.paper`` (numbers with table, label, measure, value, kind; batch x
method). Goes out: the ``Axes`` drawn on. A kind has one mark everywhere: paper an open diamond,
measured a filled circle, simulated a triangle.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ...errors import OptionError
from .base import COLORS, GREY, METHOD_COLORS, need_columns, show_number, styled, titled

KIND_MARKS = {
    "paper": ("D", "white", COLORS[3]),
    "measured": ("o", COLORS[0], COLORS[0]),
    "simulated": ("^", COLORS[2], COLORS[2]),
}
DASHES = ("-", "--", ":", "-.")
LINK_MARKS = "^osDv"


@styled
def against_paper(
    numbers: pd.DataFrame, measure: str, ax=None, title: str | None = None, batch: int | None = None
):
    """One row per label: the paper's value, the measured one with its reach over prompt sets, the
    simulated one.

    ``numbers``: rows of one table with label, measure, value, kind, unit, low, high. ``batch``: of
    measures that have several.
    """
    need_columns(numbers, "label", "measure", "value", "kind", "low", "high")
    part = found = numbers[numbers["measure"] == measure]
    if not len(part):
        raise OptionError(
            f"no number is called {measure!r}: there are "
            f"{', '.join(sorted(set(numbers['measure'])))}"
        )
    if "batch" in part:
        part = part[part["batch"].isna() if batch is None else part["batch"] == batch]
        if not len(part):
            raise OptionError(
                f"{measure!r} has no number at batch {batch}: there are its batches "
                f"{sorted(set(found['batch']))}"
            )
    labels, own = list(dict.fromkeys(part["label"])), ax is None
    if own:
        _, ax = plt.subplots(figsize=(8, 1.6 + 0.55 * len(labels)), layout="constrained")
    kinds = [kind for kind in KIND_MARKS if kind in set(part["kind"])]
    for place, kind in enumerate(kinds):
        _marks(ax, part[part["kind"] == kind], labels, kind, 0.3 * (place - (len(kinds) - 1) / 2))
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    at = "" if batch is None else f", batch {batch}"
    ax.set_xlabel(f"{measure} ({part['unit'].iloc[0]}){at}")
    ax.margins(x=0.18)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    note = "lines: smallest to largest over prompt sets or repeats"
    note = note if part["low"].notna().any() else ""
    return titled([ax], own, title or measure[0].upper() + measure[1:], note)


def _marks(ax, part: pd.DataFrame, labels: list[str], kind: str, shift: float) -> None:
    marker, face, edge = KIND_MARKS[kind]
    at = np.array([labels.index(label) for label in part["label"]]) + shift
    low, high = (part[name].astype(float).fillna(part["value"]) for name in ("low", "high"))
    ax.hlines(at, low, high, color=edge, linewidth=2)
    ax.plot(
        part["value"],
        at,
        marker,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=1.8,
        markersize=8,
        label=kind,
    )
    for value, end, place in zip(part["value"], high, at):
        words = f"{value:.2f}" if abs(value) < 20 else show_number(value)
        ax.annotate(
            words,
            (end, place),
            (9, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=edge,
        )


@styled
def by_batch(lines: pd.DataFrame, ylabel: str, title: str, note: str = "", ax=None):
    """``lines`` [batch x method]: one line each, both axes logarithmic, named at its end."""
    if not len(lines) or not lines.notna().any().any():
        raise OptionError("there is nothing to draw: no method was measured at any batch")
    own = ax is None
    if own:
        _, ax = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    seen: dict[str, int] = {}
    ends = []
    for name in lines.columns[lines.notna().any()]:
        values, method = lines[name].dropna(), _method(name)
        style = DASHES[seen.setdefault(method, 0) % len(DASHES)]
        seen[method] += 1
        ax.plot(
            values.index,
            values,
            style,
            marker="o",
            markersize=5,
            linewidth=2.2,
            color=METHOD_COLORS[method],
        )
        ends.append((float(values.iloc[-1]), int(values.index[-1]), name, METHOD_COLORS[method]))
    ax.set(xscale="log", yscale="log", xlabel="batch (rows in flight)", ylabel=ylabel)
    ax.set_xticks(lines.index, [str(batch) for batch in lines.index])
    ax.minorticks_off()
    _plain_ticks(ax)
    _name_ends(ax, ends)
    return titled([ax], own, title, note)


def _plain_ticks(ax) -> None:
    """Ticks at 1, 2 and 5 of every power of ten on a logarithmic y axis, without exponents."""
    low, high = ax.get_ylim()
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    ax.set_yticks(ticks, [show_number(tick) for tick in ticks])


def _method(name: str) -> str:
    """The method whose colour a line has: "cached, equal bytes" -> "cached", "oracle" ->
    "overlapped"."""
    first = name.split(",")[0].split(":")[0].split(" ")[0]
    return {"oracle": "overlapped"}.get(first, first)


def _name_ends(ax, ends: list[tuple]) -> None:
    """Names right of the lines' ends, pushed apart where they would overlap."""
    bottom, top = np.log10(ax.get_ylim())
    ends = sorted(ends, key=lambda end: end[0])
    heights = _apart(np.log10([end[0] for end in ends]), 0.062 * (top - bottom))
    right = max(end[1] for end in ends)
    look = {"textcoords": "offset points", "va": "center", "annotation_clip": False}
    for (_, _, name, color), height in zip(ends, heights):
        ax.annotate(name, (right, 10**height), (10, 0), color=color, **look)


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """The nearest heights, in their order, that are at least ``gap`` apart: neighbours that are
    closer share the push."""
    # members and the middle of each group
    groups = [[[float(height)], float(height)] for height in heights]
    while True:
        for one, other in zip(groups, groups[1:]):
            reach = gap * (len(one[0]) + len(other[0])) / 2
            if other[1] - one[1] < reach - 1e-9:
                members = one[0] + other[0]
                groups[groups.index(one)] = [members, float(np.mean(members))]
                groups.remove(other)
                break
        else:
            break
    return np.concatenate(
        [
            middle + gap * (np.arange(len(members)) - (len(members) - 1) / 2)
            for members, middle in groups
        ]
    )


@styled
def clock_scatter(rows: pd.DataFrame, ax=None):
    """Predicted against measured tokens per second: a panel per ``model`` (if named), a mark per
    link, a colour per method. The line is a perfect prediction, the band 25 % either way."""
    need_columns(rows, "measured", "predicted", "method", "link")
    models = list(dict.fromkeys(rows["model"])) if "model" in rows else [None]
    axes = [ax] if ax is not None else _clock_axes(len(models))
    for axis, model in zip(axes, models if ax is None else [None]):
        _clock_panel(axis, rows if model is None else rows[rows["model"] == model], model)
    axes[0].set_ylabel("simulated tokens per second")
    _clock_legend(axes[-1], rows)
    return titled(
        axes,
        ax is None,
        "The simulator against our own clock",
        "band: 25 % off; every method at batch 1, 16, 64",
    )


def _clock_axes(num: int) -> list:
    size = (3 + 4.4 * num, 5)
    shared = {"sharex": True, "sharey": True, "squeeze": False}
    return list(plt.subplots(1, num, figsize=size, layout="constrained", **shared)[1].flat)


def _clock_panel(ax, rows: pd.DataFrame, model: str | None) -> None:
    for marker, (_, part) in zip(LINK_MARKS, rows.groupby("link")):
        colors = [METHOD_COLORS[method] for method in part["method"]]
        ax.scatter(
            part["measured"],
            part["predicted"],
            70,
            colors,
            marker=marker,
            edgecolors="black",
            linewidths=0.6,
        )
    values = rows[["measured", "predicted"]]
    ends = np.array([values.min().min() / 1.4, values.max().max() * 1.4])
    ax.plot(ends, ends, "--", color=GREY, linewidth=1.2)
    ax.fill_between(ends, 0.75 * ends, 1.25 * ends, color=GREY, alpha=0.15, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="measured tokens per second", title=model or "")


def _clock_legend(ax, rows: pd.DataFrame) -> None:
    """Links by mark, methods by colour, beside the last panel."""
    shown = {"color": "white", "linestyle": "", "markeredgecolor": "black", "markersize": 8}
    links = [
        plt.Line2D([], [], marker=mark, label=link, **shown)
        for mark, link in zip(LINK_MARKS, sorted(set(rows["link"])))
    ]
    used = [name for name in METHOD_COLORS if name in set(rows["method"])]
    methods = [
        plt.Line2D([], [], **shown | {"color": METHOD_COLORS[name]}, marker="s", label=name)
        for name in used
    ]
    ax.legend(handles=[*links, *methods], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
