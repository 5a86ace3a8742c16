"""What a round drafted, and what it read.

Comes in: a trace or its frame. Goes out: blocks, words for their tokens, reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...errors import OptionError
from ...trace import Block
from .frames import check_frame, check_number


def any_blocks(trace) -> list[Block]:
    """All blocks of a trace, in order; ``OptionError`` where there are none."""
    blocks = getattr(trace, "blocks", None)
    if not blocks:
        raise OptionError(
            "this output has no trace: load the engine with trace=True and generate again"
        )
    return blocks


def blocks_of(trace, row: int) -> list[Block]:
    """The rounds of one ``row`` (prompt index), in order. Raises ``OptionError`` without a trace or
    for an unknown row."""
    blocks = any_blocks(trace)
    row = check_number("row", row, {block.row for block in blocks})
    return [block for block in blocks if block.row == row]


def telling_round(blocks: Sequence[Block]) -> int:
    """The round of these to begin with: the first in which some drafted tokens were accepted and one
    was not; else the first with a rejection; else the first."""
    rejected = [i for i, block in enumerate(blocks) if block.accepted < len(block.drafted)]
    return next((i for i in rejected if blocks[i].accepted), rejected[0] if rejected else 0)


def token_kinds(block: Block) -> list[str]:
    """One word per committed token: "accepted", and for the target's own "recovered" (at the first
    rejection), "bonus" (after all were accepted) or "plain" (nothing was drafted)."""
    own = (
        "plain"
        if not block.drafted
        else "bonus"
        if block.accepted == len(block.drafted)
        else "recovered"
    )
    return ["accepted"] * min(block.accepted, len(block.committed)) + [own] * (
        len(block.committed) > block.accepted
    )


def fetched_in(frame: pd.DataFrame, round: int) -> pd.DataFrame:
    """Experts read in ``round``, by layer: columns layer, expert, kind ("fetch", "prefetch")."""
    check_frame(frame)
    reads = frame[
        frame["kind"].isin(["fetch", "prefetch"])
        & (frame["round"] == round)
        & (frame["phase"] != "prefill")
    ]
    return reads[["layer", "expert", "kind"]].sort_values(["layer", "expert"], ignore_index=True)
