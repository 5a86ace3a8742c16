"""What a run's trace says when it is played again: one layer's pool under other policies, who waits
for whom in a round, what a round drafted.

Comes in: a trace frame (``specmoe.trace`` describes it) or the blocks of a trace. Goes out: small
frames and tuples that ``figures`` draws and ``widgets`` moves through. Pure functions, no torch:
nothing is run and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..errors import OptionError, check_choice
from ..offload.policies import Belady, KeepPolicy, make_policy
from ..trace import COLUMNS, Block

REPLAYED = ("lru", "lfu", "temporal", "belady")


def as_frame(source) -> pd.DataFrame:
    """The trace frame of an output, a trace, or a frame itself; ``OptionError`` for anything else
    or an empty one."""
    trace = getattr(source, "trace", source)
    frame = (
        trace.to_frame()
        if hasattr(trace, "to_frame") and not isinstance(trace, pd.DataFrame)
        else trace
    )
    check_frame(frame)
    return frame


def check_frame(frame: pd.DataFrame) -> None:
    """``OptionError`` unless ``frame`` is a trace frame with events in it."""
    if not isinstance(frame, pd.DataFrame) or not set(COLUMNS) <= set(frame.columns):
        kind = type(frame).__name__
        raise OptionError(
            f"{kind} holds no trace: give an output of generate, or its output.trace.to_frame()"
        )
    if not len(frame):
        raise OptionError(
            "this output has no trace: load the engine with trace=True and generate again"
        )


def check_number(name: str, value, valid: Iterable[int]) -> int:
    """``value`` as one of the whole numbers ``valid``; ``OptionError`` naming the nearest one
    otherwise."""
    numbers = sorted(int(number) for number in valid)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(
            f"{name}={value!r} must be a whole number from {numbers[0]} to {numbers[-1]}"
        )
    if int(value) not in numbers:
        close = min(numbers, key=lambda number: abs(number - int(value)))
        span = f"from {numbers[0]} to {numbers[-1]}"
        raise OptionError(f"{name}={value!r} is not in this trace: did you mean {close}? ({span})")
    return int(value)


# ---- one layer's pool ----


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
    misses: int
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
    ``policy`` ("lru", "lfu", "temporal", "belady", or a function as of ``OwnKeep``) chooses what
    stays. Nothing lingers beyond it, so the engine, whose spare slots may still hold an old expert,
    can miss less.
    """
    if not callable(policy):
        check_choice("policy", policy, REPLAYED)
    if not requests:
        raise OptionError("there are no requests to replay")
    num_kept = check_number("num_kept", num_kept, range(1, len(requests[0].counts) + 1))
    keeper, resident, held = _keeper(requests, num_kept, policy), frozenset(), []
    for step, request in enumerate(requests):
        needed = frozenset(request.needed)
        kept = frozenset(keeper.keep(0, request.counts, set(resident)) & (needed | resident))
        held.append(
            Held(
                step,
                request.round,
                len(needed & resident),
                len(needed - resident),
                needed,
                resident,
                kept,
            )
        )
        resident = kept
    return held


def _keeper(requests: Sequence[Request], num_kept: int, policy: str | Callable) -> KeepPolicy:
    size = (1, len(requests[0].counts), num_kept)
    if callable(policy):
        return OwnKeep(*size, policy)
    if policy == "belady":
        return Belady(*size, [[request.needed for request in requests]])
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


# ---- one round on the clock ----


def rounds_of(frame: pd.DataFrame) -> list[int]:
    """Numbers of the rounds that were finished."""
    check_frame(frame)
    rounds = sorted(frame.loc[frame["kind"] == "round", "round"].unique().tolist())
    if not rounds:
        raise OptionError("no round was finished in this trace: generate at least one token")
    return rounds


def timeline(frame: pd.DataFrame, round: int) -> pd.DataFrame:
    """Who was busy when in one round: a row per interval with lane ("link 1", "link 2", ... or
    "compute"), kind, layer, expert, begin_s and end_s (seconds since the round began), size
    (bytes).

    A read fills the lowest link lane that is free; it counts to every round that it overlaps.
    Compute is "draft", "verify" (cut at each layer's first routing), "wait" (compute stood still
    for a read) and "rest".
    """
    round = check_number("round", round, rounds_of(frame))
    whole = frame[(frame["kind"] == "round") & (frame["round"] == round)].iloc[0]
    begin_s, end_s = float(whole["time_s"] - whole["seconds"]), float(whole["time_s"])
    rows = _compute_lane(frame[frame["round"] == round], begin_s, end_s) + _link_lanes(
        frame, begin_s, end_s
    )
    columns = ["lane", "kind", "layer", "expert", "begin_s", "end_s", "size"]
    table = pd.DataFrame(rows, columns=columns)
    table[["begin_s", "end_s"]] -= begin_s
    return table.sort_values(["lane", "begin_s"], kind="stable", ignore_index=True)


def _compute_lane(events: pd.DataFrame, begin_s: float, end_s: float) -> list[tuple]:
    rows, spans = [], []
    for name in ("draft", "verify"):
        for step in events[events["kind"] == name].itertuples():
            spans.append((step.time_s - step.seconds, step.time_s))
            rows += _layers_of_step(events, name, *spans[-1])
    waits = events[(events["kind"] == "wait") & events["phase"].isin(["draft", "verify"])]
    rows += [
        ("compute", "wait", w.layer, w.expert, w.time_s - w.seconds, w.time_s, 0)
        for w in waits.itertuples()
    ]
    reached = begin_s
    for span_begin, span_end in [*sorted(spans), (end_s, end_s)]:
        if span_begin > reached:
            rows.append(("compute", "rest", -1, -1, reached, span_begin, 0))
        reached = max(reached, span_end)
    return rows


def _layers_of_step(events: pd.DataFrame, name: str, begin_s: float, end_s: float) -> list[tuple]:
    """A step cut where each layer's router spoke; drafting, whose routers leave no event, stays
    whole."""
    routes = events[(events["kind"] == "route") & (events["phase"] == name)]
    starts = routes.groupby("layer")["time_s"].min().clip(begin_s, end_s).sort_values()
    if not len(starts):
        return [("compute", name, -1, -1, begin_s, end_s, 0)]
    cuts = [begin_s, *starts.tolist()[1:], end_s]
    return [
        ("compute", name, layer, -1, cuts[i], cuts[i + 1], 0)
        for i, layer in enumerate(starts.index)
    ]


def _link_lanes(frame: pd.DataFrame, begin_s: float, end_s: float) -> list[tuple]:
    reads = frame[frame["kind"].isin(["fetch", "prefetch"])]
    reads = reads.assign(begin_s=reads["time_s"] - reads["seconds"]).sort_values("begin_s")
    rows, free_at = [], []
    for read in reads[(reads["time_s"] > begin_s) & (reads["begin_s"] < end_s)].itertuples():
        lane = next(
            (number for number, free_s in enumerate(free_at) if free_s <= read.begin_s + 1e-6),
            len(free_at),
        )
        free_at[lane : lane + 1] = [read.time_s]
        begin, end = max(read.begin_s, begin_s), min(read.time_s, end_s)
        rows.append((f"link {lane + 1}", read.kind, read.layer, read.expert, begin, end, read.size))
    return rows


# ---- what a round drafted ----


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
