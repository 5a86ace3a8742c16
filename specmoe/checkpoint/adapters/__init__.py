"""Models outside transformers' experts registry, brought into it.

The MoE blocks of three families become ones that call the registry, like all others: ``offload``
then needs to know no family. The router stays the model's own; only who computes the experts
changes. A module of a family has ``adapt``, ``CONVERSIONS`` and, as far as it needs them,
``check``, ``TOP_K``, ``largest_block`` and ``check_blocks``.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from transformers import PreTrainedModel

from . import llama4, nllb, rotary, switch
from .fused import RaggedPositions
from .rotary import rope_switch as rope_switch

FAMILIES = {"nllb-moe": nllb, "switch_transformers": switch, "llama4_text": llama4}


def _ask(config, name: str, *arguments):
    """What the function ``name`` of the family says; None where it has none."""
    function = getattr(FAMILIES.get(config.model_type), name, None)
    return function and function(*arguments)


def adapt(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the MoE blocks of ``model`` (on ``meta``) in place, where its family is one of these;
    refuse settings whose routing depends on chance or on which tokens run together."""
    _ask(model.config, "check", model.config)
    with torch.device("meta"):
        _ask(model.config, "adapt", model)
    rotary.adapt(model)
    return model


def conversions(model: PreTrainedModel) -> list:
    """How published checkpoints of the family become the adapted model: ``WeightConverter`` s."""
    # they remember what they have matched
    return deepcopy(getattr(FAMILIES.get(model.config.model_type), "CONVERSIONS", []))


def position_modules(model: nn.Module) -> list[RaggedPositions]:
    """The modules that must be told every row's own positions before a forward pass."""
    return [module for module in model.modules() if isinstance(module, RaggedPositions)]


def top_k(config) -> int | None:
    """Experts per token, for the families whose config does not say."""
    return getattr(FAMILIES.get(config.model_type), "TOP_K", None)


def check_blocks(config, *, num_rows: int, block: int, source: int) -> None:
    """Raise ``OptionError`` if a run could exceed a capacity: ``num_rows`` rows, ``block`` tokens
    of each verified at once, the longest source having ``source`` tokens."""
    _ask(config, "check_blocks", config, num_rows, block, source)


def largest_block(config, num_rows: int) -> int | None:
    """Tokens of a row that may run at once, of ``num_rows`` that do; None: any number."""
    return _ask(config, "largest_block", config, num_rows)
