"""Random tiny checkpoints of the families outside transformers' experts registry, and a correct
NLLB-MoE to compare with.

Comes in: a family's name and a folder. Goes out: a folder written by ``save_pretrained`` (published
key names), or a model in float64 whose plain greedy output is the reference.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_architectures import randomise_
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

# V=97 D=32 E=8 F=48; every second layer is sparse, so that encoder and decoder have two MoE layers
# each.
CONFIGS = {
    "nllb-moe": {
        "vocab_size": 97,
        "d_model": 32,
        "max_position_embeddings": 64,
        "num_experts": 8,
        "encoder_layers": 4,
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "encoder_sparse_step": 2,
        "decoder_layers": 4,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
        "decoder_sparse_step": 2,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "tie_word_embeddings": False,
    },
    "switch_transformers": {
        "vocab_size": 97,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_experts": 8,
        "expert_capacity": 16,
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_decoder_layers": 4,
        "num_sparse_decoder_layers": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "router_jitter_noise": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    },
    # Chunks of 8 tokens and temperature steps of 8: any test that generates a little passes them.
    "llama4_text": {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "intermediate_size_mlp": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 8,
        "floor_scale": 8,
        "attn_scale": 0.5,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
}
FAMILIES = tuple(CONFIGS)


def make_config(family: str, **overrides):
    return AutoConfig.for_model(family, **{**CONFIGS[family], **overrides})


@torch.no_grad()
def make_family(
    family: str, folder: Path, seed: int = 0, max_shard_size="5GB", **overrides
) -> Path:
    """Write a random tiny checkpoint of ``family`` into ``folder``."""
    config = make_config(family, **overrides)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    randomise_(model, torch.Generator().manual_seed(seed))
    _liven(model)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def _liven(model: nn.Module) -> None:
    """Make the layers louder than the embeddings, or a model with tied embeddings repeats its last
    token for ever."""
    for name, parameter in model.named_parameters():
        if name.endswith(("shared.weight", "embed_tokens.weight")):
            parameter.mul_(0.5 / parameter.std())
        elif name.endswith(
            ("relative_attention_bias.weight", "router.classifier.weight", "router.weight")
        ):
            parameter.mul_(2.0)
        elif ".fc" in name or ".wo." in name or "out_proj" in name or "experts" in name:
            parameter.mul_(2.0)


class PlainSparse(nn.Module):
    """NLLB-MoE's sparse block as the paper has it, one token at a time: the two likeliest experts,
    their probabilities normalised to one; experts' output scaled by 1 - moe_token_dropout."""

    def __init__(self, block: nn.Module, config):
        super().__init__()
        self.classifier = block.router.classifier.float()
        self.experts = block.experts
        self.config = config

    def forward(self, hidden: torch.Tensor, padding_mask=None) -> torch.Tensor:
        out = torch.zeros_like(hidden)
        for row, token in ((r, t) for r in range(hidden.shape[0]) for t in range(hidden.shape[1])):
            x = hidden[row, token]
            router_probs = self.classifier(x.to(self.classifier.weight.dtype)).float().softmax(-1)
            first, second = router_probs.argsort(descending=True)[:2].tolist()
            total = router_probs[first] + router_probs[second]
            for expert in (first, second):
                gate = (router_probs[expert] / total).to(hidden.dtype)
                out[row, token] += gate * self.experts[f"expert_{expert}"](x)
        return out * (1 - self.config.moe_token_dropout)


def reference_model(family: str, folder: Path) -> nn.Module:
    """transformers' model of the checkpoint in float64; NLLB-MoE's sparse blocks replaced by
    ``PlainSparse``."""
    auto = AutoModelForCausalLM if family == "llama4_text" else AutoModelForSeq2SeqLM
    model = auto.from_pretrained(folder, dtype=torch.float64).eval()
    for module in model.modules():
        if type(getattr(module, "ffn", None)).__name__ == "NllbMoeSparseMLP":
            module.ffn = PlainSparse(module.ffn, model.config)
    model.generation_config.eos_token_id = None  # unless a test gives one
    model.known_outputs = {}
    return model


@torch.no_grad()
def plain_greedy(
    model: nn.Module, prompts: list[list[int]], max_new_tokens: int, **options
) -> list[list[int]]:
    """transformers' own greedy output, one prompt at a time."""
    options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1, **options}
    for prompt in prompts:
        key = str((prompt, options))
        if key not in model.known_outputs:
            model.known_outputs[key] = model.generate(torch.tensor([prompt]), **options)[0].tolist()
    return [model.known_outputs[str((prompt, options))] for prompt in prompts]


def ragged_prompts(
    lengths=(5, 1, 11, 7, 3, 9), seed: int = 1, vocab_size: int = 97
) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab_size, (n,), generator=generator).tolist() for n in lengths]
