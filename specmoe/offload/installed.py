"""The experts function installed in a model: what lives as long as the engine.

Comes in: a model on transformers' registry and its experts modules. Goes out: every MoE layer's
experts run what ``experts.RunExperts`` says, as long as a run goes on. ``engine`` calls this.

    T tokens of the block, K top_k, D hidden, E experts, L MoE layers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..errors import SpecMoEError, UnsupportedModelError
from ..model.kernels import ExpertKernel
from ..model.operator import experts_operator, number_of
from .experts import Drafting, RunExperts
from .policies import RunPolicy
from .pool import ResidentPool
from .routers import Routers

# The name of our function in the registry, and so in config._experts_implementation.
NAME = "specmoe"


class OffloadedExperts:
    """All MoE layers of one model: what lives as long as the engine. ``run`` is the run that
    computes now, if any."""

    def __init__(
        self,
        model: PreTrainedModel,
        modules: dict[str, nn.Module],
        kernel: ExpertKernel,
        distances: torch.Tensor | None = None,
        num_encoder_layers: int = 0,
        compiled: bool = False,
    ):
        self.model = model
        self.modules = list(modules.values())
        self.kernel = kernel
        self.distances = distances  # [L, E, E]
        self.compiled = compiled
        self.num_layers = len(self.modules)
        self.num_experts = self.modules[0].num_experts
        # An encoder's layers, which come first, never draft.
        self.draft_layers = range(num_encoder_layers, self.num_layers)
        self.routers = Routers(model, modules, self.num_experts)
        self.run: RunExperts | None = None
        # what a draft source left in fast memory, behind the slots of the last run
        self.copied: str | None = None
        self.listeners: list[Callable] = []

    def install(self) -> None:
        """Register the experts function and point this model at it: for torch.compile as one
        operator."""
        ALL_EXPERTS_FUNCTIONS.register(NAME, _experts_forward)
        forward = partial(experts_operator(), number_of(self)) if self.compiled else self.forward
        for layer, module in enumerate(self.modules):
            module._specmoe_forward = partial(forward, layer)
        for module in self.model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = NAME

    def uninstall(self) -> None:
        for module in self.modules:
            del module._specmoe_forward
        self.run = None

    @contextmanager
    def running(self, pool: ResidentPool, policy: RunPolicy, how: Drafting) -> Iterator[RunExperts]:
        """The experts of one run; gone, with everything that they remember, when the block is
        left."""
        with ExitStack() as stack:
            if how.substitute == "router":
                self.routers.require("substitute='router'")
                stack.enter_context(self.routers.listening())
            elif how.guess_next:
                self.routers.require("method='overlapped'")
            self.run = RunExperts(self, pool, policy, how)
            try:
                yield self.run
            finally:
                self.run = None

    def forward(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """One MoE layer in the mode of the moment: [T, D], [T, K], [T, K] -> [T, D]."""
        if weights.shape != index.shape:
            raise UnsupportedModelError(
                f"the router of {self.model.config.model_type} in transformers "
                f"{transformers.__version__} gives weights {list(weights.shape)} for experts "
                f"{list(index.shape)}: a newer transformers may give one for each"
            )
        if self.run is None:
            raise SpecMoEError(
                "the model's experts are offloaded: they compute only while the engine generates"
            )
        for callback in self.listeners:
            callback(self.run, layer, index, weights)
        return self.run.forward(layer, hidden, index, weights).to(hidden.dtype)

    @contextmanager
    def watched_by(self, callback: Callable) -> Iterator[None]:
        """Within, ``callback(run, layer, index, weights)`` sees the router's choices [T, K] of
        every layer and pass, before anything is read for them."""
        self.listeners.append(callback)
        try:
            yield
        finally:
            self.listeners.remove(callback)


def _experts_forward(
    module: nn.Module,
    hidden_states: torch.Tensor,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """What transformers' registry calls: [T, D], [T, K], [T, K] -> [T, D]."""
    return module._specmoe_forward(hidden_states, top_k_index, top_k_weights)
