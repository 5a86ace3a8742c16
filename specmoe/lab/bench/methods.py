"""Measure the decoding methods side by side: same model, same prompts, same fast memory,
alternating repeats.

Comes in: a model's name (or a loaded engine) and what to vary. Goes out: a ``BenchResult``: one row
per method and batch, medians over repeats, and the traces behind them. ``cli``, ``report`` and
notebooks call this. Tokens, bytes and seconds are of decoding; prefill stands apart. Only the clock
is used here: nothing is simulated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ...errors import OptionError
from ...options import METHODS, GenerateOptions, LoadOptions, check_choice, from_kwargs
from ...registry import names
from .. import metrics
from ..machine import doctor
from .prompts import prompts_for
from .rows import BenchResult, Repeats, beside, each, row_of, shares_of
from .runs import UNSAID, Run, in_turn

ALL_METHODS = ("on_demand", "cached", "overlapped", "specmoe", "auto", "resident")
WARM_UP_TOKENS = 8
RIVAL = "decayed"  # the pool that fetches least (``lab.pools``)
# Batches of prompts per run. Sentences end at EOS, each where it does: only a deeper queue keeps
# their batch full.
QUEUE_BATCHES, QUEUE_BATCHES_TRANSLATION = 2, 3
# Options of ``generate`` that every run gets anew, and the argument that says them.
SAID_ELSEWHERE = {"method": "methods", "batch_size": "batch"}
Progress = Callable[[int, int, str], None]  # called with runs done, runs in all, what comes next


def run_bench(
    model,
    methods: Sequence[str] = ALL_METHODS,
    batch: Sequence[int] = (1, 16, 64),
    *,
    load: Mapping | None = None,
    generate: Mapping | None = None,
    repeats: int = 3,
    probe: bool = True,
) -> BenchResult:
    """Measure ``methods`` at each ``batch``; ``model`` is a name, or an engine (then it was loaded
    as it is).

    ``load`` are options of ``specmoe.load``, ``generate`` those of ``Engine.generate``: ``gamma``
    is ``specmoe``'s (``auto`` plans its own), ``eviction`` may be several, a temperature above 0
    samples. Beside them ``generate`` takes ``prompts`` (default: held-out texts), ``num_prompts``
    of a run (default: two batches of texts, three of sentences to translate, so that finished rows
    are refilled), and a ``progress`` that is told runs done, runs in all and what comes next.

    One engine serves all, so every method but ``resident`` has the same fast memory. For each
    batch: one short warm-up per method, then ``repeats`` times every method in turn over the same
    prompts. ``probe``: find out what this machine can do, for the result's ``machine``.
    """
    plan = _Plan.of(methods, batch, repeats, _said("generate", generate))
    plan.check()
    load = _said("load", load)
    from_kwargs(LoadOptions, load)
    with _engine_of(model, load) as engine:
        return _measure_all(engine, plan, probe)


def _said(name: str, options: Mapping | None) -> dict:
    """What is None was not said."""
    if not isinstance(options, Mapping | None):
        raise OptionError(f"{name}={options!r:.60} must be a dict of options by name")
    return {key: value for key, value in (options or {}).items() if value is not None}


def _labelled(methods: Sequence[str], eviction: str | Sequence[str]) -> dict[str, Run]:
    """One run per method, in order and once each, by its label; ``cached`` once per eviction."""
    methods = _names("methods", methods, METHODS)
    evictions = _names("eviction", eviction, names("eviction"))
    runs = {}
    for method in methods:
        for name in evictions if method == "cached" else [None]:
            label = f"{method}:{name}" if name and len(evictions) > 1 else method
            runs[label] = Run("", method, 0, **{**UNSAID, "eviction": name})
    return runs


def _names(option: str, given: str | Sequence[str], choices: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys([given] if isinstance(given, str) else given))
    if not names:
        raise OptionError(f"{option} is empty: name at least one of {', '.join(choices)}")
    for name in names:
        check_choice(option, name, choices)
    return names


def _counts(option: str, given) -> list[int]:
    counts = list(dict.fromkeys([given] if isinstance(given, int) else given))
    wrong = [count for count in counts if type(count) is not int or count < 1]
    if wrong or not counts:
        raise OptionError(
            f"{option}={wrong[0] if wrong else counts!r} must be whole numbers of at least 1"
        )
    return counts


@dataclass
class _Plan:
    """What will be run. ``begin`` counts the runs and tells ``progress``."""

    variants: dict[str, Run]  # by label, without model and batch
    batches: list[int]
    repeats: int
    generate: dict  # options of every run
    gamma: int | None = None
    prompts: Sequence | None = None
    num_prompts: int | None = None
    progress: Progress | None = None
    done: int = 0

    @classmethod
    def of(cls, methods, batch, repeats, generate: dict) -> _Plan:
        """``generate`` is what was said; what it leaves out is settled here."""
        own = {
            name: generate.pop(name, None)
            for name in ("gamma", "prompts", "num_prompts", "progress")
        }
        variants = _labelled(methods, generate.pop("eviction", RIVAL))
        # Temperature 0 is greedy; ``GenerateOptions`` refuses what is below.
        if "do_sample" not in generate and not generate.get("temperature", True):
            del generate["temperature"]
        elif "temperature" in generate:
            generate = {"do_sample": True, **generate}
        generate = {"max_new_tokens": GenerateOptions.max_new_tokens, "seed": 0, **generate}
        return cls(
            variants, _counts("batch", batch), *_counts("repeats", [repeats]), generate, **own
        )

    def runs(self, batch: int) -> dict[str, Run]:
        """By label: what is measured at ``batch``."""
        return {
            label: replace(run, batch=batch, gamma=self.gamma)
            for label, run in self.variants.items()
        }

    def options(self, run: Run, **changes) -> dict:
        """Keyword arguments of ``generate`` for one run."""
        return {**self.generate, **run.options(), **changes}

    def checked(self, run: Run) -> GenerateOptions:
        """The same as the engine understands them."""
        from ...engine.settings import gather

        return from_kwargs(GenerateOptions, gather(self.options(run)))

    def check(self) -> None:
        """Refuse bad options before anything is loaded."""
        for name in SAID_ELSEWHERE.keys() & self.generate.keys():
            raise OptionError(f"{name} is not said in generate: {SAID_ELSEWHERE[name]} names it")
        if self.prompts is not None and len(self.prompts) == 0:
            raise OptionError("prompts is empty: pass at least one prompt")
        if self.num_prompts is not None:
            _counts("num_prompts", self.num_prompts)
        GenerateOptions(gamma=self.gamma)
        for run in self.runs(self.batches[0]).values():
            self.checked(run)

    def prompts_of(self, engine, batch: int) -> list:
        """As many as the batch asks for."""
        translates = getattr(engine, "is_translation", False)
        deep = QUEUE_BATCHES_TRANSLATION if translates else QUEUE_BATCHES
        num = self.num_prompts or max(deep * batch, 4)
        return prompts_for(engine, num, self.generate["seed"], self.prompts)

    def begin(self, what: str) -> None:
        if self.progress is not None:
            compared = "on_demand" not in self.variants
            per_batch = len(self.variants) * (self.repeats + 1) + compared
            self.progress(self.done, per_batch * len(self.batches), what)
        self.done += 1


@contextmanager
def _engine_of(model, load: dict) -> Iterator:
    """The engine called ``model``, closed afterwards; or ``model`` itself when it is one, left
    open."""
    if hasattr(model, "generate"):
        if load:
            raise OptionError(
                f"model is a loaded engine, so {', '.join(load)} cannot be set: load with it"
            )
        yield model
        return
    from ...engine import engine

    with engine.load(model, **load) as loaded:
        yield loaded


def _measure_all(engine, plan: _Plan, probe: bool) -> BenchResult:
    rows, traces, shares = [], {}, []
    for batch in plan.batches:
        prompts = plan.prompts_of(engine, batch)
        found, plain_tokens = _measure(engine, plan, batch, prompts)
        base = None
        if "on_demand" in found:
            base = statistics.median(each(found["on_demand"], "tokens_per_second"))
        for label, run in plan.runs(batch).items():
            repeats, options = found[label], plan.checked(run)
            row = row_of(engine, run, options, repeats, plain_tokens)
            speedup = None if base is None else row["tokens_per_second"] / base
            row |= beside(repeats, found.get("on_demand"))
            rows.append(row | {"speedup_over_on_demand": speedup, "num_prompts": len(prompts)})
            traces[label, batch] = repeats.trace.to_frame()
            shares += shares_of(label, batch, repeats)
    record_bytes = engine.info.get("record_bytes") or doctor.RECORD_BYTES
    machine = doctor.examine(quick=True, record_bytes=record_bytes) if probe else {}
    machine |= {"store": dict(engine.store_info)}
    model = dict(engine.info) | _decoding_layers(traces)
    return BenchResult(machine, model, rows, traces, shares)


def _decoding_layers(traces: Mapping) -> dict[str, int]:
    """How many MoE layers take part in the rounds: an encoder's do not."""
    routes = [metrics.events(frame, "verify", "route")["layer"] for frame in traces.values()]
    layers = {int(layer) for route in routes for layer in route.unique()}
    return {"decoding_layers": len(layers)} if layers else {}


def _measure(
    engine, plan: _Plan, batch: int, prompts: list
) -> tuple[dict[str, Repeats], list[list[int]]]:
    """All runs at one batch: label -> repeats, and the tokens of plain decoding."""
    runs = plan.runs(batch)
    found = {label: Repeats() for label in runs}

    def warm_up(label: str) -> None:
        plan.begin(f"{label}, batch {batch}, warm-up")
        # A compiled model is traced for the shapes it meets, so its warm-up has to be a run like
        # those that follow.
        most = plan.generate["max_new_tokens"]
        tokens = most if _compiled(engine) else min(WARM_UP_TOKENS, most)
        began_s = time.perf_counter()
        engine.generate(prompts[:batch], **plan.options(runs[label], max_new_tokens=tokens))
        found[label].warm_up_s = time.perf_counter() - began_s

    def once(label: str, turn: int) -> None:
        plan.begin(f"{label}, batch {batch}, repeat {turn + 1}")
        found[label].add(engine.generate(prompts, **plan.options(runs[label])), batch)

    in_turn(runs, plan.repeats, warm_up, once)
    if "on_demand" in found:
        return found, found["on_demand"].tokens[0]
    plan.begin(f"plain decoding, batch {batch}, for comparison")
    reference = Repeats()
    plain = Run("", "on_demand", batch, **UNSAID)
    reference.add(engine.generate(prompts, **plan.options(plain)), batch)
    return found, reference.tokens[0]


def _compiled(engine) -> bool:
    return bool(getattr(getattr(engine, "options", None), "compile", False))
