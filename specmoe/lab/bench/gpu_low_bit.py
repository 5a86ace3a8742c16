"""Low-bit records on a GPU: over the link as they are stored, widened there.

Comes in: a ``Scale`` and what is ``Found`` so far. Goes out: for bf16 and each low-bit format bytes,
rates, seconds, and whether the GPU widens as the CPU does, bit for bit. ``gpu`` calls this. The
checkpoints are of random weights, made for the call and removed.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import specmoe

from ...checkpoint.cache import cache_folder
from ..simulate.real_models import known_models
from .gpu_copies import raw_copy_rate, store_rate, synchronize
from .low_bit import GROUP, words
from .real_checkpoint import FIELDS, STD, tensors
from .window import Window, measure

KINDS = ("bf16", "fp8", "int4", "mxfp4")
BLOCK = 128  # of fp8's scales
WIDENED = 20  # times that a record is widened
PROMPTS = [[number + 1, number + 2, number + 3] for number in range(32)]
NEW_TOKENS = 64
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def low_bit(found, scale) -> dict[str, dict]:
    """What moving and widening an expert of each format takes, and tokens per second on demand."""
    rows = {}
    for kind in KINDS:
        if not found.has_time(f"low bits, {kind}", 6 * scale.slice_s):
            continue
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            make(Path(folder), kind, **scale.low_bit)
            options = {"store": "memory", "device": found.device, "trace": False}
            with specmoe.load(folder, draft_experts=scale.low_bit["top_k"], **options) as engine:
                rows[kind] = moved(found, scale, engine)
    return rows


def moved(found, scale, engine) -> dict:
    """Rates of the link, seconds of widening, tokens per second."""
    record_bytes = engine.packed.layout.record_bytes
    raw = raw_copy_rate(found.device, record_bytes, scale.copies)
    through_store = store_rate(engine, scale.copies)
    window = Window(scale.compiled_batch, scale.slice_s, scale.warm_up_s, [[] for _ in PROMPTS])
    given = {"method": "on_demand", "max_new_tokens": NEW_TOKENS, "eos_token_id": []}
    widening = widened(engine, found.device)
    sums = measure(engine, PROMPTS, window, **given)
    return {
        "record_bytes": record_bytes,
        "raw_bytes_per_s": raw,
        "store_bytes_per_s": through_store,
        "share": through_store / raw,
        **widening,
        "tokens_per_second": sums["num_new_tokens"] / sums["seconds"],
        "bytes_per_token": sums["fetched_bytes"] / sums["num_new_tokens"],
    }


def widened(engine, device: torch.device) -> dict:
    """Seconds of widening the record in the first slot, and whether the CPU's are the same bits."""
    layout, dtype, record = engine.packed.layout, engine.model.dtype, engine.slots[0]
    there, here = layout.empty(dtype, device), layout.empty(dtype)
    layout.widen(record, there)
    synchronize(device)
    began_s = time.perf_counter()
    for _ in range(WIDENED):
        layout.widen(record, there)
    synchronize(device)
    seconds = (time.perf_counter() - began_s) / WIDENED
    layout.widen(record.cpu(), here)
    same = all(torch.equal(there[name].cpu(), weight) for name, weight in here.items())
    return {"widen_s": seconds, "same_bits": same}


# ---- checkpoints ----


def make(folder: Path, kind: str, hidden: int, width: int, layers: int, experts: int, top_k: int):
    """A checkpoint of random weights whose experts are in the format ``kind``: of OLMoE's
    architecture, for mxfp4 of gpt-oss'."""
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers}
    sizes |= {"num_experts_per_tok": top_k, "num_attention_heads": 8, "num_key_value_heads": 8}
    sizes |= {"vocab_size": 1024, "head_dim": hidden // 8, "dtype": "bfloat16"}
    if kind == "mxfp4":
        config, made = _gpt_oss(sizes | {"num_local_experts": experts})
    else:
        config = known_models()["olmoe-1b-7b"].config | FIELDS | sizes | {"num_experts": experts}
        quantised = {"fp8": FP8, "int4": words(4)}.get(kind)
        config |= {"eos_token_id": 0} | ({"quantization_config": quantised} if quantised else {})
        made = {}
        for name, shape in tensors(config):
            way = OF_EXPERTS[kind] if ".experts." in name else _bf16
            made |= way(name, shape)
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config) + "\n")


def _bits(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def _bf16(name: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    values = torch.ones(shape) if len(shape) == 1 else STD * torch.randn(shape)
    return {name: values.bfloat16()}


def _fp8(name: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Any bits but NaN's."""
    grid = [-(-side // BLOCK) for side in shape]
    scales = torch.full(grid, STD / 100)
    return {name: (_bits(*shape) & 0xFE).view(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def _int4(name: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    rows, columns = shape
    return {
        f"{name}_packed": _bits(rows, columns // 2).view(torch.int32),
        f"{name}_scale": torch.full((rows, columns // GROUP), STD / 4).bfloat16(),
        f"{name}_shape": torch.tensor(shape),
    }


OF_EXPERTS = {"bf16": _bf16, "fp8": _fp8, "int4": _int4}


def _gpt_oss(sizes: dict) -> tuple[dict, dict[str, torch.Tensor]]:
    config = AutoConfig.for_model("gpt_oss", **sizes)
    with torch.device("meta"):
        shapes = {
            name: tuple(weight.shape)
            for name, weight in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    made = {}
    for name, shape in shapes.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = shape
            made[f"{name}_blocks"] = _bits(experts, outputs, inputs // 32, 16)
            made[f"{name}_scales"] = torch.full(
                (experts, outputs, inputs // 32), 119, dtype=torch.uint8
            )
        else:
            made |= _bf16(name, shape)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantised = {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "lm_head"]}
    own = {"architectures": ["GptOssForCausalLM"], "quantization_config": quantised}
    return config.to_dict() | own, made
