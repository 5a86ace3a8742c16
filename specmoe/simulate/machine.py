"""This machine as a ``Hardware``, from probes of an engine's parts: never from the speed of a method.

Comes in: an engine. Goes out: ``probe_machine``'s dict of timings, and ``fit_machine``'s ``Hardware``. Probes: bursts
of reads from the engine's store; a pass whose experts give nothing (trunk, router, sampler); a resident MoE
layer.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from ..config import GenerateOptions
from ..engine import Engine
from ..errors import OptionError
from ..eviction import KeepPolicy
from ..expert_store import DEMAND
from ..methods import make_method
from ..resident_pool import ResidentPool, allocate_slots
from ..sampling import Sampler
from ..trace import Trace
from ..transfers import ExpertKey
from .hardware import Hardware
from .sizes import ModelSize

BURSTS = (1, 2, 4, 8, 16)
PASSES = ((1, 1), (16, 1), (64, 1), (1, 8), (16, 5), (64, 3), (64, 5), (64, 9))  # rows, tokens per row
LAYERS = ((1, 1), (2, 8), (4, 16), (8, 16), (8, 64), (16, 32), (16, 128), (32, 64), (32, 256))  # experts, tokens


def probe_machine(engine: Engine, repeats: int = 7) -> dict:
    """Medians: ``reads`` [[records, seconds]], ``passes`` [[tokens, seconds]], ``layer`` [[experts, pairs, seconds]]."""
    with torch.inference_mode():
        return {
            "reads": _reads(engine, repeats), "passes": _passes(engine, repeats), "layer": _layer(engine, repeats),
            "record_bytes": engine.store.record_bytes, "num_readers": engine.store.num_readers,
            "expert_flops_per_token": ModelSize.of(engine).expert_flops_per_token, "model": engine.info["name"],
        }  # fmt: skip


def fit_machine(probes: dict, name: str = "this machine") -> Hardware:
    """Least squares over ``probe_machine``'s timings: a burst = latency + records * bytes / rate; a MoE layer = a + b *
    experts + c * pairs. Reading weights is in b (no memory rate); ``OptionError`` when a probe is missing."""
    for part in ("reads", "passes", "layer", "record_bytes", "num_readers", "expert_flops_per_token"):
        if not probes.get(part):
            raise OptionError(f"the probes lack {part!r}: make them with probe_machine(engine)")
    latency_s, read_s = _linear([[1, n] for n, _ in probes["reads"]], [s for _, s in probes["reads"]])
    layer_s, expert_s, pair_s = _linear([[1, e, p] for e, p, _ in probes["layer"]], [s for *_, s in probes["layer"]])
    points = tuple((int(tokens), float(seconds)) for tokens, seconds in sorted(probes["passes"]))
    return Hardware(
        name, probes["record_bytes"] / max(read_s, 1e-12), latency_s, probes["expert_flops_per_token"] / max(pair_s, 1e-12),
        1e18, points[0][1], layer_s, expert_s, probes["num_readers"], points, "probes of this machine",
    )  # fmt: skip


def _linear(terms: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares of relative errors; what comes out below zero is left out and the rest fitted again."""
    weights = 1 / np.array(seconds)
    matrix, used = np.array(terms, dtype=float) * weights[:, None], list(range(len(terms[0])))
    while True:
        found = np.linalg.lstsq(matrix[:, used], np.ones(len(weights)), rcond=None)[0]
        if found.min() >= 0 or len(used) == 1:
            break
        used.pop(int(found.argmin()))
    result = [0.0] * len(terms[0])
    for place, value in zip(used, found):
        result[place] = float(max(0.0, value))
    return result


def _median(work, repeats: int) -> float:
    spent = []
    work()
    for _ in range(repeats):
        began_s = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began_s)
    return statistics.median(spent)


def _reads(engine: Engine, repeats: int) -> list[list[float]]:
    """Bursts of records into slots of their own, as a layer asks for them."""
    store, places = engine.store, np.random.default_rng(0)
    slots = allocate_slots(max(BURSTS), store)

    def burst(number: int) -> None:
        keys = places.integers((len(engine.packed.layers), engine.packed.num_experts), size=(number, 2))
        reads = [store.submit(ExpertKey(*map(int, key)), slots[place], DEMAND) for place, key in enumerate(keys)]
        for read in reads:
            read.wait()

    return [[number, _median(lambda number=number: burst(number), repeats)] for number in BURSTS]


def _pool_of_all(engine: Engine):
    """A pool with every expert resident, as method="resident" has it."""
    options = GenerateOptions(method="resident")
    method = make_method(options, engine.memory, engine.packed, None)
    pool = engine._pool(method, Trace())
    engine._preload(pool, method)
    return pool, method


def _passes(engine: Engine, repeats: int) -> list[list[float]]:
    """Forward passes in draft mode with no expert at all, and the sampler's verdict on their logits."""
    if engine.is_translation:
        raise OptionError("probe_machine drives decoder-only models; an encoder-decoder's pass needs a source")
    pool = ResidentPool(engine.store, engine._slots, 0, Trace())
    policy = KeepPolicy(len(engine.packed.layers), engine.packed.num_experts, 0)
    engine.experts.begin_run(pool, policy, Trace(), substitute="no_experts")
    sampler, found = Sampler(GenerateOptions()), {}
    for rows, length in PASSES:
        engine.decoder.open(rows, 128)
        tokens, starts = torch.ones(rows, length, dtype=torch.long), torch.full((rows,), 64)

        def work(rows=rows, length=length, tokens=tokens, starts=starts):
            engine.experts.draft(torch.ones(rows, length, dtype=torch.bool))
            logits = engine.decoder.step(tokens, starts)
            drafts, places = tokens[:, 1:], (starts + 1).tolist()
            sampler.verify(logits, drafts, [length - 1] * rows, None, list(range(rows)), places)

        found.setdefault(rows * length, []).append(_median(work, repeats))
        engine.decoder.close()
    return [[tokens, statistics.median(seconds)] for tokens, seconds in sorted(found.items())]


def _layer(engine: Engine, repeats: int) -> list[list[float]]:
    """One MoE layer in target mode, every expert resident; layers in turn, so that weights come from memory."""
    pool, method = _pool_of_all(engine)
    engine.experts.begin_run(pool, method.policy, Trace())
    top_k, width = engine.info["top_k"], engine.decoder.config.hidden_size
    number, found = len(engine.packed.layers), []
    for experts, tokens in LAYERS:
        experts = min(experts, engine.packed.num_experts)
        index = (torch.arange(tokens * top_k) % experts).view(tokens, top_k)
        hidden, weights = torch.randn(tokens, width), torch.full((tokens, top_k), 1.0 / top_k)
        engine.experts.target(None)

        def work(hidden=hidden, index=index, weights=weights):
            for layer in range(number):
                engine.experts._forward(layer, hidden, index, weights)

        distinct = len(index.unique())
        found.append([distinct, tokens * top_k, _median(work, repeats) / number])
    return found
