"""A run of the engine beside a run of the reader: what differs first, in one sentence.

Comes in: an ``Output`` of the engine; tokens, reads and rounds of the reader. Goes out: nothing, or
an ``ExerciseError``. ``checks`` calls this.

    E experts
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...engine.output import Output
from ...offload.affinity import nearest_resident
from ...trace import Block
from ..exercises.verdict import ExerciseError, require

Read = tuple[int, int]  # layer, expert
Rounds = Sequence[Sequence[tuple[list[int], list[int]]]]  # per round and row: drafted, gained


def compare_tokens(output: Output, rows: list[list[int]], where: str) -> None:
    """``where``: to look, if a token differs."""
    for index, (mine, theirs) in enumerate(zip(rows, output.sequences, strict=True)):
        theirs = theirs.tolist()
        for place, (one, other) in enumerate(zip(mine, theirs)):
            require(
                one == other,
                f"token {place} of row {index} is {one}, the engine's is {other}: {where}",
            )
        require(
            len(mine) == len(theirs),
            f"row {index} ends after {len(mine)} tokens, the engine's after {len(theirs)}: a row "
            "ends at the end token or when it is full",
        )


def compare_stand_ins(
    layer: int, mine: list[int], distances: torch.Tensor, kept: list[int]
) -> None:
    """``mine`` [E] against the residents of ``kept`` that are nearest by ``distances`` [E, E]."""
    right = nearest_resident(distances, kept)[:-1].tolist()
    require(
        len(mine) == len(right),
        f"layer {layer} has {len(mine)} stand-ins: {len(right)} are needed, one for each expert",
    )
    for expert, (one, other) in enumerate(zip(mine, right)):
        require(
            one == other,
            f"expert {one} stands in for expert {expert} of layer {layer}: it should be {other}, "
            "the resident whose weights are nearest",
        )


# ---- reads ----


def passes(output: Output) -> list[tuple[int, list[Read]]]:
    """What the engine read in every pass of the full model, in order: (round, reads); round -1 is
    the prefill."""
    frame = output.trace.to_frame()
    fetches = frame[frame["kind"] == "fetch"].groupby("round")[["layer", "expert"]]
    return [(index, list(map(tuple, part.to_numpy().tolist()))) for index, part in fetches]


def compare_reads(output: Output, reads: Sequence[Read], last: int | None = None) -> int:
    """``reads`` against the engine's, up to round ``last`` -> how many there are."""
    at = 0
    for index, right in passes(output):
        if last is None or index <= last:
            when = "the prefill" if index < 0 else f"round {index}"
            _compare_pass(list(reads[at : at + len(right)]), right, when)
            at += len(right)
    _compare_pass(list(reads[at:]), [], "the last pass")
    return at


def _compare_pass(mine: list[Read], right: list[Read], when: str) -> None:
    """As many reads as are ``right``. Who reads too little in one layer goes on with a later one,
    or with the next pass: so what is missing in a layer is said before what is too much."""
    for place, (layer, expert) in enumerate(mine):
        require(
            (layer, expert) not in mine[:place],
            f"expert {expert} of layer {layer} is read twice in {when}: read it once, for all "
            "tokens of the pass that ask for it",
        )
    differ = sorted(set(mine) ^ set(right), key=lambda key: (key[0], key in mine, key[1]))
    for layer, expert in differ:
        require(
            (layer, expert) in mine,
            f"in {when} you do not read expert {expert} of layer {layer}, and the engine does: it "
            "must have left fast memory before",
        )
        raise ExerciseError(
            f"in {when} you read expert {expert} of layer {layer}, and the engine does not: it is "
            "in fast memory already, or no token asks for it"
        )


# ---- rounds ----


def compare_rounds(blocks: Sequence[Block], rounds: Rounds) -> None:
    """Every block of the engine against the same of the reader's, in order."""
    earlier: dict[int, Block] = {}
    for block in blocks:
        require(
            block.round < len(rounds),
            f"you make {len(rounds)} rounds, and the engine goes on with round {block.round}",
        )
        drafted, gained = rounds[block.round][block.row]
        _compare_drafts(block, list(drafted), earlier.get(block.row))
        _compare_gain(block, list(drafted), list(gained))
        earlier[block.row] = block
    num = blocks[-1].round + 1
    require(len(rounds) == num, f"you make {len(rounds)} rounds, the engine {num}")


def _compare_drafts(block: Block, drafted: list[int], before: Block | None) -> None:
    right = list(block.drafted)
    said = f"round {block.round} drafts {drafted} in row {block.row}, the engine {right}: "
    if before is not None and before.accepted < len(before.drafted):
        said += (
            "the round before had a rejected token, whose keys and values must be forgotten (roll "
            "the KV cache back); or the residents differ"
        )
    else:
        said += "both continue the same text, so the residents or their stand-ins differ"
    require(drafted == right, said)


def _compare_gain(block: Block, drafted: list[int], gained: list[int]) -> None:
    """The same block was drafted; what became of it?"""
    right, num = list(block.committed), block.accepted
    said = f"round {block.round} gains {gained} in row {block.row}, the engine {right}: "
    if gained[: num + 1] == drafted[: num + 1] and num < len(drafted):
        said += (
            f"you accept drafted token {num + 1}, which the full model would not have written: "
            "stop at the first that differs"
        )
    elif len(gained) < len(right) and gained[:-1] == right[: len(gained) - 1]:
        said += "take every drafted token that the full model agrees with, then one of its own"
    else:
        said += (
            "the block is the same, so the full model saw another text: roll the KV cache back to "
            "before the draft, then verify"
        )
    require(gained == right, said)
