"""What is run for the report, as data: one ``Run`` for each measured row.

Comes in: a model and how much to measure ("quick" or "full"). Goes out: a list of ``Run``, most
telling first, for ``measure``. A run *counts* (tokens per round, bytes: needs no clock) or is
*timed*: throttled, or the disk as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from ...errors import check_choice
from ...options import DRAFT_SETS, SUBSTITUTES
from ..bench.runs import Run
from .facts import BATCHES

MAIN, LOW_SKEW = "tiny-translate", ("tiny-balanced", "tiny-skewed")
RERUNS = ("none", "quick", "full")
LINK = 2.5e8  # bytes per second of the throttled store
# of timed runs: an expert costs what a larger one would
WIDENED = {"throttled": "256KiB", "disk": "3MiB"}
FEW = (1, 16, 64)  # batches of "quick", and of the models with less skew


def plan(model: str = MAIN, how_much: str = "full", num_experts: int = 128) -> list[Run]:
    """Runs for one model of ``num_experts`` per layer, without duplicates. ``how_much``: "quick" (a
    subset) or "full"."""
    check_choice("rerun", how_much, RERUNS[1:])
    full = how_much == "full"
    base = Run(model, "specmoe", 64, draft_experts=max(1, min(4, num_experts // 2)))
    numbers = [num for num in (2, 4, 8, 16) if num <= num_experts]
    sets, large = range(5 if full else 2), replace(base, batch=256)
    runs = [*_counted(base, BATCHES if full else FEW), *_choices(base, sets, numbers)]
    runs += _timed(base, "throttled", (64, 1, 256, 16, 4, 128) if full else (16,))
    if full:
        runs += _timed(base, "disk", FEW) + _spread(base, sets) + _choices(large, sets, numbers)
        large = replace(large, regime="throttled")
        runs += [replace(large, draft_experts=num) for num in numbers]
        runs += [replace(large, draft_set=name) for name in DRAFT_SETS]
    return list(dict.fromkeys(runs))


def plan_low_skew(how_much: str = "full") -> list[Run]:
    """Runs of the shipped models that stand for the paper's two with less skew: timed at
    temperature 1, and counted."""
    check_choice("rerun", how_much, RERUNS[1:])
    runs = []
    for model in LOW_SKEW:
        base = Run(model, "specmoe", 64, gamma=5, draft_experts=None)
        counted = _counted(base, FEW)
        runs += [run for run in counted if run.budget == "draft" and run.method != "overlapped"]
        each = replace(base, regime="throttled", temperature=1.0)
        names = ("on_demand", "overlapped", "cached", "specmoe")
        runs += [
            replace(each, batch=batch, method=name)
            for batch in (FEW if how_much == "full" else (16,))
            for name in names
        ]
    return list(dict.fromkeys(runs))


def _counted(base: Run, batches: Iterable[int]) -> list[Run]:
    """Bytes against batch: every method that moves any, under both budgets."""
    runs = []
    for batch, budget in product(batches, ("draft", "tenth")):
        each = replace(base, batch=batch, budget=budget)
        runs += [replace(each, method=name) for name in ("on_demand", "overlapped", "specmoe")]
        runs += [replace(each, method="cached", eviction=name) for name in ("static", "temporal")]
    return runs


def _choices(base: Run, sets: Iterable[int], numbers: Iterable[int]) -> list[Run]:
    """Substitutes, draft sets and N, each over several sets of prompts."""
    runs = []
    for number in sets:
        each = replace(base, prompt_set=number)
        runs += [replace(each, substitute=name) for name in SUBSTITUTES]
        runs += [replace(each, draft_set=name) for name in DRAFT_SETS]
        runs += [replace(each, draft_experts=num) for num in numbers]
    return runs


def _spread(base: Run, sets: Iterable[int]) -> list[Run]:
    """Growth of the bytes over several sets of prompts, and draft sets where there are few rows."""
    runs = []
    for number, batch in product(sets, (1, 256)):
        each = replace(base, prompt_set=number, batch=batch)
        runs += [replace(each, method=name) for name in ("on_demand", "specmoe", "cached")]
        runs.append(replace(each, method="cached", budget="tenth"))
    chosen = product(sets, (1, 16), DRAFT_SETS)
    return runs + [
        replace(base, prompt_set=number, batch=batch, draft_set=name)
        for number, batch, name in chosen
    ]


def _timed(base: Run, regime: str, batches: Iterable[int]) -> list[Run]:
    """On the clock: every method in the bytes that N needs, then ``cached`` and ``specmoe`` in
    those that caching a tenth of the experts needs. Throttled also ``auto`` and the ceiling."""
    names = ("on_demand", "overlapped", "cached", "specmoe") + (
        ("auto", "resident") if regime == "throttled" else ()
    )
    runs = []
    for batch in batches:
        each = replace(base, batch=batch, regime=regime)
        runs += [replace(each, method=name) for name in names]
        runs += [replace(each, method=name, budget="tenth") for name in ("cached", "specmoe")]
    return runs
