"""What the browser modules replay, as plain data: numbers, words, lists.

Comes in: an output with its trace, a ``Routing``, or simulated rows. Goes out: a dict that JSON can
hold. Pure functions; bad input raises one ``OptionError``.
"""

from __future__ import annotations

import pandas as pd

from .. import replay
from ..figures.tokens import words_of

# ---- rounds ----


def rounds(output, row: int | None = None, step: int | None = None, tokenizer=None) -> dict:
    """Every round of every prompt, its text, and which experts were where (``js/rounds.js``).

    ``row``: the prompt to begin with, from 0 (None: the first); ``step``: its round, from 0 (None:
    the first with a rejection). Prompts and rounds are shown counted from 1.
    """
    frame = replay.as_frame(output)
    blocks = replay.any_blocks(output.trace)
    rows = sorted({block.row for block in blocks})
    row = rows[0] if row is None else replay.check_number("row", row, rows)
    own = replay.blocks_of(output.trace, row)
    step = replay.telling_round(own) if step is None else step
    step = replay.check_number("step", step, range(len(own)))
    tokenizer = tokenizer or getattr(output, "tokenizer", None)
    reads = frame[frame["kind"].isin(["fetch", "prefetch"])]
    routed = frame["kind"] == "route"
    layers = sorted(frame.loc[routed & (frame["round"] >= 0), "layer"].unique().tolist())
    return {
        "prompts": [_prompt(output, one, rows[0], tokenizer) for one in rows],
        "memory": memory(frame, layers),
        "layers": layers,
        "experts": int(frame.loc[routed, "expert"].max()) + 1,
        "record_bytes": int(reads["size"].max()) if len(reads) else 0,
        "batch": int(frame.loc[frame["kind"] == "round", "size"].max()),
        "start": {"prompt": rows.index(row), "round": step, "act": 0},
    }


def _prompt(output, row: int, first: int, tokenizer) -> dict:
    return {
        "number": row + 1,
        "words": words_of(tokenizer, output.sequences[row - first].tolist(), safe=None),
        "rounds": [
            {
                "round": block.round,
                "start": block.start,
                "drafted": words_of(tokenizer, block.drafted, safe=None),
                "accepted": block.accepted,
                "committed": words_of(tokenizer, block.committed, safe=None),
                "kinds": replay.token_kinds(block),
            }
            for block in replay.blocks_of(output.trace, row)
        ],
    }


def memory(frame: pd.DataFrame, layers: list[int]) -> dict[int, dict]:
    """By round: who was in fast memory ``before`` and ``after`` (layer -> experts), the ``reads``
    [layer, expert, ahead of the router?] in order, who was ``needed`` [layer, expert, tokens], and
    how many tokens were ``committed``."""
    here, found = _at_first(frame), {}
    for event in frame.itertuples():
        key, decodes = (event.layer, event.expert), event.round >= 0 and event.phase != "prefill"
        if decodes and event.round not in found:
            found[event.round] = {"before": _by_layer(here, layers), "reads": [], "needed": []}
        if event.kind == "evict":
            here.discard(key)
        elif event.kind in ("fetch", "prefetch"):
            here.add(key)
            if decodes:
                found[event.round]["reads"].append([*key, event.kind == "prefetch"])
        elif event.kind == "route" and decodes:
            found[event.round]["needed"].append([*key, event.count])
        elif event.kind == "round":
            found[event.round] |= {"after": _by_layer(here, layers), "committed": event.count}
    return {number: one for number, one in found.items() if "after" in one}


def _at_first(frame: pd.DataFrame) -> set[tuple[int, int]]:
    """Who must have been in fast memory when the trace began: found there, or leaving it, before
    any read brought them."""
    moves = frame[frame["kind"].isin(["fetch", "prefetch", "hit", "evict"])]
    firsts = moves.drop_duplicates(["layer", "expert"])
    there = firsts[firsts["kind"].isin(["hit", "evict"])]
    return set(zip(there["layer"].tolist(), there["expert"].tolist()))


def _by_layer(here: set[tuple[int, int]], layers: list[int]) -> dict[int, list[int]]:
    return {layer: sorted(e for of, e in here if of == layer) for layer in layers}
