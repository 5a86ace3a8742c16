"""Probes of passes without experts: verifications, draft steps.

Comes in: an engine. Goes out: rows of timings. ``probe`` calls this.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch

from ...offload.experts import Drafting, RunExperts
from ...offload.policies import KeepPolicy
from ...options import GenerateOptions
from ...speculate.loop import Batch, Drafted, Sequence, accept, draft, verify
from ...speculate.planner import FixedGamma
from ...speculate.sampling import Sampler
from .probing import Prober

ROWS, BLOCKS, POSITIONS = (1, 16, 64), (1, 5, 11), (16, 64)
STEPS_PER_DRAFT = 3


class BareExperts:
    """The experts of a batch whose passes shall run without any: the experts function gives zeros.
    ``between`` runs before each draft step; its seconds are counted apart."""

    def __init__(self, experts: RunExperts, between):
        self.experts = experts
        self.between = between
        self.between_s = 0.0

    @contextmanager
    def drafting(self) -> Iterator[bool]:
        self.experts.is_drafting = True
        yield True

    @contextmanager
    def verifying(self, live: torch.Tensor | None) -> Iterator[None]:
        self.experts.is_drafting = True  # and so without experts
        yield

    def set_live(self, live: torch.Tensor | None) -> None:
        began_s = time.perf_counter()
        self.between()
        self.between_s += time.perf_counter() - began_s
        self.experts.set_live(live)


class PassProber(Prober):
    """Every row of a pass has ``positions`` tokens; the experts function gives zeros. ``grid``:
    rows, tokens of each in a pass, and positions."""

    def __init__(self, engine, prompt, repeats: int, grid=(ROWS, BLOCKS, POSITIONS)):
        super().__init__(engine, prompt, repeats)
        self.grid = grid

    def passes(self) -> list[list[float]]:
        found = []
        for rows, block, positions in itertools.product(*self.grid):
            drafted = Drafted(torch.ones(rows, block - 1, dtype=torch.long), [block - 1] * rows)
            with self._batch(rows, positions, block) as batch:

                def work(batch=batch, drafted=drafted):
                    accept(batch, drafted, verify(batch, drafted))

                seconds = self.time(work, lambda b=batch, p=positions: _shorten(b.rows, p))
            found.append([rows, block, positions, seconds])
        return found

    def steps(self) -> list[list[float]]:
        found = []
        for rows, positions in itertools.product(self.grid[0], self.grid[2]):
            with self._batch(rows, positions, STEPS_PER_DRAFT + 1) as batch:

                def work(batch=batch):
                    batch.experts.between_s = 0.0
                    draft(batch)
                    return batch.experts.between_s

                found.append([rows, positions, self.time(work) / STEPS_PER_DRAFT])
        return found

    @contextmanager
    def _batch(self, rows: int, positions: int, block: int) -> Iterator[Batch]:
        """A batch with so many rows in flight, each of ``positions`` tokens."""
        engine, state = self.engine, self.state
        rule = KeepPolicy(len(engine.packed.layers), self.num_experts, 0)
        how = {"rule": rule, "preload": None, "drafting": Drafting("no_experts")}
        with self.run("cached", **how) as (_, experts):
            engine.decoder.allocate(rows, positions + block + 1)
            for row in range(rows):
                engine.decoder.add_row(row, state)
            yield Batch(
                engine.decoder,
                BareExperts(experts, self.crowd),
                Sampler(GenerateOptions(seed=0)),
                FixedGamma(block - 1),
                deque(),
                rows,
                frozenset(),
                experts.pool.tier.trace,
                rows=[Sequence(row, [1] * positions, 1 << 30) for row in range(rows)],
            )

    @cached_property
    def state(self):
        """What a prefilled row of an encoder-decoder brings: keys and values of its source."""
        engine = self.engine
        if not engine.is_translation:
            return None
        row = engine.reader.rows([self.prompt], None, GenerateOptions(max_new_tokens=8))[0]
        with self.run("on_demand") as (_, experts), experts.prefilling():
            return engine.decoder.prefill([row], experts.set_live)[0]


def _shorten(rows: list[Sequence], positions: int) -> None:
    """Forget what a probe has committed."""
    for row in rows:
        del row.tokens[positions:]
        row.finished = False
