"""Widgets that take a run apart: its routing, its rounds, its pool, its clock.

Comes in: an output with its trace (or a ``Routing``). Goes out: an ``Explorer``. Nothing is run
again: a slider replays.
"""

from __future__ import annotations

from .. import figures, replay
from ..figures import mechanisms as drawn
from ..figures import tokens as spelled
from .base import Explorer, choice, slider, span, steps, words_to_click


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


def round_stepper(
    output, row: int | None = None, step: int | None = None, tokenizer=None
) -> Explorer:
    """Step through draft, verify, accept on the text itself (``figures.round_steps``). It opens on
    the draft, with the rest still to reveal; its still shows the whole round. ``step`` None: the
    first round with a rejection."""
    replay.as_frame(output)
    rows = sorted({block.row for block in replay.any_blocks(output.trace)})
    row = rows[0] if row is None else replay.check_number("row", row, rows)
    rounds = {row: range(len(replay.blocks_of(output.trace, row))) for row in rows}
    if step is None:
        step = replay.telling_round(replay.blocks_of(output.trace, row))
    step = replay.check_number("step", step, rounds[row])
    acts = [("1 draft", "draft"), ("2 verify", "verify"), ("3 accept", "accept")]
    controls = {
        "row": choice("prompt", rows, row),
        "step": steps("round of the prompt", _numbered(rounds[row]), step),
        "act": steps("reveal", acts, "draft"),
    }

    # watches before the figure does, which then finds a round of this prompt
    def offer_its_rounds(change) -> None:
        controls["step"].options = _numbered(rounds[change["new"]])

    controls["row"].observe(offer_its_rounds, "value")

    def draw(row, step, act):
        return figures.round_steps(output, row, step, act, tokenizer)

    about = "one round on its own text: drafted, verified, accepted"
    return Explorer(controls, draw, about, 520, twin={"act": "accept"})


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


def _numbered(rounds: range) -> list[tuple[str, int]]:
    """People count from 1."""
    return [(str(number + 1), number) for number in rounds]
