"""Llama 4, text: the router's sigmoid score scales what goes *into* an expert.

Every pair of a token and its expert becomes one token of the registry's function, already scaled,
with weight 1. Attention layers without rotary positions scale their queries by position; every row
has its own. Of a multimodal checkpoint the language part is loaded.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter
from transformers.models.llama4 import modeling_llama4 as theirs

from .fused import FusedExperts, RaggedPositions, replace_modules


class Router(theirs.Llama4Router):
    """The model's, its logits [T, E] first; then the scores [T, E], zero where not chosen."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        router_scores, router_logits = super().forward(hidden_states)
        return router_logits, router_scores


class SparseBlock(nn.Module):
    """In place of ``Llama4TextMoe``."""

    def __init__(self, old: nn.Module, config):
        super().__init__()
        self.top_k = old.top_k
        old.router.__class__ = Router
        self.router = old.router
        self.shared_expert = old.shared_expert
        sizes = (config.num_local_experts, config.hidden_size, config.intermediate_size)
        self.experts = FusedExperts(config, sizes, ACT2FN[config.hidden_act], gated=True)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # [T, D]
        router_logits, router_scores = self.router(tokens)
        index = router_logits.topk(self.top_k, dim=-1).indices  # [T, K]
        scaled = tokens[:, None] * router_scores.gather(1, index)[..., None]  # [T, K, D]
        pairs = index.reshape(-1, 1)  # [T * K, 1]: one expert each
        ones = torch.ones_like(pairs, dtype=tokens.dtype)
        routed = self.experts(scaled.flatten(0, 1), pairs, ones)
        return self.shared_expert(tokens) + routed.view_as(scaled).sum(dim=1), router_logits


class ScaledQueries(RaggedPositions, nn.Linear):
    """The query projection of a layer without rotary positions, with a temperature by position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = super().forward(x)  # [B, T, H * D]
        steps = torch.floor((self.positions.float() + 1.0) / self.floor_scale)
        scales = torch.log1p(steps) * self.attn_scale + 1.0
        return (queries * scales[..., None]).to(queries.dtype)


def adapt(model: PreTrainedModel) -> None:
    replace_modules(model, theirs.Llama4TextMoe, lambda old: SparseBlock(old, model.config))
    for attention in (m for m in model.modules() if isinstance(m, theirs.Llama4TextAttention)):
        if attention.attn_temperature_tuning and not attention.use_rope:
            attention.attn_temperature_tuning = False
            attention.q_proj.__class__ = ScaledQueries
            attention.q_proj.floor_scale = attention.floor_scale
            attention.q_proj.attn_scale = attention.attn_scale


# Published checkpoints hold fused experts and need none of these; some re-saved ones hold one each.
_AT, _MERGE, _TURN = "feed_forward.experts", MergeModulelist(dim=0), Transpose(1, 2)
_GATE_UP = [f"{_AT}.*.{name}_proj.weight" for name in ("gate", "up")]
_JOIN = [_MERGE, Concatenate(dim=1), _TURN]
CONVERSIONS = [
    WeightConverter(_GATE_UP, f"{_AT}.gate_up_proj", operations=_JOIN),
    WeightConverter(f"{_AT}.*.down_proj.weight", f"{_AT}.down_proj", operations=[_MERGE, _TURN]),
]
