"""One model in three stores: its experts in 4 bits, in 8, and in bf16, the same numbers in each, so
that all three decode the same text.

Comes in: a shipped model of the Mixtral class and a folder. Goes out: a checkpoint for each store,
widened as elsewhere in the benchmarks; the low ones as llm-compressor writes them (compressed-tensors,
symmetric, in groups). ``parts`` measures them.

The scale of a group has five significant bits, so that an integer of 4 bits times its scale is exact
in bf16, and the integers of 4 bits are integers of 8 bits, too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from .offload import widened_checkpoint

STORES = {"bf16": 16, "int8": 8, "int4": 4}  # bits of a weight
GROUP = 32  # weights that share a scale
LEVELS = 8  # integers reach from -8 to 7
DONE = "done"


def checkpoints(model: str, folder: Path, expert_bytes: int) -> dict[str, Path]:
    """By store: a checkpoint in ``folder``, made unless it is there; ``expert_bytes`` are those of an
    expert in bf16."""
    from safetensors.torch import load_file, save_file

    if (folder / DONE).is_file():
        return {store: folder / store for store in STORES}
    shutil.rmtree(folder, ignore_errors=True)
    source = widened_checkpoint(model, folder / "widened", expert_bytes)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(source / "model.safetensors")
    made = {}
    for store, bits in STORES.items():
        made[store] = folder / store
        made[store].mkdir()
        save_file(_stored(tensors, bits), made[store] / "model.safetensors", {"format": "pt"})
        said = config if bits == STORES["bf16"] else config | {"quantization_config": words(bits)}
        (made[store] / "config.json").write_text(json.dumps(said), encoding="utf-8")
        for file in source.glob("*token*"):
            (made[store] / file.name).write_bytes(file.read_bytes())
    shutil.rmtree(source)
    (folder / DONE).touch()
    return made


def _stored(tensors: dict[str, torch.Tensor], bits: int) -> dict[str, torch.Tensor]:
    found = {}
    for name, weight in tensors.items():
        if ".experts." not in name:
            found[name] = weight
            continue
        whole, scales = rounded(weight)
        if bits == STORES["bf16"]:
            found[name] = (whole * scales[..., None]).flatten(1).to(torch.bfloat16)
            continue
        found[f"{name}_packed"] = packed(whole.flatten(1), bits)
        found[f"{name}_scale"] = scales.to(torch.bfloat16)
        found[f"{name}_shape"] = torch.tensor(weight.shape)
    return found


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[out, in]`` -> whole numbers ``[out, groups, GROUP]`` of 4 bits and scales ``[out,
    groups]``."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    least = groups.abs().amax(-1).clamp(min=2.0**-60) / (LEVELS - 1)
    power = least.log2().floor().exp2()
    scales = power * (least / power * 16).ceil() / 16
    return (groups / scales[..., None]).round().clamp(-LEVELS, LEVELS - 1), scales


def packed(whole: torch.Tensor, bits: int) -> torch.Tensor:
    """Words of 32 bits, the first integer lowest, each raised by half of its range."""
    raised = (whole.to(torch.int64) + (1 << (bits - 1))).unflatten(1, (-1, 32 // bits))
    words = (raised << torch.arange(0, 32, bits)).sum(-1)
    return (words - (words >= 1 << 31) * (1 << 32)).to(torch.int32)


def words(bits: int) -> dict:
    """What the config says of weights in so many bits."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": GROUP}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*self_attn.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
