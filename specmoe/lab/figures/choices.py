"""Figures of choices: what settings do to every method, and which method wins where. Both draw
simulated rows.

Comes in: a frame of simulated rows, one per method and setting. Goes out: the ``Axes`` drawn on.
They are the static twins of ``widgets.knobs`` and ``widgets.winners_map``.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from ...errors import OptionError, nearest
from ...registry import KINDS
from .base import (
    BESIDE,
    FARTHEST,
    GAMMA,
    METHOD_COLORS,
    ORDER,
    TIMES,
    need_columns,
    plain,
    show_number,
    size_unit,
    styled,
)

SETTINGS = ("model", *KINDS, "batch", "gamma", "draft_experts", "fast_memory", "link_bytes_per_s")
SETTING_NAMES = {
    "model": "model",
    **{kind: kind.replace("_", " ") for kind in KINDS},
    "batch": "batch (rows)",
    "gamma": f"{GAMMA} (tokens)",
    "draft_experts": "N (experts)",
    "fast_memory": "fast memory (of all experts)",
    "link_bytes_per_s": "link",
}
MEASURES = ("fetched_bytes_per_token", "tokens_per_round", "tokens_per_second")
SLICES = ("model", "draft_experts")


# ---- settings in, methods compared ----


@styled
def knobs(
    rows: pd.DataFrame, reach: dict | None = None, simulated: bool = True, ax=None, **settings
):
    """Bytes per token, tokens per round and speed of every method at one choice of settings.

    ``rows``: one per method and setting, with ``method``, the columns of ``MEASURES`` and any of
    ``SETTINGS``; a method on which a setting has no bearing leaves it empty (nan). ``settings``:
    the choice, by column (left out: the first value). ``reach``: the lowest and the highest value
    on each axis by measure, to hold axes still; a wide one makes the axis of speed logarithmic.
    ``simulated``: False where the rows were measured (those of a
    bench); the figure says which. ``ax``: three ``Axes``. Returns the three.
    """
    check_rows(rows)
    chosen = choose(rows, settings)
    part = at(rows, chosen)
    part = part.assign(order=part["method"].map(ORDER.index)).sort_values("order")
    axes = np.atleast_1d(ax)
    if ax is None:
        axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")[1]
    if len(axes) != 3:
        raise OptionError(f"ax holds {len(axes)} Axes: give three")
    unit, unit_name = size_unit(
        max(1.0, float(rows["fetched_bytes_per_token"].replace(0, np.nan).median() or 1))
    )
    kind = "simulated" if simulated else "measured"
    titles = [
        f"{unit_name} read per new token",
        "tokens per row and round",
        f"tokens per second ({kind})",
    ]
    for panel, measure, title in zip(axes, MEASURES, titles, strict=True):
        scale = unit if measure == MEASURES[0] else 1
        _draw_bars(panel, part, measure, scale, (reach or {}).get(measure))
        panel.set_xlabel(title)
    if ax is None:
        axes[0].figure.suptitle(
            plain(_setting_words(kind, chosen)), fontweight="bold", x=0.01, ha="left", fontsize=14
        )
    return axes


def check_rows(rows) -> None:
    """``OptionError`` unless ``rows`` has methods and measures."""
    if not isinstance(rows, pd.DataFrame) or not len(rows):
        kind, columns = type(rows).__name__, ", ".join(("method", *MEASURES))
        raise OptionError(
            f"{kind} holds no rows: give simulate.knob_rows(recordings, hardware), "
            f"or a frame with {columns}"
        )
    need_columns(rows, "method", *MEASURES)
    for method in set(rows["method"]) - set(ORDER):
        raise OptionError(f"method={method!r} is unknown: {nearest(method, ORDER)}")


def values_of(rows: pd.DataFrame, name: str) -> list:
    """The values of one setting, ascending."""
    return sorted(rows[name].dropna().unique().tolist())


def choose(rows: pd.DataFrame, settings: dict, names=SETTINGS) -> dict:
    """A value for every setting that ``rows`` vary: those given, else the first. ``OptionError``
    names the nearest."""
    known = [name for name in names if name in rows and values_of(rows, name)]
    for name, value in settings.items():
        if name not in known:
            raise OptionError(f"unknown setting {name!r}: {nearest(name, known)}")
        valid = values_of(rows, name)
        if value not in valid:
            numeric = isinstance(value, int | float) and all(
                isinstance(one, int | float) for one in valid
            )
            close = min(valid, key=lambda one: abs(one - value)) if numeric else valid[0]
            raise OptionError(
                f"{name}={value!r} is not in these rows: did you mean {close!r}? (one of: {valid})"
            )
    return {name: settings.get(name, _first(rows, name)) for name in known}


def _first(rows: pd.DataFrame, name: str):
    """Where a setting starts: the smallest number, or the name that the rows begin with."""
    first = rows[name].dropna().iloc[0]
    return first if isinstance(first, str) else values_of(rows, name)[0]


def at(rows: pd.DataFrame, chosen: dict) -> pd.DataFrame:
    """The rows at this choice; empty settings match any. One row per method, the first."""
    kept = np.ones(len(rows), dtype=bool)
    for name, value in chosen.items():
        kept &= (rows[name].isna() | (rows[name] == value)).to_numpy()
    return rows[kept].drop_duplicates("method")


def reach_of(values: pd.Series) -> tuple[float, float]:
    """The lowest value above 0 and the highest."""
    return float(values[values > 0].min()), float(values.max())


def _draw_bars(
    ax: Axes, part: pd.DataFrame, measure: str, scale: float, reach: tuple[float, float] | None
) -> None:
    values = part[measure].to_numpy(dtype=float) / scale
    colors = [METHOD_COLORS[method] for method in part["method"]]
    bars = ax.barh(range(len(part)), np.nan_to_num(values), 0.72, color=colors)
    base = part.loc[part["method"] == "on_demand", "tokens_per_second"]
    words = [show_number(value) if np.isfinite(value) else "-" for value in values]
    if measure == "tokens_per_second" and len(base) and base.iloc[0] > 0:
        speeds = part["tokens_per_second"].to_numpy()
        words = [
            f"{word} ({speed / base.iloc[0]:.1f}{TIMES})"
            for word, speed in zip(words, speeds, strict=True)
        ]
    ax.bar_label(bars, words, padding=4, fontsize=12)
    ax.set_yticks(range(len(part)), part["method"])
    ax.set_ylim(len(part) - 0.45, -0.55)
    ax.grid(False, axis="y")
    if measure == "tokens_per_second" and reach and reach[1] > FARTHEST * reach[0]:
        low, high = (value / scale for value in reach)
        # room for the words behind the longest bar
        ax.set(xscale="log", xlim=(low / 2, high * (2 * high / low) ** 0.6))
        ax.xaxis.set_major_locator(LogLocator(numticks=5))
        ax.xaxis.set_major_formatter(lambda value, _: show_number(value))
        return
    most = reach[1] / scale if reach else np.nanmax(values, initial=0)
    ax.set_xlim(0, 1.6 * (most or 1))
    ax.locator_params(axis="x", nbins=4)


def _setting_words(kind: str, chosen: dict) -> str:
    return f"{kind.capitalize()}: {_all_words(chosen)}"


def _all_words(chosen: dict) -> str:
    return ", ".join(setting_words(name, value) for name, value in chosen.items())


def setting_words(name: str, value) -> str:
    """``"batch 4"``, ``"link 2.5 GB/s"``."""
    if name == "link_bytes_per_s":
        unit, size = ("GB", 1e9) if value >= 1e8 else ("MB", 1e6)
        return f"link {show_number(value / size)} {unit}/s"
    if name == "fast_memory":
        return f"memory {100 * value:.0f} %"
    short = {"gamma": f"{GAMMA} =", "draft_experts": "N =", "batch": "batch"}
    short |= {kind: SETTING_NAMES[kind] for kind in KINDS}
    said = f"{value:g}" if isinstance(value, int | float) else f"{value}"
    return f"{short.get(name, '')} {said}".strip()


# ---- who wins where ----


@styled
def winners_map(frame: pd.DataFrame, ax=None, **settings):
    """The fastest method over compute balance and batch, and how far ahead it is of the next
    (simulated).

    ``frame``: of ``simulate.winners``: balance (FLOP per byte of the link), batch, model,
    draft_experts, winner, margin (its speed over the next method's). ``settings``: which model and
    draft_experts (left out: the first). Returns the ``Axes``.
    """
    check_winners(frame)
    chosen = choose(frame, settings, SLICES)
    part = frame
    for name, value in chosen.items():
        part = part[part[name] == value]
    part = part.drop_duplicates(["balance", "batch"])
    if ax is None:
        _, ax = plt.subplots(figsize=(11, 4.8), layout="constrained")
    balances, batches = values_of(part, "balance"), values_of(part, "batch")
    for cell in part.itertuples():
        x, y = balances.index(cell.balance), batches.index(cell.batch)
        color = METHOD_COLORS[cell.winner]
        ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fc=color, ec="white", lw=2))
        dark = cell.winner in ("specmoe", "on_demand", "overlapped")
        look = {"ha": "center", "va": "center", "fontsize": 12}
        ax.text(x, y, f"{cell.margin:.2f}{TIMES}", color="white" if dark else "black", **look)
    ax.set_xticks(range(len(balances)), [show_number(balance) for balance in balances])
    ax.set_yticks(range(len(batches)), [f"{batch:g}" for batch in batches])
    ax.set(xlim=(-0.5, len(balances) - 0.5), ylim=(-0.5, len(batches) - 0.5))
    ax.set_xlabel("FLOP the machine computes while its link moves one byte (FLOP/byte)")
    ax.set_ylabel("batch (rows in flight)")
    ax.grid(False)
    title = f"Fastest method, and its lead over the next (simulated). {_all_words(chosen)}"
    ax.set_title(title, loc="left", fontweight="bold")
    shown = [name for name in ORDER if name in set(frame["winner"])]
    ax.legend(handles=[Patch(fc=METHOD_COLORS[name], label=name) for name in shown], **BESIDE)
    return ax


def check_winners(frame) -> None:
    if not isinstance(frame, pd.DataFrame) or not len(frame):
        raise OptionError(
            f"{type(frame).__name__} holds no rows: give the frame of simulate.winners"
        )
    need_columns(frame, "balance", "batch", "winner", "margin")
    for method in set(frame["winner"]) - set(ORDER):
        raise OptionError(f"winner={method!r} is unknown: {nearest(method, ORDER)}")
