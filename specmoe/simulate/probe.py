"""Probes of this machine through an engine's own parts; none of them times a method.

Comes in: an engine. Goes out: ``probe_machine``'s dict of timings (medians), which ``machine.fit_machine`` reads:

========  ==========================================================================================================
reads     [records, seconds]: a burst of reads from the engine's store, until all have landed
passes    [rows, tokens per row, positions, seconds]: a verification with the experts left out, and its verdicts
steps     [rows, positions, seconds]: one draft step with the experts left out
resident  [experts, pairs, seconds]: a MoE layer in target mode, every expert resident
draft     [experts, pairs, seconds]: a MoE layer in draft mode
waves     [experts, pairs, seconds, wait]: a MoE layer of which nothing is resident, in a synchronous pool (on_demand)
stream    the same in a pool that computes experts as they arrive (all other methods)
guess     [tokens, seconds]: the next layer's router asked what to read (overlapped)
keep      [seconds]: choosing which experts a layer keeps (cached, specmoe)
prepare   [seconds]: what comes before a round's first draft step: the tables of stand-ins
========  ==========================================================================================================
"""

from __future__ import annotations

import statistics
import time
from collections import deque

import numpy as np
import torch

from ..config import GenerateOptions
from ..engine import Engine
from ..errors import OptionError
from ..eviction import KeepPolicy
from ..expert_store import DEMAND
from ..methods import make_method
from ..planner import FixedGamma
from ..resident_pool import ResidentPool, allocate_slots
from ..sampling import Sampler
from ..speculate import Drafted, Job, Row, accept, draft, verify
from ..trace import Trace
from ..transfers import ExpertKey
from .sizes import ModelSize

BURSTS = (1, 2, 4, 8, 16)
ROWS, BLOCKS, POSITIONS = (1, 16, 64), (1, 5, 11), (16, 64)
EXPERTS = ((1, 1), (2, 1), (4, 1), (16, 1), (32, 1), (4, 4), (16, 4), (2, 16), (8, 16), (4, 64), (1, 64), (2, 256))
MISSING = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (4, 4), (16, 4), (8, 16), (4, 64))  # experts, tokens of each
DRAFTING = ((1, 1), (2, 1), (4, 1), (2, 8), (4, 8), (4, 32), (8, 16))
STEPS_PER_DRAFT = 3
CROWD_BYTES = 2**22  # more than a core's own caches, as a pass over the trunk and its experts is


def probe_machine(engine: Engine, prompt=None, repeats: int = 5) -> dict:
    """Every probe of the table above; seconds. ``prompt``: one of the job's, for an encoder-decoder its source, whose length
    its cross-attention looks at. Takes a few seconds; leaves the engine as it was."""
    if engine.is_translation and prompt is None:
        raise OptionError("the probes of an encoder-decoder need a source to attend to: give probe_machine(engine, prompt)")
    engine._check_open()
    probe = _Probe(engine, prompt, repeats)
    with torch.inference_mode():
        probe.read_all()
        found = {name: getattr(probe, name)() for name in PARTS}
        probe.settle()
    return found | {
        "record_bytes": engine.store.record_bytes, "num_readers": engine.store.num_readers, "model": engine.info["name"],
        "expert_flops_per_token": ModelSize.of(engine).expert_flops_per_token,
    }  # fmt: skip


PARTS = ("reads", "passes", "steps", "resident", "draft", "waves", "stream", "guess", "keep", "prepare")


class _BareExperts:
    """The experts of a job whose passes shall run without any: the experts function gives zeros. ``between`` runs after each
    draft step; its seconds are counted apart."""

    def __init__(self, experts, between):
        self.target = self.draft = experts.draft
        self.between, self.between_s = between, 0.0

    def prepare_draft(self) -> bool:
        return True

    def after_draft_step(self) -> None:
        began_s = time.perf_counter()
        self.between()
        self.between_s += time.perf_counter() - began_s


class _Probe:
    """Runs the probes. State: that of the engine's experts function and decoder, which every run sets anew."""

    def __init__(self, engine: Engine, prompt, repeats: int):
        self.engine, self.prompt, self.repeats = engine, prompt, repeats
        self.layers = list(engine.experts.draft_layers)
        self.num_experts, self.top_k = engine.packed.num_experts, engine.info["top_k"]
        self.random = np.random.default_rng(0)
        self.crowding = torch.zeros(CROWD_BYTES // 4)

    def time(self, work, prepare=lambda: None) -> float:
        """Median seconds of ``work()``, the first left out; ``prepare()`` and ``crowd()`` come before, untimed."""
        spent = []
        for _ in range(self.repeats + 1):
            prepare()
            self.crowd()
            began_s = time.perf_counter()
            beside = work()  # seconds of it that are not the work's
            spent.append(time.perf_counter() - began_s - (beside if isinstance(beside, float) else 0.0))
        return statistics.median(spent[1:])

    def crowd(self) -> None:
        """Push out of the processor's caches what the probed part left there: in a run, the other parts do."""
        self.crowding.add_(1.0)

    # ---- the link ----------------------------------------------------------------------------------------------

    def read_all(self) -> None:
        """Every record once: a record's first read computes its checksum, later ones do not."""
        slots = allocate_slots(1, self.engine.store)
        for key in (ExpertKey(layer, expert) for layer in self.layers for expert in range(self.num_experts)):
            self.engine.store.submit(key, slots[0], DEMAND).wait()

    def settle(self) -> None:
        """No read of an earlier probe writes into the slots any more."""
        pool = getattr(self.engine.experts, "pool", None)
        if pool is not None:
            pool.reset_reads()

    def reads(self) -> list[list[float]]:
        store = self.engine.store
        slots = allocate_slots(max(BURSTS), store)

        def burst(number: int) -> None:
            keys = [ExpertKey(self.random.choice(self.layers), int(e)) for e in self._experts(number)]
            reads = [store.submit(key, slots[place], DEMAND) for place, key in enumerate(keys)]
            for read in reads:
                read.wait()

        return [[number, self.time(lambda number=number: burst(number))] for number in BURSTS]

    def _experts(self, number: int) -> np.ndarray:
        return self.random.choice(self.num_experts, size=number, replace=number > self.num_experts)

    # ---- passes without experts ----------------------------------------------------------------------------------

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
        state = self._state()
        pool = ResidentPool(engine.store, engine._slots, 0, trace)
        policy = KeepPolicy(len(engine.packed.layers), self.num_experts, 0)
        engine.experts.begin_run(pool, policy, trace, substitute="no_experts")
        engine.decoder.open(rows, positions + block + 1)
        for row in range(rows):
            engine.decoder.enter(row, state)
        batch = [Row(row, [1] * positions, 1 << 30) for row in range(rows)]
        sampler = Sampler(GenerateOptions(seed=0))
        job = Job(engine.decoder, _BareExperts(engine.experts, self.crowd), sampler, FixedGamma(block - 1), deque(), rows,
                  frozenset(), trace)  # fmt: skip
        return job, batch

    def _state(self):
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

    # ---- MoE layers ----------------------------------------------------------------------------------------------

    def resident(self) -> list[list[float]]:
        method, _ = self._begin("resident")
        self.engine._preload(self.engine.experts.pool, method)
        self.engine.experts.target(None)
        return [self._layers(*case)[:3] for case in self._cases(EXPERTS)]

    def draft(self) -> list[list[float]]:
        """Draft experts that every layer holds; choices of all experts, most of which have a stand-in."""
        _, pool = self._begin("specmoe")
        experts, found = self.engine.experts, []
        for number, tokens in DRAFTING:
            number = min(number, self.engine.memory.draft_experts)
            for layer in self.layers:
                pool.fetch(layer, [int(e) for e in self._experts(number)])
                pool.kept[layer] = set(sorted(pool.kept[layer] & pool.resident_experts(layer))[:number])
            experts.prepare_draft()
            experts.draft(None)
            found.append(self._draft_layers(number * tokens))
        return found

    def _draft_layers(self, tokens: int) -> list[float]:
        experts = self.engine.experts
        index = torch.from_numpy(self.random.integers(self.num_experts, size=(tokens, self.top_k)))
        hidden, weights = self._block(tokens)
        used = [len(experts.stand_ins[layer].cpu()[index].unique()) for layer in self.layers]

        def work():
            for layer in self.layers:
                experts._forward(layer, hidden, index, weights)

        return [float(np.mean(used)), tokens * self.top_k, self.time(work) / len(self.layers)]

    def waves(self) -> list[list[float]]:
        self._begin("on_demand")
        return [self._layers(*case) for case in self._cases(MISSING)]

    def stream(self) -> list[list[float]]:
        self._begin("overlapped", guess_next=False)
        return [self._layers(*case) for case in self._cases(MISSING)]

    def guess(self) -> list[list[float]]:
        experts = self.engine.experts
        if None in experts.routers or len(self.layers) < 2:
            return [[1, 0.0]]
        self._begin("overlapped")
        experts.target(None)
        experts.pool.num_reserved = experts.pool.num_slots  # no room: the question is timed, nothing is read
        asked = self.layers[0]
        found = []
        for tokens in ROWS:
            hidden, _ = self._block(tokens)
            work = lambda hidden=hidden: experts._guess_next_layer(asked, hidden, self.top_k)  # noqa: E731
            found.append([tokens, self.time(work)])
        return found

    def keep(self) -> list[float]:
        method, _ = self._begin("cached")
        counts = [1] * min(8, self.num_experts) + [0] * (self.num_experts - min(8, self.num_experts))
        resident = set(range(self.engine.memory.draft_experts))
        return [self.time(lambda: [method.policy.keep(layer, counts, resident) for layer in self.layers]) / len(self.layers)]

    def prepare(self) -> list[float]:
        _, pool = self._begin("specmoe")
        for layer in self.layers:
            pool.fetch(layer, range(min(self.engine.memory.draft_experts, self.num_experts)))
        return [self.time(self.engine.experts.prepare_draft)]

    def _begin(self, name: str, **changes):
        """Pool and policy of a method, as ``generate`` would set them."""
        self.settle()
        engine = self.engine
        options = GenerateOptions(method=name, seed=0)
        method = make_method(options, engine.memory, engine.packed, None)
        trace = Trace(enabled=engine.options.trace)
        pool = engine._pool(method, trace)
        engine.experts.begin_run(pool, method.policy, trace, **method.experts_options | changes)
        return method, pool

    def _cases(self, cases) -> list[tuple[int, int]]:
        return list(dict.fromkeys((min(experts, self.num_experts), tokens) for experts, tokens in cases))

    def _block(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = self.engine.decoder.config.hidden_size
        return torch.randn(tokens, width), torch.full((tokens, self.top_k), 1.0 / self.top_k)

    def _layers(self, experts: int, tokens_each: int) -> list[float]:
        """[experts, pairs, seconds, seconds of it that were waits] of a layer: all layers in turn, experts drawn anew."""
        pairs = -(-experts * tokens_each // self.top_k) * self.top_k
        hidden, weights = self._block(pairs // self.top_k)
        spread, function = torch.arange(pairs) % experts, self.engine.experts
        waits = []

        def work():
            before_s = function.pool.counts.wait_s
            for layer in self.layers:
                chosen = torch.from_numpy(self._experts(experts))
                function._forward(layer, hidden, chosen[spread].view(-1, self.top_k), weights)
            waits.append(function.pool.counts.wait_s - before_s)

        seconds = self.time(work)
        return [experts, pairs, seconds / len(self.layers), statistics.median(waits[1:]) / len(self.layers)]


def _shorten(batch: list[Row], positions: int) -> None:
    """Forget what a probe has committed."""
    for row in batch:
        del row.tokens[positions:]
        row.finished = False
