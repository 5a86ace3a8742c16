"""How runs are measured: those of one cell in turn, slice by slice; others alone, a function for each
kind of part.

Comes in: the runs of a cell and what all of them share. Goes out: their rows (plain dicts). ``run``
calls ``measure_group`` for one cell after the other."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..machine import probes
from ..writing import plain
from . import floors, offload, peers, results
from .runs import Run
from .settings import AGAIN, EVICTIONS, TOKENS, Length
from .window import Window, begun, measure
from .workplace import Workplace

PROBE_S = 0.4


@dataclass
class Shared:
    """What all runs of the benchmarks share. ``counted``: rows of the part "evictions"."""

    length: Length
    place: Workplace
    counted: dict[str, dict]


def measure_group(shared: Shared, runs: list[Run], file: results.ResultFile) -> dict[str, dict]:
    """Rows by key: of a run alone, by the rules of its part; of several, in turn. Notes the facts of
    their model."""
    first = runs[0]
    if first.part in ("resident", "offload"):
        shared.place.close()
        of = peers.measure_resident if first.part == "resident" else offload.measure_offload
        rest = (shared.length, file.rows) if first.part == "offload" else (shared.length,)
        return {run.key: of(shared.place, run, *rest) for run in runs}
    alone = {"evictions": evictions, "growth": growth, "drafting": drafting}.get(first.part)
    if alone:
        rows = {run.key: alone(shared, run) for run in runs}
    else:
        rows = side_by_side(shared, runs)
    file.head["models"][first.model] = plain(floors.facts(shared.place.opened))
    return rows


def side_by_side(shared: Shared, runs: list[Run]) -> dict[str, dict]:
    """Slices in the order of ``runs``. Every method has an engine of its own, whose run stays open
    and is warm before the first slice: what is compared meets the same machine, and no slice
    begins cold."""
    rows, arms = {}, {}
    shared.place.texts(runs[0].model)  # before any engine is open
    with ExitStack() as stack:
        for run in runs:
            if run.method == "probe":
                rows[run.key] = probe(shared.place.engine(run.model, run.regime))
            elif run.method not in arms:
                arms[run.method] = _arm(shared, run, len(arms), stack)
        for run in runs:
            if run.method != "probe":
                window, said = arms[run.method]
                rows[run.key] = window.slice() | said
    return rows


def _arm(shared: Shared, run: Run, number: int, stack: ExitStack) -> tuple[Window, dict]:
    """A warm window, and what its rows say beside the sums."""
    load, options, more = of_method(shared, run)
    texts, place = shared.place.texts(run.model), shared.place
    seconds = shared.length.slice_s / (2 if run.part == "tracing" else 1)
    window = Window(run.batch, seconds, shared.length.warm_up_s, texts, **more)
    engine = place.engine(run.model, run.regime, number, **load)
    if options.get("eviction") == "static":
        engine.hotness = place.hotness(run.model)
    options = {"max_new_tokens": TOKENS, **options}
    stack.enter_context(begun(engine, place.prompts(run.model), window, **options))
    return window, {"eviction": options.get("eviction")}


def of_method(shared: Shared, run: Run) -> tuple[dict, dict, dict]:
    """Options of load, of generate, and of the window, for one method of a part."""
    method = run.method.removesuffix(AGAIN)
    if run.part == "tracing":
        return {}, {"method": "specmoe", "gamma": 5}, {"trace": method == "trace_on"}
    if run.part == "low_bit":
        return shared.place.low_bit(run.model, method), {"method": "specmoe"}, {}
    if run.part == "pools":
        return {}, {"method": "cached", "eviction": method}, {}
    if method == "cached":
        return {}, {"method": method, "eviction": best_eviction(shared, run)}, {}
    return {}, {"method": method}, {}


def sums(shared: Shared, run: Run, window: Window, load: dict | None = None, **options) -> dict:
    """What one slice of ``options["method"]`` does on the engine that ``load`` asks for."""
    engine = shared.place.engine(run.model, run.regime, **(load or {}))
    prompts = shared.place.prompts(run.model)
    return measure(engine, prompts, window, max_new_tokens=TOKENS, **options)


def window_of(shared: Shared, run: Run, seconds: float, **more) -> Window:
    """The window of a run that is measured alone."""
    warm_up_s = shared.length.warm_up_s if run.regime != "count" else 0.1
    return Window(run.batch, seconds, warm_up_s, shared.place.texts(run.model), **more)


# ---- on the clock ----


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


def best_eviction(shared: Shared, run: Run) -> str:
    """The eviction that fetches least at this model and batch, by counting; without counts the
    temporal one."""
    keys = {
        eviction: Run(run.model, f"cached:{eviction}", run.batch, part="evictions").key
        for eviction in EVICTIONS
    }
    counted = {
        eviction: shared.counted[key]["bytes_per_token"]
        for eviction, key in keys.items()
        if key in shared.counted
    }
    return min(counted, key=counted.get) if counted else "temporal"
