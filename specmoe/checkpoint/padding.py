"""Zero FFN columns make small experts cost what large ones do (``expert_bytes``).

Outputs stay the same: what the columns compute meets a zero column of the down projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import OptionError
from .layout import ExpertLayout


@dataclass(frozen=True)
class FfnAxis:
    """Where a tensor has FFN columns: along ``dim``, ``width`` entries each, in ``halves``."""

    dim: int
    halves: int = 1
    width: int = 1


def ffn_axes(module: nn.Module) -> dict[str, FfnAxis]:
    """The FFN dimension of each tensor of an expert; tensors without one are left out."""
    gated = hasattr(module, "gate_up_proj")
    first, width = ("gate_up_proj", 2) if gated else ("up_proj", 1)
    halves = 2 if gated and _is_concatenated(module) else 1
    turned = module.is_transposed  # [D, 2F] and [F, D] instead of [2F, D] and [D, F]
    return {
        first: FfnAxis(1 if turned else 0, halves, width),
        f"{first}_bias": FfnAxis(0, halves, width),
        "down_proj": FfnAxis(0 if turned else 1),
    }


def _is_concatenated(module: nn.Module) -> bool:
    """Whether the first projection is [gate; up], not one pair after the other. transformers before
    5.7 does not say, so its gate is asked: does the first output depend on the second input?"""
    if hasattr(module, "is_concatenated"):
        return module.is_concatenated
    return not module._apply_gate(torch.tensor([[0.0, torch.nan, 0.0, 0.0]]))[0, 0].isnan()


def pad_ffn(native: ExpertLayout, axes: dict[str, FfnAxis], expert_bytes: int) -> ExpertLayout:
    """The layout with so many zero FFN columns that the payload is at least ``expert_bytes``."""
    shapes = dict(zip(native.names, native.shapes))
    if native.is_low_bit:
        what = f"expert_bytes={expert_bytes}: experts in {native.stored_as} can't be widened"
        raise OptionError(f"{what}: leave it out, or use the unquantised checkpoint")
    if expert_bytes < native.payload_bytes:
        what = f"expert_bytes={expert_bytes} is below the {native.payload_bytes} bytes of an expert"
        raise OptionError(f"{what}: experts can only be widened")
    if expert_bytes == native.payload_bytes:
        return native
    if "down_proj" not in shapes or len(shapes.keys() & axes.keys()) < 2:
        what = f"expert_bytes={expert_bytes}: experts made of {list(shapes)} can't be widened"
        raise OptionError(what)
    wide = {name: axis for name, axis in axes.items() if name in shapes}
    entries = [a.width * math.prod(shapes[n]) // shapes[n][a.dim] for n, a in wide.items()]
    column_bytes = native.dtype.itemsize * sum(entries)
    num_columns = shapes["down_proj"][axes["down_proj"].dim]
    num_columns += -(-(expert_bytes - native.payload_bytes) // column_bytes)
    for name, axis in wide.items():
        sides = list(shapes[name])
        sides[axis.dim] = axis.width * num_columns
        shapes[name] = tuple(sides)
    return ExpertLayout.of(shapes, native.dtype)


def place(view: torch.Tensor, tensor: torch.Tensor, axis: FfnAxis | None) -> None:
    """Copy ``tensor`` into ``view``, which may be wider: a half fills the start of its half."""
    if axis is None or view.shape == tensor.shape:
        view.copy_(tensor)
        return
    for to, part in zip(view.chunk(axis.halves, axis.dim), tensor.chunk(axis.halves, axis.dim)):
        to.narrow(axis.dim, 0, part.shape[axis.dim]).copy_(part)
