"""What the planner chooses on a machine of given costs.

Comes in: seconds of a draft step and a verification, an acceptance. Goes out: what ``CostPlanner``
believes of every gamma, and a figure of it. Nothing is measured.
"""

from __future__ import annotations

import random

import pandas as pd

from ...speculate.planner import CANDIDATES, CostPlanner
from ...trace import Round
from ..figures.base import COLORS, styled


def plan_on(
    draft_step_s: float,
    verify_s: float,
    verify_slope_s: float = 0.0,
    acceptance: float = 0.8,
    num_rounds: int = 200,
    rows: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """What ``CostPlanner`` believes after ``num_rounds`` on a machine of given costs (imagined,
    nothing is measured).

    A draft step takes ``draft_step_s``, a verification ``verify_s + verify_slope_s * gamma``.
    Returns a row per gamma: tokens (per row and round), seconds, seconds_per_token, times_chosen
    (of the last half of the rounds).
    """
    planner, chance, chosen = CostPlanner(), random.Random(seed), []
    for _ in range(num_rounds):
        gamma = planner.next_gamma()
        accepted = [_run_of_luck(chance, acceptance, gamma) for _ in range(rows)]
        cost = Round(
            gamma, gamma * draft_step_s, verify_s + verify_slope_s * gamma, [gamma] * rows, accepted
        )
        planner.observe(cost)
        chosen.append(gamma)
    late = chosen[num_rounds // 2 :]
    figures = [
        (g, planner.tokens(g), planner.seconds(g), planner.seconds_per_token(g), late.count(g))
        for g in CANDIDATES
    ]
    columns = ["gamma", "tokens", "seconds", "seconds_per_token", "times_chosen"]
    return pd.DataFrame(figures, columns=columns).set_index("gamma")


def _run_of_luck(chance: random.Random, acceptance: float, most: int) -> int:
    run = 0
    while run < most and chance.random() < acceptance:
        run += 1
    return run


@styled
def draw_plans(plans: dict[str, pd.DataFrame]):
    """Expected milliseconds per token by gamma, one line per imagined machine; a dot marks the
    planner's choice."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(8, 4.4), layout="constrained")
    for color, (name, plan) in zip(COLORS, plans.items()):
        relative = plan["seconds_per_token"] / plan["seconds_per_token"].loc[0]
        best = plan["times_chosen"].idxmax()
        ax.plot(plan.index, relative, "-o", ms=4, color=color, label=f"{name}: chooses {best}")
        ax.plot([best], [relative.loc[best]], "o", ms=13, mfc="none", mew=3, color=color)
    ax.axhline(1, color="#505050", ls="--", lw=1)
    ax.set_title("Time per token as the planner sees it (imagined machines)", loc="left")
    ax.set(xlabel="drafted tokens per round (gamma)", ylabel="relative to no drafting")
    ax.legend(fontsize="small")
    return ax
