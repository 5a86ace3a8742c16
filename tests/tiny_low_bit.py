"""Tiny random checkpoints in the low-bit layouts that are published: tensor names, dtypes, shapes
and the ``quantization_config`` of each format; only the numbers are random.

Comes in: a folder with an unquantised checkpoint. Goes out: another folder, its weights rounded to
the format. Used by ``test_low_bit``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def to_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[..., in]`` -> blocks ``[..., in / 32, 16]`` (low half first) and scales, both uint8."""
    groups = weight.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    exponent = largest.log2().floor() - 2
    nearest = (groups.abs() / exponent.exp2())[..., None].sub(FP4).abs().argmin(-1)
    halves = nearest + 8 * (groups < 0)
    blocks = halves[..., ::2] + 16 * halves[..., 1::2]
    return blocks.to(torch.uint8), (exponent.squeeze(-1) + 127).to(torch.uint8)


def mxfp4(tensors: dict[str, torch.Tensor]) -> dict:
    """As gpt-oss is published: experts stacked, their input dimension last; returns the config."""
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        blocks, scales = to_mxfp4(tensors.pop(name).transpose(1, 2))
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    return {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "lm_head"]}


def rewrite(folder: Path, change) -> None:
    """``change(tensors)`` edits the weights of a checkpoint of one file; it may return a
    ``quantization_config``."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if made := change(tensors):
        config["quantization_config"] = made
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def make_low_bit(source: Path, folder: Path, change=mxfp4) -> Path:
    shutil.copytree(source, folder)
    rewrite(folder, change)
    return folder
