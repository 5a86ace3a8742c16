"""The rows of a bench: medians over the repeats of one method at one batch.

Comes in: outputs of runs. Goes out: plain dicts, and a ``BenchResult`` that holds them with the
machine, the model and the traces. ``methods`` calls this.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...options import GenerateOptions
from .. import metrics
from ..writing import plain
from .control import paired, spread_of
from .runs import Run
from .window import steady_speed

if TYPE_CHECKING:
    import pandas as pd

DRAFTING = ("specmoe", "auto")
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


@dataclass(frozen=True)
class BenchResult:
    """What was measured. ``traces[(label, batch)]`` is the last repeat's, ``shares`` have where the
    time of every repeat went; a label is a method, or "cached:<eviction>" where there are several."""

    machine: dict
    model: dict
    rows: list[dict]
    traces: dict[tuple[str, int], pd.DataFrame] = field(repr=False)
    shares: list[dict] = field(default_factory=list, repr=False)

    def to_json(self) -> dict:
        """``{"machine", "model", "rows"}`` of plain JSON values: no NaN, no numpy, no torch."""
        return plain({"machine": self.machine, "model": self.model, "rows": self.rows})

    def to_frame(self) -> pd.DataFrame:
        """No column of objects: what is None is missing, in a number, a category or a flag."""
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        objects = [name for name in frame if frame[name].dtype == object]
        return frame.astype({name: _kind(frame[name]) for name in objects})


def _kind(column: pd.Series) -> str:
    there = [value for value in column if value is not None]
    if not all(isinstance(value, int | float) for value in there):
        return "category"
    return "boolean" if there and all(isinstance(value, bool) for value in there) else "float64"


@dataclass
class Repeats:
    """What is kept of a run's repeats."""

    warm_up_s: float = 0.0
    stats: list = field(default_factory=list)
    tokens: list[list[list[int]]] = field(default_factory=list)  # [repeat][prompt][token]
    shares: list[dict[str, float]] = field(default_factory=list)  # [repeat][part of the time]
    steady: list[float | None] = field(default_factory=list)  # [repeat] tokens per second
    trace: Any = None

    def add(self, output, batch: int) -> None:
        self.stats.append(output.stats)
        self.steady.append(steady_speed(output.trace.to_frame(), batch))
        self.tokens.append([list(map(int, sequence)) for sequence in output.sequences])
        self.trace = output.trace
        self.shares.append(metrics.time_shares(output.trace.to_frame()))


def row_of(engine, run: Run, options: GenerateOptions, repeats: Repeats, plain_tokens) -> dict:
    """One row of the result, but for what it takes the other methods to say."""
    drafts, info = run.method in DRAFTING, engine.info
    by_chance = drafts and options.do_sample and options.accept_rule != "coupled"
    return {
        "method": run.method,
        "batch": options.batch_size,
        "draft_experts": info.get("draft_experts"),
        **_figures(repeats),
        **_reach(repeats),
        "kept_full": all(each(repeats, "kept_full")),
        "eviction": run.eviction,
        "draft_set": name_of(options.draft_set) if drafts else None,
        "substitute": options.substitute if drafts else None,
        "prefetch": options.prefetch if drafts else None,
        "link_bytes_per_s": engine.store_info.get("link_bytes_per_s"),
        "expert_bytes": info.get("expert_bytes"),
        # everything in memory is outside the budget
        "fast_memory_bytes": None if run.method == "resident" else info.get("fast_memory_bytes"),
        "repeats": len(repeats.stats),
        "warm_up_s": repeats.warm_up_s,
        "temperature": options.temperature or 0.0 if options.do_sample else 0.0,
        "same_tokens_as_plain": None
        if by_chance
        else all(tokens == plain_tokens for tokens in repeats.tokens),
        "oracle_tokens_per_second": _oracle(repeats) if run.method == "overlapped" else None,
    }


def beside(repeats: Repeats, plain: Repeats | None) -> dict:
    """Speed without cold starts, its ratio to on-demand's in the same turns with the interval of
    95 %, and how far two neighbouring repeats of one of the two lie apart (A/A, as a factor)."""
    speeds = [speed for speed in repeats.steady if speed]
    row = {"steady_tokens_per_second": statistics.median(speeds) if speeds else None}
    whole = plain is not None and all(repeats.steady) and all(plain.steady)
    ratio = paired(repeats.steady, plain.steady) if whole else None
    row |= {
        f"steady_over_on_demand{end}": getattr(ratio, name, None)
        for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    of = (repeats.steady, plain.steady) if whole else ()
    apart = [spread for one in of if (spread := spread_of(one[:-1], one[1:]))]
    return row | {"control_spread": max(apart, default=None)}


def name_of(draft_set) -> str:
    if isinstance(draft_set, str):
        return draft_set
    return getattr(draft_set, "__name__", type(draft_set).__name__)


def each(repeats: Repeats, name: str) -> list:
    return [getattr(stats, name) for stats in repeats.stats]


def _figures(repeats: Repeats) -> dict:
    """Medians over the repeats: figures of ``stats`` as they are, and the ratios made from them run
    by run."""
    figures = {name: statistics.median(each(repeats, name)) for name in MEDIANS}
    ratios = {
        **_ratios(repeats),
        "draft_share": [s.draft_s / s.seconds for s in repeats.stats],
        "verify_share": [s.verify_s / s.seconds for s in repeats.stats],
    }
    return figures | {name: statistics.median(values) for name, values in ratios.items()}


def _ratios(repeats: Repeats) -> dict[str, list[float]]:
    """What the figures show beside the speed, of every repeat. Waiting is taken from the trace, as
    in every table and figure; without rounds in it, from the counters."""
    waited = [shares["wait"] for shares in repeats.shares]
    if not all(map(math.isfinite, waited)):
        waited = [s.wait_s / s.seconds for s in repeats.stats]
    moved = [s.fetched_bytes / max(1, s.num_new_tokens) for s in repeats.stats]
    return {"fetched_bytes_per_token": moved, "wait_share": waited}


def _reach(repeats: Repeats) -> dict:
    """The least and the most of the repeats."""
    reach = {}
    timed = ("tokens_per_second", "seconds", "tokens_per_round")
    for name, values in ({name: each(repeats, name) for name in timed} | _ratios(repeats)).items():
        reach |= {f"{name}_min": min(values), f"{name}_max": max(values)}
    return reach


def shares_of(label: str, batch: int, repeats: Repeats) -> list[dict]:
    """Where the time of each repeat went."""
    return [
        {"label": label, "batch": batch, "repeat": number}
        | {f"{part}_share": share for part, share in shares.items()}
        for number, shares in enumerate(repeats.shares)
    ]


def _oracle(repeats: Repeats) -> float | None:
    """Tokens/s if the last repeat's reads and computing had overlapped perfectly (measured parts,
    computed sum)."""
    seconds = metrics.oracle_overlap_seconds(repeats.trace.to_frame()) if repeats.trace else 0.0
    return repeats.stats[-1].num_new_tokens / seconds if seconds > 0 else None
