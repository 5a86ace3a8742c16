"""Widgets that take a run apart: its routing, its rounds, its pool, its clock.

Comes in: an output with its trace (or a ``Routing``). Goes out: an ``Explorer``. Nothing is run
again: a slider replays.
"""

from __future__ import annotations

from .. import figures, replay
from ..figures import mechanisms as drawn
from ..figures import tokens as spelled
from ..live import data
from .base import Live
from .explorer import Explorer, choice, slider, span, steps, words_to_click


def routing_explorer(routing, token: int | None = None, num_tokens: int = 18) -> Explorer:
    """Tokens x layers coloured by expert; click a token of the text to have it spelled out
    (``figures.routing_map``).

    ``routing``: of ``specmoe.lab.routing.record_routing(engine, prompt)``. Where nothing was
    drafted, nothing offers the draft.
    """
    spelled.check_routing(routing)
    positions = sorted(routing.picks["position"].unique().tolist())
    first_new = min(routing.num_prompt_tokens, positions[-1])
    token = first_new if token is None else replay.check_number("token", token, positions)
    words = spelled.words_of(routing.output.tokenizer, routing.tokens)
    layers = spelled.shown_layers(routing)
    controls = {"token": words_to_click("token", [(words[p], p) for p in positions], token)}
    if (routing.picks["step"] == "draft").any():
        controls["step"] = choice(
            "computed by", [("the full model", "target"), ("the draft, with stand-ins", "draft")]
        )
    if layers.stop < routing.num_layers:
        controls["first_layer"] = slider(
            "first layer", layers.start, routing.num_layers - len(layers), layers.start
        )

    def draw(**values):
        return figures.routing_map(routing, num_tokens=num_tokens, **values)

    return Explorer(controls, draw, "experts of one prompt by token and layer", 580)


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


def pool_replay(source, layer: int | None = None, num_experts: int | None = None) -> Explorer:
    """One layer's requests under LRU, LFU, temporal and Belady, with a time slider
    (``figures.pool_replay``)."""
    frame = replay.as_frame(source)
    layers = replay.layers_of(frame)
    layer = layers[0] if layer is None else replay.check_number("layer", layer, layers)
    requests, _ = replay.decoding(replay.layer_requests(frame, layer, num_experts))
    most = len(requests[0].counts)
    controls = {
        "layer": choice("layer", layers, layer),
        "policy": choice(
            "policy drawn",
            [(drawn.POLICY_NAMES[name], name) for name in replay.REPLAYED],
            "temporal",
        ),
        "num_kept": slider("experts kept", 1, most, drawn.default_kept(most)),
        "step": slider("time", 0, len(requests) - 1, len(requests) - 1, "step"),
    }

    def draw(step, **values):
        of_layer = replay.layer_requests(frame, values["layer"], most)
        last = len(replay.decoding(of_layer)[0]) - 1
        return figures.pool_replay(frame, step=min(step, last), num_experts=most, **values)

    return Explorer(controls, draw, "one layer's pool replayed under four policies", 560)


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
