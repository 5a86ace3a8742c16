"""The experts function: what runs in place of every MoE layer's experts, for every model on
transformers' registry.

Comes in, after the model's own router: ``hidden`` [T, D], ``top_k_index`` [T, K], ``top_k_weights``
[T, K]. Goes out: [T, D]. While *verifying*, every distinct expert that a live token needs is
fetched once and computed (coalesced); while *drafting* only the resident draft experts are
computed, and a stand-in replaces what is not there. ``decoder`` runs the model around it.

    T tokens of the block, K top_k, D hidden, E experts, L MoE layers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from .dispatch import (
    Groups,
    group_by_expert,
    keep_top_k,
    living_pairs,
    merge_duplicates,
    tokens_per_expert,
)
from .policies import RunPolicy
from .pool import PoolMode, ResidentPool
from .stand_ins import StandIns
from .transfers import ExpertKey

if TYPE_CHECKING:
    from .installed import OffloadedExperts


@dataclass(frozen=True)
class Drafting:
    """How a run drafts and reads ahead (``options.GenerateOptions``)."""

    substitute: str = "affinity"
    prefetch: bool = False
    guess_next: bool = False
    seed: int = 0
    top_k: int | str | None = None


class RunExperts:
    """The experts of one run: complete when constructed, gone when the run ends.

    State: the mode, the live tokens of the block, stand-ins, tokens per expert of the whole run.
    """

    def __init__(
        self, installed: OffloadedExperts, pool: ResidentPool, policy: RunPolicy, how: Drafting
    ):
        self.installed = installed
        # may be replaced before the first round: a clock around it, for one
        self.kernel = installed.kernel
        self.pool = pool
        self.policy = policy
        self.how = how
        # What a kernel made of records that never move: expert -> weights in the model's dtype.
        is_resident = pool.mode is PoolMode.RESIDENT
        self.remembered: dict[ExpertKey, dict] | None = {} if is_resident else None
        self.totals = [[0] * installed.num_experts for _ in range(installed.num_layers)]
        # a draft source may put its own in this place
        self.stand_ins = StandIns(installed, how.substitute, how.seed)
        self.live: torch.Tensor | None = None
        self.is_drafting = False
        self.started = False

    # ---- modes ----

    @contextmanager
    def verifying(self, live: torch.Tensor | None) -> Iterator[None]:
        """Within, forward passes are the full model's; only ``live`` tokens (bool, any shape of T)
        fetch and count."""
        self.set_live(live)
        yield

    @contextmanager
    def drafting(self) -> Iterator[bool]:
        """Within, forward passes are the draft's: resident experts only; reads may begin. The
        draft set is what every layer keeps; what a fixed or own set names and is not here is
        fetched first.
        False: a layer has no draft expert yet."""
        if not self._choose_residents():
            yield False
            return
        self.is_drafting = True
        try:
            yield True
        finally:
            self.is_drafting = False

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """Within, forward passes are the full model's over prompts. The first prefill finds the
        first residents; later ones (refills while decoding) leave every layer's kept set as the
        last verification chose it."""
        with self.policy.frozen() if self.started else ExitStack():
            self.started = True
            yield

    def set_live(self, live: torch.Tensor | None) -> None:
        """Which tokens of the next pass count (bool, any shape of T; None: all)."""
        self.live = None if live is None else live.reshape(-1).to(self.installed.model.device)

    def _choose_residents(self) -> bool:
        installed, kept = self.installed, self.pool.kept
        for layer in installed.draft_layers:
            if kept[layer] - self.pool.resident_experts(layer):
                self.pool.fetch(layer, kept[layer])
        if not self.stand_ins.choose(kept):
            return False
        for layer in range(installed.num_layers):
            self.policy.votes.clear(layer)
        return True

    # ---- the experts function ----

    def forward(
        self, layer: int, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        run = self._draft_layer if self.is_drafting else self._verify_layer
        return run(layer, hidden, index, weights)

    def _verify_layer(self, layer, hidden, index, weights):
        groups = group_by_expert(index, self.installed.num_experts, self.live)
        self._count(layer, groups.counts)
        kept, resident = self.pool.kept[layer], self.pool.resident_experts(layer)
        keep = self.policy.keep(layer, groups.counts, kept, resident)
        ahead = (ExpertKey(*key) for key in self.policy.votes.after(layer))
        records = self.pool.request(layer, groups.slices, keep, ahead)
        self._guess_next_layer(layer, hidden, index.shape[1])
        return self._compute(layer, hidden, weights, groups, records)

    def _draft_layer(self, layer, hidden, index, weights):
        if self.how.prefetch:
            self._vote(layer, index)
        if self.how.substitute == "no_experts":
            return torch.zeros_like(hidden)
        index, weights = keep_top_k(index, weights, self.how.top_k)
        mapped = self.stand_ins.of(layer, index)
        mapped, weights = merge_duplicates(mapped, weights, self.installed.num_experts)
        groups = group_by_expert(mapped, self.installed.num_experts, self.live)
        records = {
            expert: self.stand_ins.record(self.pool, ExpertKey(layer, expert))
            for expert in groups.slices
        }
        return self._compute(layer, hidden, weights, groups, [records])

    def computed(self, layer: int, index: torch.Tensor) -> torch.Tensor:
        """The expert that is computed for each choice of ``index`` [T, K]; E for none."""
        return self.stand_ins.of(layer, index) if self.is_drafting else index

    def _compute(
        self,
        layer: int,
        hidden: torch.Tensor,
        weights: torch.Tensor,
        groups: Groups,
        records: Iterable[dict[int, torch.Tensor]],
    ) -> torch.Tensor:
        """Every pair's output into its own row, then one weighted sum: the result cannot depend on
        arrival order. Records that came together are computed together where the kernel can."""
        num_tokens, top_k = weights.shape
        kernel, module = self.kernel.of_layer(layer), self.installed.modules[layer]
        own = self.is_drafting and not isinstance(self.stand_ins, StandIns)
        inputs = hidden.index_select(0, groups.order // top_k)  # [P, D], each expert's together
        outputs = torch.empty_like(inputs)
        for some in records:
            counts = [groups.counts[expert] for expert in some]
            if not own and kernel.takes_several(counts):
                rows = _rows([groups.slices[expert] for expert in some])
                outputs[rows] = kernel.several(module, list(some.values()), counts, inputs[rows])
                continue
            for expert, record in some.items():
                place = groups.slices[expert]
                outputs[place] = self._one_expert(ExpertKey(layer, expert), record, inputs[place])
        pairs = hidden.new_zeros(num_tokens * top_k, hidden.shape[1])  # [T * K, D]
        pairs.index_copy_(0, groups.order, outputs)
        return (pairs.view(num_tokens, top_k, -1) * weights[..., None]).sum(dim=1)  # [T, D]

    def _one_expert(self, key: ExpertKey, record: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        kernel, module = self.kernel.of_layer(key.layer), self.installed.modules[key.layer]
        if self.is_drafting:
            return self.stand_ins.compute(kernel, module, record, x)
        if self.remembered is None or kernel.reads_stored():
            return kernel.target(module, record, x)
        if key not in self.remembered:
            self.remembered[key] = kernel.upcast_copy(record)
        return kernel.run(module, self.remembered[key], x)

    def _count(self, layer: int, counts: list[int]) -> None:
        self.policy.observe(layer, counts)
        totals = self.totals[layer]
        for expert, count in enumerate(counts):
            if count:
                totals[expert] += count
                self.pool.tier.trace.add("route", layer, expert, count=count)

    # ---- reading ahead ----

    def _vote(self, layer: int, index: torch.Tensor) -> None:
        """The draft's router names experts, before substitution: read those it asks for often
        enough."""
        num_experts = self.installed.num_experts
        counts = tokens_per_expert(living_pairs(index, num_experts, self.live), num_experts)
        for expert in self.policy.votes.add(layer, counts, index.shape[0]):
            self.pool.prefetch(ExpertKey(layer, expert))

    def _guess_next_layer(self, layer: int, hidden: torch.Tensor, top_k: int) -> None:
        """Overlapped: the next layer's router, asked about this layer's input, names what to read
        meanwhile."""
        installed = self.installed
        lasts = (installed.num_layers - 1, installed.draft_layers.start - 1)
        if not self.how.guess_next or layer in lasts:
            return
        if self.live is not None:
            hidden = hidden[self.live.repeat_interleave(len(hidden) // len(self.live))]
        for expert in installed.routers.ask(layer + 1, hidden, top_k) if len(hidden) else ():
            self.pool.prefetch(ExpertKey(layer + 1, expert))


def _rows(places: list[slice]) -> slice | list[int]:
    """The rows of ``places``: one slice where they follow each other."""
    if all(one.stop == other.start for one, other in pairwise(places)):
        return slice(places[0].start, places[-1].stop)
    return [row for place in places for row in range(place.start, place.stop)]
