"""Which draft for which router: tokens per round against the bytes that a draft stands on.

Comes in: a frame of ``specmoe.lab.drafts``. Goes out: the ``Axes``, one panel per model.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import OptionError
from .base import COLORS, GREY, need_columns, plain, styled

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


@styled
def map_of_drafts(table: pd.DataFrame, batch: int):
    """A panel per model: experts held per layer (0: none) x tokens per round, a line per family of
    sources; the dashed line is the oracle, which no draft can beat. Returns the ``Axes``."""
    need_columns(table, "model", "source", "batch", "experts_held", "tokens_per_round")
    table = table[table["batch"] == batch].reset_index(drop=True)  # it may be several tables
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
