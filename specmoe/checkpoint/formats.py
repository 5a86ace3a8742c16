"""How low-bit formats become numbers: a table for the bits, then one multiplication with scales.

Comes in: the serialised tensors of one weight as they lie in a checkpoint, or rows of them. Goes
out: floats ``[rows, columns]``, bit-equal to what transformers gives with ``dequantize=True``, in a
fraction of its time. ``layout`` widens records with this, ``low_bit`` the rest of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from . import blocks

# sign, two bits of exponent, one of mantissa
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4 += tuple(-value for value in FP4)
# So half of a power of two is enough, and the largest one is out of float32's range.
TWICE_FP4 = tuple(2 * value for value in FP4)
INT4 = tuple(float(value) for value in range(-8, 8))


@cache
def _table(kind: str | tuple[float, ...], device: torch.device) -> torch.Tensor:
    """What each byte stands for, one element to copy for each: of a tuple of 16 values the two that
    a byte holds, the low half first."""
    byte = torch.arange(256, dtype=torch.uint8)
    if isinstance(kind, tuple):
        halves = torch.tensor(kind)[torch.stack([byte & 15, byte >> 4], 1).int()]
        return halves.view(torch.int64).flatten().to(device)
    if kind == "int8":
        return (byte.float() - 128).to(device)
    if kind == "half powers":
        return torch.pow(2.0, byte.int() - 128).to(device)
    return byte.view(getattr(torch, kind)).float().to(device)


def _look_up(kind: str | tuple[float, ...], content: torch.Tensor) -> torch.Tensor:
    """float32, flat; one copy, where a cast would compute."""
    index = content.view(torch.uint8).flatten().int()
    return _table(kind, content.device).index_select(0, index).view(torch.float32)


def _times(values: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """``values`` times the scale of each block of ``rows`` and ``columns``; the last of a row or
    column may be cut short."""
    if scales.dtype == torch.uint8:
        scales = (scales.float() - 127.0).exp2()
    grid = scales.float().view(-1, scales.shape[-1] if scales.dim() else 1)
    high, wide = grid.shape
    if values.shape == (high * rows, wide * columns):
        values.view(high, rows, wide, columns).mul_(grid[:, None, :, None])
        return values
    every = grid.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return values.mul_(every[: values.shape[0], : values.shape[1]])


def plain(weight: torch.Tensor) -> torch.Tensor:
    return weight


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``[rows, groups, 16]`` bytes of two values, ``[rows, groups]`` exponents; as in gpt-oss."""
    values = _look_up(TWICE_FP4, blocks).view(*scales.shape, 32)
    return values.mul_(_look_up("half powers", scales).view(*scales.shape, 1)).flatten(1)


def fp8(weight: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A scale for each block of ``rows`` and ``columns``: a float, or a byte that is an exponent;
    as in DeepSeek-V3 and, one for each row or for all, in compressed-tensors."""
    kind = str(weight.dtype).removeprefix("torch.")
    return _times(_look_up(kind, weight).view(weight.shape), scales, rows, columns)


def fp4(weight: torch.Tensor, scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The same with two values in a byte; as the experts of DeepSeek-V4."""
    return _times(_look_up(FP4, weight).view(len(weight), -1), scales, rows, columns)


def packed(
    weight: torch.Tensor, scales: torch.Tensor, rows: int, columns: int, bits: int, width: int
) -> torch.Tensor:
    """Rows of ``width`` integers in words of 32 bits; the product is rounded to the scales' dtype;
    as in compressed-tensors."""
    values = _look_up(INT4 if bits == 4 else "int8", weight).view(len(weight), -1)[:, :width]
    return _times(values.contiguous(), scales, rows, columns).to(scales.dtype)


# The numbers that follow the parts belong to the weight; the first is that of rows which must not
# be parted.
WIDEN: dict[str, Callable[..., torch.Tensor]] = {
    "plain": plain,
    "mxfp4": mxfp4,
    "fp8": fp8,
    "fp4": fp4,
    "int4": packed,
    "int8": packed,
    **blocks.WIDEN,
}
