"""A checkpoint of your own: a small random model, as ``save_pretrained`` writes one.

Comes in: a folder, an architecture, sizes. Goes out: the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...errors import check_choice

ARCHITECTURES = {  # names of the sizes in each family's configuration
    "mixtral": {"intermediate_size": 48, "num_local_experts": 8},
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 8, "norm_topk_prob": True},
    "olmoe": {"intermediate_size": 48, "num_experts": 8},
}


def random_checkpoint(
    folder, architecture: str = "mixtral", num_experts: int = 8, num_layers: int = 2, seed: int = 0
) -> Path:
    """Save a small random transformers MoE model to ``folder`` as ``save_pretrained`` does; no
    tokenizer, 97 token ids.

    ``architecture``: mixtral, qwen3_moe or olmoe. Returns the folder. Its weights are noise:
    exactness can be tried on it, acceptance and skew mean nothing.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_choice("architecture", architecture, ARCHITECTURES)
    sizes = dict(ARCHITECTURES[architecture])
    sizes["num_local_experts" if "num_local_experts" in sizes else "num_experts"] = num_experts
    config = AutoConfig.for_model(
        architecture,
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        num_experts_per_tok=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.15,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    with _no_progress_bar():
        model.save_pretrained(folder)
    return Path(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers shows none meanwhile: a bar of one step only clutters a notebook."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
