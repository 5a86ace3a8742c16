"""Who drafts next: the N experts per MoE layer that the draft model is restricted to.

Comes in, like an eviction: the token counts of the verification's router and the residents. Goes
out: the draft set. HotTemporal (the paper's) takes the N most used of this verification, which have
just been fetched, so replacing the draft experts moves no extra bytes. HotGlobal and Random are
fixed sets, fetched once. Your own (``offload.policies.KeepPolicy`` is the contract) may name what
is not here: that is fetched, and counted.
"""

from __future__ import annotations

import random

from ..offload.evictions import OwnSet
from ..offload.policies import Fixed, KeepPolicy, Static, Temporal
from ..registry import own


class HotTemporal(Temporal):
    """The N most used experts of the last verification, over all verified tokens of live rows
    (paper, step 3)."""


class HotGlobal(Static):
    """The N hottest experts of a calibration run, fixed (the paper's HotGlobal)."""


class RandomSet(Fixed):
    """N experts per layer drawn once from ``seed``, fixed (our reading of the paper's Random)."""

    def __init__(self, num_layers, num_experts, num_kept, seed: int = 0):
        super().__init__(num_layers, num_experts, num_kept)
        draw = random.Random(seed)
        self.fixed = [set(draw.sample(range(num_experts), num_kept)) for _ in range(num_layers)]


def make_draft_set(
    draft_set,
    num_layers: int,
    num_experts: int,
    num_draft: int,
    totals=None,
    seed: int = 0,
) -> KeepPolicy:
    """The policy called ``draft_set``, or a user's own; "hot_global" needs calibration ``totals``
    [layers][E]."""
    size = (num_layers, num_experts, num_draft)
    if part := own("draft_set", draft_set, *size):
        return OwnSet(part, *size)
    if draft_set == "hot_global":
        return HotGlobal(*size, totals)
    if draft_set == "random":
        return RandomSet(*size, seed)
    return HotTemporal(*size)
