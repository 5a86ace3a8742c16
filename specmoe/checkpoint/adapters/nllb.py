"""NLLB-MoE: every token goes to the two experts with the highest router probabilities.

transformers 5.23's own ``NllbMoeExperts.forward`` takes the one-hot of a mask that is one-hot
already, and so computes experts 0 and 1 for every token. Here the routing is what the router says:
the weights of both experts (normalised, and with a fixed capacity cut by it, as the config says),
scaled by ``1 - moe_token_dropout``, as fairseq trained the model. Padding needs no mask here:
padded tokens are told apart outside, and nobody reads them.

Refused, since no exact verification exists: a second expert that is sampled, and a capacity that is
a fraction of the tokens that happen to run together. A fixed capacity
(``moe_eval_capacity_token_fraction`` <= 0) is accepted while a run's blocks cannot exceed it; then
batch-prioritised routing, which says who is dropped, has no effect.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.nllb_moe import modeling_nllb_moe as theirs

from ...errors import OptionError, UnsupportedModelError
from .fused import FusedExperts, RaggedPositions, merged, replace_modules

TOP_K = 2
CONVERSIONS = merged("ffn.experts", {"fc1": "up_proj", "fc2": "down_proj"}, bias=True)


class Router(theirs.NllbMoeTop2Router):
    """The model's: logits [T, E], then weights and experts of both choices [T, 2] (0: none)."""

    def forward(self, hidden_states: torch.Tensor, padding_mask=None) -> tuple[torch.Tensor, ...]:
        if self.moe_eval_capacity_token_fraction > 0:
            return self._choose_freely(hidden_states)
        _, router_probs, router_logits = super().forward(hidden_states, padding_mask)
        return router_logits, *router_probs.topk(TOP_K, dim=-1)

    def _choose_freely(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the original computes where an expert has room for every token, without counting."""
        weight, bias = self.classifier.weight.to(self.dtype), self.classifier.bias
        bias = None if bias is None else bias.to(self.dtype)
        logits = nn.functional.linear(tokens.to(self.dtype), weight, bias)
        index = logits.topk(TOP_K, dim=-1).indices
        chosen = logits.softmax(dim=-1).to(tokens.dtype).gather(1, index)
        total = chosen.sum(dim=1, keepdim=True).clamp(min=torch.finfo(chosen.dtype).eps)
        return logits, chosen / total, index


class SparseBlock(nn.Module):
    """In place of ``NllbMoeSparseMLP``."""

    def __init__(self, router: nn.Module, config, ffn_dim: int):
        super().__init__()
        router.__class__ = Router
        self.router = router
        sizes, act_fn = (config.num_experts, config.d_model, ffn_dim), config.activation_function
        self.experts = FusedExperts(config, sizes, ACT2FN[act_fn], bias=True)
        self.eval_scale = 1 - config.moe_token_dropout

    def forward(self, hidden_states: torch.Tensor, padding_mask=None) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])  # [T, D]
        _, weights, index = self.router(tokens)
        return self.experts(tokens, index, weights * self.eval_scale).view_as(hidden_states)


class DecoderPositions(RaggedPositions, theirs.NllbMoeSinusoidalPositionalEmbedding):
    """Sinusoidal positions of every row's own: token t of a row stands at padding_idx + 1 + t, a
    pad token at padding_idx (as when tokens are decoded one by one)."""

    def forward(self, input_ids=None, inputs_embeds=None, past_key_values_length=0) -> torch.Tensor:
        index, pad = self.positions + self.padding_idx + 1, self.padding_idx
        return self.weights[index.masked_fill(input_ids == pad, pad)]  # [B, T, D]


def check(config) -> None:
    """Refuse settings without exact verification."""
    policy, fraction = config.second_expert_policy, config.moe_eval_capacity_token_fraction
    if policy != "all":
        what = f"nllb-moe with second_expert_policy={policy!r} draws its second expert at random"
        remedy = "set it to 'all' in config.json"
    elif 0 < fraction < 1:
        drops = "drops tokens depending on which tokens run together"
        what = f"nllb-moe with moe_eval_capacity_token_fraction={fraction} {drops}"
        remedy = "set it to 1.0 in config.json"
    else:
        return
    raise UnsupportedModelError(f"{what}: no exact verification exists; {remedy}")


def largest_block(config, num_rows: int) -> int | None:
    # a fraction of at least 1.0: an expert has room for every token
    has_room = config.moe_eval_capacity_token_fraction > 0
    return None if has_room else config.expert_capacity // num_rows


def check_blocks(config, num_rows: int, block: int, source: int) -> None:
    """A fixed capacity counts the tokens of all rows: none of this run's blocks may be larger."""
    most, capacity = largest_block(config, num_rows), config.expert_capacity
    for what, tokens in (("encoded", source), ("verified", block)):
        if most is not None and tokens > most:
            where = f"{num_rows} rows x {tokens} tokens are {what} at once"
            why = "tokens would be dropped depending on what runs together"
            remedy = f"use batch_size={max(1, capacity // max(source, block))} or a smaller gamma"
            other = "set moe_eval_capacity_token_fraction to 1.0 in config.json"
            where += f", but expert_capacity={capacity}"
            raise OptionError(f"{where}: {why}; {remedy}, or {other}")


def adapt(model: PreTrainedModel) -> None:
    config, stacks = model.config, model.model
    for stack, ffn in ((stacks.encoder, "encoder_ffn_dim"), (stacks.decoder, "decoder_ffn_dim")):
        make = partial(SparseBlock, config=config, ffn_dim=getattr(config, ffn))
        replace_modules(stack, theirs.NllbMoeSparseMLP, lambda old, make=make: make(old.router))
    stacks.decoder.embed_positions.__class__ = DecoderPositions
