"""Which draft for which router: tokens per round against the bytes that a draft stands on, and what
that would be in seconds.

Comes in: a frame of ``specmoe.lab.drafts``. Goes out: the ``Axes``, one panel per model (and link).
"""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import OptionError
from ..draft_seconds import LINKS, speeds
from ..simulate.real_models import known_models
from .base import COLORS, GREY, TIMES, need_columns, plain, styled

# family of sources -> how it is called, its colour, its mark
FAMILIES = {
    "resident": ("resident experts (the paper)", COLORS[0], "o"),
    "low_bit": ("all experts, 2 3 4 8 bits", COLORS[3], "s"),
    "merged": ("merged experts", COLORS[2], "^"),
    "ngram": ("n-gram", COLORS[7], "D"),
    "ngram+resident": ("n-gram, else residents", COLORS[9], "P"),
    "layer_skip": ("residents, every second layer", COLORS[1], "v"),
}
OTHER = ("your own", COLORS[4], "*")
# what the picture of seconds has a line for
SPEEDS = {
    "resident": (FAMILIES["resident"][0], COLORS[0]),
    "merged": (FAMILIES["merged"][0], COLORS[2]),
    "low_bit 4": ("all experts, 4 bits", COLORS[3]),
    "low_bit 2": ("all experts, 2 bits", COLORS[3]),
    "ngram": (FAMILIES["ngram"][0], COLORS[7]),
    "ngram+resident": (FAMILIES["ngram+resident"][0], COLORS[9]),
    "layer_skip": ("every second layer", COLORS[1]),
    "oracle": ("oracle (the bound)", (0.0, 0.0, 0.0)),
}


@styled
def map_of_drafts(table: pd.DataFrame, batch: int):
    """A panel per model: experts held per layer (0: none) x tokens per round, a line per family of
    sources; the dashed line is the oracle, which no draft can beat. Returns the ``Axes``."""
    need_columns(table, "model", "source", "batch", "experts_held", "tokens_per_round")
    # it may be several tables
    drawn = (table["batch"] == batch) & (table["source"] != "no draft")
    table = table[drawn].reset_index(drop=True)
    if not len(table):
        raise OptionError(f"there is nothing to draw: the table has no batch {batch}")
    models = list(table["model"].unique())
    figure, axes = plt.subplots(
        1, len(models), figsize=(5 * len(models), 5.2), sharey=True, squeeze=False
    )
    for ax, model in zip(axes[0], models, strict=True):
        _panel(ax, table[table["model"] == model])
        ax.set_title(plain(model), loc="left", fontweight="bold")
    axes[0, 0].set_ylabel("tokens per round (counted)")
    figure.suptitle("Which draft for which router", x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(
        f"what the draft stands on, in whole experts per layer; batch {batch}, greedy, the same "
        "text by all",
        fontsize="small",
        color=GREY,
    )
    handles = {h.get_label(): h for ax in axes[0] for h in ax.get_lines()}
    figure.legend(handles.values(), handles, loc="lower center", ncols=4, fontsize="small")
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.supxlabel(figure.get_supxlabel(), y=0.12, fontsize="small", color=GREY)
    return np.array(list(axes[0]), dtype=object)


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    """One model: a line for each family, the bound, and the names of the bits."""
    for source in rows.loc[rows["source"] == "oracle", "tokens_per_round"]:
        ax.axhline(source, ls="--", lw=1.5, color="black", label="oracle (the bound)")
    family = rows["source"].map(lambda name: name.partition(":")[0])
    for name, part in rows[family != "oracle"].groupby(family, sort=False):
        said, color, mark = FAMILIES.get(name, (f"{OTHER[0]}: {name}", *OTHER[1:]))
        part = part.sort_values("experts_held")
        ax.plot(
            part["experts_held"],
            part["tokens_per_round"],
            marker=mark,
            color=color,
            label=said,
            ms=8,
        )
        for source, x, y in zip(part["source"], part["experts_held"], part["tokens_per_round"]):
            if name == "low_bit":
                # the legend says "bits": a word would cover the next point's
                bits, below = source.partition(":")[2], {"xytext": (0, -19), "ha": "center"}
                ax.annotate(bits, (x, y), **below, textcoords="offset points", color=color)
    ax.set_xscale("symlog", base=2, linthresh=1)
    ticks = [
        0,
        *(2**power for power in range(int(np.log2(max(2, rows["experts_held"].max()))) + 2)),
    ]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_ylim(bottom=0)


@styled
def speeds_of_drafts(table: pd.DataFrame, real: str = "mixtral-8x7b"):
    """A row of panels per link, a panel per model: how fast every source decodes over the same pool
    without a draft, at the size of the model ``real``, one row in flight (hollow) and many (filled).
    Simulated. Of residents and merged experts the best number is drawn. Returns the ``Axes``."""
    need_columns(table, "model", "source", "batch", "simulated")
    found = speeds(table)
    found = found[(found["real"] == real) & (found["source"] != "no draft")]
    if not len(found):
        raise OptionError(f"there is nothing to draw: the table has no seconds of {real!r}")
    models, links = list(found["model"].unique()), [*LINKS]
    figure, axes = plt.subplots(
        len(links), len(models), figsize=(5 * len(models), 6.6), sharex=True, squeeze=False
    )
    for (row, link), (column, model) in product(enumerate(links), enumerate(models)):
        ax, at = axes[row, column], (found["link"] == link) & (found["model"] == model)
        _speeds(ax, found[at], names=column == 0)
        ax.set_title(f"{plain(model)}, {link}", loc="left", fontweight="bold", fontsize="medium")
    title = known_models()[real].title
    figure.suptitle(
        f"What a draft would bring at the size of {title}", x=0.01, ha="left", fontweight="bold"
    )
    figure.legend(*_marks(found), loc="lower center", ncols=3, fontsize="small")
    figure.supxlabel(
        "speed over the same pool without a draft, simulated from our counts",
        y=0.07,
        fontsize="small",
        color=GREY,
    )
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    return axes.ravel()


def _speeds(ax: Axes, rows: pd.DataFrame, names: bool) -> None:
    """One model on one link: a line of marks per family, the bound last."""
    family = rows["source"].map(lambda name: name.partition(":")[0])
    best = rows.assign(family=family)
    best.loc[family == "low_bit", "family"] = rows["source"].map(
        lambda name: name.replace(":", " ")
    )
    best = best[best["family"].isin([*SPEEDS])]
    best = best.groupby(["family", "batch"])["speed"].max()
    ax.axvline(1, color=GREY, lw=1)
    ax.set_xscale("log", base=2)
    ticks = [2.0**power for power in range(-2, 5)]
    ax.set_xticks(ticks, [f"{tick:g}{TIMES}" for tick in ticks])
    for place, (name, (_, color)) in enumerate(SPEEDS.items()):
        for batch, speed in best.get(name, pd.Series(dtype=float)).items():
            filled = batch > 1
            ax.plot(speed, -place, "o", ms=9, mec=color, mfc=color if filled else "white", mew=2)
    ax.set_yticks(
        [-place for place in range(len(SPEEDS))],
        [said for said, _ in SPEEDS.values()] if names else [""] * len(SPEEDS),
        fontsize="small",
    )


def _marks(found: pd.DataFrame) -> tuple[list, list[str]]:
    """Of the legend."""
    batches = sorted(found["batch"].unique())
    marks = [
        plt.Line2D([], [], marker="o", ls="", ms=9, mew=2, mec=GREY, mfc=GREY if b > 1 else "white")
        for b in batches
    ]
    return marks, [f"batch {batch}" for batch in batches]
