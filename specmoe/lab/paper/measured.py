"""The measured numbers of every table.

Comes in: rows of the results (``numbers``). Goes out: ``Number``s of kind "measured". ``page`` sets
the paper's and the simulated ones beside them.
"""

from __future__ import annotations

import pandas as pd

from .facts import BATCHES, PERCENT, SPEED, TOKENS, Number, mean_of
from .numbers import (
    by_set,
    bytes_by_batch,
    choice_batch,
    main_model,
    pick,
    rows_of,
    usual,
)
from .settings import LOW_SKEW
from .timed import UNEQUAL, low_skew, migration, timed_numbers

AGAINST_FOUR = "speed against N = 4"
SUBSTITUTES = ("affinity", "random", "router", "drop", "no_experts")
AGAINST = (  # line, how it is called, what to know
    ("on_demand", "on_demand", "equal fast memory"),
    ("cached", "cached", UNEQUAL),
    ("cached, equal bytes", "cached at equal bytes", "equal fast memory"),
    ("cached:temporal, equal bytes", "cached:temporal at equal bytes", "equal fast memory"),
)


def measured_numbers(results: dict[str, dict]) -> list[Number]:
    """All of them, for the main model and those with less skew."""
    rows = rows_of(results, main_model(results))
    found = [
        *timed_numbers(rows, "throttled", "throughput"),
        *timed_numbers(rows, "disk", "ssd"),
        *migration(rows),
    ]
    found += [*_bytes(rows), *_growth(rows), *_substitution(rows), *_sets(rows), *_experts(rows)]
    return found + [
        number for model in LOW_SKEW for number in low_skew(rows_of(results, model), model)
    ]


def _bytes(rows: pd.DataFrame) -> list[Number]:
    moved = bytes_by_batch(rows)
    found: list[Number] = []
    for line in moved:
        for batch, value in moved[line].dropna().items():
            found += mean_of(
                "bytes", line, "bytes for one token of every row", value / 1e6, "MB", batch=batch
            )
    for other, against, note in AGAINST:
        if {"specmoe", other} <= set(moved):
            change = (100 * (moved["specmoe"] / moved[other] - 1)).dropna()
            measure, said = f"change against {against}", f"batch {change.idxmin()}; {note}"
            found += mean_of(
                "bytes", "specmoe", f"{measure}, best batch", change.min(), PERCENT, said
            )
            for batch, value in change.items():
                found += mean_of(
                    "bytes",
                    f"specmoe against {against}",
                    "change of bytes",
                    value,
                    PERCENT,
                    note,
                    batch,
                )
    return found


def _growth(rows: pd.DataFrame) -> list[Number]:
    """Bytes at batch 256 over those at batch 1, for each set of prompts."""
    ends = (min(BATCHES), max(BATCHES))
    sets = sorted(rows["prompt_set"].unique()) if len(rows) else []
    growth: dict[str, list[float]] = {}
    for number in sets:
        moved = bytes_by_batch(rows, number)
        for line in moved if set(ends) <= set(moved.index) else ():
            growth.setdefault(line, []).append(moved[line][ends[1]] / moved[line][ends[0]])
    note = {"cached": UNEQUAL}
    return [
        number
        for line, values in growth.items()
        for number in mean_of(
            "growth", line, "growth of bytes, batch 1 to 256", values, "times", note.get(line, "")
        )
    ]


def _counted_batches(rows: pd.DataFrame) -> list[int]:
    return (
        sorted(int(batch) for batch in rows.loc[rows["regime"] == "count", "batch"].unique())
        if len(rows)
        else []
    )


def _substitution(rows: pd.DataFrame) -> list[Number]:
    found: list[Number] = []
    for batch in _counted_batches(rows):
        values = {name: by_set(rows, batch, substitute=name) for name in SUBSTITUTES}
        if len(values["random"]):
            pairs = [(name, "random") for name in SUBSTITUTES if name != "random"]
            found += _tokens("substitution", values, batch) + _paired(
                "substitution", values, pairs, batch
            )
            if batch == choice_batch(rows):
                found += _paired("substitution", values, pairs, None, f"batch {batch}")
    return found


def _tokens(table: str, values: dict[str, pd.Series], batch: int) -> list[Number]:
    return [
        n
        for name, each in values.items()
        for n in mean_of(table, name, TOKENS, each, "tokens", batch=batch)
    ]


def _paired(
    table: str, values: dict[str, pd.Series], pairs: list[tuple], batch: int | None, note: str = ""
) -> list[Number]:
    """In percent, set of prompts by set: sets differ more from each other than what is compared."""
    found: list[Number] = []
    for first, second in pairs:
        change = (100 * (values[first] / values[second] - 1)).dropna()
        found += mean_of(table, first, f"{TOKENS} against {second}", change, PERCENT, note, batch)
    return found


def _sets(rows: pd.DataFrame) -> list[Number]:
    found: list[Number] = []
    for batch in _counted_batches(rows):
        values = {
            name: by_set(rows, batch, draft_set=name)
            for name in ("random", "hot_global", "hot_temporal")
        }
        if len(values["random"]):
            pairs = [
                ("hot_global", "random"),
                ("hot_temporal", "random"),
                ("hot_temporal", "hot_global"),
            ]
            found += _tokens("draft_set", values, batch) + _paired(
                "draft_set", values, pairs, batch
            )
    timed = choice_speeds(rows, "draft_set", draft_experts=usual(rows), draft_set=None)
    for name, value in timed.items():
        if "random" in timed:
            ratio = value / timed["random"]
            found += mean_of(
                "draft_set", name, "speed against random", ratio, "times random", batch=256
            )
    return found


def _experts(rows: pd.DataFrame) -> list[Number]:
    found: list[Number] = []
    for batch in _counted_batches(rows):
        values = {num: by_set(rows, batch, draft_experts=num) for num in (2, 4, 8, 16)}
        for num, each in (
            values.items() if sum(len(each) > 0 for each in values.values()) > 1 else ()
        ):
            found += mean_of("draft_experts", f"N = {num}", TOKENS, each, "tokens", batch=batch)
    for row in choice_runs(rows).sort_values("draft_experts").itertuples():
        reach = (row.tokens_per_second_min, row.tokens_per_second_max)
        label, about = f"N = {row.draft_experts:g}", {"num": int(row.repeats), "batch": 256}
        found.append(
            Number(
                "draft_experts",
                label,
                "speed",
                row.tokens_per_second,
                "measured",
                SPEED,
                *reach,
                **about,
            )
        )
    return found + against_four(choice_speeds(rows, "draft_experts"), 256, "measured")


def against_four(speed: pd.Series, batch: int, kind: str, note: str = "") -> list[Number]:
    """Speed by N over that at N = 4."""
    ratios = speed / speed[4] if 4 in speed.index else speed.iloc[:0]
    about = ("times N = 4", note, batch, kind)
    return [
        n
        for num, value in ratios.items()
        for n in mean_of("draft_experts", f"N = {num:g}", AGAINST_FOUR, value, *about)
    ]


RUN_FIELDS = [
    "draft_experts",
    "tokens_per_second",
    "tokens_per_second_min",
    "tokens_per_second_max",
    "repeats",
]


def choice_runs(rows: pd.DataFrame, **settings) -> pd.DataFrame:
    """Timed specmoe runs at batch 256 with just the memory that N needs."""
    found = (
        pick(rows, regime="throttled", method="specmoe", batch=256, **settings)
        if len(rows)
        else rows
    )
    return found if len(found) else pd.DataFrame(columns=RUN_FIELDS)


def choice_speeds(rows: pd.DataFrame, by: str, **settings) -> pd.Series:
    """Their speeds, by draft set or by N."""
    found = choice_runs(rows, **settings)
    return found.set_index(by)["tokens_per_second"] if len(found) else pd.Series(dtype=float)
