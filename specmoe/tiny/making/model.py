"""Building, upcycling and wiring a shipped model: config, tokenizer, training kernel.
``translate_model`` builds the one that translates.

Comes in: a ``Shape``. Goes out: ``MixtralForCausalLM`` models whose experts run by sorted dispatch,
and the BPE tokenizer with single digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .recipe import Shape, Training

SORTED_DISPATCH = "specmoe_sorted_dispatch"
BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def run_sorted(
    hidden: torch.Tensor, picks: torch.Tensor, weights: torch.Tensor, num_experts: int, run
) -> torch.Tensor:
    """Experts of [T, D] tokens by [T, K] picks: sort the picks by expert, ``run(expert, rows)``
    once per used expert."""
    order = picks.reshape(-1).argsort(stable=True)  # [T*K]
    counts = torch.bincount(picks.reshape(-1), minlength=num_experts).tolist()
    token = order // picks.shape[-1]
    parts = enumerate(hidden[token].split(counts))
    outputs = [run(expert, rows) for expert, rows in parts if len(rows)]
    weighted = torch.cat(outputs) * weights.reshape(-1)[order, None]
    return torch.zeros_like(hidden).index_add(0, token, weighted)


def sorted_dispatch(experts, hidden, top_k_index, top_k_weights):
    """Mixtral's experts, as transformers calls them, one matmul per used expert."""
    gate_up, down = experts.gate_up_proj.unbind(0), experts.down_proj.unbind(0)

    def run(expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up = (rows @ gate_up[expert].T).chunk(2, dim=-1)
        return (experts.act_fn(gate) * up) @ down[expert].T

    return run_sorted(hidden, top_k_index, top_k_weights, experts.num_experts, run)


def use_sorted_dispatch(model: nn.Module) -> nn.Module:
    """Run this model's experts through ``sorted_dispatch`` (several times faster than the eager
    loop)."""
    ALL_EXPERTS_FUNCTIONS.register(SORTED_DISPATCH, sorted_dispatch)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = SORTED_DISPATCH
    return model


def new_model(shape: Shape, num_experts: int) -> MixtralForCausalLM:
    """A fresh float32 model; one expert makes it the dense model of the first phase."""
    config = MixtralConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
        num_local_experts=num_experts,
        num_experts_per_tok=min(shape.top_k, num_experts),
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        output_router_logits=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return use_sorted_dispatch(MixtralForCausalLM(config))


_ROUTER = re.compile(r"(mlp\.gate|classifier)\.weight$")
_STACKED = re.compile(r"(fc[12])_(weight|bias)$")  # NLLB's experts, whose dense FFN has a dot


@torch.no_grad()
def upcycle(dense: nn.Module, sparse: nn.Module, recipe: Training) -> nn.Module:
    """Fill ``sparse`` from ``dense``: its FFN goes into every expert with a little noise; the
    routers start random."""
    source, noise = dense.state_dict(), torch.Generator().manual_seed(recipe.seed)
    for name, target in sparse.state_dict().items():
        if _ROUTER.search(name):
            target.copy_(recipe.router_std * torch.randn(target.shape, generator=noise))
            continue
        value = source[_STACKED.sub(r"\1.\2", name)]
        if ".experts." in name or _STACKED.search(name):
            spread = recipe.expert_noise * value.std()
            value = value + spread * torch.randn(target.shape, generator=noise)
        target.copy_(value)
    return sparse


def new_tokenizer(texts: Iterable[str], shape: Shape) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stand alone; every text starts with ``<s>``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=shape.max_positions,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
