"""Models outside transformers' experts registry, brought into it.

Comes in: a model on ``meta``, as ``checkpoint`` builds it. Goes out: the same model with the MoE
blocks of three families replaced by ones that call the registry, like all the others: ``experts``
then needs to know no family. The router stays the model's own; only who computes the experts
changes.

fused     the experts of one layer as one module, and what a module must know when rows have
          different lengths
nllb      NLLB-MoE: two experts per token, read from the probabilities that the router returns
switch    Switch Transformers: one expert per token, a capacity per row
rotary    rotary embeddings whose frequencies depend on the length of the text
llama4    Llama 4 (text): the router's score scales the input of an expert
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from . import llama4, nllb, rotary, switch
from .fused import FusedExperts, RaggedPositions
from .rotary import rope_switch

FAMILIES = {"nllb-moe": nllb, "switch_transformers": switch, "llama4_text": llama4}

__all__ = [
    "FusedExperts",
    "RaggedPositions",
    "adapt",
    "check_blocks",
    "conversions",
    "largest_block",
    "position_modules",
    "rope_switch",
    "top_k",
]


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the MoE blocks of ``model`` (on ``meta``) in place; models of other families come
    back as they are.

    Raises ``UnsupportedModelError`` for settings whose routing depends on chance or on which tokens
    run together.
    """
    family = FAMILIES.get(model.config.model_type)
    if family is not None:
        family.check(model.config)
        with torch.device("meta"):
            family.adapt(model)
    rotary.adapt(model)
    return model


def conversions(model: PreTrainedModel) -> list:
    """How published checkpoints of the family become the adapted model: transformers'
    ``WeightConverter`` s."""
    family = FAMILIES.get(model.config.model_type)
    return [] if family is None else family.conversions()


def position_modules(model: nn.Module) -> list[RaggedPositions]:
    """The modules that must be told every row's own positions before a forward pass."""
    return [module for module in model.modules() if isinstance(module, RaggedPositions)]


def top_k(config) -> int | None:
    """Experts per token, for the families whose config does not say."""
    return getattr(FAMILIES.get(config.model_type), "TOP_K", None)


def check_blocks(config, *, num_rows: int, block: int, source: int) -> None:
    """Raise ``OptionError`` if a run could exceed a capacity: ``num_rows`` rows, ``block`` tokens
    of each verified at once, the longest source having ``source`` tokens."""
    family = FAMILIES.get(config.model_type)
    if hasattr(family, "check_blocks"):
        family.check_blocks(config, num_rows, block, source)


def largest_block(config, num_rows: int) -> int | None:
    """Tokens of a row that may run at once in a batch of ``num_rows``, where a router has a
    capacity; None: any number."""
    family = FAMILIES.get(config.model_type)
    return family.largest_block(config, num_rows) if hasattr(family, "largest_block") else None
