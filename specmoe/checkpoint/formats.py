"""How low-bit formats become numbers: a table for the bits, then one multiplication with scales.

Comes in: the serialised tensors of one weight as they lie in a checkpoint, or rows of them. Goes
out: float32 ``[rows, columns]``, bit-equal to what transformers gives with ``dequantize=True``, in
a fraction of its time. ``layout`` widens records with this, ``low_bit`` the rest of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

# Twice the values of one sign, two bits of exponent, one of mantissa: so half of a power of two is
# enough, and the largest one is out of float32's range.
TWICE_FP4 = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]
TWICE_FP4 += [-value for value in TWICE_FP4]


@cache
def _table(kind: str, device: torch.device) -> torch.Tensor:
    """What each byte stands for, one element to copy for each."""
    byte = torch.arange(256, dtype=torch.uint8)
    if kind == "fp4 pairs":
        return _pairs(torch.tensor(TWICE_FP4)).to(device)
    if kind == "half powers":
        return torch.pow(2.0, byte.int() - 128).to(device)
    return byte.view(getattr(torch, kind)).float().to(device)


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """Of 16 values the two that a byte holds, the low half first, as one element of 8 bytes."""
    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], 1).view(torch.int64).flatten()


def _look_up(kind: str, content: torch.Tensor) -> torch.Tensor:
    """float32 ``[...]`` or, of pairs, ``[..., 2]``; one copy, where a cast would compute."""
    index = content.view(torch.uint8).flatten().int()
    return _table(kind, content.device).index_select(0, index).view(torch.float32)


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``[rows, groups, 16]`` bytes of two values, ``[rows, groups]`` exponents; as in gpt-oss."""
    values = _look_up("fp4 pairs", blocks).view(*scales.shape, 32)
    powers = _look_up("half powers", scales).view(*scales.shape, 1)
    return values.mul_(powers).flatten(1)


def plain(weight: torch.Tensor) -> torch.Tensor:
    return weight


WIDEN: dict[str, Callable[..., torch.Tensor]] = {"plain": plain, "mxfp4": mxfp4}
