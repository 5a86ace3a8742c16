"""Which experts each token of one prompt went to, layer by layer, while a method decoded it.

Comes in: an engine and one prompt. Goes out: a ``Routing`` with one row per token, layer and choice
of the router. ``figures.routing_map`` and ``widgets.routing_explorer`` show it. A trace holds
tokens per expert, not experts per token, so the run is made here, with a recorder around each MoE
layer; ordinary runs are not slowed by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import OptionError, UnsupportedModelError
from ..registry import own, yours
from .replay import Request

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..engine.output import Output
    from ..offload.experts import RunExperts
    from ..offload.installed import OffloadedExperts

COLUMNS = ("round", "position", "layer", "choice", "weight", "step", "expert", "computed", "state")
STATES = ("resident", "prefetched", "fetched", "substituted", "left out")


@dataclass(frozen=True)
class Routing:
    """The recorded picks of one run.

    ``picks`` columns: round (-1: prefill); position of the token whose hidden state was routed;
    layer; choice (0 is the router's first); weight (the router's); step ("target", "draft", or
    "draft:NAME": that draft step replayed with a substitute of yours); expert that the router
    named; computed (the expert that ran in its place, the same one or a stand-in; -1: none); state:
    "resident" (in fast memory when its layer asked), "prefetched" (read ahead of the router),
    "fetched", or in draft steps "substituted", "left out". Only tokens of the final text are in it:
    what was rejected is not. Of an encoder-decoder it holds the decoder's tokens and layers;
    positions are the decoder's, its start token the first.
    """

    output: Output
    picks: pd.DataFrame
    num_layers: int
    num_experts: int
    top_k: int
    # encoder-decoder: the decoder's first MoE layer; the encoder's come before it and are not here
    first_layer: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.output.sequences[0].tolist()

    @property
    def num_prompt_tokens(self) -> int:
        return self.output.num_prompt_tokens[0]


@dataclass
class _Step:
    """One MoE layer in one forward pass: index and weights [T, K], what ran [T, K], who was
    there."""

    phase: str
    round: int
    layer: int
    num_live: int  # tokens that count; the rest is padding
    index: list[list[int]]
    weights: list[list[float]]
    computed: list[list[int]]
    resident: set[int] = field(default_factory=set)
    ahead: set[int] = field(default_factory=set)
    # what would have run under each substitute that is replayed [T, K]
    others: dict[str, list[list[int]]] = field(default_factory=dict)


def record_routing(
    engine: Engine,
    prompt: str | list[int],
    max_new_tokens: int = 32,
    method: str = "specmoe",
    *,
    substitutes: Sequence[str] = (),
    **options,
) -> Routing:
    """Decode one ``prompt`` (text or ids) and record every choice of every router.

    ``options`` are those of ``Engine.generate``. ``substitutes``: names that you registered, which
    are asked beside the run's own who would stand in for whom; replayed, so what the routers chose
    and which experts drafted stay the run's. Raises ``OptionError`` for more than one prompt, an
    engine without a trace, or substitutes of a run without stand-ins; ``UnsupportedModelError`` for
    a compiled draft.
    """
    _check(engine, prompt)
    steps: list[_Step] = []
    played = _Played(engine.experts, substitutes)
    with engine.experts.watched_by(lambda *seen: steps.append(_observe(played, *seen))):
        output = engine.generate([prompt], max_new_tokens=max_new_tokens, method=method, **options)
    played.check()
    info, first_layer = engine.info, engine.experts.draft_layers.start
    decoding = [step for step in steps if step.layer >= first_layer]
    rows = [row for step in _placed(decoding, output) for row in step]
    picks = pd.DataFrame.from_records(rows, columns=list(COLUMNS))
    order = ["position", "layer", "step", "choice"]
    picks = picks.sort_values(order, ascending=[True, True, False, True], ignore_index=True)
    return Routing(output, picks, info["layers"], info["experts"], int(info["top_k"]), first_layer)


def requests_by_token(routing: Routing, layer: int) -> list[Request]:
    """What each token of the text, one after the other, asked of ``layer``: as if the full model
    had decoded the prompt, too. For ``replay.replay_pool``."""
    picks = routing.picks
    part = picks[(picks["layer"] == layer) & (picks["step"] == "target")]
    if not len(part):
        raise OptionError(f"layer={layer!r} has no picks: layers are 0..{routing.num_layers - 1}")
    counts = np.zeros((int(part["position"].max()) + 1, routing.num_experts), dtype=int)
    np.add.at(counts, (part["position"], part["expert"]), 1)
    return [Request(0, "verify", tuple(row)) for row in counts.tolist()]


def _check(engine: Engine, prompt) -> None:
    is_ids = isinstance(prompt, list | tuple) and all(isinstance(token, int) for token in prompt)
    if not isinstance(prompt, str) and not is_ids:
        raise OptionError(
            f"prompt={prompt!r:.60} is not one prompt: give one text, or one list of token ids"
        )
    if not engine.options.trace:
        raise OptionError(
            "the engine was loaded with trace=False, so no round is recorded: load "
            "it with trace=True"
        )
    if engine.compiled:
        raise UnsupportedModelError(
            "routing is recorded token by token, which a compiled draft does not allow: load with "
            "compile=False"
        )


class _Played:
    """Substitutes of a user's own beside that of a run: who would stand in. They are asked once per
    round and layer, as the engine asks."""

    def __init__(self, installed: OffloadedExperts, names: Sequence[str]):
        from ..offload.stand_ins import OwnTable

        self.tables, self.asked = {}, {}
        for name in names:
            if name not in yours("substitute"):
                raise OptionError(
                    f"substitute {name!r} is none of yours: register it, or run a built-in one with "
                    "substitute="
                )
            self.tables[name] = OwnTable(own("substitute", name), installed.distances)

    def of(self, experts: RunExperts, layer: int, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Name -> the expert that would be computed for each choice of ``index`` [T, K]."""
        residents = getattr(experts.stand_ins, "residents", None)  # a draft of copies has none
        if not self.tables or not experts.is_drafting or not residents:
            return {}
        key = experts.pool.tier.trace.round, layer
        if key not in self.asked:
            tables = self.tables.items()
            self.asked[key] = {name: table.of(layer, residents[layer]) for name, table in tables}
        return {name: table[index.cpu()] for name, table in self.asked[key].items()}

    def check(self) -> None:
        if self.tables and not self.asked:
            raise OptionError(
                f"substitutes={[*self.tables]}: nothing stands in for an expert in this run; draft "
                "with method='specmoe' and draft='resident'"
            )


def _observe(
    played: _Played, experts: RunExperts, layer: int, index: torch.Tensor, weights: torch.Tensor
) -> _Step:
    pool, live = experts.pool, experts.live
    # some models hand in their pairs one by one
    rows = index.shape[0] if live is None else len(live)
    ahead = {key.expert for key in pool.tier.speculative if key.layer == layer}
    parts = index, weights.float(), experts.computed(layer, index)
    parts = (part.reshape(rows, -1).tolist() for part in parts)
    others = played.of(experts, layer, index).items()
    others = {name: part.reshape(rows, -1).tolist() for name, part in others}
    num_live = rows if live is None else int(live.sum())
    here = pool.resident_experts(layer) - ahead
    now = pool.tier.trace
    return _Step(now.phase, now.round, layer, num_live, *parts, here, ahead, others)


def _placed(steps: list[_Step], output: Output) -> Iterator[list[tuple]]:
    """Rows of each step, its tokens at their positions in the final text."""
    blocks = {block.round: block for block in output.trace.blocks}
    drafted: Counter = Counter()  # draft steps seen so far, by round and layer
    for step in steps:
        if step.phase == "prefill":
            yield _rows(step, "target", 0, step.num_live)
            continue
        block = blocks[step.round]
        first = block.start - 1  # the row's last token opens the block
        if step.phase == "draft":
            place = drafted[step.round, step.layer]
            drafted[step.round, step.layer] += 1
            num = int(place < len(block.committed))
            yield _rows(step, "draft", first + place, num)
            for name, computed in step.others.items():
                yield _rows(replace(step, computed=computed), f"draft:{name}", first + place, num)
        else:
            yield _rows(step, "target", first, len(block.committed))


def _rows(step: _Step, name: str, first: int, num_tokens: int) -> list[tuple]:
    rows, state_of = [], _target_state if name == "target" else _draft_state
    for token in range(num_tokens):
        choices = zip(step.index[token], step.computed[token], step.weights[token], strict=True)
        for choice, (expert, ran, weight) in enumerate(choices):
            state = state_of(step, expert, ran)
            ran = -1 if state == "left out" else ran
            where = (step.round, first + token, step.layer, choice)
            rows.append((*where, weight, name, expert, ran, state))
    return rows


def _target_state(step: _Step, expert: int, ran: int) -> str:
    if expert in step.resident:
        return "resident"
    return "prefetched" if expert in step.ahead else "fetched"


def _draft_state(step: _Step, expert: int, ran: int) -> str:
    if ran == expert:
        return "resident"
    return "substituted" if ran in step.resident | step.ahead else "left out"
