"""Low-bit weights of a checkpoint: several serialised tensors that stand for one.

``fold`` finds them by name, so that recipes, plan and backbone see one tensor of the shape that the
model has; which formats there are and what they mean is in ``formats``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .formats import WIDEN
from .header import RAW, StoredTensor

# quant_method -> how a person calls it
METHODS = {"mxfp4": "MXFP4", "fp8": "FP8", "compressed-tensors": "compressed-tensors"}
# Of compressed-tensors, what its ``format`` may be.
COMPRESSED = ("pack-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
INSTEAD = f"use the unquantised checkpoint, or one in {', '.join(METHODS.values())}"
INSTEAD += " (packed int4 or int8, FP8)"
FP8_FORMATS = ("F8_E4M3", "F8_E5M2")


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
    numbers: tuple[int, ...] = ()
    # Outside of experts compressed-tensors rounds to the dtype of the scales.
    rounded: bool = False
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
        values = WIDEN[self.format](*(part.read() for part in self.parts), *self.numbers)
        if self.rounded:
            values = values.to(self.parts[1].dtype)
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
    settings = found if isinstance(found, dict) else {"quant_method": found}
    method = settings.get("quant_method", "unnamed")
    kinds = [method] if method not in METHODS else []
    if method == "compressed-tensors":
        groups = settings.get("config_groups") or {}
        formats = [settings.get("format"), *(group.get("format") for group in groups.values())]
        kinds += [kind for kind in formats if kind not in (None, *COMPRESSED)]
        kinds += [f"{n}-bit {t}" for n, t in map(_bits, groups.values()) if (n, t) not in BITS]
    if kinds:
        what = f"{folder} is quantised ({kinds[0]}, says its config.json)"
        raise CheckpointError(f"{what}, a format that specmoe does not read: {INSTEAD}")


BITS = ((4, "int"), (8, "int"), (8, "float"))


def _bits(group: dict[str, Any]) -> tuple[int, str]:
    weights = group.get("weights") or {}
    return weights.get("num_bits", 8), weights.get("type", "int")


def fold(tensors: dict[str, StoredTensor], settings: dict[str, Any]) -> Tensors:
    """The tensors, where those that make one low-bit weight are one; ``settings``: the config's."""
    found: Tensors = dict(tensors)
    for name, stored in tensors.items():
        make = None
        if name.endswith("_blocks") and stored.format == "U8":
            make = _mxfp4
        elif name.endswith("weight_packed"):
            make = _packed
        elif stored.format in FP8_FORMATS:
            make = _fp8
        elif stored.format == "I8" and settings.get("quant_method") == "fp8":
            make = _fp4
        if make is not None:
            weight = make(stored, tensors, settings)
            for part in weight.parts:
                found.pop(part.name, None)
            found[weight.name] = weight
    return found


Stored = dict[str, StoredTensor]


def _mxfp4(blocks: StoredTensor, tensors: Stored, settings: dict) -> LowBitTensor:
    name = blocks.name.removesuffix("_blocks")
    scales = _companion(blocks, tensors, f"{name}_scales")
    if blocks.shape[-1:] != (16,) or len(blocks.shape) < 3:
        raise _misshapen(blocks, "rows of groups of 16 bytes")
    if scales.shape != blocks.shape[:-1]:
        raise _misshapen(
            scales, f"{list(blocks.shape[:-1])}, one for each group of {blocks.name!r}"
        )
    *experts, rows, groups, _ = blocks.shape
    parts = Serialised(*blocks), Serialised(*scales)
    return LowBitTensor(name, "mxfp4", (*experts, groups * 32, rows), parts, turned=True)


def _fp8(weight: StoredTensor, tensors: Stored, settings: dict) -> LowBitTensor:
    return _in_blocks("fp8", weight, weight.shape, tensors, settings)


def _fp4(weight: StoredTensor, tensors: Stored, settings: dict) -> LowBitTensor:
    shape = (*weight.shape[:-1], 2 * weight.shape[-1])
    return _in_blocks("fp4", weight, shape, tensors, settings)


def _in_blocks(
    kind: str, weight: StoredTensor, shape: tuple[int, ...], tensors: Stored, settings: dict
) -> LowBitTensor:
    stem = weight.name.removesuffix("weight")
    is_compressed = settings.get("quant_method") == "compressed-tensors"
    usual = f"{weight.name}_scale" if is_compressed else f"{weight.name}_scale_inv"
    scales = _companion(weight, tensors, usual, f"{stem}scale", f"{stem}qscale_weight")
    if len(shape) < 2:
        raise _misshapen(weight, "a matrix")
    # DeepSeek-V4 says the block of its linear layers only
    block = settings.get("weight_block_size") if kind == "fp8" else None
    numbers = _block(scales, shape, block)
    parts = Serialised(*weight), Serialised(*scales)
    return LowBitTensor(weight.name, kind, shape, parts, numbers=numbers, rounded=is_compressed)


def _block(scales: StoredTensor, shape: tuple[int, ...], block: Any) -> tuple[int, int]:
    """Rows and columns that share a scale: of ``block``, or as many as the grid of scales says."""
    *experts, rows, columns = shape
    is_grid = scales.shape[:-2] == tuple(experts) and len(scales.shape) == len(shape)
    high, wide = scales.shape[-2:] if is_grid else (0, 0)
    if block:
        want = [-(-rows // block[0]), -(-columns // block[1])]
        if [high, wide] == want:
            return tuple(block)
        raise _misshapen(scales, f"{[*experts, *want]}, one for each block of {list(block)}")
    if math.prod(scales.shape) == math.prod(experts):
        return rows, columns
    if not high or not wide or rows % high or columns % wide:
        raise _misshapen(scales, f"a grid over {list(shape)}")
    return rows // high, columns // wide


def _packed(weight: StoredTensor, tensors: Stored, settings: dict) -> LowBitTensor:
    name = weight.name.removesuffix("_packed")
    for odd in ("zero_point", "g_idx", "global_scale"):
        if f"{name}_{odd}" in tensors:
            what = f"{name!r} in {weight.file} has a {odd}, which specmoe does not read"
            raise CheckpointError(f"{what}: {INSTEAD}")
    scales = _companion(weight, tensors, f"{name}_scale")
    shape = tuple(_companion(weight, tensors, f"{name}_shape").read().tolist())
    if weight.format != "I32" or len(shape) != 2 or len(weight.shape) != 2:
        raise _misshapen(weight, f"rows of 32-bit words for {list(shape)}")
    fits = [bits for bits in (4, 8) if weight.shape == (shape[0], -(-shape[1] * bits // 32))]
    if not fits:
        raise _misshapen(weight, f"{list(shape)} integers of 4 or 8 bits in words of 32")
    numbers = (*_block(scales, shape, None), fits[0], shape[1])
    parts = Serialised(*weight), Serialised(*scales)
    return LowBitTensor(name, f"int{fits[0]}", shape, parts, numbers=numbers)


def _companion(weight: StoredTensor, tensors: Stored, *names: str) -> StoredTensor:
    """What belongs to ``weight``, by the first of ``names`` that is there."""
    for name in names:
        if name in tensors:
            return tensors[name]
    what = f"the tensor {names[0]!r} that belongs to {weight.name!r} in {weight.file} is missing"
    raise CheckpointError(f"{what}: download it again")


def _misshapen(tensor: StoredTensor, want: str) -> CheckpointError:
    what = f"tensor {tensor.name!r} in {tensor.file} has shape {list(tensor.shape)}, not {want}"
    return CheckpointError(f"{what}: download it again")
