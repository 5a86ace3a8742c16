"""A round on its own text: what was drafted, what the full model said, what was committed.

Comes in: an ``Output`` with its trace. Goes out: the ``Axes`` drawn on. It is the static twin of
``widgets.round_stepper``.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from ...errors import check_choice
from ..replay import as_frame, blocks_of, check_number, fetched_in, telling_round, token_kinds
from .base import COLORS, GREY, plain, styled

ACTS = ("draft", "verify", "accept")
TOKEN_COLORS = {
    "accepted": COLORS[9],
    "recovered": COLORS[1],
    "bonus": COLORS[2],
    "plain": "#d4d4d4",
}
TOKEN_NAMES = {
    "accepted": "accepted: drafted, and the full model agrees",
    "recovered": "recovered: the full model's own, at the first rejection",
    "bonus": "bonus: the full model's own, after all were accepted",
    "plain": "the full model's own, nothing was drafted",
}
SPACE = "\N{OPEN BOX}"
# inches: the figure, a monospaced letter at 13 points, a line of boxes
WIDTH, CHAR, LINE = 11.0, 0.118, 0.36


def drafted_by(output) -> str:
    """Who drafted, in words: the resident experts, or a source by its name."""
    name = getattr(getattr(output, "stats", None), "draft", None) or "resident"
    return "resident experts only" if name == "resident" else f"by {name}"


def words_of(tokenizer, tokens: Sequence[int], safe=plain) -> list[str]:
    """One visible word per token: spaces and line ends are drawn; without a tokenizer the ids.
    ``safe``: what makes a word safe to draw (None: it is not for matplotlib)."""
    if tokenizer is None:
        return [str(token) for token in tokens]
    texts = [tokenizer.decode([token]) for token in tokens]
    words = [text.replace(" ", SPACE).replace("\n", "\\n") or "?" for text in texts]
    return [safe(word) for word in words] if safe else words


@styled
def round_steps(
    output,
    row: int | None = None,
    step: int | None = None,
    act: str = "accept",
    tokenizer=None,
):
    """One round of one row on its own text: what was drafted, what the target said, what was
    committed.

    ``row``: prompt index (None: the first); ``step``: the row's round, from 0 (None: the first
    with a rejection); ``act``: how much is revealed, "draft", "verify" or "accept". Beside it: the experts read in that round, by layer,
    for all rows together. Returns the ``Axes``.
    """
    frame = as_frame(output)
    check_choice("act", act, ACTS)
    blocks = blocks_of(
        output.trace, min(b.row for b in output.trace.blocks) if row is None else row
    )
    step = telling_round(blocks) if step is None else check_number("step", step, range(len(blocks)))
    block = blocks[step]
    tokenizer = tokenizer or output.tokenizer
    figure = plt.figure(figsize=(WIDTH, 5.2))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.axis("off")
    ax.set(xlim=(0, WIDTH), ylim=(5.2, 0))
    first = blocks[0].row
    sequence = output.sequences[block.row - min(b.row for b in output.trace.blocks)].tolist()
    ax.text(
        0.15,
        0.3,
        f"Prompt {first + 1}, round {step + 1} of {len(blocks)}",
        fontsize=15,
        fontweight="bold",
        va="center",
    )
    _so_far(ax, words_of(tokenizer, sequence[: block.start]))
    _acts(ax, block, tokenizer, ACTS.index(act), drafted_by(output))
    _reads(ax, fetched_in(frame, block.round), ACTS.index(act))
    return ax


def _so_far(ax: Axes, words: list[str]) -> None:
    text = "".join(words).replace("\\n", "\\n ")
    tail = text if len(text) <= 54 else "..." + text[-51:]
    ax.text(0.15, 0.72, "text so far", fontsize=12, color=GREY, va="center")
    ax.text(1.35, 0.72, tail, fontsize=13, fontfamily="monospace", va="center", color=GREY)


def _acts(ax: Axes, block, tokenizer, upto: int, who: str) -> None:
    """Three lines of boxes: drafted, judged, committed."""
    drafted, committed = words_of(tokenizer, block.drafted), words_of(tokenizer, block.committed)
    num = len(drafted)
    none = [] if drafted else ["nothing was drafted"]
    _line(
        ax,
        1.25,
        "1 draft",
        plain(f"{_tokens(num)}, {who}"),
        [(w, "#f0f0f0", False) for w in drafted],
        none,
    )
    if upto >= 1:
        verdicts = [
            (w, TOKEN_COLORS["accepted"] if i < block.accepted else "white", i >= block.accepted)
            for i, w in enumerate(drafted)
        ]
        said = f"the full model reads {num + 1} positions at once, agrees with {block.accepted}"
        _line(ax, 2.35, "2 verify", said, verdicts, none)
    if upto >= 2:
        kinds = token_kinds(block)
        boxes = [
            (word, TOKEN_COLORS[kind], False) for word, kind in zip(committed, kinds, strict=True)
        ]
        _line(ax, 3.45, "3 accept", _tokens(len(boxes), "new "), boxes, [])
        handles = [
            Patch(fc=TOKEN_COLORS[kind], label=TOKEN_NAMES[kind]) for kind in dict.fromkeys(kinds)
        ]
        ax.legend(
            handles=handles, loc="lower left", frameon=False, fontsize=12, bbox_to_anchor=(0.0, 0.0)
        )


def _tokens(number: int, kind: str = "") -> str:
    return f"{number} {kind}token{'' if number == 1 else 's'}"


def _line(ax: Axes, y: float, name: str, said: str, boxes: list[tuple], instead: list[str]) -> None:
    """A heading and its boxes (word, colour, struck out), from left to right, wrapped once."""
    ax.text(0.15, y, name, fontsize=13, fontweight="bold", va="center")
    ax.text(1.15, y, said, fontsize=12, color=GREY, va="center")
    x, y = 0.2, y + 0.4
    for word, color, struck in boxes:
        wide = CHAR * len(word.replace(r"\$", "$")) + 0.16
        if x + wide > 7.6:
            x, y = 0.2, y + LINE
        ax.add_patch(
            Rectangle(
                (x, y - 0.16), wide, 0.32, fc=color, ec="#707070", lw=1, ls="--" if struck else "-"
            )
        )
        ax.text(
            x + wide / 2, y, word, ha="center", va="center", fontfamily="monospace", fontsize=13
        )
        if struck:
            ax.plot([x, x + wide], [y, y], color=COLORS[3], lw=2)
        x += wide + 0.08
    for words in instead:
        ax.text(0.2, y, words, fontsize=12, va="center", color=GREY)


def _reads(ax: Axes, reads: pd.DataFrame, upto: int) -> None:
    """The experts read in the round, by layer; the full model's own reads appear with the
    verification."""
    ax.text(8.0, 0.3, "experts read in this round", fontsize=13, fontweight="bold", va="center")
    ax.text(8.0, 0.6, "for all rows in flight", fontsize=12, color=GREY, va="center")
    shown = reads if upto else reads[reads["kind"] == "prefetch"]
    y = 1.0
    for layer in sorted(reads["layer"].unique())[:10]:
        part = shown[shown["layer"] == layer]
        names = [
            f"{e}{'*' if kind == 'prefetch' else ''}"
            for e, kind in zip(part["expert"], part["kind"], strict=True)
        ]
        lines = [" ".join(names[i : i + 6]) for i in range(0, len(names), 6)][:3] or ["-"]
        ax.text(8.0, y, f"layer {layer}", fontsize=12, va="center", color=GREY)
        for line in lines:
            ax.text(8.85, y, line, fontsize=12, va="center", fontfamily="monospace")
            y += 0.3
    star = "\n* before the router asked" if (shown["kind"] == "prefetch").any() else ""
    ax.text(
        8.0,
        y + 0.1,
        f"{_reads_in_words(len(shown))}{star}",
        fontsize=12,
        va="top",
        color=GREY,
    )


def _reads_in_words(number: int) -> str:
    return f"{number} read{'' if number == 1 else 's'}"
