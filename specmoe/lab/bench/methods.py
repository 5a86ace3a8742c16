"""Measure the decoding methods side by side: same model, same prompts, same fast memory,
alternating repeats.

Comes in: a model's name (or a loaded engine) and what to vary. Goes out: a ``BenchResult``: one row
per method and batch, medians over repeats, and the traces behind them. ``cli``, ``report`` and
notebooks call this. Tokens, bytes and seconds are of decoding; prefill stands apart. Only the clock
is used here: nothing is simulated.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import OptionError
from ...options import EVICTIONS, METHODS, GenerateOptions, LoadOptions, check_choice, from_kwargs
from .. import metrics
from ..machine import doctor
from .prompts import prompts_for

if TYPE_CHECKING:
    import pandas as pd

ALL_METHODS = ("on_demand", "cached", "overlapped", "specmoe", "auto", "resident")
DRAFTING = ("specmoe", "auto")
WARM_UP_TOKENS = 8
# Batches of prompts per run. Sentences end at EOS, each where it does: only a deeper queue keeps
# their batch full.
QUEUE_BATCHES, QUEUE_BATCHES_TRANSLATION = 2, 3
# Figures of ``stats`` that a row carries as their median over repeats, beside the ratios made in
# ``_figures``.
MEDIANS = (
    "tokens_per_second",
    "seconds",
    "gamma",
    "tokens_per_round",
    "acceptance_rate",
    "prefetch_recall",
    "prefetch_precision",
    "num_new_tokens",
    "prefill_s",
    "prefill_bytes",
    "peak_fast_expert_bytes",
)
Progress = Callable[[int, int, str], None]  # called with runs done, runs in all, what comes next


@dataclass(frozen=True)
class BenchResult:
    """What was measured. ``traces[(label, batch)]`` is the last repeat's; labels are
    ``Variant.label``."""

    machine: dict
    model: dict
    rows: list[dict]
    traces: dict[tuple[str, int], pd.DataFrame] = field(repr=False)

    def to_json(self) -> dict:
        """``{"machine", "model", "rows"}`` of plain JSON values: no NaN, no numpy, no torch."""
        return {
            "machine": plain(self.machine),
            "model": plain(self.model),
            "rows": plain(self.rows),
        }

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self.rows)


@dataclass(frozen=True)
class Variant:
    """One method as it is measured; ``cached`` once per eviction policy."""

    method: str
    eviction: str | None = None
    label: str = ""


@dataclass
class _Runs:
    """What is kept of a variant's repeats at one batch."""

    warm_up_s: float = 0.0
    stats: list = field(default_factory=list)
    tokens: list[list[list[int]]] = field(default_factory=list)  # [repeat][prompt][token]
    trace: Any = None

    def add(self, output) -> None:
        self.stats.append(output.stats)
        self.tokens.append([list(map(int, sequence)) for sequence in output.sequences])
        self.trace = output.trace


def run_bench(
    model,
    methods: Sequence[str] = ALL_METHODS,
    batch: Sequence[int] = (1, 16, 64),
    repeats: int = 3,
    new_tokens: int = 64,
    gamma: int | None = None,
    store: str | None = None,
    draft_experts: int | None = None,
    fast_memory=None,
    link_bytes_per_s: float | None = None,
    expert_bytes=None,
    eviction="temporal",
    draft_set="hot_temporal",
    substitute: str = "affinity",
    temperature: float = 0.0,
    compile: bool | None = None,
    prefetch: bool = True,
    prompts: Sequence | None = None,
    seed: int = 0,
    num_prompts: int | None = None,
    progress: Progress | None = None,
    accept_rule: str = "coupled",
    source_lang: str | None = None,
    target_lang: str | None = None,
    **load_options,
) -> BenchResult:
    """Measure ``methods`` at each ``batch``; ``model`` is a name, or an engine (then load options
    are its own).

    One engine serves all, so every method but ``resident`` has the same fast memory. For each
    batch: one short warm-up per method, then ``repeats`` times every method in turn over the same
    prompts (default: two batches of them, so that finished rows are refilled). ``gamma`` fixes that
    of ``specmoe``; ``auto`` plans its own. A translation model gets held-out English sentences,
    three batches of them, because they end at different lengths.
    """
    load_options |= _given(
        store=store,
        draft_experts=draft_experts,
        fast_memory=fast_memory,
        expert_bytes=expert_bytes,
        link_bytes_per_s=link_bytes_per_s,
        compile=compile,
    )
    decode = {
        "max_new_tokens": new_tokens,
        "draft_set": draft_set,
        "substitute": substitute,
        "prefetch": prefetch,
        "seed": seed,
        "accept_rule": accept_rule,
        **_sampling(temperature),
        **_given(source_lang=source_lang, target_lang=target_lang),
    }
    variants = make_variants(methods, eviction)
    plan = _Plan(
        variants, _counts("batch", batch), *_counts("repeats", [repeats]), gamma, decode, progress
    )
    plan.check(load_options)
    with _engine_of(model, load_options) as engine:
        return _measure_all(engine, plan, _Prompts(engine, prompts, num_prompts, seed))


def _given(**options) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def _sampling(temperature: float) -> dict:
    """Temperature 0 is greedy; ``GenerateOptions`` refuses what is below."""
    return {"do_sample": True, "temperature": temperature} if temperature else {}


def make_variants(methods: Sequence[str], eviction: str | Sequence[str]) -> list[Variant]:
    """One variant per method, in order and once each; ``cached`` once per eviction."""
    methods, evictions = (
        _names("methods", methods, METHODS),
        _names("eviction", eviction, EVICTIONS),
    )
    variants = []
    for method in methods:
        if method == "cached":
            labels = [f"cached:{name}" if len(evictions) > 1 else "cached" for name in evictions]
            variants += [Variant(method, name, label) for name, label in zip(evictions, labels)]
        else:
            variants.append(Variant(method, None, method))
    return variants


def _names(option: str, given: str | Sequence[str], choices: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys([given] if isinstance(given, str) else given))
    if not names:
        raise OptionError(f"{option} is empty: name at least one of {', '.join(choices)}")
    for name in names:
        check_choice(option, name, choices)
    return names


def _counts(option: str, given) -> list[int]:
    counts = list(dict.fromkeys([given] if isinstance(given, int) else given))
    wrong = [
        count
        for count in counts
        if isinstance(count, bool) or not isinstance(count, int) or count < 1
    ]
    if wrong or not counts:
        raise OptionError(
            f"{option}={wrong[0] if wrong else counts!r} must be whole numbers of at least 1"
        )
    return counts


@dataclass
class _Plan:
    """What will be run. ``begin`` counts the runs and tells ``progress``."""

    variants: list[Variant]
    batches: list[int]
    repeats: int
    gamma: int | None
    decode: dict
    progress: Progress | None = None
    done: int = 0

    def options(self, variant: Variant, batch: int, **changes) -> dict:
        """Keyword arguments of ``generate`` for one run."""
        extra = _given(
            eviction=variant.eviction, gamma=self.gamma if variant.method == "specmoe" else None
        )
        return {**self.decode, "method": variant.method, "batch_size": batch, **extra, **changes}

    def check(self, load_options: dict) -> None:
        """Refuse bad options before anything is loaded."""
        from_kwargs(LoadOptions, load_options)
        GenerateOptions(gamma=self.gamma)
        for variant in self.variants:
            GenerateOptions(**self.options(variant, self.batches[0]))

    def begin(self, what: str) -> None:
        if self.progress is not None:
            per_batch = len(self.variants) * (self.repeats + 1) + ("on_demand" not in self.methods)
            self.progress(self.done, per_batch * len(self.batches), what)
        self.done += 1

    @property
    def methods(self) -> list[str]:
        return [variant.method for variant in self.variants]


@contextmanager
def _engine_of(model, load_options: dict) -> Iterator:
    """The engine called ``model``, closed afterwards; or ``model`` itself when it is one, left
    open."""
    if hasattr(model, "generate"):
        if load_options:
            raise OptionError(
                f"model is a loaded engine, so {', '.join(load_options)} cannot be "
                "set: load with it"
            )
        yield model
        return
    from ...engine import engine

    with engine.load(model, **load_options) as loaded:
        yield loaded


@dataclass(frozen=True)
class _Prompts:
    """As many prompts as a batch asks for."""

    engine: Any
    given: Sequence | None
    num: int | None
    seed: int

    def __post_init__(self):
        if self.given is not None and len(self.given) == 0:
            raise OptionError("prompts is empty: pass at least one prompt")
        if self.num is not None:
            _counts("num_prompts", self.num)

    def of(self, batch: int) -> list:
        translates = getattr(self.engine, "is_translation", False)
        deep = QUEUE_BATCHES_TRANSLATION if translates else QUEUE_BATCHES
        return prompts_for(self.engine, self.num or max(deep * batch, 4), self.seed, self.given)


def _measure_all(engine, plan: _Plan, prompts: _Prompts) -> BenchResult:
    rows, traces = [], {}
    for batch in plan.batches:
        chosen = prompts.of(batch)
        runs, plain_tokens = _measure(engine, plan, batch, chosen)
        base = (
            statistics.median(_each(runs["on_demand"], "tokens_per_second"))
            if "on_demand" in runs
            else None
        )
        for variant in plan.variants:
            found = runs[variant.label]
            rows.append(_row(engine, plan, variant, batch, found, base, plain_tokens, len(chosen)))
            traces[variant.label, batch] = found.trace.to_frame()
    machine = doctor.examine(
        quick=True, record_bytes=engine.info.get("record_bytes") or doctor.RECORD_BYTES
    )
    return BenchResult(
        {**machine, "store": dict(engine.store_info)}, dict(engine.info), rows, traces
    )


def _measure(
    engine, plan: _Plan, batch: int, prompts: list
) -> tuple[dict[str, _Runs], list[list[int]]]:
    """All runs at one batch: label -> runs, and the tokens of plain decoding."""
    runs = {variant.label: _Runs() for variant in plan.variants}
    for variant in plan.variants:
        plan.begin(f"{variant.label}, batch {batch}, warm-up")
        # A compiled model is traced for the shapes it meets, so its warm-up has to be a run like
        # those that follow.
        most = plan.decode["max_new_tokens"]
        tokens = most if _compiled(engine) else min(WARM_UP_TOKENS, most)
        began_s = time.perf_counter()
        engine.generate(prompts[:batch], **plan.options(variant, batch, max_new_tokens=tokens))
        runs[variant.label].warm_up_s = time.perf_counter() - began_s
    for repeat in range(plan.repeats):
        for variant in plan.variants:
            plan.begin(f"{variant.label}, batch {batch}, repeat {repeat + 1}")
            runs[variant.label].add(engine.generate(prompts, **plan.options(variant, batch)))
    if "on_demand" in runs:
        return runs, runs["on_demand"].tokens[0]
    reference = _Runs()
    plan.begin(f"plain decoding, batch {batch}, for comparison")
    reference.add(engine.generate(prompts, **plan.options(Variant("on_demand"), batch)))
    return runs, reference.tokens[0]


def _compiled(engine) -> bool:
    return bool(getattr(getattr(engine, "options", None), "compile", False))


def _row(engine, plan, variant, batch, runs: _Runs, base, plain_tokens, num_prompts: int) -> dict:
    """One row of the result."""
    drafts = variant.method in DRAFTING
    same = None
    if not (drafts and plan.decode.get("do_sample") and plan.decode["accept_rule"] == "rejection"):
        same = all(tokens == plain_tokens for tokens in runs.tokens)
    median = _figures(runs)
    speed = median["tokens_per_second"]
    return {
        "method": variant.method,
        "batch": batch,
        "draft_experts": engine.info.get("draft_experts"),
        **median,
        "speedup_over_on_demand": None if base is None else speed / base,
        "tokens_per_second_min": min(_each(runs, "tokens_per_second")),
        "tokens_per_second_max": max(_each(runs, "tokens_per_second")),
        "seconds_min": min(_each(runs, "seconds")),
        "seconds_max": max(_each(runs, "seconds")),
        "kept_full": all(stats.kept_full for stats in runs.stats),
        "eviction": variant.eviction,
        "draft_set": _name_of(plan.decode["draft_set"]) if drafts else None,
        "substitute": plan.decode["substitute"] if drafts else None,
        "prefetch": plan.decode["prefetch"] if drafts else None,
        "link_bytes_per_s": engine.store_info.get("link_bytes_per_s"),
        "expert_bytes": engine.info.get("expert_bytes"),
        "fast_memory_bytes": None
        if variant.method == "resident"
        else engine.info.get("fast_memory_bytes"),
        "num_prompts": num_prompts,
        "repeats": plan.repeats,
        "warm_up_s": runs.warm_up_s,
        "temperature": plan.decode.get("temperature", 0.0),
        "same_tokens_as_plain": same,
        "oracle_tokens_per_second": _oracle(runs) if variant.method == "overlapped" else None,
    }


def _oracle(runs: _Runs) -> float | None:
    """Tokens/s if the last repeat's reads and computing had overlapped perfectly (measured parts,
    computed sum)."""
    seconds = metrics.oracle_overlap_seconds(runs.trace.to_frame()) if runs.trace else 0.0
    return runs.stats[-1].num_new_tokens / seconds if seconds > 0 else None


def _name_of(draft_set) -> str:
    return (
        draft_set
        if isinstance(draft_set, str)
        else getattr(draft_set, "__name__", type(draft_set).__name__)
    )


def _each(runs: _Runs, name: str) -> list:
    return [getattr(stats, name) for stats in runs.stats]


def _figures(runs: _Runs) -> dict:
    """Medians over the repeats: figures of ``stats`` as they are, and the ratios made from them run
    by run."""
    figures = {name: statistics.median(_each(runs, name)) for name in MEDIANS}
    ratios = {
        "fetched_bytes_per_token": [s.fetched_bytes / max(1, s.num_new_tokens) for s in runs.stats],
        "wait_share": [s.wait_s / s.seconds for s in runs.stats],
        "draft_share": [s.draft_s / s.seconds for s in runs.stats],
        "verify_share": [s.verify_s / s.seconds for s in runs.stats],
    }
    return figures | {name: statistics.median(values) for name, values in ratios.items()}


def plain(value):
    """``value`` as JSON can hold it: numpy and torch scalars become numbers, what is not finite
    becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
