"""The routers beside the experts: asked ahead of their turn, or listened to.

Comes in: a model and the names of its experts modules. Goes out: the experts that a layer's router
would choose, or that it would choose among the residents. ``experts`` calls this; a model whose
routers cannot be found still runs without.

    T tokens, K top_k, E experts, L MoE layers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError


class Routers:
    """State: the logits [T, E] that each layer's router gave last, while somebody listens."""

    def __init__(self, model: PreTrainedModel, experts_names: Iterable[str], num_experts: int):
        self.model_type = model.config.model_type
        self.num_experts = num_experts
        names = list(experts_names)
        self.modules = [router_of(model, name) for name in names]
        self.given = [given_by(model, *each) for each in zip(names, self.modules)]
        self.logits: list[torch.Tensor | None] = [None] * len(self.modules)
        # most take rows [T, D], or those too; AFMoE's takes blocks [B, T, D] only
        self.takes_blocks = False
        first = next(filter(None, self.modules), None)
        self.hook = first and first.register_forward_pre_hook(self._first_call)

    def _first_call(self, router: nn.Module, args: tuple) -> None:
        """How the model itself calls its routers."""
        self.takes_blocks = bool(args) and args[0].dim() == 3
        self.hook.remove()

    def require(self, what: str) -> None:
        """``UnsupportedModelError`` where ``what`` needs scores that the model hides."""
        if None in self.modules:
            raise UnsupportedModelError(
                f"{what} needs the router's scores, and {self.model_type} hides them"
            )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, every router's logits are remembered."""
        hooks = [
            router.register_forward_hook(partial(self._remember, layer))
            for layer, router in enumerate(self.modules)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _remember(self, layer: int, router: nn.Module, args, output) -> None:
        self.logits[layer] = logits_of(output, self.num_experts)

    def ask(self, layer: int, hidden: torch.Tensor, top_k: int) -> list[int]:
        """The experts that the router of ``layer`` would choose for ``hidden`` [T, D]."""
        block = hidden[None] if self.takes_blocks else hidden
        logits = logits_of(self.modules[layer](block, **self.given[layer]), self.num_experts)
        return logits.topk(top_k, dim=-1).indices.unique().tolist()

    def among(
        self, residents: list[int], layer: int, index: torch.Tensor, mapped: torch.Tensor
    ) -> torch.Tensor:
        """``mapped`` [T, K], where E stands for a choice of ``index`` [T, K] that is not here, with
        such a choice replaced by the resident that the router likes best and has not used."""
        scores = self.logits[layer].float()  # [T, E]
        here = torch.zeros(self.num_experts, dtype=torch.bool, device=scores.device)
        here[residents] = True
        scores = scores.masked_fill(~here, float("-inf")).scatter(1, index, float("-inf"))
        mapped = mapped.clone()
        for k in range(index.shape[1]):
            best = scores.max(dim=1)
            missing = (mapped[:, k] == self.num_experts) & (best.values > float("-inf"))
            mapped[missing, k] = best.indices[missing]
            taken = torch.where(missing, float("-inf"), best.values)
            scores = scores.scatter(1, best.indices[:, None], taken[:, None])
        return mapped


def logits_of(output, num_experts: int) -> torch.Tensor:
    """A router returns its logits [T, E] alone or in a tuple: first, or (some models of older
    transformers) last."""
    outputs = output if isinstance(output, tuple) else (output,)
    tensors = [x for x in outputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    logits = next((x for x in tensors if x.shape[-1] == num_experts), outputs[0])
    return logits.reshape(-1, logits.shape[-1])


def given_by(model: PreTrainedModel, experts_name: str, router: nn.Module | None) -> dict:
    """What else the block around an experts module hands its router, such as a bias: what it has by
    the name of an argument."""
    block = model.get_submodule(experts_name.rpartition(".")[0])
    names = list(signature(router.forward).parameters)[1:] if router is not None else ()
    return {name: getattr(block, name) for name in names if hasattr(block, name)}


def router_of(model: PreTrainedModel, experts_name: str) -> nn.Module | None:
    """The router beside an experts module: the class the model records router logits from, or a
    child so named."""
    block = model.get_submodule(experts_name.rpartition(".")[0])
    for name, child in block.named_children():
        recorder = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
        target = getattr(recorder, "target_class", recorder)
        if (isinstance(target, type) and isinstance(child, target)) or name in ("gate", "router"):
            return child
    return None
