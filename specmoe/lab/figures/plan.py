"""What a budget of fast memory buys.

Comes in: a ``simulate.Plan``. Goes out: the ``Axes``, a panel for each batch.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator, NullLocator

from .base import GREY, METHOD_COLORS, TIMES, show_bytes, show_number, styled


@styled
def plan_speeds(plan, ax=None):
    """Tokens per second by the share of experts in fast memory, a line for each method; the dashed
    line is the plan's budget."""
    rows = pd.DataFrame(
        {
            "share": share,
            "batch": row.batch,
            "method": row.method,
            "speed": row.tokens_per_second,
        }
        for share, row in plan.curve
    )
    batches = list(rows["batch"].unique())
    if ax is None:
        size = (4.6 * len(batches), 4.6)
        _, ax = plt.subplots(1, len(batches), figsize=size, squeeze=False, layout="constrained")
    panels = np.atleast_1d(ax).ravel()
    for panel, batch in zip(panels, batches, strict=True):
        _panel(panel, rows[rows["batch"] == batch], plan)
        panel.set(title="one text" if batch == 1 else f"{batch} texts")
        panel.set_ylabel("tokens per second (simulated)" if panel is panels[0] else "")
    handles = panels[0].get_lines()[: rows["method"].nunique()]
    panels[0].figure.legend(
        handles, rows["method"].unique(), loc="outside lower center", ncols=4, frameon=False
    )
    size = plan.model
    panels[0].figure.suptitle(
        f"{size.name} ({size.num_layers} {TIMES} {size.num_experts} experts of "
        f"{show_bytes(size.expert_bytes)}) on {plan.machine.name}; dashed: the plan's budget",
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    return panels


def _panel(panel, rows: pd.DataFrame, plan) -> None:
    sns.lineplot(
        rows,
        x="share",
        y="speed",
        hue="method",
        style="method",
        palette=METHOD_COLORS,
        markers=True,
        dashes=False,
        markersize=8,
        ax=panel,
    )
    panel.axvline(plan.share, color=GREY, linestyle="--", linewidth=1.2)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(lambda value, _: show_number(value))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set(xlim=(0, 1.04), xlabel="share of the experts in fast memory")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.get_legend().remove()
