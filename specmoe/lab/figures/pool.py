"""One layer's pool under several policies.

Comes in: an output, or the frame of its trace. Goes out: the ``Axes`` drawn on. It is the static
twin of ``widgets.pool_replay``; what it draws is computed in ``specmoe.lab.replay``.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from ...errors import OptionError
from ..replay import (
    REPLAYED,
    Held,
    as_frame,
    check_number,
    decoding,
    layer_requests,
    layers_of,
    pool_table,
    replay_pool,
)
from .base import BESIDE, COLORS, styled

POLICY_COLORS = {"lru": COLORS[1], "lfu": COLORS[4], "temporal": COLORS[0], "belady": "#303030"}
OWN_COLOR = COLORS[2]
POLICY_NAMES = {"lru": "LRU", "lfu": "LFU", "temporal": "temporal", "belady": "Belady (the bound)"}
POLICY_LINES = {"lru": "--", "lfu": ":", "temporal": "-", "belady": "-"}
STATES = {"not there": "white", "resident, not needed": "#d0d0d0"}
STATES |= {"hit": COLORS[0], "miss": COLORS[3]}
DEFAULT_KEPT = 4


@styled
def pool_replay(
    source,
    layer: int | None = None,
    policy: str = "temporal",
    step: int | None = None,
    num_kept: int | None = None,
    num_experts: int | None = None,
    ax=None,
):
    """One layer's requests replayed: which experts were needed and there under ``policy``; misses
    of every policy.

    ``source``: an output or a trace frame; ``layer`` None: the first; ``step``: where the time line
    stands (None: the end); ``num_kept``: experts kept per layer (None: 4, or half of them);
    ``num_experts`` E (None: as many as the trace names). ``ax``: two ``Axes`` to draw on. A replay,
    not a run: requests stay what they were, whatever the policy. Prefills are left out; a
    triangle stands where one ran, that is, where new prompts begin.
    """
    frame = as_frame(source)
    layer = layers_of(frame)[0] if layer is None else layer
    requests, begins = decoding(layer_requests(frame, layer, num_experts))
    num_kept = num_kept or default_kept(len(requests[0].counts))
    held = replay_pool(requests, num_kept, policy)
    step = len(held) - 1 if step is None else check_number("step", step, range(len(held)))
    above, below = _two_axes(ax, (11, 5.6), (3, 2))
    _draw_raster(above, held, len(requests[0].counts), step)
    _mark_prefills(above, begins)
    name = POLICY_NAMES.get(policy, policy)
    title = f"Layer {layer}: a pool of {num_kept} experts under {name}, replayed"
    above.set_title(title, loc="left", fontweight="bold", pad=14)
    shown = dict.fromkeys([*REPLAYED, policy])
    _draw_misses(below, pool_table(requests, num_kept, [*shown]), step)
    return np.array([above, below], dtype=object)


def default_kept(num_experts: int) -> int:
    """As many as ``load`` lets draft."""
    return max(1, min(DEFAULT_KEPT, num_experts // 2))


def _two_axes(ax, size: tuple[float, float], heights: tuple[int, int]) -> tuple[Axes, Axes]:
    if ax is None:
        _, axes = plt.subplots(2, 1, figsize=size, height_ratios=heights, sharex=True)
        room = {"left": 0.065, "right": 0.625, "bottom": 0.115, "top": 0.935}
        axes[0].figure.subplots_adjust(hspace=0.05, **room)
        return axes[0], axes[1]
    axes = list(np.atleast_1d(ax))
    if len(axes) != 2:
        raise OptionError(f"ax holds {len(axes)} Axes: give two")
    return axes[0], axes[1]


def _draw_raster(ax: Axes, held: list[Held], num_experts: int, step: int) -> None:
    """Experts x steps, one colour per state; what lies after ``step`` is pale."""
    state = np.zeros((num_experts, len(held)), dtype=int)
    for column, now in enumerate(held):
        state[list(now.before), column] = 1
        state[list(now.needed & now.before), column] = 2
        state[list(now.needed - now.before), column] = 3
    shade = np.where(np.arange(len(held)) <= step, 1.0, 0.25)[None, :].repeat(num_experts, axis=0)
    look = {"aspect": "auto", "interpolation": "none", "alpha": shade}
    ax.imshow(state, cmap=ListedColormap(list(STATES.values())), vmin=0, vmax=3, **look)
    ax.axvline(step + 0.5, color="black", lw=2)
    ax.set_ylabel("expert")
    ax.grid(False)
    handles = [Patch(fc=color, ec="#909090", label=name) for name, color in STATES.items()]
    ax.legend(handles=handles, **BESIDE)


def _mark_prefills(ax: Axes, begins: list[int]) -> None:
    """A triangle above each step before which new prompts were prefilled."""
    look = {"marker": "v", "ls": "none", "ms": 7, "color": "black", "clip_on": False}
    label, at = "a new prompt begins\n(its prefill is left out)", [step - 0.5 for step in begins]
    above = ax.get_xaxis_transform()
    (marks,) = ax.plot(at, [1.0] * len(begins), transform=above, label=label, **look)
    ax.legend(handles=[*ax.get_legend().legend_handles, marks], **BESIDE)


def _draw_misses(ax: Axes, table: pd.DataFrame, step: int) -> None:
    ends = {}
    for policy, part in table.groupby("policy", sort=False):
        style = {
            "color": POLICY_COLORS.get(policy, OWN_COLOR),
            "ls": POLICY_LINES.get(policy, "-."),
        }
        style["lw"] = 3 if policy == "temporal" else 2.4
        now = part.iloc[step]
        hits, misses = int(now["total_hits"]), int(now["total_misses"])
        name = POLICY_NAMES.get(policy, policy)
        ends[policy] = f"{name}: {misses} misses, {hits} hits"
        ax.plot(part["step"], part["total_misses"], label=ends[policy], **style)
    ax.axvline(step + 0.5, color="black", lw=2)
    ax.set(xlabel="decoding step of the full model", ylabel="misses so far")
    ax.set_xlim(-0.5, table["step"].max() + 0.5)
    ax.set_ylim(bottom=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(title=f"up to step {step}", title_fontsize=12, **BESIDE)
