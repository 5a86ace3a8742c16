"""How each run is measured: one function for each kind of part.

Comes in: a ``Run`` of a part and what all of them share. Goes out: a row (a plain dict). ``run`` calls
``measure_cell`` for one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..machine import probes
from ..writing import plain
from . import floors, offload, peers, results
from .runs import Run
from .settings import EVICTIONS, TOKENS, Length
from .window import Window, measure
from .workplace import Workplace

PROBE_S = 0.4


@dataclass
class Shared:
    """What all runs of the benchmarks share. ``counted``: rows of the part "evictions"."""

    length: Length
    place: Workplace
    counted: dict[str, dict]


def measure_cell(shared: Shared, run: Run, file: results.ResultFile) -> dict:
    """Measure one cell by the rules of its part, and note the facts of its model."""
    if run.part in ("resident", "offload"):
        shared.place.close()
        if run.part == "resident":
            return peers.measure_resident(shared.place, run, shared.length)
        return offload.measure_offload(shared.place, run, shared.length, file.rows)
    row = {"evictions": evictions, "growth": growth, "drafting": drafting, "tracing": tracing}.get(
        run.part, speed
    )(shared, run)
    file.head["models"][run.model] = plain(floors.facts(shared.place.opened))
    return row


def sums(shared: Shared, run: Run, window: Window, load: dict | None = None, **options) -> dict:
    """What a steady-state ``window`` of ``options["method"]`` does on the engine that ``load`` asks
    for."""
    engine = shared.place.engine(run.model, run.regime, **(load or {}))
    found = measure(
        engine, shared.place.prompts(run.model), window, max_new_tokens=TOKENS, **options
    )
    tokens = max(1, found["num_new_tokens"])
    return found | {
        "tokens_per_second": tokens / found["seconds"],
        "bytes_per_token": found["fetched_bytes"] / tokens,
    }


def window_of(shared: Shared, run: Run, seconds: float, **more) -> Window:
    """The window of a cell: later slices begin with later prompts."""
    warm_up_s = shared.length.warm_up_s if run.regime != "count" else 0.1
    texts = shared.place.texts(run.model)
    return Window(run.batch, seconds, warm_up_s, texts, start=97 * run.prompt_set, **more)


# ---- on the clock ----


def speed(shared: Shared, run: Run) -> dict:
    """One method over one link; or a probe of link and arithmetic before them."""
    if run.method == "probe":
        return probe(shared.place.engine(run.model, run.regime))
    eviction = (
        best_eviction(shared.counted, run.model, run.batch) if run.method == "cached" else None
    )
    options = {"method": run.method} | ({"eviction": eviction} if eviction else {})
    window = window_of(shared, run, shared.length.slice_s)
    return sums(shared, run, window, **options) | {"eviction": eviction}


def probe(engine) -> dict:
    """The raw link, read from the file of records itself, the compute rate and the memory's, on the
    threads that torch uses."""
    link = probes.link_rates(engine.packed.data_file, engine.packed.layout.record_bytes, PROBE_S)
    rates = probes.compute_rates(PROBE_S)
    best = max(link["random_bytes_per_s"].values())
    balance = {
        name.replace("flop_per_s", "flop_per_byte"): rate / best for name, rate in rates.items()
    }
    memory = {"memory_bytes_per_s": probes.memory_read_rate(), "cache_bytes": probes.cache_bytes()}
    return link | rates | balance | memory | {"threads": torch.get_num_threads()}


def tracing(shared: Shared, run: Run) -> dict:
    """specmoe with its trace kept, or not."""
    window = window_of(shared, run, shared.length.slice_s / 2, trace=run.method == "trace_on")
    return sums(shared, run, window, method="specmoe", gamma=5)


def drafting(shared: Shared, run: Run) -> dict:
    """specmoe once more, with a clock around the experts' arithmetic of its draft steps: what the
    rest of drafting is."""
    window = window_of(shared, run, shared.length.slice_s, clock=DraftClock())
    return sums(shared, run, window, method="specmoe") | {"clock": "a clock around the kernel"}


class DraftClock:
    """Seconds inside the experts' arithmetic while drafting: a kernel around a run's own."""

    def __init__(self):
        self.kernel = None
        self.seconds = 0.0

    def wind(self, run) -> None:
        """From now on ``run`` computes its experts through this clock."""
        self.kernel = run.batch.experts.kernel
        run.batch.experts.kernel = self

    def __getattr__(self, name: str):
        return getattr(self.kernel, name)

    def of_layer(self, layer: int) -> DraftClock:
        """Layers of one format share a kernel; this clock is for those."""
        return self

    def draft(self, *arguments):
        began_s = time.perf_counter()
        result = self.kernel.draft(*arguments)
        self.seconds += time.perf_counter() - began_s
        return result


# ---- counts ----


def evictions(shared: Shared, run: Run) -> dict:
    """Bytes per token of one eviction, with as many slots as in the timed runs; the experts as they
    are, in memory: no clock."""
    load = {"store": "memory", "expert_bytes": None}
    window = window_of(shared, run, shared.length.count_s)
    return sums(shared, run, window, load, method="cached", eviction=run.method.split(":")[1])


def growth(shared: Shared, run: Run) -> dict:
    """Bytes per token at the paper's gamma = 10 and N = 4; the experts as they are, in memory: no
    clock."""
    load = {"store": "memory", "expert_bytes": None, "draft_experts": 4}
    options = {"gamma": 10} if run.method == "specmoe" else {}
    window = window_of(shared, run, 3 * shared.length.count_s)
    return sums(shared, run, window, load, method=run.method, prefetch=False, **options)


def best_eviction(rows: dict[str, dict], model: str, batch: int) -> str:
    """The eviction that fetches least at this model and batch, by counting; without counts the
    temporal one."""
    keys = {
        eviction: Run(model, f"cached:{eviction}", batch, part="evictions").key
        for eviction in EVICTIONS
    }
    counted = {
        eviction: rows[key]["bytes_per_token"] for eviction, key in keys.items() if key in rows
    }
    return min(counted, key=counted.get) if counted else "temporal"
