"""Experts where they lie in the published shards: nothing is packed, not one byte is written.

A record is then put together from extents of the shards whenever it is read: those of one tensor
each, wherever they begin, in any order and number of files. That works where a record holds the
bytes of the file; where a conversion would move elements within a tensor, packing is needed.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError
from .cache import cache_folder
from .files import open_checkpoint
from .header import read_into
from .identity import stamp_of
from .layout import ExpertLayout
from .packed import PackedExperts
from .placing import low_bit_layout, odd_one, signature
from .plan import ExpertPlan, plan_experts
from .rest import as_asked, packed_plan


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
    def checksums(self) -> dict[str, list[int] | None]:
        """What tells these experts from others: nothing is read for it."""
        return {str(shard): stamp for shard, stamp in self.stamps.items()}

    @property
    def affinity_file(self) -> Path:
        place = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return cache_folder() / "stamps" / f"{place}.affinity.npy"

    def offset(self, layer: int, expert: int) -> int:
        return (layer * self.num_experts + expert) * self.layout.record_bytes

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


def in_place(folder: Path, expert_bytes: int | None = None) -> InPlaceExperts | PackedExperts:
    """The experts of the checkpoint in ``folder`` (of a packed folder its records), or one sentence
    why they have to be packed."""
    if there := packed_plan(folder):
        return as_asked(there.packed, expert_bytes)
    plan = plan_experts(open_checkpoint(folder), expert_bytes)
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
    for weight in low_bit_layout(plan.model, plan.layers[0], shapes, plan.recipes[0]).weights:
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
