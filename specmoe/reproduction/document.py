"""``docs/reproduction.md`` and the tables of the report, made from the results so that neither can drift.

Comes in: the list of ``Number``s and the results. Goes out: Markdown. ``python -m
specmoe.reproduction`` rewrites the file.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import sentences as say
from .facts import KINDS, PAPER_MODELS, Number
from .numbers import load_results, main_model, rows_of
from .page import all_numbers, clock_rows
from .winners import PAPER_BALANCE, winners

FILE = Path(__file__).resolve().parents[2] / "docs" / "reproduction.md"
TITLES = {
    "throughput": "Throughput and latency against batch",
    "bytes": "Slow-to-fast bytes against batch",
    "growth": "Growth of the bytes from batch 1 to 256",
    "substitution": "Substitutes for experts that are not resident",
    "draft_set": "Choice of the draft set",
    "draft_experts": "Number of draft experts",
    "low_skew": "Models with less skew, temperature 1, gamma 5",
    "ssd": "Experts on an SSD",
    "migration": "Share of time in expert migration",
}
WHY = {
    "throughput": "Ours: experts widened to 256 KiB on a disk throttled to 0.25 GB/s, two cores; all methods but "
    "`resident` have "
    "the fast memory with which `cached` keeps a tenth of the experts. Computing is slow here compared with "
    "reading (hundreds of "
    "FLOP per byte, the paper's machine has about 15,000), so drafting costs more of what it saves. The paper's own bytes "
    "(28 GB a step at batch 256) over its link (64 GB/s) would allow about 585 tokens/s where it reports 28.6; the notes do "
    "not say what else took the time, so compare ratios, not tokens/s.",
    "bytes": "Bytes carry over between machines. Prefetching is off, as in the paper. In the paper, and in the "
    "lines marked so, "
    "caching keeps 13 of 128 experts and specmoe 4: that is **unequal memory**. The same at equal bytes stands beside it.",
    "growth": "Bytes per token times batch, decoding only, rounds with the batch kept full. A model with two "
    "sparse decoder layers "
    "and a narrow domain reaches all its hot experts earlier than a large one.",
    "substitution": "Ranges are the smallest and largest of several sets of held-out prompts. `no_experts` is "
    "the control: a draft "
    "with no expert output at all. The paper has no such control.",
    "draft_set": "`hot_global` stands on a calibration run over a few of the same prompts.",
    "draft_experts": "N changes the memory too: each N has the bytes that it needs.",
    "low_skew": "The paper's Mixtral and Llama-4-Scout are far too large here; ours are `tiny-balanced` (8 "
    "experts, even use) and "
    "`tiny-skewed` (32 experts). Compare the shape, not the numbers.",
    "ssd": "Ours: the disk as it is, direct I/O, experts widened to 256 KiB. A tiny expert on a fast disk is "
    "read almost as fast "
    "as it is computed, so there is less to save than with the paper's experts of tens of MiB.",
    "migration": "Measured: the share of decoding in which nothing was computed because a read had not arrived.",
}

WHY_MAP = (
    "**Simulated** from our counts under a plain cost model (its terms: `specmoe/reproduction/winners.py`), at the sizes "
    "of NLLB-MoE and Mixtral-8x7B, at equal fast memory. `overlapped` is the oracle of the paper. Memory rate is tied to "
    "compute as on an H100 (295 FLOP per byte); the laptop (1 TFLOP/s, NVMe at 5 GB/s) is an assumption. "
    "The circles are **measured**. "
    "This plain model is not `specmoe.simulate`, which replays recordings and is held against our clock above."
)


def table(numbers: list[Number], key: str) -> pd.DataFrame:
    """One row per label and measure, one column per kind; ranges behind the value."""
    rows: dict[tuple[str, str], dict] = {}
    for number in (n for n in numbers if n.table == key):
        row = rows.setdefault((number.label, number.measure), {"row": number.label, "what": number.measure})
        row[number.kind] = words(number)
        note = number.note if number.kind != "paper" else number.note.partition("; ")[2]
        row["note"] = "; ".join(filter(None, [row.get("note", ""), f"{number.kind}: {note}" if note else ""]))
    columns = ["row", "what", *(kind for kind in KINDS if any(kind in row for row in rows.values())), "note"]
    return pd.DataFrame(list(rows.values())).reindex(columns=columns).fillna("")


def words(number: Number) -> str:
    value = f"{number.value:.3g}" if abs(number.value) < 100 else f"{number.value:.0f}"
    span = "" if number.low is None else f" ({number.low:.3g} to {number.high:.3g}, {number.num})"
    return f"{value} {number.unit}{span}"


def markdown_table(frame: pd.DataFrame) -> str:
    if not len(frame):
        return "Nothing measured and nothing in the paper."
    head = "| " + " | ".join(frame.columns) + " |\n|" + "---|" * len(frame.columns)
    return head + "".join("\n| " + " | ".join(str(cell) for cell in row) + " |" for row in frame.itertuples(index=False))


def conclusions(numbers: list[Number], key: str) -> str:
    """The sentences of one table."""
    extra = {
        "throughput": lambda: f"{say.say_speed_up(numbers, key)} {say.say_batch_one(numbers)}",
        "ssd": lambda: say.say_speed_up(numbers, key),
        "growth": lambda: say.say_growth(numbers),
        "substitution": lambda: f"{say.say_order(numbers, key, ('affinity', 'random'))} {say.say_control(numbers)}",
        "draft_set": lambda: say.say_order(numbers, key, ("hot_temporal", "hot_global", "random")),
        "draft_experts": lambda: say.say_best_number(numbers),
    }
    lines = [say.say_compared(numbers, key) if key != "low_skew" else "", extra[key]() if key in extra else ""]
    return "\n\n".join(line for line in lines if line)


def setup(results: dict[str, dict]) -> str:
    """Model, machine, versions and dates of what was measured."""
    name = main_model(results)
    machine, model = results[name]["machine"], results[name]["model"]
    rows = rows_of(results, name)
    dates = sorted(set(rows["measured"].str[:10]))
    versions = ", ".join(f"{key} {machine[key]}" for key in ("specmoe", "torch", "transformers", "python") if key in machine)
    return (
        f"Measured with `{name}` ({model['architecture']}, {model['experts']} experts top-{model['top_k']}) on "
        f"{machine['cpu']}, "
        f"{machine['cores']} cores, no GPU; {versions}; {', '.join(dates)}; {len(rows)} runs. Mean Gini of expert use "
        f"(our definition of skewness; the paper's is not known): {_skewness(rows)}, the paper says "
        f"{PAPER_MODELS['NLLB-MoE'][-1]} "
        "of NLLB-MoE."
    )


def _skewness(rows: pd.DataFrame) -> str:
    found = rows["skewness"].dropna() if "skewness" in rows else []
    return f"{found.iloc[-1]:.2f}" if len(found) else "not measured"


def document(results: dict[str, dict] | None = None) -> str:
    """The whole of ``docs/reproduction.md``."""
    results = results or load_results()
    numbers = all_numbers(results)
    parts = [
        "# The paper's numbers and ours",
        "Made by `python -m specmoe.reproduction` from `specmoe/reproduction/results`; don't edit. The figures are in "
        "`specmoe report run paper`. **paper**: reported in arXiv 2604.10152, as collected in reading notes. "
        "**measured**: ran here. "
        "**simulated**: computed from recordings of runs, on the hardware that is named. No column mixes them.",
        setup(results),
    ]
    for key, title in TITLES.items():
        parts += [f"## {title}", WHY[key], conclusions(numbers, key), markdown_table(table(numbers, key))]
    parts += ["## The simulator against our own clock", say.say_clock(clock_rows())]
    parts += ["## The map of winners (simulated)", WHY_MAP, say.say_map(winners(results), PAPER_BALANCE)]
    return "\n\n".join(part for part in parts if part) + "\n"
