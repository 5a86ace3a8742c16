"""The map of routing: which experts each token went to, layer by layer.

Comes in: a ``Routing`` of ``specmoe.lab.routing``. Goes out: the ``Axes`` drawn on. It is the static
twin of ``widgets.routing_explorer``.
"""

from __future__ import annotations

import functools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PathCollection
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, Rectangle
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from ...errors import OptionError, check_choice
from ..replay import check_number
from .base import COLORS, GREY, styled
from .tokens import WIDTH, words_of

STEPS = ("target", "draft")
ARROW = "\N{RIGHTWARDS ARROW}"
FRAMES = {"fetched": "-", "prefetched": (0, (2, 1.2))}
MAP_ROWS = 16  # layers times choices in one map


@styled
def routing_map(
    routing,
    token: int | None = None,
    step: str = "target",
    first: int | None = None,
    num_tokens: int = 18,
    first_layer: int | None = None,
    ax=None,
):
    """Tokens x layers of one prompt: the experts that each token went to, coloured by how much the
    text uses them.

    ``routing``: of ``specmoe.lab.routing.record_routing``; ``token``: the position spelled out at
    the right (None: the first generated); ``step``: what the "target" computed, what the "draft"
    did, with its stand-ins, or "draft:NAME", the same replayed with a substitute of yours;
    ``first``, ``num_tokens``: the tokens shown (positions); ``first_layer``: the first layer shown
    (None: the first recorded). Returns the map's ``Axes``.
    """
    check_routing(routing)
    check_choice("step", step, steps_of(routing.picks))
    positions = sorted(routing.picks["position"].unique().tolist())
    token = min(routing.num_prompt_tokens, positions[-1]) if token is None else token
    token = check_number("token", token, positions)
    first = window_start(token, first, num_tokens, len(positions))
    ax, beside = _map_axes(ax)
    shown = range(first, min(first + num_tokens, len(positions)))
    layers = shown_layers(routing, first_layer)
    _draw_map(ax, routing, step, shown, layers)
    if token in shown:
        look = {"fill": False, "lw": 3, "ec": COLORS[4], "zorder": 6}
        ax.add_patch(Rectangle((token - 0.5, -0.5), 1, len(layers) * routing.top_k, **look))
    if beside is not None:
        _spell_token(beside, routing, token, step, layers)
    return ax


def check_routing(routing) -> None:
    """``OptionError`` unless this holds picks per token."""
    if not isinstance(getattr(routing, "picks", None), pd.DataFrame):
        kind = type(routing).__name__
        raise OptionError(
            f"{kind} has no routing per token: make one with "
            "specmoe.lab.routing.record_routing(engine, prompt)"
        )


def steps_of(picks: pd.DataFrame) -> list[str]:
    """``STEPS``, then the draft replayed with substitutes of a user's own, "draft:NAME"."""
    return [*STEPS, *sorted(set(picks["step"]) - set(STEPS))]


def window_start(token: int, first: int | None, num_tokens: int, total: int) -> int:
    """The first token of a window of ``num_tokens`` that shows ``token`` near its middle."""
    if first is not None:
        return check_number("first", first, range(total))
    return int(np.clip(token - num_tokens // 2, 0, max(0, total - num_tokens)))


def shown_layers(routing, first_layer: int | None = None) -> range:
    """As many layers as a map has room for, from ``first_layer`` (None: the first recorded)."""
    room = max(1, MAP_ROWS // routing.top_k)
    first = routing.first_layer if first_layer is None else first_layer
    first = check_number("first_layer", first, range(routing.first_layer, routing.num_layers))
    return range(first, min(first + room, routing.num_layers))


def _map_axes(ax: Axes | None) -> tuple[Axes, Axes | None]:
    if ax is not None:
        return ax, None
    figure = plt.figure(figsize=(WIDTH, 5.6))
    return figure.add_axes((0.06, 0.27, 0.66, 0.62)), figure.add_axes((0.735, 0.02, 0.26, 0.83))


def use_ranks(picks: pd.DataFrame) -> dict[tuple[int, int], int]:
    """(layer, expert) -> its place among the layer's experts by use in the target's steps, 0 the
    most used."""
    use = picks[picks["step"] == "target"].groupby(["layer", "expert"]).size()
    use = use.reset_index(name="uses").sort_values(
        ["layer", "uses", "expert"], ascending=[True, False, True]
    )
    use["rank"] = use.groupby("layer").cumcount()
    return dict(zip(zip(use["layer"], use["expert"]), use["rank"], strict=True))


def _draw_map(ax: Axes, routing, step: str, shown: range, layers: range) -> None:
    picks = routing.picks
    ranks = use_ranks(picks)
    top = np.log2(1 + max(1, *ranks.values()))
    part = picks[
        (picks["step"] == step) & picks["position"].isin(shown) & picks["layer"].isin(layers)
    ]
    part = part.drop_duplicates(["position", "layer", "choice"], keep="last")
    cold = [
        np.log2(1 + ranks.get(key, 2**top - 1)) / top
        for key in zip(part["layer"], part["computed"], strict=True)
    ]
    part = part.assign(y=(part["layer"] - layers.start) * routing.top_k + part["choice"], cold=cold)
    _draw_cells(ax, part)
    _dress_map(ax, routing, step, shown, layers)


def _draw_cells(ax: Axes, part: pd.DataFrame) -> None:
    """One cell per choice: its colour is the computed expert's use, its frame says where the expert
    was."""
    ran = part[part["computed"] >= 0]
    colors = plt.get_cmap("cividis_r")(1 - ran["cold"].to_numpy())
    ax.add_collection(PatchCollection(_boxes(ran, 0.46), facecolors=colors, edgecolors="none"))
    for state, line in FRAMES.items():
        framed = _boxes(part[part["state"] == state], 0.38)
        look = {"facecolors": "none", "edgecolors": COLORS[3], "linewidths": 2.4}
        ax.add_collection(PatchCollection(framed, linestyles=[line], **look))
    dark = (part["computed"] >= 0) & (part["cold"] < 0.5)
    places, colors = part[["position", "y"]].to_numpy(), np.where(dark, "white", "black")
    _draw_words(ax, places, cell_words(part), colors)


def cell_words(part: pd.DataFrame) -> list[str]:
    """What stands in each cell: the expert, a stand-in with a star, or a dash where none ran."""
    rows = zip(part["state"], part["computed"], part["expert"], strict=True)
    return [
        f"{ran}*" if state == "substituted" else "-" if state == "left out" else str(e)
        for state, ran, e in rows
    ]


def _draw_words(ax: Axes, places: np.ndarray, words: list[str], colors) -> None:
    """Short words in the middle of ``places`` [n, 2], as one collection: a hundred single texts
    take a slider's time."""
    shapes = PathCollection(
        [_shape(word) for word in words],
        offsets=places,
        offset_transform=ax.transData,
        facecolors=list(colors),
        edgecolors="none",
        zorder=5,
    )
    # shapes are in points
    shapes.set_transform(Affine2D().scale(1 / 72) + ax.figure.dpi_scale_trans)
    ax.add_collection(shapes, autolim=False)


@functools.cache
def _shape(word: str) -> Path:
    """The outline of ``word`` at 12 points, its middle at the origin."""
    outline = TextPath((0, 0), word, prop=FontProperties(size=12))
    digits = TextPath((0, 0), "0", prop=FontProperties(size=12)).get_extents()
    box = outline.get_extents()
    return outline.transformed(
        Affine2D().translate(-(box.x0 + box.x1) / 2, -(digits.y0 + digits.y1) / 2)
    )


def _boxes(part: pd.DataFrame, half: float) -> list[Rectangle]:
    return [
        Rectangle((x - half, y - half), 2 * half, 2 * half)
        for x, y in zip(part["position"], part["y"], strict=True)
    ]


def _dress_map(ax: Axes, routing, step: str, shown: range, layers: range) -> None:
    words = words_of(routing.output.tokenizer, routing.tokens)
    k = routing.top_k
    said = [words[p][:10] for p in shown]
    ax.set_xticks(list(shown), said, rotation=90, fontfamily="monospace", fontsize=12)
    for label, position in zip(ax.get_xticklabels(), shown, strict=True):
        label.set_color(GREY if position < routing.num_prompt_tokens else "black")
        label.set_fontweight("normal" if position < routing.num_prompt_tokens else "bold")
    ax.set_yticks(
        [i * k + (k - 1) / 2 for i in range(len(layers))], [str(layer) for layer in layers]
    )
    ax.set(
        xlim=(shown.start - 0.5, shown.stop - 0.5),
        ylim=(len(layers) * k - 0.5, -0.5),
        ylabel="MoE layer",
    )
    ax.set_xlabel("token (grey: prompt, bold: generated)")
    ax.grid(False)
    for edge in range(1, len(layers)):
        ax.axhline(edge * k - 0.5, color="#c0c0c0", lw=1)
    who = {"target": "as the full model computed", "draft": "as the draft computed"}
    said = who.get(step, f"{step.partition(':')[2]} replayed")
    title = f"Experts by token and layer, {said}"
    ax.set_title(title, loc="left", fontweight="bold", fontsize=14, pad=12)


def _spell_token(ax: Axes, routing, token: int, step: str, layers: range) -> None:
    """The selected token in words, and what the colours and frames mean."""
    ax.axis("off")
    word = words_of(routing.output.tokenizer, routing.tokens)[token]
    lines = [f"token {token}: {word}", f"layer expert weight ({ARROW} draft)"]
    shown = "draft" if step == "target" else step
    part = routing.picks[routing.picks["position"] == token].drop_duplicates(
        ["layer", "step", "choice"], keep="last"
    )
    for layer in list(layers)[: 8 // max(1, routing.top_k // 2)]:
        here = part[part["layer"] == layer]
        for pick in here[here["step"] == "target"].itertuples():
            head = f"{layer:>2}" if pick.choice == 0 else "  "
            drafted = here[(here["step"] == shown) & (here["expert"] == pick.expert)]
            lines.append(
                f"{head} {pick.expert:>3} {pick.weight:.2f} {pick.state}{_draft_words(drafted)}"
            )
    words = dict(va="top", fontsize=12, transform=ax.transAxes)
    ax.text(0, 1.12, "\n".join(lines[:2]), linespacing=1.4, fontweight="bold", **words)
    ax.text(0, 0.95, "\n".join(lines[2:18]), fontfamily="monospace", linespacing=1.35, **words)
    ax.legend(
        handles=_map_legend(step), loc="lower left", frameon=False, fontsize=12, borderaxespad=0
    )


def _map_legend(step: str) -> list[Patch]:
    colors = plt.get_cmap("cividis_r")
    handles = [
        Patch(fc=colors(1.0), label="expert this text uses most"),
        Patch(fc=colors(0.0), label="... and least"),
    ]
    if step != "target":
        blank = {"fc": "white", "ec": "#c0c0c0"}
        return [
            *handles,
            Patch(**blank, label="*: a stand-in"),
            Patch(**blank, label="blank: the draft never\nread this token"),
        ]
    frames = [
        Patch(fc="none", ec=COLORS[3], lw=2.4, ls=line, label=state)
        for state, line in FRAMES.items()
    ]
    return [*handles, *frames, Patch(fc="none", ec="#c0c0c0", label="no frame: resident")]


def _draft_words(drafted: pd.DataFrame) -> str:
    if not len(drafted):
        return ""
    computed, expert = drafted.iloc[0][["computed", "expert"]]
    if computed == expert:
        return ""
    return f" {ARROW}{computed if computed >= 0 else '-'}"
