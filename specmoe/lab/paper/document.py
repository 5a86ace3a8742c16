"""``docs/reproduction.md`` and the words of the report, made from the results so that neither can
drift.

Comes in: the list of ``Number``s and the results. Goes out: Markdown. ``python -m specmoe.lab.paper
document`` rewrites the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from . import sentences as say
from .claims import claims
from .facts import PAPER_MODELS, Number
from .numbers import load_results, main_model, rows_of
from .page import all_numbers, clock_rows
from .prose import KINDS_MEAN, TITLES, WHY, WHY_MAP
from .settings import MAIN
from .tables import markdown, markdown_table
from .winners import BASE, winners

FILE = Path(__file__).resolve().parents[3] / "docs" / "reproduction.md"


def conclusions(numbers: list[Number], key: str) -> str:
    """The sentences of one table."""
    extra = {
        "throughput": lambda: f"{say.say_speed_up(numbers, key)} {say.say_batch_one(numbers)}",
        "ssd": lambda: say.say_speed_up(numbers, key),
        "growth": lambda: say.say_growth(numbers),
        "substitution": lambda: (
            f"{say.say_order(numbers, key, ('affinity', 'random'))}\n\n{say.say_control(numbers)}"
        ),
        "draft_set": lambda: say.say_order(numbers, key, ("hot_temporal", "hot_global", "random")),
        "draft_experts": lambda: say.say_best_number(numbers),
        "low_skew": lambda: say.say_low_skew(numbers),
    }
    lines = [say.say_compared(numbers, key), extra[key]() if key in extra else ""]
    return "\n\n".join(line for line in lines if line)


def setup(results: dict[str, dict]) -> str:
    """Model, machine, versions and dates of what was measured."""
    name = main_model(results)
    machine, model = results[name]["machine"], results[name]["model"]
    rows = rows_of(results, name)
    dates = sorted(set(rows["measured"].str[:10]))
    num_runs = sum(len(each["rows"]) for each in results.values())
    versions = ", ".join(
        f"{key} {machine[key]}"
        for key in ("specmoe", "torch", "transformers", "python")
        if key in machine
    )
    about = (
        ""
        if name == MAIN
        else (f" What is said beside the tables to explain differences was written about {MAIN}.")
    )
    return (
        f"Measured with `{name}` ({model['architecture']}, {model['experts']} experts "
        f"top-{model['top_k']}) on "
        f"{machine['cpu']}, {machine['cores']} cores, no GPU; {versions}; {', '.join(dates)}; "
        f"{num_runs} runs. Mean Gini of "
        f"expert use (our definition of skewness; the paper's is not known): {_skewness(rows)}, "
        "the paper says "
        f"{PAPER_MODELS['NLLB-MoE'][-1]} of NLLB-MoE.{about}"
    )


def _skewness(rows: pd.DataFrame) -> str:
    found = rows["skewness"].dropna() if "skewness" in rows else []
    return f"{found.iloc[-1]:.2f}" if len(found) else "not measured"


def document(
    results: dict[str, dict] | None = None,
    numbers: list[Number] | None = None,
    cells: pd.DataFrame | None = None,
) -> str:
    """The whole of ``docs/reproduction.md``."""
    results = results or load_results()
    numbers = numbers or all_numbers(results)
    cells = winners(balances=[BASE.balance]) if cells is None else cells
    parts = [
        "# The paper's numbers and ours",
        "Made by `python -m specmoe.lab.paper document` from `specmoe/lab/paper/results`; don't "
        "edit. The figures are "
        "in `specmoe report run paper`; add `-p rerun=quick` (minutes) or `-p rerun=full` to "
        "measure again, and "
        f"`-p model=...` for another checkpoint. {KINDS_MEAN}",
        "## What came out",
        markdown_table(claims(numbers)),
        setup(results),
        "**The simulator against our own clock**",
        say.say_clock(clock_rows()),
        *_tables(numbers),
        "## The map of winners (simulated)",
        "![The map of winners](images/winners.png)",
        WHY_MAP,
        say.say_map(cells, BASE.balance),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(numbers: list[Number]) -> Iterable[str]:
    for key, title in TITLES.items():
        yield from (f"## {title}", conclusions(numbers, key), WHY[key], markdown(numbers, key))
