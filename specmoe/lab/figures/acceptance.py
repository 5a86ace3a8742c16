"""The figure of one accept-or-reject decision: what the draft proposes, what the full model wants,
how often a proposal is accepted, and what takes its place.

Comes in: weights p of the full model and q of the draft, one per word. Goes out: the ``Axes``. It is
the static twin of ``widgets.accept_or_reject``.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from .base import COLORS, plain, styled

LOOKS = {
    "p, full model": COLORS[7],
    "q, draft": COLORS[9],
    "accepted with min(1, p/q)": COLORS[2],
    "rest of p, after a rejection": COLORS[1],
}


def acceptance(p, q) -> tuple[np.ndarray, np.ndarray]:
    """How often each word is accepted when it is drafted, and what a rejected one is replaced from
    (all zero where nothing is ever rejected)."""
    p, q = (np.asarray(weights, dtype=float) / sum(weights) for weights in (p, q))
    rest = np.clip(p - q, 0, None)
    return np.minimum(1, p / q), rest / (rest.sum() or 1.0)


@styled
def accept_or_reject(p, q, words, ax=None):
    """Bars for every word: p, q, how often it is accepted, its share of what replaces a rejected
    one."""
    shares = [np.asarray(weights, dtype=float) / sum(weights) for weights in (p, q)]
    bars = dict(zip(LOOKS, (*shares, *acceptance(p, q))))
    ax = plt.subplots(figsize=(11, 4), layout="constrained")[1] if ax is None else ax
    for place, (name, values) in enumerate(bars.items()):
        at = np.arange(len(words)) + 0.2 * (place - 1.5)
        drawn = ax.bar(at, values, 0.19, color=LOOKS[name], label=name)
        ax.bar_label(drawn, [f"{100 * value:.0f}" for value in values], fontsize=12)
    ax.set_xticks(range(len(words)), [plain(word) for word in words])
    ax.set(ylabel="share", ylim=(0, 1.15))
    ax.grid(False, axis="x")
    common = float(np.minimum(*shares).sum())
    ax.set_title(
        f"{100 * common:.0f} % of drafts are accepted: what p and q share (percent)",
        loc="left",
        fontweight="bold",
    )
    ax.legend(ncols=2, frameon=False, fontsize=12)
    return ax
