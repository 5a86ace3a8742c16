"""One layer's pool under other policies.

Comes in: a trace frame. Goes out: what the layer was asked in each step, and what a pool of any
policy would have held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ...errors import OptionError, check_choice
from ...offload.evictions import OwnSet, make_policy
from ...offload.policies import Belady, KeepPolicy
from ...registry import names, own, yours
from .frames import check_frame, check_number

REPLAYED = ("lru", "lfu", "temporal", "belady")


def replayed() -> list[str]:
    """What can be replayed: ``REPLAYED``, evictions, and draft sets that somebody registered; of
    one name, the eviction."""
    return list(dict.fromkeys([*REPLAYED, *names("eviction"), *yours("draft_set")]))


class Request(NamedTuple):
    """What one layer asked for in one step of the full model: tokens per expert ``counts`` [E]."""

    round: int  # -1: prefill
    phase: str  # "prefill" | "verify"
    counts: tuple[int, ...]

    @property
    def needed(self) -> set[int]:
        return {expert for expert, count in enumerate(self.counts) if count}


class Held(NamedTuple):
    """One step of a replay."""

    step: int
    round: int
    hits: int
    misses: int  # reads: what is needed and not there, and what a draft set names and is not
    needed: frozenset[int]
    before: frozenset[int]  # resident when the router spoke
    after: frozenset[int]  # kept for the next step


def layers_of(frame: pd.DataFrame) -> list[int]:
    """MoE layers that routed tokens in ``frame``, ascending."""
    check_frame(frame)
    return sorted(frame.loc[frame["kind"] == "route", "layer"].unique().tolist())


def layer_requests(
    frame: pd.DataFrame, layer: int, num_experts: int | None = None
) -> list[Request]:
    """One request per full-model step (prefill, verification) that reached ``layer``, in order.

    ``num_experts`` E; None: the highest expert seen in the trace + 1. Raises ``OptionError`` for a
    layer without routes.
    """
    layer = check_number("layer", layer, layers_of(frame))
    routed = frame["kind"] == "route"
    num_experts = num_experts or int(frame.loc[routed, "expert"].max()) + 1
    # the event that ends a step comes last in it
    step = frame["kind"].isin(["prefill", "verify"]).cumsum()
    of_layer = routed & (frame["layer"] == layer) & (frame["expert"] < num_experts)
    part = frame[of_layer]
    _, first, place = np.unique(step[of_layer], return_index=True, return_inverse=True)
    counts = np.zeros((len(first), num_experts), dtype=int)
    counts[place, part["expert"]] = part["count"]
    rounds, phases = part["round"].iloc[first], part["phase"].iloc[first]
    return [
        Request(int(r), str(p), tuple(row))
        for r, p, row in zip(rounds, phases, counts.tolist(), strict=True)
    ]


def decoding(requests: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """``requests`` without prefills, and the steps of what is left before which a prefill ran.

    A prefill asks for many experts at once, and the engine lets it change no pool but an empty one:
    its misses say nothing about a policy.
    """
    steps, begins = [], []
    for request in requests:
        if request.phase != "prefill":
            steps.append(request)
        elif begins[-1:] != [len(steps)]:
            begins.append(len(steps))
    if not steps:
        raise OptionError(
            "this trace holds prefills only: generate at least one token for each prompt"
        )
    return steps, [step for step in begins if step < len(steps)]


class OwnKeep(KeepPolicy):
    """A function ``(counts, resident, num_kept) -> experts to keep``; its answer is checked."""

    def __init__(self, num_layers, num_experts, num_kept, function: Callable):
        super().__init__(num_layers, num_experts, num_kept)
        self.function = function

    def keep(self, layer, counts, resident):
        kept = set(self.function(counts, set(resident), self.num_kept))
        there = {expert for expert, count in enumerate(counts) if count} | resident
        if len(kept) > self.num_kept:
            raise OptionError(
                f"keep gave {len(kept)} experts, {sorted(kept)}: at most {self.num_kept} may stay"
            )
        if kept - there:
            raise OptionError(
                f"keep gave {sorted(kept - there)}, neither needed nor resident: choose from "
                f"{sorted(there)}"
            )
        return kept


def replay_pool(requests: Sequence[Request], num_kept: int, policy: str | Callable) -> list[Held]:
    """Play one layer's ``requests`` against a pool that keeps ``num_kept`` experts after each step,
    starting empty.

    The rule is ``offload.policies``'s, as in the engine: whatever is needed is brought, then
    ``policy`` ("lru", "lfu", "temporal", "belady", another of ``replayed()``, or a function as of
    ``OwnKeep``) chooses what stays; a draft set may also name what is not here, which is then read
    and counted as a miss. Nothing lingers beyond it, so the engine, whose spare slots may still
    hold an old expert, can miss less.
    """
    if not callable(policy):
        check_choice("policy", policy, replayed())
    if not requests:
        raise OptionError("there are no requests to replay")
    num_kept = check_number("num_kept", num_kept, range(1, len(requests[0].counts) + 1))
    keeper, resident, held = _keeper(requests, num_kept, policy), frozenset(), []
    for step, request in enumerate(requests):
        needed = frozenset(request.needed)
        here = needed | resident
        kept = frozenset(keeper.keep(0, request.counts, set(resident)))
        kept = kept if isinstance(keeper, OwnSet) else kept & here
        hits, misses = len(needed & resident), len(needed - resident) + len(kept - here)
        held.append(Held(step, request.round, hits, misses, needed, resident, kept))
        resident = kept
    return held


def _keeper(requests: Sequence[Request], num_kept: int, policy: str | Callable) -> KeepPolicy:
    size = (1, len(requests[0].counts), num_kept)
    if callable(policy):
        return OwnKeep(*size, policy)
    if policy == "belady":
        return Belady(*size, [[request.needed for request in requests]])
    if policy not in names("eviction") and (part := own("draft_set", policy, *size)):
        return OwnSet(part, *size)
    return make_policy(policy, *size)


def pool_table(
    requests: Sequence[Request], num_kept: int, policies: Sequence[str] = REPLAYED
) -> pd.DataFrame:
    """Hits and misses of every policy, a row per policy and step: policy, step, round, hits, misses
    and their running sums ``total_hits``, ``total_misses``."""
    rows = []
    for policy in policies:
        hits = misses = 0
        for held in replay_pool(requests, num_kept, policy):
            hits, misses = hits + held.hits, misses + held.misses
            rows.append((policy, held.step, held.round, held.hits, held.misses, hits, misses))
    return pd.DataFrame(
        rows, columns=["policy", "step", "round", "hits", "misses", "total_hits", "total_misses"]
    )
