"""Low-bit weights of a checkpoint: several serialised tensors that stand for one.

``fold`` finds them by name, so that recipes, plan and backbone see one tensor of the shape that the
model has; which formats there are and what they mean is in ``formats``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .formats import WIDEN
from .header import RAW, StoredTensor

METHODS = ("mxfp4",)
INSTEAD = "use the unquantised checkpoint, or one in " + ", ".join(METHODS)


class Serialised(StoredTensor):
    """A part of a low-bit weight: its bytes mean something beside those of the other parts."""

    @property
    def dtype(self) -> torch.dtype:
        return RAW[self.format]


@dataclass(frozen=True)
class LowBitTensor:
    """Stands in for a ``StoredTensor``: ``shape`` is that of the weight, ``parts`` are its tensors.

    ``turned``: what its format calls a row is a column of the weight."""

    name: str
    format: str
    shape: tuple[int, ...]
    parts: tuple[Serialised, ...]
    turned: bool = False
    # of what it is widened to, before the model's own
    dtype = torch.bfloat16

    @property
    def file(self) -> Path:
        return self.parts[0].file

    def part(self, index: int) -> LowBitTensor:
        """Of ``[E, ...]`` only ``index``, as ``[1, ...]``."""
        parts = tuple(part.part(index) for part in self.parts)
        return replace(self, shape=(1, *self.shape[1:]), parts=parts)

    def meta(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self) -> torch.Tensor:
        """The weight in float32."""
        if len(self.shape) > 2:
            return torch.stack([self.part(index)._only().read() for index in range(self.shape[0])])
        values = WIDEN[self.format](*(part.read() for part in self.parts))
        return values.T if self.turned else values

    def _only(self) -> LowBitTensor:
        """Of ``[1, ...]`` what is in it."""
        parts = tuple(part._replace(shape=part.shape[1:]) for part in self.parts)
        return replace(self, shape=self.shape[1:], parts=parts)

    def add_to(self, digest: Any) -> None:
        for part in self.parts:
            part.add_to(digest)


Tensors = dict[str, StoredTensor | LowBitTensor]


def parts_of(tensor: StoredTensor | LowBitTensor) -> tuple[StoredTensor, ...]:
    """The tensors of the checkpoint that make one of the model."""
    return tensor.parts if isinstance(tensor, LowBitTensor) else (tensor,)


def refuse_unknown(folder: Path, found: Any) -> None:
    """A ``quantization_config`` whose weights cannot be widened here."""
    method = found.get("quant_method", "unnamed") if isinstance(found, dict) else found
    if method not in METHODS:
        what = f"{folder} is quantised ({method}, says its config.json)"
        raise CheckpointError(f"{what}, a format that specmoe does not read: {INSTEAD}")


def fold(tensors: dict[str, StoredTensor]) -> Tensors:
    """The tensors, where those that make one low-bit weight are one."""
    found: Tensors = dict(tensors)
    for name, stored in tensors.items():
        if name.endswith("_blocks") and stored.format == "U8":
            weight = _mxfp4(stored, tensors)
            found |= {weight.name: weight}
            for part in weight.parts:
                del found[part.name]
    return found


def _mxfp4(blocks: StoredTensor, tensors: dict[str, StoredTensor]) -> LowBitTensor:
    name = blocks.name.removesuffix("_blocks")
    scales = _companion(blocks, tensors, f"{name}_scales", blocks.shape[:-1])
    if blocks.shape[-1:] != (16,) or len(blocks.shape) < 3:
        what = f"tensor {blocks.name!r} in {blocks.file} has shape {list(blocks.shape)}"
        raise CheckpointError(f"{what}, not rows of groups of 16 bytes: download it again")
    *experts, rows, groups, _ = blocks.shape
    parts = Serialised(*blocks), Serialised(*scales)
    return LowBitTensor(name, "mxfp4", (*experts, groups * 32, rows), parts, turned=True)


def _companion(
    weight: StoredTensor, tensors: dict[str, StoredTensor], name: str, shape: tuple[int, ...]
) -> StoredTensor:
    """The scales of ``weight``, of the shape that they must have."""
    if name not in tensors:
        what = f"the scales {name!r} of tensor {weight.name!r} in {weight.file} are missing"
        raise CheckpointError(f"{what}: download it again")
    if (scales := tensors[name]).shape != shape:
        what = f"tensor {name!r} in {scales.file} has shape {list(scales.shape)}"
        want = f"{weight.name!r} of {list(weight.shape)} needs {list(shape)}"
        raise CheckpointError(f"{what}, but {want}: download it again")
    return scales
