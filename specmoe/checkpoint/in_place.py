"""Experts where they lie in the published shards: nothing is packed, not one byte is written.

A record is then put together from extents of the shards whenever it is read: those of one tensor
each, wherever they begin, in any order and number of files. That works where a record holds the
bytes of the file; where a conversion would move elements within a tensor, packing is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError, UnsupportedModelError
from .header import read_into
from .identity import kept_of, stamp_of
from .layout import ExpertLayout, align
from .placing import low_bit_layout, odd_one, signature
from .plan import ExpertPlan

# A disk reads whole blocks: of 512 bytes, or of these.
LARGEST_BLOCK = 4096
# Bytes of a record from which on a slot has room for it to begin anywhere in a block, so that it
# can be read right into it.
LEAST_SHIFTED = 2**20
SAMPLES = 8  # layers, and experts of each, that are asked how they lie


class Extent(NamedTuple):
    """Bytes ``start`` .. of ``file`` that lie at ``begin`` of a record."""

    file: Path
    start: int
    begin: int
    num_bytes: int


@dataclass(frozen=True)
class InPlaceExperts:
    """Stands in for ``PackedExperts``. ``begins``: where in a record each part of an expert lies,
    if not as its layout says; ``stamps``: of each shard when it was opened."""

    plan: ExpertPlan
    begins: tuple[int, ...]
    stamps: dict[Path, list[int] | None]
    widened_from = None

    @property
    def directory(self) -> Path:
        return self.plan.checkpoint.folder

    @property
    def data_file(self) -> Path:
        return self.directory

    @property
    def layers(self) -> tuple[str, ...]:
        return self.plan.layers

    @property
    def num_experts(self) -> int:
        return self.plan.num_experts

    @property
    def layout(self) -> ExpertLayout:
        return self.plan.layout

    @property
    def slack_bytes(self) -> int:
        return slack_bytes(self.layout.record_bytes)

    @property
    def checksums(self) -> dict[str, list[int] | None]:
        """What tells these experts from others: nothing is read for it."""
        return {str(shard): stamp for shard, stamp in self.stamps.items()}

    @property
    def affinity_file(self) -> Path:
        return kept_of(self.directory, ".affinity.npy")

    def index(self, layer: int, expert: int) -> int:
        return layer * self.num_experts + expert

    def offset(self, layer: int, expert: int) -> int:
        return self.index(layer, expert) * self.layout.record_bytes

    def runs(self, layer: int, expert: int) -> list[list[Extent]]:
        """The extents of one record; those that follow each other in a file together."""
        found: list[list[Extent]] = []
        begins = self.begins or self.layout.of_layer(layer).offsets()
        parts = zip(self.plan.parts(layer, expert), begins, strict=True)
        for extent in sorted(Extent(p.file, p.start, at, p.num_bytes) for p, at in parts):
            last = found[-1][-1] if found else None
            if last and (last.file, last.start + last.num_bytes) == (extent.file, extent.start):
                found[-1].append(extent)
            else:
                found.append([extent])
        return found

    def amplification(self) -> float:
        """Bytes of the blocks around records / bytes of the records, of some that lie evenly among
        all; of the largest blocks that a disk asks for."""
        layers = range(0, len(self.layers), -(-len(self.layers) // SAMPLES))
        experts = range(0, self.num_experts, -(-self.num_experts // SAMPLES))
        asked = read = 0
        for run in chain(*(self.runs(*key) for key in product(layers, experts))):
            begin, end = run[0].start, run[-1].start + run[-1].num_bytes
            asked += end - begin
            read += align(end, LARGEST_BLOCK) - begin // LARGEST_BLOCK * LARGEST_BLOCK
        return read / asked

    @contextmanager
    def opened(self) -> Iterator[io.RawIOBase]:
        yield _Records(self)


class _Records:
    """All records as one file, as far as ``seek`` and ``read`` go."""

    def __init__(self, experts: InPlaceExperts):
        self.experts = experts
        self.at = 0

    def seek(self, at: int) -> None:
        self.at = at

    def read(self, num_bytes: int) -> bytes:
        index, begin = divmod(self.at, self.experts.layout.record_bytes)
        content = bytearray(num_bytes)
        for run in self.experts.runs(*divmod(index, self.experts.num_experts)):
            for file, start, at, length in run:
                first, last = max(begin, at), min(begin + num_bytes, at + length)
                if first < last:
                    view = memoryview(content)[first - begin : last - begin]
                    read_into(file, start + first - at, view)
        return bytes(content)


def slack_bytes(record_bytes: int) -> int:
    """Of a slot, beside its record."""
    return LARGEST_BLOCK if record_bytes >= LEAST_SHIFTED else 0


def placed(plan: ExpertPlan) -> InPlaceExperts:
    """What is planned, where it lies, or one sentence why that has to be packed."""
    stamps = {shard: stamp_of(shard) for shard in plan.checkpoint.shards}
    return InPlaceExperts(plan, _begins(plan), stamps)


def _begins(plan: ExpertPlan) -> tuple[int, ...]:
    layout, found = plan.layout, list(zip(plan.layers, plan.recipes, strict=True))
    if layout.is_low_bit:
        return ()
    if plan.widened_from is not None:
        raise _must_pack(plan, "expert_bytes widens them")
    if len({signature(*each) for each in found}) > 1:
        raise _must_pack(plan, "its layers store them differently")
    groups = [g for layer in plan.recipes for recipe in layer for g in recipe.sources.values()]
    is_odd = any(part.dtype != layout.dtype for part in plan.parts(0, 0))
    if is_odd or any(map(odd_one, groups)):
        raise _must_pack(plan, "they are stored in several dtypes")
    starts = dict(zip(layout.names, layout.offsets(), strict=True))
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    begins, filled = [], 0
    try:
        weights = low_bit_layout(plan.model, plan.layers[0], shapes, plan.recipes[0]).weights
    except UnsupportedModelError:
        raise _must_pack(plan, "their elements cannot be followed into the model") from None
    for weight in weights:
        view = weight.place(torch.empty(shapes[weight.target], device="meta"))
        if not view.is_contiguous():
            raise _must_pack(plan, f"the elements of {weight.target} lie in another order there")
        begins.append(starts[weight.target] + view.storage_offset() * layout.dtype.itemsize)
        filled += math.prod(weight.shape)
    if filled != layout.elements:
        raise _must_pack(plan, "some of their tensors are made, not stored")
    return tuple(begins)


def _must_pack(plan: ExpertPlan, why: str) -> CheckpointError:
    what = f"the experts of {plan.checkpoint.folder} cannot be read in place ({why})"
    return CheckpointError(f"{what}: leave store='checkpoint' out, and they are packed once")
