"""The map of winners: the fastest method over balance, batch, model and N, its lead as the strength
of the colour.

Comes in: cells of ``specmoe.lab.paper.winners`` (tokens per second of each method), machines to
mark, measured points. Goes out: the ``Axes``. Between the batches and balances that were simulated,
speeds are interpolated on logarithmic scales.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

from ...errors import OptionError
from .base import GREY, METHOD_COLORS, TIMES, need_columns, plain, styled

LEADS = (1.0, 1.1, 1.5, 2.5)  # a lead of at least so much over the next method ...
STRENGTHS = (0.22, 0.48, 0.74, 1.0)  # ... is drawn in so much of the method's colour
WIDEST = 4  # panels in a row
FINE = 240  # points of a panel on each side
SMALLEST = 0.05  # share of a panel from which a region is named
RING = {"markersize": 12, "markeredgecolor": "black", "markeredgewidth": 2}
BOX = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.82}
TITLE = "The map of winners: which method is fastest, at equal fast memory"
SUBTITLE = (
    "Colour: the fastest method; the stronger, the further ahead of the next one. Simulated from "
    "recorded runs. To the\n"
    "right fetching gets slower against computing; the dashed lines are the balances of machines."
)


@styled
def map_of_winners(
    cells: pd.DataFrame,
    machines: dict[str, float] | None = None,
    points: pd.DataFrame | None = None,
    titles: dict[str, str] | None = None,
    star: tuple | None = None,
):
    """A panel for each model and N of ``cells``: balance (FLOP per byte) x batch.

    ``cells``: model, draft_experts, balance, batch, and a column of tokens per second for each
    method. ``machines``: label -> balance. ``points``: measured model, draft_experts, balance,
    batch, winner. ``titles``: model -> what to say of it. ``star``: (model, draft_experts, balance,
    batch, words) of a point to name.
    """
    need_columns(cells, "model", "draft_experts", "balance", "batch")
    methods = [name for name in METHOD_COLORS if name in cells]
    if not methods:
        raise OptionError(
            "the cells name no method: give a column of speeds for one or more of "
            f"{', '.join(METHOD_COLORS)}"
        )
    figure, panels = _panels(cells, titles or {})
    for (model, number), ax in panels.items():
        part = cells[(cells["model"] == model) & (cells["draft_experts"] == number)]
        _region(ax, part, methods)
        _machines(ax, machines or {})
        _points(ax, points, model, number)
        if star is not None and star[:2] == (model, number):
            _star(ax, *star[2:])
    _legend(figure, points)
    return np.array(list(panels.values()), dtype=object)


def _panels(cells: pd.DataFrame, titles: dict[str, str]):
    """The figure and its axes by (model, N): models in rows of at most four panels, each under its
    title."""
    groups = {
        model: sorted(part["draft_experts"].unique())
        for model, part in cells.groupby("model", sort=False)
    }
    rows: list[list[tuple]] = []
    for model, numbers in groups.items():
        if not rows or len(rows[-1]) + len(numbers) > WIDEST:
            rows.append([])
        rows[-1] += [(model, number) for number in numbers]
    widest, height = max(map(len, rows)), 2.6 + 4.4 * len(rows)
    figure = plt.figure(figsize=(1.3 + 3.8 * widest, height))
    grid = figure.add_gridspec(
        len(rows),
        widest,
        left=0.6 / (1.3 + 3.8 * widest) + 0.01,
        right=0.985,
        top=1 - 2.25 / height,
        bottom=1.45 / height,
        wspace=0.1,
        hspace=0.55,
    )
    panels = {}
    for row, keys in enumerate(rows):
        for column, key in enumerate(keys):
            ax = panels[key] = figure.add_subplot(grid[row, column])
            if column == 0 or keys[column - 1][0] != key[0]:
                above = ax.transAxes + ScaledTranslation(0, 60 / 72, figure.dpi_scale_trans)
                title = plain(titles.get(key[0], key[0]))
                ax.text(0, 1, title, transform=above, fontweight="bold")
    return figure, panels


def _fine(part: pd.DataFrame, methods: list[str]):
    """(log10 balances, log2 batches, log speeds [method, batch, balance]) on a fine grid."""
    batches, balances = sorted(part["batch"].unique()), sorted(part["balance"].unique())
    x, y = np.log10(balances), np.log2(batches)
    if min(len(x), len(y)) < 2:
        raise OptionError("a panel of the map needs at least two batches and two balances")
    fine_x, fine_y = np.linspace(x[0], x[-1], FINE), np.linspace(y[0], y[-1], FINE)
    speeds = []
    for name in methods:
        table = part.pivot_table(index="batch", columns="balance", values=name, dropna=False)
        table = np.log(table.to_numpy(dtype=float))
        table = np.stack([np.interp(fine_x, x, row) for row in table])
        speeds.append(np.stack([np.interp(fine_y, y, column) for column in table.T], axis=1))
    return fine_x, fine_y, np.where(np.isnan(speeds), -np.inf, speeds)


def _region(ax, part: pd.DataFrame, methods: list[str]) -> None:
    x, y, speeds = _fine(part, methods)
    order = np.sort(speeds, axis=0)
    winner = speeds.argmax(axis=0)
    lead = np.exp(order[-1] - order[-2]) if len(methods) > 1 else np.ones(winner.shape)
    colors = np.array([to_rgb(METHOD_COLORS[name]) for name in methods])
    strength = np.array(STRENGTHS)[np.searchsorted(LEADS, lead, side="right") - 1]
    picture = 1 - strength[..., None] * (1 - colors[winner])
    extent = (x[0], x[-1], y[0], y[-1])
    ax.imshow(picture, origin="lower", aspect="auto", extent=extent, interpolation="nearest")
    for code in range(len(methods)):
        if 0 < (winner == code).mean() < 1:
            ax.contour(x, y, winner == code, [0.5], colors="white", linewidths=2.5)
        _name(ax, x, y, winner == code, lead, methods[code])
    _dress(ax, part)


def _name(ax, x, y, where: np.ndarray, lead: np.ndarray, method: str) -> None:
    """The method's name and its largest lead, where its region is thickest and the words stay
    inside the panel."""
    if where.mean() < SMALLEST:
        return
    low, high = [0.11 * FINE, 0.19 * FINE], [0.89 * FINE, 0.81 * FINE]
    row, column = np.clip(_deepest(where), low, high).astype(int)
    words = f"{method}\nup to {lead[where].max():.1f}{TIMES}"
    look = {"ha": "center", "va": "center", "fontsize": 13, "fontweight": "bold", "bbox": BOX}
    ax.text(x[column], y[row], words, zorder=6, **look)


def _deepest(where: np.ndarray) -> tuple[int, int]:
    """The point that survives the most erosions; words are wide, so the sides are worn off twice as
    fast."""
    left = where.copy()
    while left.any():
        last = left
        padded = np.pad(left, ((1, 1), (2, 2)))
        left = left & padded[:-2, 2:-2] & padded[2:, 2:-2] & padded[1:-1, :-4] & padded[1:-1, 4:]
    points = np.argwhere(last)
    return tuple(points[np.abs(points - points.mean(axis=0)).sum(axis=1).argmin()])


def _dress(ax, part: pd.DataFrame) -> None:
    batches = sorted(part["batch"].unique())
    ax.set_yticks(np.log2(batches), [str(batch) for batch in batches])
    if ax.get_subplotspec().is_first_col():
        ax.set_ylabel("batch (rows in flight)")
    else:
        ax.tick_params(labelleft=False)
    low, high = np.log10([part["balance"].min(), part["balance"].max()])
    ticks = range(int(np.ceil(low)), int(high) + 1)
    names = {1: "10", 2: "100", 3: "1,000", 4: "10k", 5: "100k"}
    ax.set_xticks(ticks, [names.get(tick, f"1e{tick}") for tick in ticks])
    ax.set_xlabel("balance (FLOP per byte)")
    title = f"N = {part['draft_experts'].iloc[0]:g}"
    ax.set_title(title, loc="left", fontsize="medium", fontweight="bold", pad=40)
    ax.grid(False)


def _machines(ax, machines: dict[str, float]) -> None:
    """A line for each machine, its name above the panel; neighbours at two heights."""
    for place, (name, balance) in enumerate(sorted(machines.items(), key=lambda item: item[1])):
        ax.axvline(np.log10(balance), color="black", linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        at, above = (np.log10(balance), ax.get_ylim()[1]), (0, 8 + 15 * (place % 2))
        look = {"ha": "center", "va": "bottom", "fontsize": 12, "color": "black"}
        ax.annotate(name, at, above, "data", "offset points", annotation_clip=False, **look)


def _points(ax, points: pd.DataFrame | None, model: str, number: int) -> None:
    if points is None:
        return
    here = (points["model"] == model) & (points["draft_experts"] == number)
    for row in points[here].itertuples():
        at, color = (np.log10(row.balance), np.log2(row.batch)), METHOD_COLORS[row.winner]
        ax.plot(*at, "o", markerfacecolor=color, clip_on=False, zorder=7, **RING)


def _star(ax, balance: float, batch: int, words: str) -> None:
    at = (np.log10(balance), np.log2(batch))
    look = {
        "markersize": 17,
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "markeredgewidth": 1.4,
    }
    ax.plot(*at, "*", clip_on=False, zorder=8, **look)
    below = {"xytext": (0, -16), "textcoords": "offset points", "ha": "center", "va": "top"}
    ax.annotate(words, at, fontsize=12, bbox=BOX, zorder=7, **below)


def _legend(figure, points: pd.DataFrame | None) -> None:
    """Title, how to read strengths, and what the marks are."""
    words = [f"{low:g} to {high:g}{TIMES}" for low, high in zip(LEADS, LEADS[1:])]
    words.append(f"more than {LEADS[-1]:g}{TIMES}")
    shades = [str(1 - 0.55 * strength) for strength in STRENGTHS]
    signs: list = [Patch(facecolor=shade, edgecolor=GREY) for shade in shades]
    if points is not None and len(points):
        signs.append(plt.Line2D([], [], marker="o", linestyle="", markerfacecolor="white", **RING))
        words.append("measured here (filled in the colour of the fastest)")
    title = {"title": "lead over the next method:", "alignment": "left", "title_fontsize": 12}
    place = {"loc": "lower left", "bbox_to_anchor": (0.01, 0), "ncols": len(words)}
    figure.legend(signs, words, frameon=False, fontsize=12, **place, **title)
    figure.suptitle(TITLE, fontweight="bold", x=0.01, ha="left", fontsize="x-large")
    below = 1 - 0.62 / figure.get_figheight()
    figure.text(0.011, below, SUBTITLE, va="top", fontsize=12, color=GREY)
