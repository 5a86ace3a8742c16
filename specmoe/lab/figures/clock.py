"""One round on the clock: who waits for whom.

Comes in: an output, or the frame of its trace. Goes out: the ``Axes`` drawn on. It is the static
twin of ``widgets.timeline``; what it draws is computed in ``specmoe.lab.replay``.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ...errors import OptionError
from ..replay import as_frame, rounds_of
from ..replay import timeline as intervals
from .base import COLORS, PART_COLORS, show_number, styled

BUSY_COLORS = {
    "draft": PART_COLORS["draft"],
    "verify": PART_COLORS["verify"],
    "wait": PART_COLORS["wait"],
    "rest": PART_COLORS["rest"],
    "fetch": COLORS[2],
    "prefetch": COLORS[8],
}
BUSY_NAMES = {
    "draft": "drafting",
    "verify": "full model",
    "wait": "waiting for a read",
    "rest": "the rest",
    "fetch": "fetch (the router asked)",
    "prefetch": "prefetch (before it asked)",
}
HAIR = 0.004  # share of the axis below which a bar has no room for a white edge


@styled
def timeline(
    source,
    round: int | None = None,
    begin_ms: float = 0.0,
    end_ms: float | None = None,
    mark: tuple[int, int] | None = None,
    ax=None,
):
    """Who waits for whom in one round: the reads under way, and what compute does meanwhile
    (milliseconds, measured).

    ``source``: an output or a trace frame; ``round`` None: the middle one; ``begin_ms``,
    ``end_ms``: the part to show; ``mark``: (layer, expert) whose read is outlined. A read's bar runs from its start to its arrival, the wait for a
    shared link included. Returns the ``Axes``.
    """
    frame = as_frame(source)
    rounds = rounds_of(frame)
    round = rounds[len(rounds) // 2] if round is None else round
    table = intervals(frame, round)
    whole_ms = 1e3 * float(table.loc[table["lane"] == "compute", "end_s"].max())
    begin_ms, end_ms = _window(begin_ms, end_ms, whole_ms)
    lanes = [
        "compute",
        *sorted(
            (lane for lane in table["lane"].unique() if lane != "compute"),
            key=lambda n: int(n.split()[1]),
        ),
    ]
    if ax is None:
        _, ax = plt.subplots(figsize=(11, 2.6 + 0.55 * len(lanes)), layout="constrained")
    for place, lane in enumerate(lanes):
        part = table[table["lane"] == lane]
        _draw_lane(ax, part, place, begin_ms, end_ms)
        _mark(ax, part[part["kind"].isin(["fetch", "prefetch"])], place, mark)
    _dress_timeline(ax, table, lanes, round, begin_ms, end_ms)
    return ax


def _window(begin_ms, end_ms, whole_ms: float) -> tuple[float, float]:
    end_ms = whole_ms if end_ms is None else end_ms
    for name, value in (("begin_ms", begin_ms), ("end_ms", end_ms)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OptionError(
                f"{name}={value!r} must be a number of milliseconds from 0 to {whole_ms:.3g}"
            )
    if not 0 <= begin_ms < end_ms:
        raise OptionError(
            f"begin_ms={begin_ms!r} and end_ms={end_ms!r}: 0 <= begin < end, and the round ends at "
            f"{whole_ms:.3g}"
        )
    return begin_ms, end_ms


def _draw_lane(ax: Axes, part: pd.DataFrame, place: int, begin_ms: float, end_ms: float) -> None:
    height = 0.8
    for kind, group in part.groupby("kind", sort=False):
        bars = np.stack([group["begin_s"], group["end_s"] - group["begin_s"]], axis=1) * 1e3
        # a bar of a hair's width would be all edge: it gets one of its own colour
        wide = bars[:, 1] >= HAIR * (end_ms - begin_ms)
        for chosen, edge in ((bars[wide], "white"), (bars[~wide], BUSY_COLORS[kind])):
            if not len(chosen):
                continue
            look = {"fc": BUSY_COLORS[kind], "ec": edge, "lw": 0.8}
            if edge == "white":
                look["hatch"] = {"wait": "///", "prefetch": ".."}.get(kind)
            at = (place - height / 2, height)
            ax.broken_barh(chosen, at, zorder=3 if kind == "wait" else 2, **look)
        for bar in group.itertuples():
            _label(ax, kind, bar, place, begin_ms, end_ms)


def _mark(ax: Axes, reads: pd.DataFrame, place: int, mark: tuple[int, int] | None) -> None:
    """An outline around the read of one expert."""
    for bar in reads.itertuples():
        if (bar.layer, bar.expert) == mark:
            at, width = (1e3 * bar.begin_s, place - 0.46), 1e3 * (bar.end_s - bar.begin_s)
            ax.add_patch(plt.Rectangle(at, width, 0.92, fill=False, ec="black", lw=3, zorder=5))


def _label(ax: Axes, kind: str, bar, place: int, begin_ms: float, end_ms: float) -> None:
    """The layer and expert on a bar that is wide enough."""
    words = {
        "verify": f"L{bar.layer}",
        "fetch": f"L{bar.layer} e{bar.expert}",
        "prefetch": f"L{bar.layer} e{bar.expert}",
        "draft": "draft",
    }.get(kind)
    left, right = max(1e3 * bar.begin_s, begin_ms), min(1e3 * bar.end_s, end_ms)
    if words is None or (right - left) < 0.0125 * len(words) * (end_ms - begin_ms):
        return
    inside = dict(ha="center", va="center", fontsize=12, zorder=4, clip_on=True)
    if kind == "verify":  # above the waits that fill most of a layer
        ax.text((left + right) / 2, place - 0.47, words, **{**inside, "va": "bottom"})
        return
    ax.text(
        (left + right) / 2, place, words, color="white" if kind == "fetch" else "black", **inside
    )


def _dress_timeline(
    ax: Axes, table: pd.DataFrame, lanes: list[str], round: int, begin_ms: float, end_ms: float
) -> None:
    names = ["compute", *(f"read {lane.split()[1]}" for lane in lanes[1:])]
    ax.set_yticks(range(len(lanes)), names)
    ax.set(
        ylim=(len(lanes) - 0.45, -0.85),
        xlim=(begin_ms, end_ms),
        xlabel="milliseconds since the round began (measured)",
    )
    ax.grid(False, axis="y")
    compute = table[table["lane"] == "compute"]
    whole, waits = compute["end_s"].max(), compute[compute["kind"] == "wait"]
    waited = (waits["end_s"] - waits["begin_s"]).sum()
    said = (
        f"Round {round}: {show_number(1e3 * whole)} ms, {100 * waited / whole:.0f} % of it "
        "waiting for reads"
    )
    ax.set_title(said, loc="left", fontweight="bold")
    kinds = [kind for kind in BUSY_NAMES if (table["kind"] == kind).any()]
    hatches = {"wait": "///", "prefetch": ".."}
    handles = [
        Patch(fc=BUSY_COLORS[kind], ec="white", hatch=hatches.get(kind), label=BUSY_NAMES[kind])
        for kind in kinds
    ]
    ax.figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=12
    )
