"""Flags that training leaves behind in ``config.json``: none may crash a run or change its tokens.

Comes in: a config as transformers read it. Goes out: the same one, asking for logits alone, by
attention that runs here. ``model`` calls it before it builds.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

PLAIN_ATTENTIONS = ("eager", "sdpa")
# What a forward pass would return, or compute, besides logits.
SETTLED = {
    "output_router_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "torchscript": False,
    "use_cache": True,
}


def without_leftovers(config: PreTrainedConfig) -> PreTrainedConfig:
    """Settle ``config`` and its parts in place; which kernels the training ran with is
    transformers' choice again."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for part in [config, *(part for part in parts if part is not None)]:
        if part._attn_implementation not in PLAIN_ATTENTIONS:
            part._attn_implementation = None
        part._experts_implementation = None
        for name, value in SETTLED.items():
            if hasattr(part, name):
                setattr(part, name, value)
    return config
