"""The measured numbers of every table.

Comes in: rows of the results (``numbers``). Goes out: ``Number``s of kind "measured". ``page`` sets
the paper's and the simulated ones beside them.
"""

from __future__ import annotations

import pandas as pd

from .facts import BATCHES, PERCENT, TOKENS, Number, Table
from .numbers import by_set, bytes_by_batch, choice_batch, main_model, pick, rows_of, usual
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
    moved, found = bytes_by_batch(rows), []
    for line in moved:
        each = moved[line] / 1e6
        found += Table("bytes").by_batch(line, "bytes for one token of every row", each, "MB")
    for other, against, note in AGAINST:
        if {"specmoe", other} <= set(moved):
            table = Table("bytes", note=note)
            change = (100 * (moved["specmoe"] / moved[other] - 1)).dropna()
            measure, said = f"change against {against}", f"batch {change.idxmin()}; {note}"
            found += table.mean("specmoe", f"{measure}, best batch", change.min(), PERCENT, said)
            label = f"specmoe against {against}"
            found += table.by_batch(label, "change of bytes", change, PERCENT)
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
    note, measure = {"cached": UNEQUAL}, "growth of bytes, batch 1 to 256"
    return [
        number
        for line, values in growth.items()
        for number in Table("growth").mean(line, measure, values, "times", note.get(line))
    ]


def _counted_batches(rows: pd.DataFrame) -> list[int]:
    counted = rows.loc[rows["regime"] == "count", "batch"].unique() if len(rows) else ()
    return sorted(map(int, counted))


def _substitution(rows: pd.DataFrame) -> list[Number]:
    table, found = Table("substitution"), []
    pairs = [(name, "random") for name in SUBSTITUTES if name != "random"]
    for batch in _counted_batches(rows):
        values = {name: by_set(rows, batch, substitute=name) for name in SUBSTITUTES}
        if len(values["random"]):
            found += _tokens(table, values, batch) + _paired(table, values, pairs, batch)
            if batch == choice_batch(rows):
                at = Table("substitution", note=f"batch {batch}")
                found += _paired(at, values, pairs, None)
    return found


def _tokens(table: Table, values: dict[str, pd.Series], batch: int) -> list[Number]:
    return [
        number
        for name, each in values.items()
        for number in table.mean(name, TOKENS, each, "tokens", batch=batch)
    ]


def _paired(
    table: Table, values: dict[str, pd.Series], pairs: list[tuple], batch: int | None
) -> list[Number]:
    """In percent, set of prompts by set: sets differ more from each other than what is compared."""
    found: list[Number] = []
    for first, second in pairs:
        change = (100 * (values[first] / values[second] - 1)).dropna()
        measure = f"{TOKENS} against {second}"
        found += table.mean(first, measure, change, PERCENT, batch=batch)
    return found


def _sets(rows: pd.DataFrame) -> list[Number]:
    table, found = Table("draft_set"), []
    names = ("random", "hot_global", "hot_temporal")
    pairs = [("hot_global", "random"), ("hot_temporal", "random"), ("hot_temporal", "hot_global")]
    for batch in _counted_batches(rows):
        values = {name: by_set(rows, batch, draft_set=name) for name in names}
        if len(values["random"]):
            found += _tokens(table, values, batch) + _paired(table, values, pairs, batch)
    timed = choice_speeds(rows, "draft_set", draft_experts=usual(rows), draft_set=None)
    for name, value in timed.items() if "random" in timed else ():
        over = value / timed["random"]
        found += table.mean(name, "speed against random", over, "times random", batch=256)
    return found


def _experts(rows: pd.DataFrame) -> list[Number]:
    table, found = Table("draft_experts"), []
    for batch in _counted_batches(rows):
        values = {num: by_set(rows, batch, draft_experts=num) for num in (2, 4, 8, 16)}
        if sum(len(each) > 0 for each in values.values()) > 1:
            found += _tokens(table, {f"N = {num}": each for num, each in values.items()}, batch)
    for row in choice_runs(rows).sort_values("draft_experts").itertuples():
        found.append(table.timed(f"N = {row.draft_experts:g}", row, 256))
    return found + against_four(table, choice_speeds(rows, "draft_experts"), 256)


def against_four(table: Table, speed: pd.Series, batch: int) -> list[Number]:
    """Speed by N over that at N = 4."""
    ratios = speed / speed[4] if 4 in speed.index else speed.iloc[:0]
    return [
        number
        for num, value in ratios.items()
        for number in table.mean(f"N = {num:g}", AGAINST_FOUR, value, "times N = 4", batch=batch)
    ]


RUN_FIELDS = ["draft_experts", "tokens_per_second", "repeats"]
RUN_FIELDS += ["tokens_per_second_min", "tokens_per_second_max"]


def choice_runs(rows: pd.DataFrame, **settings) -> pd.DataFrame:
    """Timed specmoe runs at batch 256 with just the memory that N needs."""
    found = pick(rows, regime="throttled", method="specmoe", batch=256, **settings)
    return found if len(found) else pd.DataFrame(columns=RUN_FIELDS)


def choice_speeds(rows: pd.DataFrame, by: str, **settings) -> pd.Series:
    """Their speeds, by draft set or by N."""
    found = choice_runs(rows, **settings)
    return found.set_index(by)["tokens_per_second"] if len(found) else pd.Series(dtype=float)
