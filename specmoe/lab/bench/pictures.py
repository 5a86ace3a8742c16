"""Figures of the performance page: speed over on-demand by batch, and how far each method is from
its floor; on a GPU, speed by batch.

Comes in: the contents of the result files. Goes out: a matplotlib figure. The
notebook ``performance`` shows them."""

from __future__ import annotations

import matplotlib.pyplot as plt

from ..figures.base import METHOD_COLORS, styled
from .cells import SKEWED, TRANSLATE, cell_rows

PANELS = [(model, link) for model in (TRANSLATE, SKEWED) for link in ("native", "throttled")]
LINK_WORDS = {"native": "the disk as it is", "throttled": "0.25 GB/s"}
SIZE = (11, 7.5)


@styled
def speedups(files: dict[str, dict]):
    """Tokens per second over on-demand's, by batch: one panel for each model and link."""
    return _panels(
        files,
        "over_on_demand",
        "times on-demand",
        "Decoding speed over on-demand, the same fast memory for all (bars: 95 % intervals)",
    )


@styled
def over_floor(files: dict[str, dict]):
    """Measured seconds over the floor that link and arithmetic set for the method's own counts."""
    return _panels(
        files,
        "measured_over_floor",
        "measured / floor",
        "How far from the hardware's floor (1 = at it)",
    )


def _panels(files: dict[str, dict], value: str, ylabel: str, title: str):
    figure, axes = plt.subplots(2, 2, figsize=SIZE, layout="constrained", sharex=True)
    measured: set[int] = set()
    for axis, (model, link) in zip(axes.flat, PANELS):
        rows = [
            row
            for row in cell_rows(files, model, link)
            if row["method"] != "resident" and row[value] is not None
        ]
        _draw(axis, rows, value)
        measured |= {row["batch"] for row in rows}
        axis.set_title(f"{model}, {LINK_WORDS[link]}", loc="left", fontsize=11)
        axis.set_ylabel(ylabel)
        axis.set_ylim(bottom=0)
        if not rows:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center")
    for axis in axes[1]:
        _ticks(axis, measured)  # the panels share them
        axis.set_xlabel("batch (rows in flight)")
    handles = {
        name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    figure.suptitle(title, x=0.01, ha="left")
    return figure


@styled
def gpu_speed(part: dict, model: str, device: str):
    """Of a part "speed <model>" of ``gpu.json``: tokens per second by batch, one line for each
    method, both axes logarithmic."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    _draw(axis, sorted(part["rows"], key=lambda row: row["batch"]), "tokens_per_second")
    axis.set_yscale("log")
    axis.set_xlabel("batch (rows in flight)")
    axis.set_ylabel("tokens per second")
    size = part["info"]["record_bytes"] / 2**20
    axis.set_title(f"{model}, experts of {size:.4g} MiB in host memory, on {device}", loc="left")
    axis.legend(frameon=False)
    return figure


def _draw(axis, rows: list[dict], value: str) -> None:
    for name, color in METHOD_COLORS.items():
        mine = [row for row in rows if row["method"].split(" ")[0] == name]
        if mine:
            batches, values = zip(*((row["batch"], row[value]) for row in mine))
            # The page's rows name their eviction: the best at that batch.
            label = name if mine[0]["method"] == name else f"best {name}"
            axis.plot(batches, values, "o-", color=color, label=label, markersize=5)
            if value == "over_on_demand":
                _intervals(axis, mine, color)
    axis.set_xscale("log", base=2)
    _ticks(axis, {row["batch"] for row in rows})


def _ticks(axis, batches: set[int]) -> None:
    axis.set_xticks(sorted(batches), [str(batch) for batch in sorted(batches)])


def _intervals(axis, rows: list[dict], color) -> None:
    for row in rows:
        if row["over"].low is not None:
            ends = (row["over"].low, row["over"].high)
            axis.vlines(row["batch"], *ends, color=color, lw=2, alpha=0.5)
