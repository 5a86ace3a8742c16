"""Probes of the link and of MoE layers, resident and not.

Comes in: an engine. Goes out: rows of timings. ``probe`` calls this.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from ...offload.experts import Drafting, RunExperts
from ...offload.policies import Static
from ...offload.read_queue import DEMAND
from ...offload.transfers import ExpertKey, allocate_slots
from .probing import Prober

BURSTS = (1, 2, 4, 8, 16)
# experts, tokens of each
EXPERTS = ((1, 1), (2, 1), (4, 1), (16, 1), (32, 1), (4, 4), (16, 4), (2, 16), (8, 16))
EXPERTS += ((4, 64), (1, 64), (2, 256))
MISSING = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (4, 4), (16, 4), (8, 16), (4, 64))
# resident, missing, tokens of each
PARTLY = ((1, 1, 1), (3, 1, 1), (1, 2, 1), (4, 4, 1), (4, 2, 4), (3, 9, 4), (4, 8, 16))
DRAFTING = (1, 4, 16, 64)  # tokens
ASKED = (1, 16, 64)  # tokens


class LayerProber(Prober):
    """A layer is timed as the mean over all layers in turn. ``cases``: experts, and tokens of each,
    that are resident; ``drafting``: tokens of a draft step."""

    def __init__(self, engine, prompt, repeats: int, cases=EXPERTS, drafting=DRAFTING):
        super().__init__(engine, prompt, repeats)
        self.cases = cases
        self.drafting = drafting

    def read_all(self) -> None:
        """Every record once: a record's first read computes its checksum, later ones do not."""
        slots = allocate_slots(1, self.engine.store)
        for layer in self.layers:
            for expert in range(self.num_experts):
                self.engine.store.submit(ExpertKey(layer, expert), slots[0], DEMAND).wait()

    def reads(self) -> list[list[float]]:
        store = self.engine.store
        slots = allocate_slots(max(BURSTS), store)

        def burst(number: int) -> None:
            keys = [
                ExpertKey(self.random.choice(self.layers), int(e))
                for e in self.some_experts(number)
            ]
            reads = [store.submit(key, slots[place], DEMAND) for place, key in enumerate(keys)]
            for read in reads:
                read.wait()

        return [[number, self.time(lambda number=number: burst(number))] for number in BURSTS]

    def resident(self) -> list[list[float]]:
        with self.run("resident") as (_, experts):
            found = [self._layers(experts, *case) for case in self._cases(self.cases)]
        return [[*case[:2], case[3]] for case in found]

    def draft(self) -> list[list[float]]:
        """Choices of all experts, most of which have a stand-in among the residents."""
        with self.run("specmoe") as (_, experts):
            number = min(experts.pool.policy.num_kept, self.num_experts)
            for layer in self.layers:
                experts.pool.fetch(layer, self.some_experts(number).tolist())
            with experts.drafting():
                return [[tokens, self._drafted_layer(experts, tokens)] for tokens in self.drafting]

    def _drafted_layer(self, experts: RunExperts, tokens: int) -> float:
        hidden, weights = self._block(tokens)

        def work() -> None:
            for layer in self.layers:
                index = self.random.integers(self.num_experts, size=weights.shape)
                experts.forward(layer, hidden, torch.from_numpy(index), weights)

        return self.time(work) / len(self.layers)

    def waves(self) -> list[list[float]]:
        with self.run("on_demand") as (_, experts):
            return [self._layers(experts, *case) for case in self._cases(MISSING)]

    def stream(self) -> list[list[float]]:
        with self.run("overlapped", drafting=Drafting()) as (_, experts):
            found = [self._layers(experts, *case) for case in self._cases(MISSING)]
        return found + self._partly_resident()

    def _partly_resident(self) -> list[list[float]]:
        """A pool that keeps the first experts of every layer; the others have to be read."""
        num_layers = len(self.engine.packed.layers)
        num_kept = min(self.engine.memory.cached_experts, self.num_experts - 1)
        if num_kept < 1:
            return []
        rule = Static(num_layers, self.num_experts, num_kept, [[0] * self.num_experts] * num_layers)
        with self.run("cached", rule=rule) as (_, experts):
            for layer in self.layers:
                experts.pool.fetch(layer, rule.fixed[layer])
            most = self.num_experts - num_kept
            return [
                self._layers(experts, min(missing, most), each, min(hits, num_kept), num_kept)
                for hits, missing, each in PARTLY
            ]

    def guess(self) -> list[list[float]]:
        """Asking the next layer's router about hidden states; nothing is read."""
        routers = self.engine.experts.routers
        if None in routers.modules or len(self.layers) < 2:
            return [[1, 0.0]]
        asked, found = self.layers[1], []
        for tokens in ASKED:
            hidden, _ = self._block(tokens)
            found.append(
                [tokens, self.time(lambda hidden=hidden: routers.ask(asked, hidden, self.top_k))]
            )
        return found

    def keep(self) -> list[float]:
        counts = [int(expert < 8) for expert in range(self.num_experts)]
        resident = set(range(self.engine.memory.draft_experts))
        with self.run("cached") as (method, _):
            work = lambda: [method.rule.keep(layer, counts, resident) for layer in self.layers]  # noqa: E731
            return [self.time(work) / len(self.layers)]

    def prepare(self) -> list[float]:
        def work() -> None:
            with experts.drafting():
                pass

        with self.run("specmoe") as (_, experts):
            number = min(self.engine.memory.draft_experts, self.num_experts)
            for layer in self.layers:
                experts.pool.fetch(layer, range(number))
            return [self.time(work)]

    def _cases(self, cases) -> list[tuple[int, int]]:
        known = ((min(experts, self.num_experts), tokens) for experts, tokens in cases)
        return list(dict.fromkeys(known))

    def _block(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = self.engine.decoder.config.hidden_size
        return torch.randn(tokens, width), torch.full((tokens, self.top_k), 1.0 / self.top_k)

    def _layers(
        self, function: RunExperts, missing: int, tokens_each: int, hits: int = 0, num_kept: int = 0
    ) -> list[float]:
        """[experts, pairs, reads, seconds, seconds of waits] of a layer: all layers in turn,
        experts drawn anew; ``hits`` of the first ``num_kept`` experts, ``missing`` of the
        others."""
        experts = hits + missing
        pairs = -(-experts * tokens_each // self.top_k) * self.top_k
        hidden, weights = self._block(pairs // self.top_k)
        spread, number, found = torch.arange(pairs) % experts, len(self.layers), []

        def draw() -> torch.Tensor:
            kept = self.random.choice(num_kept, hits, replace=False) if hits else []
            others = self.random.choice(self.num_experts - num_kept, missing, replace=False)
            chosen = np.concatenate([kept, num_kept + others]).astype(np.int64)
            return torch.from_numpy(chosen)[spread].view(-1, self.top_k)

        def work():
            before, index = function.pool.counts.copy(), [draw() for _ in self.layers]
            for layer, chosen in zip(self.layers, index):
                function.forward(layer, hidden, chosen, weights)
            found.append(function.pool.counts.minus(before))

        seconds = self.time(work) / number
        wait_s = statistics.median(each.wait_s for each in found[1:]) / number
        num_reads = statistics.mean(each.num_fetches for each in found[1:]) / number
        return [experts, pairs, num_reads, seconds, wait_s]
