"""What the exercises are scored on: real runs of a shipped checkpoint, made once per session.

Comes in: nothing. Goes out: expert distances, routing, requests and measured rounds of
``tiny-skewed``. All of it comes from runs whose counts (not their times) repeat exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from ... import checkpoint
from ...engine.engine import Engine, load
from ...engine.output import Output
from ...offload.affinity import expert_distances
from ...registry import BUILT_IN
from ...tiny.texts.data import held_out_prompts
from ..replay import Request, layer_requests, layers_of
from ..routing import record_routing
from ..simulate import Recording

MODEL, NUM_EXPERTS, NUM_DRAFT = "tiny-skewed", 32, 4
GAMMAS = (0, 1, 2, 3, 5, 8)


def prompts(num_prompts: int = 4) -> list[str]:
    """Held-out prompts of the shipped model, the domains taking turns."""
    return held_out_prompts(num_prompts, seed=1)


@functools.lru_cache(maxsize=1)
def shipped_distances() -> torch.Tensor:
    """Expert distances of the shipped model, [L, E, E]."""
    return expert_distances(checkpoint.pack(checkpoint.resolve(MODEL)))


def run(**options) -> Output:
    """One deterministic run of the shipped model, experts in host memory."""
    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        return generate(engine, **options)


def generate(engine: Engine, num_prompts: int = 4, max_new_tokens: int = 32, **options) -> Output:
    """Nothing read ahead, no early end: counts repeat exactly."""
    return engine.generate(
        prompts(num_prompts),
        max_new_tokens=max_new_tokens,
        prefetch=False,
        eos_token_id=[],
        **options,
    )


@functools.lru_cache(maxsize=1)
def recorded_requests() -> dict[int, list[Request]]:
    """Per MoE layer, what its router asked for in each step of plain decoding, two rows at a
    time."""
    frame = run(method="on_demand", batch_size=2, max_new_tokens=48).trace.to_frame()
    return {layer: layer_requests(frame, layer, NUM_EXPERTS) for layer in layers_of(frame)}


@functools.lru_cache(maxsize=1)
def recorded_block(num_rows: int = 6, num_tokens: int = 6) -> list[list[list[int]]]:
    """The routers' choices [B][T][K] of one layer for a block of ``num_tokens`` tokens in each of
    ``num_rows`` rows."""
    rows = []
    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        for prompt in prompts(num_rows):
            routing = record_routing(
                engine, prompt, max_new_tokens=num_tokens, method="on_demand", eos_token_id=[]
            )
            picks = routing.picks[
                (routing.picks["layer"] == 1)
                & (routing.picks["position"] >= routing.num_prompt_tokens - 1)
            ]
            choices = (
                picks.sort_values(["position", "choice"]).groupby("position")["expert"].apply(list)
            )
            rows.append(choices.tolist()[:num_tokens])
    return rows


def bytes_per_token(draft_set: str | Callable) -> float:
    """Bytes fetched per new token on the engine with ``draft_set``, gamma 5, one row at a time."""
    # what a name of yours stands for may change within a session
    known = isinstance(draft_set, str) and draft_set in BUILT_IN["draft_set"]
    return _bytes_of_name(draft_set) if known else _bytes_of(draft_set)


@functools.lru_cache(maxsize=4)
def _bytes_of_name(draft_set: str) -> float:
    return _bytes_of(draft_set)


def _bytes_of(draft_set: str | Callable) -> float:
    return run(
        method="specmoe", gamma=5, batch_size=1, max_new_tokens=48, draft_set=draft_set
    ).stats.fetched_bytes_per_token


@functools.lru_cache(maxsize=1)
def recorded_rounds() -> dict[int, Recording]:
    """Gamma -> a real run with it, as ``simulate`` replays them; four rows always in flight."""
    runs = {}
    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        for gamma in GAMMAS:
            output = generate(engine, num_prompts=12, method="specmoe", gamma=gamma, batch_size=4)
            runs[gamma] = Recording.of(output, engine.info).full()
    return runs


def recorded(**how) -> Recording:
    """A run as those of ``recorded_rounds``, drafting otherwise."""
    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        output = generate(engine, num_prompts=12, method="specmoe", batch_size=4, **how)
        return Recording.of(output, engine.info).full()


class VotedRound(NamedTuple):
    """One round: ``votes`` [L][E] of its draft, and when its verification asked, (layer, expert)
    ``held`` in fast memory and ``needed``."""

    votes: list[list[int]]
    held: set[tuple[int, int]]
    needed: set[tuple[int, int]]


@functools.lru_cache(maxsize=1)
def recorded_votes() -> list[VotedRound]:
    """Rounds of one row without prefetching: what the draft's routers named, and what was
    needed."""
    rounds: dict[int, VotedRound] = {}

    def see(run, layer: int, index: torch.Tensor, weights: torch.Tensor) -> None:
        trace, num_layers = run.pool.tier.trace, run.installed.num_layers
        if trace.phase not in ("draft", "verify"):
            return
        votes = [[0] * NUM_EXPERTS for _ in range(num_layers)]
        now = rounds.setdefault(trace.round, VotedRound(votes, set(), set()))
        if trace.phase == "draft":
            for expert in index.flatten().tolist():
                now.votes[layer][expert] += 1
            return
        now.needed.update((layer, expert) for expert in index.flatten().tolist())
        now.held.update((layer, expert) for expert in run.pool.resident_experts(layer))

    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        with engine.experts.watched_by(see):
            generate(engine, 8, method="specmoe", gamma=5, batch_size=1)
    return list(rounds.values())
