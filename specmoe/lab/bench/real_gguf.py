"""The checkpoint of ``real_checkpoint`` as a BF16 GGUF of the same weights, which llama.cpp reads.

Comes in: a folder with config, index and shards of an OLMoE. Goes out: one file, whole or not at
all; one stack of experts is in memory at a time. ``real_grid`` calls this; the ``gguf`` package
writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

ARCHITECTURE = "olmoe"
# name in the layer -> name in a GGUF block
IN_A_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# llama.cpp wants these in float32, as norms are
WIDE = "mlp.gate"


def write_gguf(folder: Path, file: Path) -> Path:
    """``file`` (13.8 GB for all layers), beside it while it is written a ``.partial``."""
    import gguf

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    _describe(writer, config)
    named = list(_sources(config))
    kinds = gguf.GGMLQuantizationType
    for name, _, shape, wide in named:
        dtype, kind = (np.float32, kinds.F32) if wide else (np.uint16, kinds.BF16)
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, shape, np.dtype(dtype), num_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with _Shards(folder) as shards:
        for _, sources, shape, wide in named:
            writer.write_tensor_data(_array(shards, sources, shape, wide))
    writer.close()
    os.replace(partial, file)
    return file


def _describe(writer, config: dict) -> None:
    """What llama.cpp asks of an ``olmoe``; a vocabulary without words, as nothing is spelled."""
    import gguf

    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _sources(config: dict) -> Iterator[tuple[str, list[str], tuple[int, ...], bool]]:
    """(name in the GGUF, names in the checkpoint, shape, whether in float32)."""
    hidden, width, vocab, experts = (
        config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_experts")
    )
    for name, own in OUTSIDE.items():
        shape = (hidden,) if "norm" in own else (vocab, hidden)
        yield f"{own}.weight", [f"{name}.weight"], shape, "norm" in own
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, own in IN_A_LAYER.items():
            shape = (hidden,) if "norm" in own else (hidden, hidden)
            shape = (experts, hidden) if name == WIDE else shape
            wide = "norm" in own or name == WIDE
            yield f"blk.{layer}.{own}.weight", [f"{at}.{name}.weight"], shape, wide
        for name in ("gate", "up", "down"):
            sides = (hidden, width) if name == "down" else (width, hidden)
            sources = [f"{at}.mlp.experts.{e}.{name}_proj.weight" for e in range(experts)]
            yield f"blk.{layer}.ffn_{name}_exps.weight", sources, (experts, *sides), False


class _Shards:
    """Tensors of a folder by name. State: the shard that is open."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        self.shard_of = index["weight_map"]
        self.name, self.shard = None, None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_) -> None:
        self.name, self.shard = None, None

    def __getitem__(self, tensor: str) -> torch.Tensor:
        if self.shard_of[tensor] != self.name:
            self.name = self.shard_of[tensor]
            self.shard = safe_open(self.folder / self.name, "pt")
        return self.shard.get_tensor(tensor)


def _array(shards: _Shards, sources: list[str], shape: tuple[int, ...], wide: bool) -> np.ndarray:
    """One tensor as numpy writes it: float32, or the bits of bf16."""
    if wide:
        return shards[sources[0]].float().numpy()
    bits = np.empty((len(sources), math.prod(shape) // len(sources)), dtype=np.uint16)
    for place, name in enumerate(sources):
        bits[place] = shards[name].flatten().view(torch.uint16).numpy()
    return bits.reshape(shape)
