"""Rotary embeddings whose frequencies depend on how long the text is: longrope, dynamic, Phi-MoE.

transformers takes one length, the longest row's, for all that run together. Here every token gets
the factors of a row that is decoded alone: a prompt's tokens those of the prompt's length, each
later token those of its own position. The module's own forward pass makes them, once for each
regime that occurs in the block.

    B rows, T tokens of a block, R rotary dimensions
"""

from __future__ import annotations

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

from ...errors import UnsupportedModelError
from .fused import RaggedPositions

# Found exact there; found wrong on 5.2.0; not tried between.
DYNAMIC_SINCE = Version("5.24.0")


class RaggedRope(RaggedPositions):
    """Mixed into a rotary embedding."""

    @torch.compiler.disable
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None):
        """Factors [B, T, R] (one tensor or several), as the mixed-in class gives them."""
        each, original = _regimes(self)[layer_type]
        regimes = (self.lengths > original).long() * (self.lengths if each else 1)
        chosen = None
        for regime in regimes.unique().tolist():
            here = regimes == regime
            made = self._of_length(x, position_ids, int(self.lengths[here].max()), layer_type)
            pairs = zip(made, chosen or made)
            chosen = [torch.where(here[..., None], new, old) for new, old in pairs]
        return tuple(chosen) if len(chosen) > 1 else chosen[0]

    def _of_length(self, x, position_ids, length: int, layer_type) -> list[torch.Tensor]:
        """What the class computes for these positions if the longest row has ``length`` tokens."""
        kwargs = {} if layer_type is None else {"layer_type": layer_type}
        # back to the original frequencies first: transformers keeps those of the last longer length
        super().forward(x, torch.zeros_like(position_ids), **kwargs)
        last = torch.full_like(position_ids[:, :1], length - 1)
        positions = torch.cat([position_ids.clamp(max=length - 1), last], dim=1)
        made = super().forward(x, positions, **kwargs)
        return [part[:, :-1] for part in (made if isinstance(made, tuple) else (made,))]


def adapt(model: PreTrainedModel) -> None:
    """Mix ``RaggedRope`` into the modules of ``model`` that need it."""
    for module in model.modules():
        regimes = _regimes(module)
        is_dynamic = any(each for each, _ in regimes.values())
        if is_dynamic and Version(transformers.__version__) < DYNAMIC_SINCE:
            what = f"{model.config.model_type} has dynamic rope, whose rows are exact from"
            here = f"transformers {DYNAMIC_SINCE} on, and this is {transformers.__version__}"
            raise UnsupportedModelError(f"{what} {here}: use a newer one")
        if regimes:
            module.__class__ = type(type(module).__name__, (RaggedRope, type(module)), {})


def rope_switch(model: PreTrainedModel) -> int | None:
    """The length after which transformers' ``generate`` drops the cache once and runs the whole
    text anew (Phi-MoE); None: it never does."""
    own = "prepare_inputs_for_generation" in vars(type(model))
    if own and any(isinstance(module, RaggedRope) for module in model.modules()):
        return getattr(model.config, "original_max_position_embeddings", None)
    return None


def _regimes(module: nn.Module) -> dict[str | None, tuple[bool, int]]:
    """For each kind of layer whose frequencies depend on the length: is each length on its own, and
    up to which one are they the same?"""
    kinds, found = getattr(module, "rope_type", None), {}
    for kind in kinds if isinstance(kinds, dict) else [None] if isinstance(kinds, str) else []:
        rope = module.config.rope_parameters
        rope = rope if kind is None else rope[kind]
        if "dynamic" in rope["rope_type"]:
            found[kind] = True, module.original_max_seq_len
        elif rope["rope_type"] == "longrope" or "long_mscale" in rope:
            found[kind] = False, rope["original_max_position_embeddings"]
    return found
