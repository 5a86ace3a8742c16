"""What becomes of the experts that the draft's routers name: which were read ahead, and which were
not, and why.

Comes in: an engine and prompts. Goes out: a frame of the reads that verifications needed, and the
run's output. ``lessons.draft_foresight`` says how much the routers know; this says what the engine
could do with it. Notebook 08 calls both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.output import Output

AHEAD, LOST, NO_BUFFER = "read ahead", "read ahead, buffer lost", "named, no buffer was free"
FEW, UNNAMED = "named by too few tokens", "not named"
FATES = (AHEAD, LOST, NO_BUFFER, FEW, UNNAMED)
COLUMNS = ["round", "layer", "expert", "votes", "fate"]


def fates_of_misses(engine: Engine, prompts, **options) -> tuple[pd.DataFrame, Output]:
    """A run with prefetching: a row for every expert that a verification needed and that was not
    resident when its router asked, with its ``votes`` (tokens of the draft that named it) and its
    ``fate``, one of ``FATES``.

    ``options`` are those of ``Engine.generate``, method specmoe. Which buffers are free depends on
    timing, so two runs may differ a little.
    """
    with engine.start(prompts, method="specmoe", prefetch=True, **options) as run:
        watch = _Watch(run.batch)
        for _ in run:
            pass
        return pd.DataFrame(watch.rows, columns=COLUMNS), run.output()


class _Watch:
    """Stands in front of a run's votes and pool, and writes down what they are asked. State, by
    layer, since the layer's last verification: votes of each expert, reads begun, reads refused."""

    def __init__(self, batch):
        self.batch = batch
        self.pool = batch.experts.pool
        votes = batch.experts.policy.votes
        self.rows: list[tuple] = []
        layers = range(votes.num_layers)
        self.votes: list[dict[int, int]] = [{} for _ in layers]
        self.begun: list[set[int]] = [set() for _ in layers]
        self.refused: list[set[int]] = [set() for _ in layers]
        votes.add = self._before(votes.add, self._see_votes)
        self.pool.request = self._before(self.pool.request, self._see_request)
        self.pool.prefetch = self._around_prefetch(self.pool.prefetch)

    @staticmethod
    def _before(call, see):
        def watched(layer, what, *rest):
            what = list(what)
            see(layer, what)
            return call(layer, what, *rest)

        return watched

    def _see_votes(self, layer: int, counts: list[int]) -> None:
        for expert, count in enumerate(counts):
            if count:
                self.votes[layer][expert] = self.votes[layer].get(expert, 0) + count

    def _around_prefetch(self, prefetch):
        def watched(key) -> bool:
            held, started = self.pool.tier.holds(key), prefetch(key)
            if started:
                self.begun[key.layer].add(key.expert)
            elif not held:
                self.refused[key.layer].add(key.expert)
            return started

        return watched

    def _see_request(self, layer: int, experts: list[int]) -> None:
        if self.batch.trace.phase == "verify":
            ahead = {key.expert for key in self.pool.tier.speculative if key.layer == layer}
            here = self.pool.resident_experts(layer) - ahead
            for expert in sorted(set(experts) - here):
                votes = self.votes[layer].get(expert, 0)
                fate = self._fate(layer, expert, ahead)
                self.rows.append((self.batch.trace.round, layer, expert, votes, fate))
        for seen in (self.votes, self.begun, self.refused):
            seen[layer].clear()

    def _fate(self, layer: int, expert: int, ahead: set[int]) -> str:
        if expert in ahead:
            return AHEAD
        if expert in self.begun[layer]:
            return LOST
        if expert in self.refused[layer]:
            return NO_BUFFER
        return FEW if expert in self.votes[layer] else UNNAMED
