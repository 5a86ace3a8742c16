"""What a draft computes in place of an expert that is not resident (paper, affinity substitution).

Comes in: the experts that every layer keeps. Goes out: for each choice of a router the expert that
is computed. ``experts`` calls this.

    T tokens, K top_k, E experts
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..registry import Part, own
from . import affinity


class OwnTable:
    """Your own substitute (``specmoe.register``): a function ``(layer, residents, distances)``, or
    a class, made anew for each run, with such a method ``stand_ins``. ``residents``: the experts of
    ``layer`` that draft, ascending; ``distances``: float32 [E, E] between the weights of its
    experts. It returns, for each of the E experts, the resident that is computed in its place, or
    None for none; a resident always stands for itself. It is asked whenever a draft begins.
    ``of`` is that table, checked every time."""

    def __init__(self, part: Part, distances: torch.Tensor):
        self.part = part
        self.distances = distances  # [L, E, E]

    def of(self, layer: int, residents: list[int]) -> torch.Tensor:
        """[E + 1]: the expert that is computed for each, E for none."""
        part, distances = self.part, self.distances[layer].clone()
        answer = part.ask(part.method or part.given, layer, list(residents), distances)
        none, where = len(distances), f"for layer {layer}"
        if isinstance(answer, list | tuple):
            answer = [none if expert is None else expert for expert in answer]
        chosen = part.numbers(answer, where, "a list of a resident or None for each expert")
        if len(chosen) != none:
            raise part.refusal(f"{len(chosen)} experts {where}: return one for each of {none}")
        if wrong := set(chosen) - {*residents, none}:
            raise part.refusal(
                f"expert {min(wrong)} {where}: those that draft are {str(residents)[:60]}"
            )
        return affinity.stand_in_table(none, residents, lambda _: torch.tensor(chosen))


class StandIns:
    """State: the ``residents`` of every layer that draft, and a table [E + 1] of each layer."""

    def __init__(self, installed, substitute, seed: int):
        self.installed = installed
        self.substitute = substitute
        part = own("substitute", substitute)
        self.own = OwnTable(part, installed.distances) if part else None
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
        if self.own:
            return self.own.of(layer, residents)
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
