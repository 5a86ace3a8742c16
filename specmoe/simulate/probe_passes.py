"""Probes of passes without experts: verifications, draft steps.

Comes in: an engine. Goes out: rows of timings. ``probe`` calls this.
"""

from __future__ import annotations

import time
from collections import deque
from functools import cached_property

import torch

from ..config import GenerateOptions
from ..eviction import KeepPolicy
from ..methods import make_method
from ..planner import FixedGamma
from ..resident_pool import ResidentPool
from ..sampling import Sampler
from ..speculate import Drafted, Job, Row, accept, draft, verify
from ..trace import Trace
from .probing import Prober

ROWS, BLOCKS, POSITIONS = (1, 16, 64), (1, 5, 11), (16, 64)
STEPS_PER_DRAFT = 3


class BareExperts:
    """The experts of a job whose passes shall run without any: the experts function gives zeros. ``between`` runs before
    each draft step; its seconds are counted apart."""

    def __init__(self, experts, between):
        self.target = self._draft = experts.draft
        self.between, self.between_s = between, 0.0

    def prepare_draft(self) -> bool:
        return True

    def draft(self, live: torch.Tensor | None) -> None:
        began_s = time.perf_counter()
        self.between()
        self.between_s += time.perf_counter() - began_s
        self._draft(live)


class PassProber(Prober):
    """Every row of a pass has ``positions`` tokens; the experts function gives zeros."""

    def passes(self) -> list[list[float]]:
        found = []
        for rows, block, positions in ((r, b, p) for r in ROWS for b in BLOCKS for p in POSITIONS):
            job, batch = self._job(rows, positions, block)
            drafted = Drafted(torch.ones(rows, block - 1, dtype=torch.long), [block - 1] * rows)

            def work(job=job, batch=batch, drafted=drafted):
                accept(job, batch, drafted, verify(job, batch, drafted))

            found.append([rows, block, positions, self.time(work, lambda b=batch, p=positions: _shorten(b, p))])
            self.engine.decoder.close()
        return found

    def steps(self) -> list[list[float]]:
        found = []
        for rows, positions in ((r, p) for r in ROWS for p in POSITIONS):
            job, batch = self._job(rows, positions, STEPS_PER_DRAFT)

            def work(job=job, batch=batch):
                job.experts.between_s = 0.0
                draft(job, batch, STEPS_PER_DRAFT)
                return job.experts.between_s

            seconds = self.time(work)
            found.append([rows, positions, seconds / STEPS_PER_DRAFT])
            self.engine.decoder.close()
        return found

    def _job(self, rows: int, positions: int, block: int) -> tuple[Job, list[Row]]:
        """A job with so many rows in flight, each of ``positions`` tokens."""
        self.settle()
        engine, trace = self.engine, Trace(enabled=self.engine.options.trace)
        state = self.state
        pool = ResidentPool(engine.store, engine._slots, 0, trace)
        policy = KeepPolicy(len(engine.packed.layers), self.num_experts, 0)
        engine.experts.begin_run(pool, policy, trace, substitute="no_experts")
        engine.decoder.open(rows, positions + block + 1)
        for row in range(rows):
            engine.decoder.enter(row, state)
        batch = [Row(row, [1] * positions, 1 << 30) for row in range(rows)]
        sampler = Sampler(GenerateOptions(seed=0))
        job = Job(engine.decoder, BareExperts(engine.experts, self.crowd), sampler, FixedGamma(block - 1), deque(), rows,
                  frozenset(), trace)  # fmt: skip
        return job, batch

    @cached_property
    def state(self):
        """What a prefilled row of an encoder-decoder brings: keys and values of its source."""
        engine = self.engine
        if not engine.is_translation:
            return None
        row = engine._read([self.prompt], None, GenerateOptions(max_new_tokens=8))[0]
        method = make_method(GenerateOptions(method="on_demand"), engine.memory, engine.packed, None)
        engine.experts.begin_run(engine._pool(method, Trace(enabled=False)), method.policy, Trace(enabled=False))
        engine.decoder.open(1, len(row.tokens) + 1)
        state = engine.experts.prefill(lambda target: engine.decoder.prefill([row], target))[0]
        engine.decoder.close()
        return state


def _shorten(batch: list[Row], positions: int) -> None:
    """Forget what a probe has committed."""
    for row in batch:
        del row.tokens[positions:]
        row.finished = False
