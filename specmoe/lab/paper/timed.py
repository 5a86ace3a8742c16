"""The measured numbers of every table that come from the clock, and what simulated ones share with
them.

Comes in: rows of the results (``numbers``). Goes out: ``Number``s; ``measured`` puts them beside
those that were counted.
"""

from __future__ import annotations

import pandas as pd

from .facts import PERCENT, RATIO, Number, Table
from .numbers import speed_ratios, speeds, timed_rows

UNEQUAL = "unequal memory, as in the paper: cached keeps a tenth of the experts"
IN_MIGRATION = "time in expert migration"


def timed_numbers(rows: pd.DataFrame, regime: str, table: str) -> list[Number]:
    timed, made = timed_rows(rows, regime), Table(table)
    if not len(timed):
        return []
    found = [made.timed(row.line, row, int(row.batch)) for row in timed.itertuples()]
    return found + speed_numbers(made, speeds(timed), speed_ratios(timed))


def speed_numbers(table: Table, speed: pd.DataFrame, ratios: pd.DataFrame) -> list[Number]:
    """Latency and speed-up by batch, the best and the mean of each line; measured or simulated
    alike."""
    found: list[Number] = []
    for line in speed if table.name == "throughput" else ():
        latency = 1000 * speed.index.to_series() / speed[line]
        found += table.by_batch(line, "latency", latency, "ms per token of a row")
    for line in ratios:
        best, mean = ratios[line].max(), ratios[line].mean()
        about = (f"batch {ratios[line].idxmax()}", UNEQUAL if line == "cached" else "", table.note)
        found += table.mean(line, "speed-up, best batch", best, RATIO, _said(*about))
        found += table.mean(line, "speed-up, mean over batches", mean, RATIO)
        found += table.by_batch(line, "speed-up", ratios[line], RATIO)
    return found + _over_cached(table, ratios)


def _said(*words: str) -> str:
    return "; ".join(filter(None, words))


def _over_cached(table: Table, ratios: pd.DataFrame) -> list[Number]:
    if "specmoe" not in ratios:
        return []
    least = 100 / ratios["specmoe"].max()
    found = table.mean("specmoe", "latency, best batch", least, "% of on_demand")
    pairs = (
        ("specmoe", "cached", UNEQUAL),
        ("specmoe, equal bytes", "cached, equal bytes", "equal fast memory"),
    )
    for label, other, about in pairs:
        if other in ratios:
            over, said = (ratios["specmoe"] / ratios[other]).max(), _said(about, table.note)
            measure = "speed-up over cached, best batch"
            found += table.mean(label, measure, over, "times cached", said)
    return found


def migration(rows: pd.DataFrame) -> list[Number]:
    """Where a method stood still for reads, in percent of its time."""
    found: list[Number] = []
    timed = timed_rows(rows, "throttled")
    table = Table("migration", note="waiting for reads, 0.25 GB/s")
    for line, part in timed.groupby("line", sort=False) if len(timed) else ():
        if line != "resident":
            shares = 100 * part.set_index("batch")["wait_share"].astype(float)
            found += share_numbers(table, line, shares)
    return found


def share_numbers(table: Table, line: str, shares: pd.Series) -> list[Number]:
    """Shares (%) of time in migration by batch, and the largest."""
    said = f"batch {shares.idxmax()}; {table.note}"
    largest = table.mean(line, f"{IN_MIGRATION}, largest", shares.max(), PERCENT, said)
    return table.by_batch(line, IN_MIGRATION, shares, PERCENT) + largest


def low_skew(rows: pd.DataFrame, model: str) -> list[Number]:
    timed, table = timed_rows(rows, "throttled"), Table("low_skew", note="temperature 1, gamma 5")
    return low_skew_numbers(table, model, speed_ratios(timed)) if len(timed) else []


def low_skew_numbers(table: Table, label: str, ratios: pd.DataFrame) -> list[Number]:
    """Speed-ups of one model: by batch, and the best."""
    found: list[Number] = []
    for line in ratios:
        best, said = ratios[line].max(), f"batch {ratios[line].idxmax()}; {table.note}"
        found += table.mean(label, f"{line}, best batch", best, RATIO, said)
        found += table.by_batch(f"{label}: {line}", "speed-up", ratios[line], RATIO)
    return found
