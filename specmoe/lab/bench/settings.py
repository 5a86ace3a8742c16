"""What is measured, as data: models, links, batches, methods, how long, and what comes first.

Comes in: a length ("full" or "quick") and the parts that were asked for. Goes out: groups of
``Run``: what is measured together, in the order of its slices (``parts`` knows how), for ``run``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .runs import Run

MIB = 2**20
EXPERT_BYTES = 3 * MIB
# bytes per second; None: the disk as it is
LINKS: dict[str, float | None] = {"native": None, "throttled": 2.5e8}
BATCHES = (1, 4, 16, 64, 128, 256)
AGAIN = "_again"  # the same method once more: the A/A control
TOKENS = 64  # new tokens of a prompt, at most
EVICTIONS = ("static", "temporal", "lru", "lfu", "decayed")
METHODS = ("on_demand", "cached", "specmoe", "auto", f"specmoe{AGAIN}")
PEER_BATCHES = (1, 16, 64)
LOW_BIT_BATCHES = (16, 64)
POOL_BATCHES = (16, 64)


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
    """How long and how much. The window of a method is ``repeats`` slices of ``slice_s`` seconds;
    the methods of a cell take turns."""

    name: str
    slice_s: float
    repeats: int
    warm_up_s: float
    batches: tuple[int, ...]
    throttled: tuple[int, ...] = BATCHES  # of these batches, those that the throttled link gets
    count_s: float = 1.5  # of a run that only counts
    evictions: tuple[str, ...] = EVICTIONS


FULL = Length("full", 3.5, 6, 1.5, (1, 4, 16, 64, 256))
QUICK = Length("quick", 0.7, 3, 0.6, (1, 64, 256), (64,), 0.5, ("static", "decayed"))
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
    "low_bit",
    "pools",
)


# An hour goes first to what the targets ask: counts, which pick the best pool, then large batches, then
# the other parts, small batches, and what changes least.
FIRST = ("evictions", "growth")
LARGE, SMALL = (64, 16, 256), (1, 4, 128)
BETWEEN = ("low_bit", "resident", "drafting")
TIMED = ("translate-native", "skewed-native", "translate-throttled", "skewed-throttled")


def groups(
    parts: Sequence[str], length: Length, batches: Sequence[int] | None = None
) -> list[list[Run]]:
    """What is measured together, the most valuable first: all runs of a cell whose methods take
    turns; every other run is a group of its own."""
    found: dict[tuple, list[Run]] = {}
    for part in PARTS:
        for run in cells(part, length, batches) if part in parts else ():
            alone = part not in (*TIMED, "low_bit", "tracing", "pools")
            found.setdefault((_place(run), run.key if alone else run.model), []).append(run)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _place(run: Run) -> tuple:
    """Where a run stands in the order: a part, and the batches of a timed one."""
    if run.part in FIRST:
        return 0, FIRST.index(run.part), 0
    if run.part in TIMED and run.batch in LARGE:
        return 1, TIMED.index(run.part), LARGE.index(run.batch)
    if run.part in BETWEEN:
        return 2, BETWEEN.index(run.part), run.batch
    if run.part in TIMED:
        return 3, TIMED.index(run.part), SMALL.index(run.batch)
    return 4, PARTS.index(run.part), run.batch


def cells(part: str, length: Length, batches: Sequence[int] | None = None) -> list[Run]:
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
    if part in ("tracing", "resident", "offload", "low_bit"):
        return _alternating(part, length)
    if part == "pools":
        return _pools(length)
    model, link = part.split("-")
    if link == "throttled":
        chosen = tuple(batch for batch in chosen if batch in length.throttled)
    return [
        cell for batch in chosen for cell in _speed(part, MODELS[model].name, link, batch, length)
    ]


def _speed(part: str, model: str, link: str, batch: int, length: Length) -> list[Run]:
    """Probes of the machine, then the methods in turn, ``repeats`` times."""
    base = Run(model, "probe", batch, link, part=part)
    methods = (*METHODS, "resident") if link == "native" else METHODS
    return [base, *_turns(base, methods, length.repeats)]


def _turns(first: Run, methods: Sequence[str], repeats: int) -> list[Run]:
    """Every method in each turn, every other turn backwards: a machine that drifts favours none."""
    orders = (methods, methods[::-1])
    return [
        replace(first, method=method, prompt_set=turn)
        for turn in range(repeats)
        for method in orders[turn % 2]
    ]


def _alternating(part: str, length: Length) -> list[Run]:
    """Two or three things against each other, in turn, and one of them twice."""
    arms = {
        "tracing": ("trace_on", "trace_off", f"trace_off{AGAIN}"),
        "resident": ("resident", "transformers", f"resident{AGAIN}"),
        "offload": ("specmoe", "accelerate", "accelerate_uncached", f"specmoe{AGAIN}"),
        "low_bit": (f"bf16{AGAIN}", "bf16", "int8", "int4"),
    }
    repeats = 1 if part == "offload" else length.repeats
    one = part == "tracing" or length.name != "full" and part in ("offload", "low_bit")
    batches = (16,) if one else {"low_bit": LOW_BIT_BATCHES}.get(part, PEER_BATCHES)
    link = {"resident": "memory", "low_bit": "throttled"}.get(part, "native")
    first = Run("tiny-skewed", "", 1, link, part=part)
    return [
        run for batch in batches for run in _turns(replace(first, batch=batch), arms[part], repeats)
    ]


def _pools(length: Length) -> list[Run]:
    """Evictions of one pool against each other, in turn, and the last of them twice."""
    arms = (*length.evictions, f"{length.evictions[-1]}{AGAIN}")
    at = [
        Run(model.name, "", batch, "native", part="pools")
        for model in MODELS.values()
        for batch in POOL_BATCHES
    ]
    chosen = at if length.name == "full" else at[-2:-1]
    return [run for first in chosen for run in _turns(first, arms, length.repeats)]


def expected_s(runs: list[Run], length: Length) -> float:
    """Seconds that a group is expected to take: slices, warm-up, prefill over the link."""
    first = runs[0]
    if first.regime == "count":
        return (length.count_s * (3 if first.part == "growth" else 1) + 1.0) * len(runs)
    if first.part == "resident":
        return (length.slice_s / 2 + 1.0) * len(runs)
    if first.part == "offload":
        return (2 * length.slice_s + 20.0) * len(runs)
    slices = [run for run in runs if run.method != "probe"]
    model = next(model for model in MODELS.values() if model.name == first.model)
    rate = LINKS[first.regime] or 1e9
    # of on-demand, at most
    step_s = model.num_layers * min(model.num_experts, 2 * first.batch) * EXPERT_BYTES / rate
    prefill_s = model.num_moe_layers * min(model.num_experts, 30 * first.batch) * EXPERT_BYTES / 1e9
    begin_s = 1.0 + 2 * prefill_s + max(length.warm_up_s, length.slice_s / 3)
    slowest_s = max(0.0, 2 * step_s - length.slice_s)  # of on-demand's two rounds
    turns = length.repeats * slowest_s + 2 * step_s
    return (
        len(slices) * (length.slice_s + 0.2)
        + len({run.method for run in slices}) * begin_s
        + turns
        + 4.0 * (len(runs) > len(slices))
    )
