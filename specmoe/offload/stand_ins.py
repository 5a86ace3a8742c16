"""What a draft computes in place of an expert that is not resident (paper, affinity substitution).

Comes in: the experts that every layer keeps. Goes out: for each choice of a router the expert that
is computed. ``experts`` calls this.

    T tokens, K top_k, E experts
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import affinity


class StandIns:
    """State: the ``residents`` of every layer that draft, and a table [E + 1] of each layer."""

    def __init__(self, installed, substitute: str, seed: int):
        self.installed = installed
        self.substitute = substitute
        self.generator = torch.Generator().manual_seed(seed)
        self.residents: list[list[int]] = []
        self.tables: dict[int, torch.Tensor] = {}

    def choose(self, kept: Sequence[set[int]]) -> bool:
        """The experts that draft from now on; False: a layer has none."""
        layers, device = self.installed.draft_layers, self.installed.model.device
        self.residents = [sorted(experts) for experts in kept]
        if not all(self.residents[layer] for layer in layers):
            return False
        self.tables = {layer: self._table(layer).to(device) for layer in layers}
        return True

    def _table(self, layer: int) -> torch.Tensor:
        residents, num_experts = self.residents[layer], self.installed.num_experts
        if self.substitute == "random":
            return affinity.random_resident(num_experts, residents, self.generator)
        if self.substitute == "affinity":
            return affinity.nearest_resident(self.installed.distances[layer], residents)
        return affinity.no_substitute(num_experts, residents)

    def of(self, layer: int, index: torch.Tensor) -> torch.Tensor:
        """The expert that is computed for each choice of ``index`` [T, K]; E for none."""
        if self.substitute == "no_experts":
            return torch.full_like(index, self.installed.num_experts)
        mapped = self.tables[layer][index]
        if self.substitute == "router":
            mapped = self.installed.routers.among(self.residents[layer], layer, index, mapped)
        return mapped

    def record(self, pool, key) -> torch.Tensor:
        """What is computed for the expert ``key``: its record, which is resident."""
        return pool.tier.record(key)

    def compute(self, kernel, module, record: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``x`` [n, D] through the expert in ``record`` -> [n, D]."""
        return kernel.draft(module, record, x)
