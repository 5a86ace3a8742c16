"""Switch Transformers: every token goes to one expert, while the expert has room.

The capacity counts the tokens of one row in order, whatever runs beside it. So a long source may
lose tokens in the encoder, and loses the same ones in every batch: a dropped token gets no expert,
and fetches none. In the decoder plain decoding runs one token at a time and never drops; a verified
block of gamma + 1 tokens must therefore fit the capacity.
"""

from __future__ import annotations

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.switch_transformers import modeling_switch_transformers as theirs

from ...errors import OptionError, UnsupportedModelError
from .fused import FusedExperts, RaggedPositions, merged, replace_modules

TOP_K = 1
CONVERSIONS = merged("mlp.experts", {"wi": "up_proj", "wo": "down_proj"})
# Before, the router threw its scores away and routed flattened tokens: no capacity applied.
OLDEST_TRANSFORMERS = Version("5.18")


class Router(theirs.SwitchTransformersTop1Router):
    """The model's, its scores [B, T, E] first; then the one-hot choice [B, T, E] (zeros: dropped)
    and its probability [B, T, 1]. Versions of transformers return them in other orders."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = super().forward(hidden_states)
        [chosen] = [x for x in outputs if not x.is_floating_point()]
        floating = [x for x in outputs if x.is_floating_point()]
        probability, scores = sorted(floating, key=lambda x: x.shape[-1])
        return scores, chosen.view(scores.shape), probability


class SparseBlock(nn.Module):
    """In place of ``SwitchTransformersSparseMLP``."""

    def __init__(self, router: nn.Module, config):
        super().__init__()
        router.__class__ = Router
        self.router = router
        sizes = (config.num_experts, config.d_model, config.d_ff)
        self.experts = FusedExperts(config, sizes, ACT2FN[config.dense_act_fn])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        _, chosen, probability = self.router(hidden_states)  # [B, T, E], [B, T, 1]
        kept, index = chosen.max(dim=-1)  # [B, T]
        index = index.masked_fill(kept == 0, self.experts.num_experts).view(-1, 1)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.experts(tokens, index, probability.view(-1, 1)).view_as(hidden_states)


class DecoderAttention(RaggedPositions, theirs.SwitchTransformersAttention):
    """Its relative position bias [B, H, T, L] counts from every row's own positions."""

    def compute_bias(self, query_length, key_length, device=None, **past) -> torch.Tensor:
        keys = torch.arange(key_length, device=self.positions.device)
        distance = keys - self.positions[:, :, None]  # [B, T, L]
        buckets = self._relative_position_bucket(
            distance,
            bidirectional=False,
            num_buckets=self.relative_attention_num_buckets,
            max_distance=self.relative_attention_max_distance,
        )
        return self.relative_attention_bias(buckets).permute(0, 3, 1, 2)


def check(config) -> None:
    here = transformers.__version__
    if Version(here).release < OLDEST_TRANSFORMERS.release:
        what = f"switch_transformers needs transformers {OLDEST_TRANSFORMERS} or newer"
        why = "the router of older ones does not return its scores"
        raise UnsupportedModelError(f"{what} (here: {here}): {why}; upgrade transformers")


def largest_block(config, num_rows: int) -> int:
    """The capacity counts the tokens of one row."""
    return config.expert_capacity


def check_blocks(config, num_rows: int, block: int, source: int) -> None:
    most = config.expert_capacity
    if block > most:
        what = f"{block} tokens of a row are verified at once, but expert_capacity={most}"
        why = "tokens would be dropped that plain decoding keeps"
        raise OptionError(f"{what}: {why}; use gamma={most - 1} or less")


def adapt(model: PreTrainedModel) -> None:
    replace_modules(
        model, theirs.SwitchTransformersSparseMLP, lambda old: SparseBlock(old.router, model.config)
    )
    model.decoder.block[0].layer[0].SelfAttention.__class__ = DecoderAttention
