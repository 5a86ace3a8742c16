"""Small random GGUF files of models with experts: the names, shapes and metadata that llama.cpp's
converter writes; only the numbers are random.

Comes in: a path, an architecture and the ggml types. Goes out: the path. Used by ``test_gguf``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, get_gguf_hf_weights_map

QWEN2 = {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 160}
SIZES = {
    "qwen3_moe": ("qwen3moe", {"num_experts": 8, "head_dim": 64, "moe_intermediate_size": 512}),
    "qwen2_moe": ("qwen2moe", {"num_experts": 4, **QWEN2}),
    "minimax_m2": (
        "minimax-m2",
        {"num_local_experts": 8, "head_dim": 64, "intermediate_size": 256},
    ),
}
# What ``docs/formats.md`` says of them: ggml types, and a model whose experts were found exact in
# them; of several each of its three matrices has one.
TRIED = ["gguf Q8_0+IQ2_S+Q8_0 qwen3_moe", "gguf Q4_K_M qwen3_moe", "gguf Q4_1 qwen2_moe"]
TRIED += ["gguf Q8_0 qwen3_5_moe_text", "gguf BF16 minimax_m2", "gguf Q4_0+Q5_0+Q5_1 minimax_m2"]
TRIED += ["gguf Q2_K+Q3_K+Q5_K minimax_m2", "gguf Q6_K+IQ4_NL+IQ4_XS minimax_m2"]
TRIED += ["gguf F16+Q4_K+MXFP4 minimax_m2", "gguf IQ2_XXS+IQ3_S+IQ3_XXS minimax_m2"]
# transformers widens those of the last file with arithmetic of its own
TRIED += ["gguf IQ1_S+TQ1_0+TQ2_0 minimax_m2", "gguf IQ2_XS+IQ1_M+IQ1_M qwen3_5_moe_text"]
COMMON = {
    "vocab_size": 264,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
# Where the blocks of types that gguf cannot make keep their float16 factors, and how large these
# may be for weights of about 0.05.
HALVES = {
    "Q2_K": {80: 4e-3, 82: 2e-3},
    "Q3_K": {108: 1e-3},
    "Q4_K": {0: 2e-4, 2: 1e-3},
    "Q5_K": {0: 1e-4, 2: 1e-3},
    "Q6_K": {208: 5e-5},
    "IQ4_NL": {0: 1e-3},
    "IQ4_XS": {0: 5e-5},
    "IQ2_XXS": {0: 1e-3},
    "IQ2_XS": {0: 1e-3},
    "IQ2_S": {0: 1e-3},
    "IQ3_XXS": {0: 1e-4},
    "IQ3_S": {0: 1e-4},
    "IQ1_S": {0: 5e-3},
    "IQ1_M": {},
    "NVFP4": {},
}
Kinds = Callable[[str], str]


def blocks(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random weights ``shape`` in the ggml type ``kind``: bytes, or floats for ``F32`` and
    ``F16``."""
    number = gguf.GGMLQuantizationType[kind]
    if kind not in HALVES:
        values = random.standard_normal(shape, dtype=np.float32) * 1.2 / shape[-1] ** 0.5
        return quantize(values, number)
    elements, size = gguf.GGML_QUANT_SIZES[number]
    made = random.integers(0, 256, (*shape[:-1], shape[-1] // elements, size), dtype=np.uint8)
    for place, most in HALVES[kind].items():
        half = random.uniform(most / 2, most, made.shape[:-1]).astype(np.float16)
        made[..., place : place + 2] = half[..., None].view(np.uint8)
    if kind == "IQ1_M":
        # its factor lies in the highest bits of four words of 16
        made[..., 49::2] &= 15
        for place, digit in zip(
            (49, 51, 53, 55), np.float16(5e-3).view(np.uint16) >> [0, 4, 8, 12]
        ):
            made[..., place] |= np.uint8((digit & 15) << 4)
    return made.reshape(*shape[:-1], -1)


def as_kind(kind: str) -> Kinds:
    """Experts in ``kind``, the other matrices in Q8_0. ``Q4_K_M`` is a mixture as llama.cpp makes
    it: some layers, here every other, have a finer ``ffn_down_exps``."""

    def of(name: str) -> str:
        if "_exps" not in name:
            return "Q8_0"
        if kind == "Q4_K_M":
            return "Q6_K" if name.startswith("blk.0.ffn_down") else "Q4_K"
        own = kind.split("+")
        return own[("gate" in name) + 2 * ("up" in name) if len(own) > 1 else 0]

    return of


def make_gguf(
    file: Path, model_type: str, kinds: Kinds, seed: int = 0, eos: int = 263, split: int = 0
) -> Path:
    """``kinds``: of a matrix's name its ggml type; ``split``: tensors of each file, 0 is one file
    with all of them."""
    if model_type == "qwen3_5_moe_text":
        return make_hybrid(file, kinds)
    architecture, own = SIZES[model_type]
    config = AutoConfig.for_model(model_type, **{**COMMON, **own})
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=split)
    describe(writer, config)
    add_tokens(writer, config.vocab_size, eos)
    random = np.random.default_rng(seed)
    for name, shape in shapes_of(config, architecture).items():
        if len(shape) == 1 or "ffn_gate_inp" in name:
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            width = shape[-1] ** 0.5 if "ffn_gate_inp" in name else 10
            values = centre + random.standard_normal(shape, dtype=np.float32) / width
            writer.add_tensor(name, values.astype(np.float32))
            continue
        add_blocks(writer, name, kinds(name), shape, random)
    return written(writer, file)


def shapes_of(config, architecture: str) -> dict[str, tuple[int, ...]]:
    """Of each tensor that the converter writes."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS[architecture]({})
    found = {}
    for name, target in get_gguf_hf_weights_map(model, processor).items():
        shape = tuple(model.state_dict()[target].shape)
        if "_exps" in name:
            name = f"{name}.weight"
            if "gate" in name or "up" in name:
                shape = (shape[0], shape[1] // 2, shape[2])
        # the converter squeezes the gate of the shared expert
        found[name] = shape[1:] if "gate_inp_shexp" in name else shape
    return found


def make_hybrid(file: Path, kinds: Kinds) -> Path:
    """A Qwen3.5-MoE, which transformers reads with its newer loader: a layer with a recurrent state,
    and one with attention."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, "qwen35moe")
    numbers = {"context_length": 256, "block_count": 2, "embedding_length": 256}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64}
    numbers |= {"full_attention_interval": 2, "ssm.conv_kernel": 4, "ssm.state_size": 32}
    numbers |= {"ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.inner_size": 128}
    numbers |= {"rope.dimension_count": 16, "expert_feed_forward_length": 256}
    numbers |= {"expert_shared_feed_forward_length": 256, "expert_count": 8, "expert_used_count": 2}
    for key, number in numbers.items():
        writer.add_uint32(f"qwen35moe.{key}", number)
    writer.add_array("qwen35moe.rope.dimension_sections", [4, 2, 2, 0])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    add_tokens(writer, 264, 263)
    random = np.random.default_rng(0)
    for name, shape in hybrid_shapes().items():
        if len(shape) > 1 and not name.endswith(("conv1d.weight", "gate_inp.weight")):
            add_blocks(writer, name, kinds(name), shape, random)
            continue
        values = random.standard_normal(shape, dtype=np.float32) / 10
        # llama.cpp writes the norms with one added, and the exponential of ssm_a, negative
        values += "norm" in name
        writer.add_tensor(name, -np.exp(values) if name.endswith("ssm_a") else values)
    return written(writer, file)


def hybrid_shapes() -> dict[str, tuple[int, ...]]:
    recurrent = {"attn_qkv.weight": (256, 256), "attn_gate.weight": (128, 256)}
    recurrent |= {"ssm_alpha.weight": (4, 256), "ssm_beta.weight": (4, 256), "ssm_a": (4,)}
    recurrent |= {"ssm_conv1d.weight": (256, 4), "ssm_norm.weight": (32,), "ssm_dt.bias": (4,)}
    recurrent |= {"ssm_out.weight": (256, 128)}
    attention = {"attn_q.weight": (512, 256), "attn_k.weight": (128, 256)}
    attention |= {"attn_v.weight": (128, 256), "attn_output.weight": (256, 256)}
    attention |= {"attn_q_norm.weight": (64,), "attn_k_norm.weight": (64,)}
    both = {"attn_norm.weight": (256,), "post_attention_norm.weight": (256,)}
    both |= {"ffn_gate_inp.weight": (8, 256), "ffn_gate_inp_shexp.weight": (256,)}
    both |= {f"ffn_{name}_exps.weight": (8, 256, 256) for name in ("gate", "up", "down")}
    both |= {f"ffn_{name}_shexp.weight": (256, 256) for name in ("gate", "up", "down")}
    layers = {f"blk.0.{name}": shape for name, shape in (recurrent | both).items()}
    layers |= {f"blk.1.{name}": shape for name, shape in (attention | both).items()}
    ends = {"token_embd.weight": (264, 256), "output.weight": (264, 256)}
    return ends | {"output_norm.weight": (256,)} | layers


def add_blocks(writer: gguf.GGUFWriter, name: str, kind: str, shape: tuple, random) -> None:
    number = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, blocks(kind, shape, random), raw_dtype=number)


def written(writer: gguf.GGUFWriter, file: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def describe(writer: gguf.GGUFWriter, config) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(getattr(config, "head_dim", None) or 64)
    writer.add_value_length(getattr(config, "head_dim", None) or 64)
    writer.add_rope_dimension_count(getattr(config, "rotary_dim", None) or 64)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if width := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(width)
    if width := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(width)


def add_tokens(writer: gguf.GGUFWriter, count: int, eos: int) -> None:
    """A byte-level vocabulary: every byte, some merges, one end token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = list(bytes_to_unicode().values())
    merges = ["t h", "i n", "a n", "o u"]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"<|{number}|>" for number in range(count - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 260 + [3] * (count - 260))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(eos)
