"""Switch Transformers: every token goes to one expert, while the expert has room.

The capacity counts the tokens of one row in order, whatever runs beside it. So a long source may
lose tokens in the encoder, and loses the same ones in every batch: a dropped token gets no expert,
and fetches none. In the decoder plain decoding runs one token at a time and never drops; a verified
block of gamma + 1 tokens must therefore fit the capacity.

Needs transformers 5.18: before, its router threw its scores away and routed flattened tokens, so
that no capacity applied.

The bias of the decoder's self-attention depends on the distance between query and key: here every
row counts from its own position.
"""

from __future__ import annotations

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.switch_transformers import modeling_switch_transformers as theirs

from ...errors import OptionError, UnsupportedModelError
from .fused import FusedExperts, RaggedPositions, merged, replace_modules

TOP_K = 1
OLDEST_TRANSFORMERS = (5, 18)


class Router(theirs.SwitchTransformersTop1Router):
    """The model's router, its scores [B, T, E] first; then the one-hot choice [B, T, E] (zeros:
    dropped) and its probability [B, T, 1]. The order of what it returns has changed between
    versions of transformers."""

    def forward(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs = super().forward(hidden_states)
        [chosen] = [x for x in outputs if not x.is_floating_point()]
        probability, scores = sorted(
            (x for x in outputs if x.is_floating_point()), key=lambda x: x.shape[-1]
        )
        return scores, chosen.view(scores.shape), probability


class SparseBlock(nn.Module):
    """In place of ``SwitchTransformersSparseMLP``."""

    def __init__(self, router: nn.Module, config):
        super().__init__()
        router.__class__ = Router
        self.router = router
        self.experts = FusedExperts(
            config, config.num_experts, config.d_model, config.d_ff, ACT2FN[config.dense_act_fn]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        _, chosen, probability = self.router(hidden_states)  # [B, T, E], [B, T, 1]
        kept, index = chosen.max(dim=-1)  # [B, T]
        index = index.masked_fill(kept == 0, self.experts.num_experts).view(-1, 1)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        return self.experts(tokens, index, probability.view(-1, 1)).view_as(hidden_states)


class DecoderAttention(RaggedPositions, theirs.SwitchTransformersAttention):
    """Self-attention whose relative position bias [B, H, T, L] counts from every row's own
    positions."""

    def compute_bias(self, query_length, key_length, device=None, **past) -> torch.Tensor:
        # [B, T, L]
        distance = (
            torch.arange(key_length, device=self.positions.device) - self.positions[:, :, None]
        )
        buckets = self._relative_position_bucket(
            distance,
            bidirectional=False,
            num_buckets=self.relative_attention_num_buckets,
            max_distance=self.relative_attention_max_distance,
        )
        return self.relative_attention_bias(buckets).permute(0, 3, 1, 2)


def check(config) -> None:
    """Settings have an exact verification while blocks fit the capacity (``check_blocks``);
    transformers may be too old."""
    here = transformers.__version__
    if tuple(int(part) for part in here.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise UnsupportedModelError(
            f"switch_transformers needs transformers {'.'.join(map(str, OLDEST_TRANSFORMERS))} or "
            f"newer (here: {here}): the "
            "router of older ones does not return its scores; upgrade transformers"
        )


def largest_block(config, num_rows: int) -> int:
    """Tokens of a row that may run at once: the capacity counts those of one row."""
    return config.expert_capacity


def check_blocks(config, num_rows: int, block: int, source: int) -> None:
    if block > config.expert_capacity:
        raise OptionError(
            f"{block} tokens of a row are verified at once, but "
            f"expert_capacity={config.expert_capacity}: tokens would be "
            f"dropped that plain decoding keeps; use gamma={config.expert_capacity - 1} or less"
        )


def adapt(model: PreTrainedModel) -> None:
    replace_modules(
        model, theirs.SwitchTransformersSparseMLP, lambda old: SparseBlock(old.router, model.config)
    )
    model.decoder.block[0].layer[0].SelfAttention.__class__ = DecoderAttention


def conversions() -> list:
    return merged(
        ("mlp.experts.*.wi.weight", "mlp.experts.up_proj"),
        ("mlp.experts.*.wo.weight", "mlp.experts.down_proj"),
    )
