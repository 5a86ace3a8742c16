"""Calculated speeds of real models on real machines.

Comes in: the rows of ``simulate.expectations``. Goes out: the ``Axes``, a panel for each method.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator

from .base import COLORS, GREY, need_columns, show_number, styled

PANELS = ("on_demand", "cached", "specmoe")
MARKERS = ("o", "s", "^", "D", "P", "X", "v", "*")
COLUMNS = ("method", "model", "machine", "share", "tokens_per_second", "link_bytes", "fits")
TITLE = "Tokens per second of one text, at most (calculated)"
NOTE = (
    "Slowest of link, memory and arithmetic. Hollow: the whole model fits into fast memory. No mark: "
    "the machine cannot hold it"
)


@styled
def speeds_on_machines(rows: pd.DataFrame, methods=PANELS):
    """A panel for each of ``methods``: models (those that need most bytes per token at the bottom)
    by speed, a colour and a mark for each machine. Needs ``COLUMNS``."""
    need_columns(rows, *COLUMNS)
    need = rows[rows["method"] == "on_demand"].groupby("model")["link_bytes"].max()
    rows = rows[rows["fits"].astype(bool)]
    models, machines = list(need.sort_values().index), list(dict.fromkeys(rows["machine"]))
    height = 2.2 + 0.42 * len(models)
    figure, panels = plt.subplots(
        1, len(methods), figsize=(13, height), sharex=True, sharey=True, layout="constrained"
    )
    panels = np.atleast_1d(panels)
    for panel, method in zip(panels, methods):
        _panel(panel, rows[rows["method"] == method], models, machines)
        panel.set(title=method, xlabel="tokens per second (calculated)", ylabel="")
    _legend(figure, machines)
    figure.suptitle(TITLE, fontweight="bold", x=0.01, ha="left")
    return panels


def _panel(panel, part: pd.DataFrame, models: list[str], machines: list[str]) -> None:
    part = part.assign(model=pd.Categorical(part["model"], models))
    for number, machine in enumerate(machines):
        here = part[part["machine"] == machine]
        style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        for hollow, shown in here.groupby(here["share"] >= 1):
            face = "white" if hollow else style["color"]
            sns.scatterplot(
                shown,
                x="tokens_per_second",
                y="model",
                ax=panel,
                s=64,
                legend=False,
                **style,
                facecolor=face,
                edgecolor=style["color"],
                linewidth=1.6,
            )
    panel.set_xscale("log")
    panel.set_yticks(range(len(models)), models)
    panel.set_ylim(len(models) - 0.5, -0.5)
    panel.xaxis.set_major_locator(LogLocator(10, numticks=12))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_number(value)))
    panel.xaxis.set_minor_locator(LogLocator(10, subs=(), numticks=12))


def _legend(figure, machines: list[str]) -> None:
    marks = [
        Line2D([], [], linestyle="", markersize=8, label=machine, marker=mark, color=color)
        for machine, mark, color in zip(machines, MARKERS, COLORS)
    ]
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=3,
        frameon=False,
        labelcolor=GREY,
        title=NOTE,
        title_fontsize="small",
    )
