"""The memory of the fast tier: a fixed number of slots, one record each, and which of them are
free.

Comes in: a uint8 tensor ``[slots, slot_bytes]``. Goes out: slot numbers, buffers to read into,
records. ``offload.pool`` calls this; whose record lies where is its business.
"""

from __future__ import annotations

import torch


class Slots:
    """State: the free slots, where in its slot each record begins, and on a GPU each
    slot's last use, for which a copy into it has to wait. ``poison``: freed slots are filled with
    NaN in every floating-point format, so that a stale read cannot go unnoticed (for tests)."""

    def __init__(self, memory: torch.Tensor, poison: bool = False):
        self.memory = memory
        self.num_bytes = memory.nbytes
        self.poison = poison
        self.free = list(range(len(memory)))[::-1]
        self._begins = [0] * len(memory)
        # CUDA events
        self.last_use: list = [None] * len(memory)
        if poison:
            memory.fill_(0xFF)

    def __len__(self) -> int:
        return len(self.memory)

    def __getitem__(self, slot: int) -> torch.Tensor:
        """The slot's bytes from where its record begins, uint8."""
        begin = self._begins[slot]
        return self.memory[slot, begin:] if begin else self.memory[slot]

    def buffer(self, slot: int, begin: int) -> torch.Tensor:
        """Where to read a record that is to begin at ``begin`` of the slot."""
        self._begins[slot] = begin
        return self[slot]

    def take(self) -> int | None:
        """A free slot, or None."""
        return self.free.pop() if self.free else None

    def give_back(self, slot: int, was_filled: bool = False) -> None:
        """``slot`` is free again; ``was_filled``: it holds a record that nobody may read any
        more."""
        self.free.append(slot)
        if was_filled and self.poison:
            self.memory[slot].fill_(0xFF)

    def let_go(self) -> None:
        """Nobody reads a record any more: memory, which may be the whole model, must not wait for
        the garbage collector, or the next run or engine finds no room."""
        self.memory = self.memory.new_empty(len(self.memory), 0)

    def mark_used(self, slot: int) -> None:
        """What was launched so far may still read ``slot``."""
        if self.memory.device.type == "cuda":
            self.last_use[slot] = torch.cuda.current_stream(self.memory.device).record_event()
