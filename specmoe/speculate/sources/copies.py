"""Drafts from smaller copies of the experts that stay in fast memory: all of them in few bits, or a
few that each stand for a cluster.

Comes in: every record of the store, once, when a run begins. Goes out: what every layer computes
while the model drafts. The copies lie behind the pool's slots and stay there for the next run with
the same draft.

    L MoE layers, E experts, N clusters of a layer, G groups of weights
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...checkpoint import ExpertLayout
from ...errors import OptionError
from ...offload.transfers import ExpertKey
from .resident import Resident

GROUP = 32  # weights that share a scale of 16 bits
BITS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}  # bits of a weight, in fields that divide a byte


class Copies(Resident):
    """The model with copies in place of its experts. Is the stand-in (``offload.stand_ins``) of its
    own run, too. ``read_bytes``, ``made_s``: what making them took, 0 where they were still there.
    """

    def __init__(
        self, name: str, copy_bytes: int, num_copies: int, scratch_bytes: int, of: str = ""
    ):
        self.name = name
        self.key = name + of  # what the copies are known by: of the same key, they are the same
        self.copy_bytes = copy_bytes
        self.num_bytes = copy_bytes * num_copies + scratch_bytes
        self.copies = torch.zeros(0, dtype=torch.uint8)
        self.read_bytes, self.made_s = 0, 0.0

    @contextmanager
    def running(self, experts, memory):
        installed, began_s = experts.installed, time.perf_counter()
        num_copies = len(memory) // self.copy_bytes
        self.copies = memory[: num_copies * self.copy_bytes].view(num_copies, -1)
        self.prepare(experts)
        if installed.copied != self.key:
            installed.copied = None
            self.make(experts)
            installed.copied = self.key
            self.made_s = time.perf_counter() - began_s
        experts.stand_ins = self
        try:
            yield
        finally:  # the engine's memory goes when the engine is closed
            self.copies = self.copies.new_empty(len(self.copies), 0)

    def records(self, experts, keys: list[ExpertKey]) -> Iterator[tuple[ExpertKey, torch.Tensor]]:
        """Each of ``keys`` from the store, read into the pool's free slots."""
        store, slots = experts.pool.tier.store, experts.pool.tier.slots
        waiting, under_way = deque(keys), deque()
        while waiting or under_way:
            while waiting and slots.free and len(under_way) < store.num_readers:
                slot, key = slots.take(), waiting.popleft()
                buffer = slots.buffer(slot, store.begin_of(key))
                under_way.append((slot, store.submit(key, buffer)))
            slot, read = under_way.popleft()
            read.wait()
            self.read_bytes += store.bytes_of(read.key)
            yield read.key, slots[slot]
            slots.give_back(slot)

    def prepare(self, experts) -> None:
        """Before a run, whether the copies are there or not."""

    def make(self, experts) -> None:
        """Fill ``copies``."""
        raise NotImplementedError

    # ---- what a layer computes (``offload.stand_ins.StandIns``) ----

    def choose(self, kept) -> bool:
        return True

    def of(self, layer: int, index: torch.Tensor) -> torch.Tensor:
        return index

    def record(self, pool, key: ExpertKey) -> torch.Tensor:
        raise NotImplementedError

    def compute(self, kernel, module, record: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class LowBit(Copies):
    """Every expert, rounded to the nearest of 2 ** ``bits`` levels in groups of 32 weights. It
    routes truly and needs no stand-ins."""

    def __init__(self, bits: int, layout: ExpertLayout, shape: tuple[int, int], scratch_bytes: int):
        if bits not in BITS:
            raise OptionError(f"draft='low_bit:{bits}': bits are {', '.join(map(str, BITS))}")
        self.bits, self.layout, self.num_experts = bits, layout, shape[1]
        self.sides = [-(-math.prod(side) // GROUP) for side in layout.shapes]  # groups of each
        self.num_groups, self.first = sum(self.sides), 0
        copy_bytes = self.num_groups * (GROUP * bits // 8 + 2)
        scratch_bytes = 0 if scratch_bytes else layout.elements * layout.dtype.itemsize
        super().__init__(f"low_bit:{bits}", copy_bytes, math.prod(shape), scratch_bytes)

    def make(self, experts):
        layers = experts.installed.draft_layers
        keys = [ExpertKey(layer, e) for layer in layers for e in range(self.num_experts)]
        for key, record in self.records(experts, keys):
            weights = experts.kernel.of_layer(key.layer).upcast_copy(record)
            groups = torch.cat([_groups(weights[name]) for name in self.layout.names])
            codes, scales = quantised(groups.float(), self.bits)
            copy = self.record(experts.pool, key)
            copy[: codes.numel()] = codes.view(-1)
            copy[codes.numel() :] = scales.view(torch.uint8)

    def prepare(self, experts):
        self.first = experts.installed.draft_layers.start

    def record(self, pool, key):
        return self.copies[(key.layer - self.first) * self.num_experts + key.expert]

    def compute(self, kernel, module, record, x):
        into = kernel.scratch or kernel.layout.empty(kernel.dtype, x.device)
        size = self.num_groups * GROUP * self.bits // 8
        values = widened(record[:size].view(self.num_groups, -1), record[size:], self.bits)
        for name, groups in zip(self.layout.names, values.split(self.sides), strict=True):
            into[name].copy_(groups.flatten()[: into[name].numel()].view(into[name].shape))
        return kernel.run(module, into, x.to(kernel.dtype)).to(x.dtype)


def _groups(weight: torch.Tensor) -> torch.Tensor:
    """A weight as [G, 32], zeros behind its end."""
    flat = weight.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % GROUP)).view(-1, GROUP)


def quantised(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[G, 32] -> codes uint8 [G, 4 * bits], scales bfloat16 [G]. The levels lie evenly about zero,
    the outermost at the largest weight of the group."""
    half = 2 ** (bits - 1)
    scales = (groups.abs().amax(dim=1) / (half - 0.5)).bfloat16()
    steps = groups / scales.float().clamp(min=1e-30)[:, None]
    codes = (steps.floor().clamp(-half, half - 1) + half).to(torch.uint8)
    parts, shift = [], 0
    for width in BITS[bits]:
        field = (codes >> shift) & (2**width - 1)
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
        packed = field.view(len(codes), -1, 8 // width) << places
        parts.append(packed.sum(dim=2, dtype=torch.uint8))
        shift += width
    return torch.cat(parts, dim=1), scales


def widened(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """The float32 weights [G, 32] of what ``quantised`` gave, its scales as bytes."""
    values, shift, first = torch.zeros((), dtype=torch.uint8, device=codes.device), 0, 0
    for width in BITS[bits]:
        packed = codes[:, first : first + GROUP * width // 8]
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=codes.device)
        field = (packed[..., None] >> places) & (2**width - 1)
        values = values + (field.reshape(len(codes), GROUP) << shift)
        shift, first = shift + width, first + packed.shape[1]
    levels = values.float() - (2 ** (bits - 1) - 0.5)
    return levels * scales.view(torch.bfloat16).float()[:, None]
