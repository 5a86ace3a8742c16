"""Random tiny checkpoints of the architectures that specmoe must decode exactly.

Comes in: an architecture's name and a folder. Goes out: a folder written by ``save_pretrained``, so
it has the key names of the published checkpoints. Used by the tests of the checkpoint and by those
of exactness.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.granitemoe import modeling_granitemoe as granitemoe

# V=97 D=32 E=8 K=2; the FFN of an expert differs from D so that a transposed matrix cannot pass
# unseen.
_COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_FIRST_LAYER_DENSE = {
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "moe_intermediate_size": 48,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 8,
}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
_SHARED = {"moe_num_shared_experts": 1, "moe_layer_start_index": 1, "num_hidden_layers": 3}
_ONLY = {
    "mixtral": {"intermediate_size": 48, "num_local_experts": 8},
    "qwen2_moe": {
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 40,
        "num_experts": 8,
    },
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 8, "norm_topk_prob": True},
    "olmoe": {"intermediate_size": 48, "num_experts": 8},
    # Windows of 8 tokens: any test that generates a little passes them.
    "gpt_oss": {
        "intermediate_size": 48,
        "num_local_experts": 8,
        "sliding_window": 8,
        "rope_parameters": _YARN,
    },
    "deepseek_v3": {**_FIRST_LAYER_DENSE, **_MLA, "n_group": 2, "topk_group": 2},
    "glm4_moe": {**_FIRST_LAYER_DENSE, "n_group": 1, "topk_group": 1},
    "phimoe": {"intermediate_size": 48, "num_local_experts": 8},
    "granitemoe": {"intermediate_size": 48, "num_local_experts": 8},
    "ernie4_5_moe": {"moe_intermediate_size": 48, "moe_num_experts": 8, "moe_k": 2, **_SHARED},
}
# Older versions of transformers keep the experts of granitemoe outside its registry.
ARCHITECTURES = tuple(
    name for name in _ONLY if name != "granitemoe" or hasattr(granitemoe, "GraniteMoeExperts")
)


def make_config(architecture: str, **overrides):
    """The configuration of a tiny model; ``overrides`` win over the defaults of this file."""
    return AutoConfig.for_model(architecture, **{**_COMMON, **_ONLY[architecture], **overrides})


@torch.no_grad()
def randomise_(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Fill every parameter in place: matrices at 1.2 / sqrt(fan-in), norms near 1, biases near 0.

    A fresh transformers model has std 0.02, whose logits are so flat that a wrong expert may go
    unnoticed.
    """
    # router score corrections
    buffers = {name: b for name, b in model.named_buffers() if name.endswith("bias")}
    for name, tensor in [*model.named_parameters(), *buffers.items()]:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        if name.endswith(("bias", "sinks")):
            noise = 0.1 * noise
        elif tensor.dim() == 1:  # norms
            noise = 1 + 0.1 * noise
        elif "embed_tokens" not in name:
            noise = noise * 1.2 / tensor.shape[-1] ** 0.5
        tensor.copy_(noise)


def make_model(
    architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides
) -> PreTrainedModel:
    """A random model in memory, in eval mode. Same arguments, same weights."""
    config = make_config(architecture, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise_(model, torch.Generator().manual_seed(seed))
    return model.to(dtype).eval()


def make_checkpoint(
    architecture: str,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: int | str = "5GB",
    **overrides,
) -> Path:
    """Write a random tiny checkpoint into ``folder`` and return it. Small ``max_shard_size``: many
    shards."""
    model = make_model(architecture, dtype, seed, **overrides)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return Path(folder)
