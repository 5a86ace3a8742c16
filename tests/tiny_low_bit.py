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
    ``quantization_config``, empty for none."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if (made := change(tensors)) is not None:
        config["quantization_config"] = made
    if not config.get("quantization_config"):
        config.pop("quantization_config", None)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def make_low_bit(source: Path, folder: Path, change=mxfp4) -> Path:
    shutil.copytree(source, folder)
    rewrite(folder, change)
    return folder


BLOCK = (8, 16)  # 128 x 128 in what is published


def to_fp8(weight: torch.Tensor, block: tuple[int, int], scale_dtype=torch.float32):
    """``[out, in]`` -> float8 and the scale of each block, as in DeepSeek-V3."""
    rows, columns = weight.shape
    padded = torch.zeros(-(-rows // block[0]) * block[0], -(-columns // block[1]) * block[1])
    padded[:rows, :columns] = weight
    blocks = padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    scales = (blocks.abs().amax((1, 3)) / 448).clamp(min=1e-6)
    if scale_dtype != torch.float32:
        scales = scales.log2().ceil().exp2()
    scales = scales.to(scale_dtype)
    whole = scales.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return (padded / whole)[:rows, :columns].to(torch.float8_e4m3fn), scales


def _linears(tensors: dict[str, torch.Tensor]) -> list[str]:
    kept = ("lm_head", "embed_tokens", "norm", "gate.weight")
    return [n for n in tensors if n.endswith("weight") and not any(part in n for part in kept)]


def fp8(tensors: dict[str, torch.Tensor], scale_dtype=torch.float32) -> dict:
    """As Qwen3-FP8 and DeepSeek-V3 are published: all linear layers but router and head."""
    for name in _linears(tensors):
        tensors[name], scales = to_fp8(tensors[name], BLOCK, scale_dtype)
        tensors[f"{name}_scale_inv"] = scales
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return config | {"weight_block_size": list(BLOCK), "modules_to_not_convert": ["lm_head"]}


def ue8m0(tensors: dict[str, torch.Tensor]) -> dict:
    """The same with scales that are powers of two, a byte each."""
    return fp8(tensors, torch.float8_e8m0fnu) | {"scale_fmt": "ue8m0"}


def _compressed(form: str, weights: dict) -> dict:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    config = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return config | {"quantization_status": "compressed", "config_groups": {"group_0": group}}


def to_int(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` -> words of 32 bits (the first integer lowest) and a bfloat16 scale of each
    ``group`` of a row."""
    half, groups = 1 << (bits - 1), weight.float().unflatten(1, (-1, group))
    scales = (groups.abs().amax(-1) / (half - 1)).to(torch.bfloat16)
    whole = (groups / scales.float()[..., None]).round().clamp(-half, half - 1)
    whole = (whole.flatten(1).to(torch.int64) + half).unflatten(1, (-1, 32 // bits))
    words = (whole << torch.arange(0, 32, bits)).sum(-1)
    return words.to(torch.uint32).view(torch.int32), scales


def int4(tensors: dict[str, torch.Tensor], bits: int = 4) -> dict:
    """As llm-compressor writes W4A16: all linear layers but router and head."""
    for name in _linears(tensors):
        weight = tensors.pop(name)
        tensors[f"{name}_packed"], tensors[f"{name}_scale"] = to_int(weight, bits, 16)
        tensors[f"{name}_shape"] = torch.tensor(weight.shape)
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 16}
    return _compressed("pack-quantized", weights)


def int8(tensors: dict[str, torch.Tensor]) -> dict:
    return int4(tensors, 8)


def compressed_fp8(tensors: dict[str, torch.Tensor]) -> dict:
    """As llm-compressor writes FP8: a bfloat16 scale of each row."""
    for name in _linears(tensors):
        weight = tensors[name].float()
        scales = (weight.abs().amax(1, keepdim=True) / 448).to(torch.bfloat16)
        tensors[name] = (weight / scales.float()).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scales
    return _compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})


def decompressed(tensors: dict[str, torch.Tensor]) -> dict:
    """What compressed-tensors makes of the three above, in float32, by arithmetic of its own."""
    for name in [name for name in tensors if name.endswith("_scale")]:
        stem, scales = name.removesuffix("_scale"), tensors.pop(name)
        if stem in tensors:
            made = tensors[stem].float() * scales.float()
            is_expert = ".experts." in stem
        else:
            rows, columns = tensors.pop(f"{stem}_shape").tolist()
            words = tensors.pop(f"{stem}_packed").to(torch.int64)
            bits = 32 * words.shape[1] // columns
            whole = (words[..., None] >> torch.arange(0, 32, bits)) % (1 << bits) - (
                1 << (bits - 1)
            )
            wide = scales.float().repeat_interleave(columns // scales.shape[1], 1)
            made, is_expert = whole.view(rows, columns) * wide, False
        tensors[stem] = made if is_expert else made.to(scales.dtype).float()
    return {}
