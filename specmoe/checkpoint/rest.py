"""What a packed folder holds beside its records, so that it opens where its checkpoint is gone.

``DIR/model`` is a checkpoint without experts: the config, the tokenizer, the generation config, and
in one file every tensor that is no expert's, copied as it lies in the source, whatever its size: a
reference to the source would break when that is moved, and beside the experts the rest is small.
Of a GGUF it is a GGUF, all its settings included.
Copies in the cache have no such folder: their checkpoint is what was loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..errors import CheckpointError
from . import cache
from .files import GGUF, REST, SINGLE, Checkpoint, open_checkpoint
from .gguf_file import write_part
from .gguf_header import read_gguf
from .header import StoredTensor
from .identity import SETTINGS
from .low_bit import parts_of
from .packed import PackedExperts, open_packed
from .plan import ExpertPlan


@dataclass(frozen=True)
class PackedPlan:
    """As far as ``Contents`` asks, the ``ExpertPlan`` of a packed folder: digests are known."""

    checkpoint: Checkpoint
    packed: PackedExperts

    @property
    def num_experts(self) -> int:
        return self.packed.num_experts

    @property
    def num_records(self) -> int:
        return len(self.packed.records)

    def digest(self, layer: int, expert: int) -> str:
        return self.packed.records[layer * self.num_experts + expert]

    def others(self) -> list[StoredTensor]:
        found = sorted(self.checkpoint.tensors.items())
        return list(chain(*(parts_of(one) for _, one in found)))


def packed_plan(folder: Path) -> PackedPlan | None:
    """None where ``folder``, which ``resolve`` gave, is an ordinary checkpoint."""
    rest = folder.parent if folder.suffix == GGUF else folder
    is_rest = rest.name == REST and cache.is_journal(rest.parent / "manifest.json")
    return PackedPlan(open_checkpoint(folder), open_packed(rest.parent)) if is_rest else None


def as_asked(packed: PackedExperts, expert_bytes: int | None) -> PackedExperts:
    """``packed``, if its experts are as wide as they are asked for."""
    have = packed.layout.payload_bytes
    if (expert_bytes or have) <= have:
        return packed
    what = f"{packed.directory} holds experts of {have} bytes, but {expert_bytes} are asked for"
    raise CheckpointError(f"{what} (expert_bytes): pack the checkpoint anew with that")


def rest_bytes(plan: ExpertPlan) -> int:
    return sum(stored.num_bytes for stored in plan.others())


def write_rest(plan: ExpertPlan, directory: Path) -> None:
    """Make ``directory``/model, whole or not at all."""
    partial, source = directory / f"{REST}.partial", plan.checkpoint.folder
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if plan.checkpoint.architecture:
        kept = {stored.name for stored in plan.others()}
        write_part(read_gguf(source), kept, partial / f"{REST}{GGUF}")
    else:
        _write_rest_of(plan, partial)
    shutil.rmtree(directory / REST, ignore_errors=True)
    os.replace(partial, directory / REST)


def _write_rest_of(plan: ExpertPlan, partial: Path) -> None:
    source = plan.checkpoint.folder
    for file in {file for pattern in SETTINGS for file in source.glob(pattern) if file.is_file()}:
        copy = partial / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    _write_tensors(partial / SINGLE, plan.others())


def _write_tensors(file: Path, tensors: list[StoredTensor]) -> None:
    """A safetensors file of ``tensors``, byte for byte and a piece at a time."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for stored in tensors:
        place = [end, end + stored.num_bytes]
        header[stored.name] = dict(dtype=stored.format, shape=stored.shape, data_offsets=place)
        end = place[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for stored in tensors:
            stream.writelines(stored.pieces())
        cache.force(stream)
