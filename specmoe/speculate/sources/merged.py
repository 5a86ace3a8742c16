"""Drafts from a few experts per layer that each stand for a cluster of experts.

Comes in: the distances between experts and how much each was used in a calibration. Goes out: N
experts per layer, the means of their clusters, weighted by use; every choice of a router is
computed by its cluster's.
"""

from __future__ import annotations

import hashlib

import torch

from ...checkpoint import ExpertLayout
from ...offload.transfers import ExpertKey
from .copies import Copies


class Merged(Copies):
    """``counts`` [L][E]: tokens of each expert. State: of each layer the expert that names the
    cluster of every expert, and where its mean lies."""

    def __init__(self, number: int, layout: ExpertLayout, shape: tuple[int, int], counts):
        self.number = min(number, shape[1])
        # as in the checkpoint, or widened where that has no weights that could be averaged
        self.layout = ExpertLayout.of(
            dict(zip(layout.names, layout.shapes, strict=True)), layout.dtype
        )
        self.counts = counts
        self.tables: dict[int, torch.Tensor] = {}
        self.places: dict[ExpertKey, int] = {}
        digest = hashlib.sha256(repr(counts).encode()).hexdigest()[:8]
        super().__init__(
            f"merged:{number}", self.layout.record_bytes, shape[0] * self.number, 0, digest
        )

    def prepare(self, experts):
        installed = experts.installed
        for layer in installed.draft_layers:
            use = torch.tensor(self.counts[layer], dtype=torch.float32) + 1
            table = clusters(installed.distances[layer], use, self.number)
            for medoid in table.unique().tolist():
                self.places[ExpertKey(layer, medoid)] = len(self.places)
            none = torch.tensor([installed.num_experts])
            self.tables[layer] = torch.cat([table, none]).to(installed.model.device)

    def make(self, experts):
        for key in self.places:
            members = (self.tables[key.layer][:-1] == key.expert).nonzero().flatten().tolist()
            use = [self.counts[key.layer][member] + 1 for member in members]
            shares = dict(zip(members, [count / sum(use) for count in use], strict=True))
            mean: dict[str, torch.Tensor] = {}
            keys = [ExpertKey(key.layer, member) for member in members]
            for member, record in self.records(experts, keys):
                for name, weight in experts.kernel.of_layer(key.layer).upcast_copy(record).items():
                    mean[name] = mean.get(name, 0) + shares[member.expert] * weight
            for name, weight in self.layout.views(self.record(experts.pool, key)).items():
                weight.copy_(mean[name])

    def of(self, layer, index):
        return self.tables[layer][index]

    def record(self, pool, key):
        return self.copies[self.places[key]]

    def compute(self, kernel, module, record, x):
        weights = self.layout.views(record)
        return kernel.run(module, weights, x.to(self.layout.dtype)).to(x.dtype)


def clusters(distances: torch.Tensor, use: torch.Tensor, number: int) -> torch.Tensor:
    """``distances`` [E, E], ``use`` [E] -> [E] the expert that names each one's cluster: of each
    step the expert that brings the used ones nearest to their own is added, until there are
    ``number``."""
    nearest = torch.full_like(use, torch.inf)
    chosen: list[int] = []
    for _ in range(number):
        after = torch.minimum(nearest[None], distances)  # [E, E]: expert added, every expert
        cost = (after * use).sum(dim=1)
        cost[chosen] = torch.inf
        chosen.append(int(cost.argmin()))
        nearest = torch.minimum(nearest, distances[chosen[-1]])
    medoids = torch.tensor(sorted(chosen))
    return medoids[distances[:, medoids].argmin(dim=1)]
