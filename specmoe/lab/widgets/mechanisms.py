"""Widgets that take a run apart: its routing, its rounds, its pool, its clock.

Comes in: an output with its trace (or a ``Routing``). Goes out: an ``Explorer``. Nothing is run
again: a slider replays.
"""

from __future__ import annotations

from .. import figures, replay
from ..live import data
from .base import Live
from .explorer import Explorer, span, steps


def routing_explorer(routing, token: int | None = None, num_tokens: int = 18) -> Live:
    """Tokens x layers coloured by expert; click a token of the text to have it spelled out
    (``figures.routing_map``).

    ``routing``: of ``specmoe.lab.routing.record_routing(engine, prompt)``; ``token``: the position
    to begin with (None: the first generated); ``num_tokens``: at most so many in one picture.
    Where nothing was drafted, nothing offers the draft.
    """
    made = data.routing(routing, token, num_tokens)
    return Live(
        "routing",
        made,
        "experts of one prompt by token and layer",
        lambda: figures.routing_map(routing, made["start"]["token"], num_tokens=num_tokens),
    )


def round_stepper(output, row: int | None = None, step: int | None = None, tokenizer=None) -> Live:
    """Step through draft, verify, accept on the text itself, with the experts that move between the
    two memories; its picture is the whole round (``figures.round_steps``).

    It opens on the draft, with the rest still to reveal. ``row``: the prompt to begin with, from 0
    (None: the first); ``step``: its round, from 0 (None: the first with a rejection). The page
    counts both from 1.
    """
    replayed = data.rounds(output, row, step, tokenizer)
    start = replayed["start"]
    row = replayed["prompts"][start["prompt"]]["number"] - 1
    about = "one round on its own text: drafted, verified, accepted"
    return Live(
        "rounds",
        replayed,
        about,
        lambda: figures.round_steps(output, row, start["round"], "accept", tokenizer),
    )


def pool_replay(source, layer: int | None = None, num_experts: int | None = None) -> Live:
    """One layer's requests under LRU, LFU, temporal and Belady, or with the reader choosing what
    leaves (``figures.pool_replay``). ``layer``: the one to begin with (None: the first)."""
    made = data.pool(source, layer, num_experts)
    layer, experts = made["start"]["layer"], made["experts"]
    return Live(
        "pool",
        made,
        "one layer's pool replayed under four policies, and by hand",
        lambda: figures.pool_replay(source, layer, num_experts=experts),
    )


def timeline(source, round: int | None = None, mark: tuple[int, int] | None = None) -> Explorer:
    """Who waits for whom in one round, zoomable (``figures.timeline``)."""
    frame = replay.as_frame(source)
    rounds = replay.rounds_of(frame)
    round = (
        rounds[len(rounds) // 2] if round is None else replay.check_number("round", round, rounds)
    )
    zoom = span("zoom (% of round)", 0, 100)
    controls = {"round": steps("round", rounds, round), "zoom": zoom}

    def draw(round, zoom):
        whole = (
            frame[(frame["kind"] == "round") & (frame["round"] == round)]["seconds"].iloc[0] * 1e3
        )
        begin, end = (zoom[0], max(zoom[1], zoom[0] + 1))
        return figures.timeline(frame, round, whole * begin / 100, whole * end / 100, mark)

    lanes = max(1, frame["kind"].isin(["fetch", "prefetch"]).any() * 4)
    return Explorer(controls, draw, "reads and compute of one round on the clock", 330 + 55 * lanes)
