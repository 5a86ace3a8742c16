"""What the families share: the experts of a layer as one module, positions of each row's own.

E experts, D hidden, F ffn, T tokens, K top_k, B rows
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.core_model_loading import MergeModulelist, WeightConverter
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


class FusedExperts(nn.Module):
    """All experts of one MoE layer, with the flags and names of transformers' own fused experts.

    Plain ``[F, D]`` and ``[D, F]`` matrices (``bias``: with biases), or ``gated`` ones in Llama 4's
    transposed layout, ``[D, 2F]`` = [gate; up] and ``[F, D]``; ``sizes`` are E, D and F.
    """

    is_concatenated, has_post_expert_norm, _is_expert_parallel = True, False, False

    def __init__(
        self, config, sizes: tuple[int, int, int], act_fn: Callable, *, bias=False, gated=False
    ):
        super().__init__()
        self.config = config
        self.num_experts, hidden, ffn = sizes
        self.act_fn = act_fn
        self.has_bias = bias
        self.has_gate = gated
        self.is_transposed = gated
        shapes = {"up_proj": (ffn, hidden), "down_proj": (hidden, ffn)}
        if gated:
            shapes = {"gate_up_proj": (hidden, 2 * ffn), "down_proj": (ffn, hidden)}
        if bias:
            shapes |= {"up_proj_bias": (ffn,), "down_proj_bias": (hidden,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(self.num_experts, *shape)))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ):
        """[T, D], [T, K], [T, K] -> [T, D], by the registered function; index E: no expert."""
        compute = ALL_EXPERTS_FUNCTIONS[self.config._experts_implementation]
        return compute(self, hidden_states, top_k_index, top_k_weights)

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up


class RaggedPositions:
    """Mixed into modules that would derive positions from one length for all rows. The decoder sets
    ``positions`` [B, T] and the ``lengths`` [B, T] of the text that a token first ran with."""

    positions: torch.Tensor
    lengths: torch.Tensor


def merged(at: str, matrices: dict[str, str], bias: bool = False) -> list[WeightConverter]:
    """One tensor per expert in the checkpoint (``*`` its number) -> one ``[E, ...]``."""
    kinds = {"weight": "", "bias": "_bias"} if bias else {"weight": ""}
    return [
        WeightConverter(f"{at}.*.{old}.{kind}", f"{at}.{new}{end}", operations=[MergeModulelist(0)])
        for old, new in matrices.items()
        for kind, end in kinds.items()
    ]


def replace_modules(model: nn.Module, old: type, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``make(module)`` in place of every module of class ``old``."""
    for name, module in [(name, m) for name, m in model.named_modules() if isinstance(m, old)]:
        model.set_submodule(name, make(module))
