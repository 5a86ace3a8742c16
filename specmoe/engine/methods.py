"""Every method as settings of the same parts: how the pool keeps experts, who plans gamma, what is
read ahead.

Comes in: the options of a run and the memory plan. Goes out: a ``Method``, which ``prepare`` plans
with and ``run`` sets up.

===========  =======================================================================================
on_demand    nothing is kept: a wave of experts is read, computed, dropped (synchronous; the paper's
             MoE-OnDemand)
overlapped   the same, but reads go on while experts are computed, and the next layer's experts are
             guessed
cached       the pool keeps experts by an eviction policy (the paper's MoE-Caching)
specmoe      draft experts are kept, gamma tokens are drafted with them, one verification fetches
             for all
auto         specmoe with a planner that may choose gamma = 0
resident     everything in fast memory: the ceiling, outside the budget (copies widened to the
             model's dtype are not counted)
===========  =======================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..checkpoint import PackedExperts
from ..errors import FastMemoryError
from ..offload.budget import MemoryPlan
from ..offload.evictions import OwnSet, make_policy
from ..offload.experts import Drafting
from ..offload.policies import KeepPolicy, Static
from ..offload.pool import PoolMode
from ..options import GenerateOptions
from ..registry import own
from ..speculate.confidence import ConfidencePlanner, most_drafted
from ..speculate.draft_sets import make_draft_set
from ..speculate.evidence import SHORT
from ..speculate.planner import CANDIDATES, CostPlanner, FixedGamma, OwnPlanner, Planner
from ..speculate.sources import Experts, make_source
from ..speculate.sources.base import DraftSource
from ..speculate.sources.resident import Resident


@dataclass(frozen=True)
class Method:
    """Settings of one run. ``num_slots`` None: the engine's own slots; ``preload``: experts per
    layer to fetch first."""

    rule: KeepPolicy
    planner: Planner
    mode: PoolMode = PoolMode.CACHED
    num_slots: int | None = None
    preload: list[set[int]] | None = None
    first_kept: int = 0
    drafting: Drafting = Drafting()
    source: DraftSource = field(default_factory=Resident)


def make_method(
    options: GenerateOptions,
    memory: MemoryPlan,
    packed: PackedExperts,
    hotness=None,
    max_block: int | None = None,
    first: int = SHORT,
) -> Method:
    """The settings of ``options.method``; ``hotness`` [L][E] counts for the policies that stand on
    a calibration; ``max_block``: tokens of a row that can be verified at once (None: any number);
    ``first``: tokens of the first draft of ``auto``.
    Only ``resident`` keeps experts of an encoder: its layers, the first ones, run once per
    prompt."""
    method = _make_method(options, memory, packed, hotness, (max_block, first))
    if options.method == "resident":
        return method
    return replace(method, first_kept=len(packed.layers) - memory.num_layers)


def _make_method(options, memory, packed, hotness, lengths) -> Method:
    size = (len(packed.layers), packed.num_experts)
    plain = FixedGamma(0)
    if options.method == "resident":
        everything = Static(*size, size[1], [[0] * size[1]] * size[0])
        slots = size[0] * size[1] + 1
        return Method(everything, plain, PoolMode.RESIDENT, slots, everything.fixed)
    if options.method == "on_demand":
        return Method(KeepPolicy(*size, 0), plain, PoolMode.ON_DEMAND)
    if options.method == "overlapped":
        ahead = Drafting(guess_next=True)
        return Method(KeepPolicy(*size, 0), plain, PoolMode.OVERLAPPED, drafting=ahead)
    if options.method == "cached":
        policy = make_policy(options.eviction, *size, memory.cached_experts, hotness)
        return Method(policy, plain, preload=policy.fixed)
    return _speculative(options, memory, packed, hotness, lengths)


def _speculative(options, memory: MemoryPlan, packed: PackedExperts, hotness, lengths) -> Method:
    size = (len(packed.layers), packed.num_experts)
    source = make_source(options.draft, Experts(packed.layout, memory, size[1], hotness))
    memory = _beside(source, memory)
    policy = make_draft_set(
        options.draft_set, *size, memory.draft_experts, hotness, options.seed or 0
    )
    planner = _planner(options, *lengths, source.is_confident)
    top_k = options.draft_top_k or ("half" if isinstance(planner, ConfidencePlanner) else None)
    drafting = Drafting(options.substitute, options.prefetch, seed=options.seed or 0, top_k=top_k)
    preload = policy.fixed
    # every expert drafts, from the first round on
    if memory.draft_experts == size[1] and not isinstance(policy, OwnSet):
        preload = [set(range(size[1]))] * size[0]
    return Method(policy, planner, preload=preload, drafting=drafting, source=source)


def source_slots(source: DraftSource, memory: MemoryPlan) -> int:
    """The slots whose place a draft source takes."""
    return -(-source.num_bytes // memory.slot_bytes)


def _beside(source: DraftSource, memory: MemoryPlan) -> MemoryPlan:
    """What is left for the pool. It keeps no more than half of its slots: a draft that has its own
    copies needs none of them, and reads ahead."""
    taken = source_slots(source, memory)
    if not taken:
        return memory
    left = memory.num_slots - taken
    if left < 2:
        needed = (taken + 2) * memory.slot_bytes + memory.scratch_bytes
        raise FastMemoryError(
            f"draft={source.name!r} holds {source.num_bytes} bytes of fast memory, which has "
            f"{memory.used_bytes}: load with fast_memory={needed} or more"
        )
    kept = min(memory.draft_experts, left // (2 * memory.num_layers))
    return replace(memory, num_slots=left, draft_experts=kept)


def _planner(
    options: GenerateOptions, max_block: int | None, first: int, is_confident: bool
) -> Planner:
    most = most_drafted(max_block) if options.gamma is None else options.gamma
    if options.planner is not None and (part := own("planner", options.planner, most)):
        return OwnPlanner(part, most)
    confident = options.gamma is None and not options.do_sample and is_confident
    name = options.planner or ("confidence" if confident else "cost")
    if name == "confidence":
        return ConfidencePlanner(options.method == "auto", max_block, first)
    if options.method == "auto":
        gammas = CANDIDATES if options.gamma is None else tuple(sorted({0, options.gamma}))
        return CostPlanner(gammas, first)
    if options.gamma is not None:
        return FixedGamma(options.gamma)
    return CostPlanner(CANDIDATES[1:])
