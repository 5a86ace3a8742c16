"""Who drafts next: the N experts per MoE layer that the draft model is restricted to.

Comes in, like an eviction: the token counts of the verification's router and the residents. Goes
out: the draft set. HotTemporal (the paper's) takes the N most used of this verification, which have
just been fetched, so replacing the draft experts moves no extra bytes. HotGlobal and Random are
fixed sets, fetched once. Or pass your own function ``(layer, counts, num_draft) -> experts``; what
it names and is not here is fetched, and counted.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence

from ..errors import OptionError, SpecMoEError
from ..offload.policies import Fixed, KeepPolicy, Static, Temporal


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


class OwnSet(KeepPolicy):
    """A user's function; its answer is checked every time."""

    def __init__(self, num_layers, num_experts, num_kept, function: Callable):
        super().__init__(num_layers, num_experts, num_kept)
        self.function = function

    def keep(self, layer, counts, resident):
        experts = self._ask(layer, counts)
        gave = f"draft_set function gave {experts} for layer {layer}"
        if len(set(experts)) != len(experts) or not 1 <= len(experts) <= self.num_kept:
            raise OptionError(f"{gave}: expected 1 to {self.num_kept} distinct experts")
        if min(experts) < 0 or max(experts) >= self.num_experts:
            raise OptionError(f"{gave}: experts are 0..{self.num_experts - 1}")
        return set(experts)

    def _ask(self, layer: int, counts: Sequence[int]) -> list[int]:
        try:
            answer = self.function(layer, list(counts), self.num_kept)
        except SpecMoEError:
            raise
        except Exception as failure:
            raise OptionError(
                f"draft_set function raised {type(failure).__name__}: {failure}"
            ) from failure
        try:
            return [operator.index(expert) for expert in answer]
        except TypeError:
            raise OptionError(
                f"draft_set function gave {str(answer)[:60]} for layer {layer}: return a list of "
                "expert numbers"
            ) from None


def make_draft_set(
    draft_set: str | Callable,
    num_layers: int,
    num_experts: int,
    num_draft: int,
    totals=None,
    seed: int = 0,
) -> KeepPolicy:
    """The policy called ``draft_set``; "hot_global" needs calibration ``totals`` [layers][E]."""
    size = (num_layers, num_experts, num_draft)
    if callable(draft_set):
        return OwnSet(*size, draft_set)
    if draft_set == "hot_global":
        return HotGlobal(*size, totals)
    if draft_set == "random":
        return RandomSet(*size, seed)
    return HotTemporal(*size)
