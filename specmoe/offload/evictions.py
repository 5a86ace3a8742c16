"""Evictions by name; a user's own one, or draft set, asked and checked. No torch.

Comes in: a name, or what ``registry`` knows by it. Goes out: a ``KeepPolicy`` for one run.
``engine.methods`` and replays make one; ``draft_sets`` does the same for the draft.
"""

from __future__ import annotations

from ..registry import Part, own
from .policies import LFU, LRU, Decayed, KeepPolicy, Static, Temporal, needed_of


class OwnRule(KeepPolicy):
    """``part`` is a function, or has the method ``keep`` (``KeepPolicy`` is the contract)."""

    def __init__(self, part: Part, num_layers: int, num_experts: int, num_kept: int):
        super().__init__(num_layers, num_experts, num_kept)
        self.part = part

    def keep(self, layer, counts, resident):
        experts = self._ask(layer, list(counts), set(resident))
        gave = f"{str(experts)[:60]} for layer {layer}"
        if len(set(experts)) != len(experts) or len(experts) > self.num_kept:
            raise self.part.refusal(f"{gave}: expected at most {self.num_kept} distinct experts")
        if experts and not 0 <= min(experts) <= max(experts) < self.num_experts:
            raise self.part.refusal(f"{gave}: experts are 0..{self.num_experts - 1}")
        self._check(experts, gave, needed_of(counts) | resident)
        return set(experts)

    def _check(self, experts: list[int], gave: str, here: set[int]) -> None:
        """``here``: experts that this step asks for, or that are resident."""
        if absent := set(experts) - here:
            raise self.part.refusal(
                f"{gave}: expert {min(absent)} is neither asked for nor resident, and keeping "
                "fetches nothing"
            )

    def _ask(self, layer: int, counts: list[int], resident: set[int]) -> list[int]:
        part = self.part
        if part.method:
            answer = part.ask(part.method, layer, counts, resident)
        else:
            answer = part.ask(part.given, *self._arguments(layer, counts, resident))
        return part.numbers(answer, f"for layer {layer}", "a list of expert numbers")

    def _arguments(self, layer: int, counts: list[int], resident: set[int]) -> tuple:
        return layer, counts, resident, self.num_kept


class OwnSet(OwnRule):
    """A draft set: it may name an expert that is not here, which is then fetched, and counted."""

    def _check(self, experts, gave, here):
        if not experts:
            raise self.part.refusal(f"{gave}: at least one expert must draft")

    def _arguments(self, layer, counts, resident):
        return layer, counts, self.num_kept


def make_policy(
    eviction, num_layers: int, num_experts: int, num_kept: int, totals=None
) -> KeepPolicy:
    """The eviction called ``eviction`` (lru, lfu, temporal, decayed, static), or a user's own;
    "static" needs calibration ``totals`` [layers][E]."""
    size = num_layers, num_experts, num_kept
    if part := own("eviction", eviction, *size):
        return OwnRule(part, *size)
    if eviction == "static":
        return Static(*size, totals)
    rules = {"lru": LRU, "lfu": LFU, "temporal": Temporal, "decayed": Decayed}
    return rules[eviction](*size)
