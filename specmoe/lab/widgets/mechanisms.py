"""Widgets that take a run apart: its routing, its rounds, its pool, its clock.

Comes in: an output with its trace (or a ``Routing``). Goes out: a ``Live``. Nothing is run again: a
slider replays.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import figures
from ..live import data, traces
from .base import Live


def routing_explorer(routing, token: int | None = None, num_tokens: int = 18) -> Live:
    """Tokens x layers coloured by expert; click a token of the text to have it spelled out
    (``figures.routing_map``).

    ``routing``: of ``specmoe.lab.routing.record_routing(engine, prompt)``; ``token``: the position
    to begin with (None: the first generated); ``num_tokens``: at most so many in one picture.
    Where nothing was drafted, nothing offers the draft. Substitutes of yours that
    ``record_routing(substitutes=[...])`` replayed are offered by name; it opens on the first.
    """
    made = data.routing(routing, token, num_tokens)
    start, own = made["start"], made["own"]
    step = f"draft:{own[0]}" if own else "target"
    return Live(
        "routing",
        made,
        ", with stand-ins by ".join(["experts of one prompt by token and layer", *own]),
        lambda: figures.routing_map(routing, start["token"], step, num_tokens=num_tokens),
    )


def round_stepper(output, row: int | None = None, step: int | None = None, tokenizer=None) -> Live:
    """Step through draft, verify, accept on the text itself, with the experts that move between the
    two memories; its picture is the whole round (``figures.round_steps``).

    It opens on the draft, whose source it names (yours, too), with the rest still to reveal.
    ``row``: the prompt to begin with, from 0 (None: the first); ``step``: its round, from 0 (None:
    the first with a rejection). The page counts both from 1.
    """
    replayed = traces.rounds(output, row, step, tokenizer)
    start = replayed["start"]
    row = replayed["prompts"][start["prompt"]]["number"] - 1
    about = "one round on its own text: drafted, verified, accepted"
    return Live(
        "rounds",
        replayed,
        about,
        lambda: figures.round_steps(output, row, start["round"], "accept", tokenizer),
    )


def pool_replay(
    source,
    layer: int | None = None,
    num_experts: int | None = None,
    policies: Sequence[str] | None = None,
) -> Live:
    """One layer's requests under LRU, LFU, temporal and Belady, or with the reader choosing what
    leaves (``figures.pool_replay``). ``layer``: the one to begin with (None: the first).

    ``policies``: evictions beside those, built in or registered by ``specmoe.register``, and draft
    sets that were registered (None: all that were registered; at most three). They are played now,
    in Python, at up to four sizes of the pool; the page shows what they did and cannot play them on
    other requests.
    """
    made = traces.pool(source, layer, num_experts, policies)
    start, experts, more = made["start"], made["experts"], made["own"]["names"]
    about = ", ".join(["one layer's pool replayed under four policies", *more])
    return Live(
        "pool",
        made,
        f"{about}, and by hand",
        lambda: figures.pool_replay(source, start["layer"], start["policy"], num_experts=experts),
    )


def timeline(source, round: int | None = None, mark: tuple[int, int] | None = None) -> Live:
    """Who waits for whom, round by round (``figures.timeline``). Every round is drawn on one axis,
    which can be stretched; a read that is chosen says how long computing waited for it.

    ``round``: the one to begin with (None: the middle one); ``mark``: (layer, expert) whose read is
    chosen at first.
    """
    made = traces.timeline(source, round, mark)
    shown = made["rounds"][made["start"]["round"]]["round"]
    return Live(
        "timeline",
        made,
        "reads and compute of one round on the clock, measured",
        lambda: figures.timeline(source, shown, mark=mark),
    )
