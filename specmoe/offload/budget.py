"""How many expert slots a byte budget gives, and how many experts per layer may draft.

Comes in: the size of a slot and the user's ``fast_memory`` and ``draft_experts``. Goes out: a
``MemoryPlan`` that every method but ``resident`` shares. Everything that holds expert bytes counts:
resident experts, read buffers, prefetched experts, and the scratch in which one expert is widened
for the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FastMemoryError, OptionError
from ..options import LoadOptions
from .pool import min_slots


@dataclass(frozen=True)
class MemoryPlan:
    """A budget, cut into slots."""

    fast_memory_bytes: int  # what was asked for, or what N needs
    scratch_bytes: int
    slot_bytes: int
    num_slots: int
    draft_experts: int  # N
    num_layers: int  # MoE layers that keep experts (an encoder's do not)
    num_readers: int

    @property
    def used_bytes(self) -> int:
        """Bytes that are really held."""
        return self.num_slots * self.slot_bytes + self.scratch_bytes

    @property
    def cached_experts(self) -> int:
        """Experts per layer that a ``cached`` method can keep in the same bytes, with slots left to
        read into."""
        to_read_into = min(self.num_readers, self.num_slots // 2 or 1)
        return max(0, (self.num_slots - to_read_into) // self.num_layers)


def plan_memory(
    slot_bytes: int, scratch_bytes: int, shape: tuple[int, int], options: LoadOptions
) -> MemoryPlan:
    """Slots and N from what the user gave, for ``shape`` (MoE layers that keep experts, experts of
    each); ``FastMemoryError`` says how much would be needed."""
    (num_layers, num_experts), num_readers = shape, options.num_readers
    num_draft, fast_memory = options.draft_experts, options.fast_memory
    if num_draft is not None and num_draft > num_experts:
        raise OptionError(
            f"draft_experts={num_draft} is more than the {num_experts} experts of a MoE layer"
        )
    if fast_memory is None:
        num_draft = num_draft or max(1, min(4, num_experts // 2))
        num_slots = num_layers * num_draft + max(num_readers, num_layers * num_draft // 2)
    else:
        num_slots = max(0, (fast_memory - scratch_bytes) // slot_bytes)
        num_draft = num_draft or max(1, min(num_experts // 2, num_slots // (2 * num_layers)))
    num_slots = min(num_slots, num_layers * num_experts + num_readers)
    needed = min_slots(num_layers, num_draft)
    if num_slots < needed:
        raise FastMemoryError(
            f"fast_memory={fast_memory} holds {num_slots} experts of {slot_bytes} bytes beside "
            f"{scratch_bytes} bytes of scratch; {num_draft} draft experts in each of {num_layers} "
            f"MoE layers and one to read into need at least "
            f"{needed * slot_bytes + scratch_bytes} bytes"
        )
    asked = fast_memory or num_slots * slot_bytes + scratch_bytes
    sizes = asked, scratch_bytes, slot_bytes
    return MemoryPlan(*sizes, num_slots, num_draft, num_layers, num_readers)
