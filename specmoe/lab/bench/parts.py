"""How each cell is measured: one function for each kind of part.

Comes in: a ``Cell`` and the ``Run`` it belongs to. Goes out: a row (a plain dict). ``run`` calls
``measure_cell`` for one after the other."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from ..machine import probes
from ..writing import plain
from . import floors, offload, peers, results
from .settings import EVICTIONS, TOKENS, Cell, Length
from .window import Window, measure
from .workplace import Workplace

PROBE_S = 0.4


@dataclass
class Run:
    """What all cells of a run share. ``counted``: rows of the part "evictions"."""

    length: Length
    place: Workplace
    counted: dict[str, dict]


def measure_cell(run: Run, cell: Cell, file: results.ResultFile) -> dict:
    """Measure one cell by the rules of its part, and note the facts of its model."""
    if cell.part in ("resident", "offload"):
        run.place.close()
        if cell.part == "resident":
            return peers.measure_resident(run.place, cell, run.length)
        return offload.measure_offload(run.place, cell, run.length, file.rows)
    row = {"evictions": evictions, "growth": growth, "drafting": drafting, "tracing": tracing}.get(
        cell.part, speed
    )(run, cell)
    file.head["models"][cell.model] = plain(floors.facts(run.place.opened))
    return row


def sums(run: Run, cell: Cell, window: Window, load: dict | None = None, **options) -> dict:
    """What a steady-state ``window`` of ``options["method"]`` does on the engine that ``load`` asks
    for."""
    engine = run.place.engine(cell.model, cell.link, **(load or {}))
    found = measure(engine, run.place.prompts(cell.model), window, max_new_tokens=TOKENS, **options)
    tokens = max(1, found["num_new_tokens"])
    return found | {
        "tokens_per_second": tokens / found["seconds"],
        "bytes_per_token": found["fetched_bytes"] / tokens,
    }


def window_of(run: Run, cell: Cell, seconds: float, **more) -> Window:
    """The window of a cell: later slices begin with later prompts."""
    warm_up_s = run.length.warm_up_s if cell.link != "count" else 0.1
    texts = run.place.texts(cell.model)
    return Window(cell.batch, seconds, warm_up_s, texts, start=97 * cell.slice, **more)


# ---- on the clock ----


def speed(run: Run, cell: Cell) -> dict:
    """One method over one link; or a probe of link and arithmetic before them."""
    if cell.what == "probe":
        return probe(run.place.engine(cell.model, cell.link))
    eviction = best_eviction(run.counted, cell.model, cell.batch) if cell.what == "cached" else None
    options = {"method": cell.what} | ({"eviction": eviction} if eviction else {})
    window = window_of(run, cell, run.length.slice_s)
    return sums(run, cell, window, **options) | {"eviction": eviction}


def probe(engine) -> dict:
    """The raw link, read from the file of records itself, and the compute rate, on the threads that
    torch uses."""
    link = probes.link_rates(engine.packed.data_file, engine.packed.layout.record_bytes, PROBE_S)
    rates = probes.compute_rates(PROBE_S)
    best = max(link["random_bytes_per_s"].values())
    balance = {
        name.replace("flop_per_s", "flop_per_byte"): rate / best for name, rate in rates.items()
    }
    return link | rates | balance | {"threads": torch.get_num_threads()}


def tracing(run: Run, cell: Cell) -> dict:
    """specmoe with its trace kept, or not."""
    window = window_of(run, cell, run.length.slice_s / 2, trace=cell.what == "trace_on")
    return sums(run, cell, window, method="specmoe", gamma=5)


def drafting(run: Run, cell: Cell) -> dict:
    """specmoe once more, with a clock around the experts' arithmetic of its draft steps: what the
    rest of drafting is."""
    window = window_of(run, cell, run.length.slice_s, clock=DraftClock())
    return sums(run, cell, window, method="specmoe") | {"clock": "a clock around the kernel"}


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

    def draft(self, *arguments):
        began_s = time.perf_counter()
        result = self.kernel.draft(*arguments)
        self.seconds += time.perf_counter() - began_s
        return result


# ---- counts ----


def evictions(run: Run, cell: Cell) -> dict:
    """Bytes per token of one eviction, with as many slots as in the timed runs; the experts as they
    are, in memory: no clock."""
    load = {"store": "memory", "expert_bytes": None}
    window = window_of(run, cell, run.length.count_s)
    return sums(run, cell, window, load, method="cached", eviction=cell.what.split(":")[1])


def growth(run: Run, cell: Cell) -> dict:
    """Bytes per token at the paper's gamma = 10 and N = 4; the experts as they are, in memory: no
    clock."""
    load = {"store": "memory", "expert_bytes": None, "draft_experts": 4}
    options = {"gamma": 10} if cell.what == "specmoe" else {}
    window = window_of(run, cell, 3 * run.length.count_s)
    return sums(run, cell, window, load, method=cell.what, prefetch=False, **options)


def best_eviction(rows: dict[str, dict], model: str, batch: int) -> str:
    """The eviction that fetches least at this model and batch, by counting; without counts the
    temporal one."""
    keys = {
        eviction: Cell("evictions", model, "count", batch, f"cached:{eviction}").key
        for eviction in EVICTIONS
    }
    counted = {
        eviction: rows[key]["bytes_per_token"] for eviction, key in keys.items() if key in rows
    }
    return min(counted, key=counted.get) if counted else "temporal"
