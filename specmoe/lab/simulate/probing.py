"""What all probes share: a stopwatch that finds caches as a run would, and a pool as a method would
have it.

Comes in: an engine. Goes out: ``Prober``, which ``probe_passes`` and ``probe_layers`` fill with
probes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from ...engine.engine import Engine
from ...engine.methods import Method, make_method
from ...engine.run import held
from ...offload.experts import RunExperts
from ...options import GenerateOptions
from ...trace import Trace

CROWD_BYTES = 2**22  # more than a core's own caches, as a pass over the trunk and its experts is


class Prober:
    """Runs the probes. State: that of the engine's experts function and decoder, which every run
    sets anew."""

    def __init__(self, engine: Engine, prompt, repeats: int):
        self.engine = engine
        self.prompt = prompt
        self.repeats = repeats
        self.layers = list(engine.experts.draft_layers)
        self.num_experts = engine.packed.num_experts
        self.top_k = engine.info["top_k"]
        self.random = np.random.default_rng(0)
        self.crowding = torch.zeros(CROWD_BYTES // 4)

    def time(self, work, prepare=lambda: None) -> float:
        """Median seconds of ``work()``, the first left out; ``prepare()`` and ``crowd()`` come
        before, untimed."""
        spent = []
        for _ in range(self.repeats + 1):
            prepare()
            self.crowd()
            began_s = time.perf_counter()
            beside = work()  # seconds of it that are not the work's
            spent_s = time.perf_counter() - began_s
            spent.append(spent_s - (beside if isinstance(beside, float) else 0.0))
        return statistics.median(spent[1:])

    def crowd(self) -> None:
        """Push out of the processor's caches what the probed part left there: in a run, the other
        parts do."""
        self.crowding.add_(1.0)

    @contextmanager
    def run(self, name: str, **changes) -> Iterator[tuple[Method, RunExperts]]:
        """The experts of a method, as ``generate`` would set them up; ``changes`` are fields of its
        ``Method``."""
        engine = self.engine
        options = GenerateOptions(method=name, seed=0)
        method = replace(make_method(options, engine.memory, engine.packed), **changes)
        with held(engine, method, Trace(enabled=engine.options.trace)) as experts:
            yield method, experts

    def some_experts(self, number: int) -> np.ndarray:
        return self.random.choice(self.num_experts, size=number, replace=number > self.num_experts)
