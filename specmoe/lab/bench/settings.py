"""What is measured, as data: models, links, batches, methods, how long.

Comes in: a length ("full" or "quick") and the parts that were asked for. Goes out: a list of
``Run``, in the order in which they are measured (``parts`` knows how), for ``run``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .runs import Run, turns

MIB = 2**20
EXPERT_BYTES = 3 * MIB
# bytes per second; None: the disk as it is
LINKS: dict[str, float | None] = {"native": None, "throttled": 2.5e8}
BATCHES = (1, 4, 16, 64, 128, 256)
TOKENS = 64  # new tokens of a prompt, at most
EVICTIONS = ("static", "temporal", "lru", "lfu", "decayed")
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
QUICK = Length("quick", 2.5, 1, 1.0, (1, 64, 256), (64,), 0.5, ("static", "decayed"))
LENGTHS = {"full": FULL, "quick": QUICK}


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


def cells(part: str, length: Length, batches: tuple[int, ...] | None = None) -> list[Run]:
    """The cells of ``part``; ``batches`` narrows those of the length."""
    chosen = tuple(batch for batch in length.batches if batches is None or batch in batches)
    if part == "evictions":
        return [
            Run(model.name, f"cached:{eviction}", batch, part=part)
            for model in MODELS.values()
            for batch in chosen
            for eviction in length.evictions
        ]
    if part == "growth":
        return [
            Run("tiny-translate", what, batch, part=part)
            for what in ("on_demand", "specmoe")
            for batch in (1, 256)
        ]
    if part == "drafting":
        return [
            Run(model.name, "specmoe", batch, "native", part=part)
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


def _speed(part: str, model: str, link: str, batch: int, length: Length) -> list[Run]:
    """Probes of the machine, then the methods in turn, ``repeats`` times."""
    base = Run(model, "probe", batch, link, part=part)
    methods = [
        replace(base, method=method, prompt_set=turn)
        for turn, method in turns(METHODS, length.repeats)
        if turn == 0 or method != "overlapped"  # never the fastest: once is enough
    ]
    return [base, *methods, *([replace(base, method="resident")] if link == "native" else [])]


def _alternating(part: str, length: Length) -> list[Run]:
    """Two things against each other, in turn."""
    pairs = {
        "tracing": ("trace_on", "trace_off"),
        "resident": ("resident", "transformers"),
        "offload": ("specmoe", "accelerate", "accelerate_uncached"),
    }
    repeats = {
        "tracing": 5 if length.name == "full" else 2,
        "resident": 3 if length.name == "full" else 1,
        "offload": 1,
    }[part]
    one = part == "tracing" or part == "offload" and length.name != "full"
    batches = (16,) if one else PEER_BATCHES
    first = Run("tiny-skewed", "", 1, "memory" if part == "resident" else "native", part=part)
    return [
        replace(first, batch=batch, method=method, prompt_set=turn)
        for batch in batches
        for turn, method in turns(pairs[part], repeats)
    ]


def expected_s(cell: Run, length: Length) -> float:
    """Seconds that a cell is expected to take: its slice, its warm-up, its prefill over the
    link."""
    if cell.method == "probe":
        return 4.0
    if cell.regime == "count":
        return length.count_s + 1.0
    if cell.part == "resident":
        return length.slice_s / 2 + 0.5
    if cell.part == "offload":
        return 2 * length.slice_s + 25.0
    model = next(model for model in MODELS.values() if model.name == cell.model)
    rate = LINKS[cell.regime] or 1e9
    prefill_s = model.num_moe_layers * min(model.num_experts, 30 * cell.batch) * EXPERT_BYTES / 1e9
    # of on-demand, at most
    step_s = model.num_layers * min(model.num_experts, 2 * cell.batch) * EXPERT_BYTES / rate
    prefill_s *= length.slice_s / 6 if cell.batch == 1 else 2
    # a planner tries several gammas first
    plans = length.slice_s / 2 if cell.method in ("specmoe", "auto") else 0.0
    return (
        max(length.slice_s, 2 * step_s)
        + max(length.warm_up_s, 2 * step_s)
        + prefill_s
        + plans
        + 0.5
    )
