"""What is measured, as data: models, links, batches, methods, how long.

Comes in: a length ("full" or "quick") and the parts that were asked for. Goes out: a list of
``Cell``, in the order in which they run, for ``run``; no cell knows how it is measured (``parts``
does).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 2**20
EXPERT_BYTES = 3 * MIB
# bytes per second; None: the disk as it is
LINKS: dict[str, float | None] = {"native": None, "throttled": 2.5e8}
BATCHES = (1, 4, 16, 64, 128, 256)
TOKENS = 64  # new tokens of a prompt, at most
EVICTIONS = ("static", "temporal", "lru", "lfu")
METHODS = ("on_demand", "cached", "overlapped", "specmoe", "auto")
PEER_BATCHES = (1, 16, 64)


@dataclass(frozen=True)
class Model:
    """A model as it is measured. ``experts_per_layer``: how many experts' bytes of fast memory each
    decoding layer has."""

    name: str
    experts_per_layer: int
    num_layers: int  # MoE layers that decode
    num_moe_layers: int  # with an encoder's
    num_experts: int


MODELS = {
    "translate": Model("tiny-translate", 20, 2, 4, 128),
    "skewed": Model("tiny-skewed", 16, 4, 4, 32),
}


@dataclass(frozen=True)
class Length:
    """How long and how much. A cell's window is ``repeats`` slices of ``slice_s`` seconds,
    alternating between methods."""

    name: str
    slice_s: float
    repeats: int
    warm_up_s: float
    batches: tuple[int, ...]
    throttled: tuple[int, ...] = BATCHES  # of these batches, those that the throttled link gets
    count_s: float = 1.5  # of a run that only counts
    evictions: tuple[str, ...] = EVICTIONS


FULL = Length("full", 10.0, 2, 1.5, BATCHES)
QUICK = Length("quick", 2.5, 1, 1.0, (1, 64, 256), (64,), 0.5, ("static", "temporal"))
LENGTHS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Cell:
    """One row of the results. ``what``: a method ("cached" with its eviction), a probe ("link") or
    a peer."""

    part: str
    model: str
    link: str
    batch: int
    what: str
    slice: int = 0

    @property
    def key(self) -> str:
        return "/".join(
            str(value) for value in (self.model, self.link, self.batch, self.what, self.slice)
        )


PARTS = (
    "evictions",
    "translate-native",
    "translate-throttled",
    "skewed-native",
    "skewed-throttled",
    "growth",
    "drafting",
    "tracing",
    "resident",
    "offload",
)


def cells(part: str, length: Length, batches: tuple[int, ...] | None = None) -> list[Cell]:
    """The cells of ``part``; ``batches`` narrows those of the length."""
    chosen = tuple(batch for batch in length.batches if batches is None or batch in batches)
    if part == "evictions":
        return [
            Cell(part, model.name, "count", batch, f"cached:{eviction}")
            for model in MODELS.values()
            for batch in chosen
            for eviction in length.evictions
        ]
    if part == "growth":
        return [
            Cell(part, "tiny-translate", "count", batch, what)
            for what in ("on_demand", "specmoe")
            for batch in (1, 256)
        ]
    if part == "drafting":
        return [
            Cell(part, model.name, "native", batch, "specmoe")
            for model in MODELS.values()
            for batch in (64, 256)
        ]
    if part in ("tracing", "resident", "offload"):
        return _alternating(part, length)
    model, link = part.split("-")
    if link == "throttled":
        chosen = tuple(batch for batch in chosen if batch in length.throttled)
    return [
        cell for batch in chosen for cell in _speed(part, MODELS[model].name, link, batch, length)
    ]


def _speed(part: str, model: str, link: str, batch: int, length: Length) -> list[Cell]:
    """Probes of the machine, then the methods in turn, ``repeats`` times."""
    base = Cell(part, model, link, batch, "probe")
    turns = [
        replace(base, what=method, slice=turn)
        for turn in range(length.repeats)
        for method in METHODS
        if turn == 0 or method != "overlapped"  # never the fastest: once is enough
    ]
    return [base, *turns, *([replace(base, what="resident")] if link == "native" else [])]


def _alternating(part: str, length: Length) -> list[Cell]:
    """Two things against each other, in turn."""
    pairs = {
        "tracing": ("trace_on", "trace_off"),
        "resident": ("resident", "transformers"),
        "offload": ("specmoe", "accelerate", "accelerate_uncached"),
    }
    turns = {
        "tracing": 5 if length.name == "full" else 2,
        "resident": 3 if length.name == "full" else 1,
        "offload": 1,
    }[part]
    one = part == "tracing" or part == "offload" and length.name != "full"
    batches = (16,) if one else PEER_BATCHES
    first = Cell(part, "tiny-skewed", "native" if part != "resident" else "memory", 1, "")
    return [
        replace(first, batch=batch, what=what, slice=turn)
        for batch in batches
        for turn in range(turns)
        for what in pairs[part]
    ]


def expected_s(cell: Cell, length: Length) -> float:
    """Seconds that a cell is expected to take: its slice, its warm-up, its prefill over the
    link."""
    if cell.what == "probe":
        return 4.0
    if cell.link == "count":
        return length.count_s + 1.0
    if cell.part == "resident":
        return length.slice_s / 2 + 0.5
    if cell.part == "offload":
        return 2 * length.slice_s + 25.0
    model = next(model for model in MODELS.values() if model.name == cell.model)
    rate = LINKS[cell.link] or 1e9
    prefill_s = model.num_moe_layers * min(model.num_experts, 30 * cell.batch) * EXPERT_BYTES / 1e9
    # of on-demand, at most
    step_s = model.num_layers * min(model.num_experts, 2 * cell.batch) * EXPERT_BYTES / rate
    prefill_s *= length.slice_s / 6 if cell.batch == 1 else 2
    # a planner tries several gammas first
    plans = length.slice_s / 2 if cell.what in ("specmoe", "auto") else 0.0
    return (
        max(length.slice_s, 2 * step_s)
        + max(length.warm_up_s, 2 * step_s)
        + prefill_s
        + plans
        + 0.5
    )
