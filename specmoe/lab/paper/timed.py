"""The measured numbers of every table that come from the clock, and what simulated ones share with
them.

Comes in: rows of the results (``numbers``). Goes out: ``Number``s; ``measured`` puts them beside
those that were counted.
"""

from __future__ import annotations

import pandas as pd

from .facts import PERCENT, RATIO, SPEED, Number, mean_of
from .numbers import speed_ratios, speeds, timed_rows

UNEQUAL = "unequal memory, as in the paper: cached keeps a tenth of the experts"


def timed_numbers(rows: pd.DataFrame, regime: str, table: str) -> list[Number]:
    timed = timed_rows(rows, regime)
    if not len(timed):
        return []
    found = []
    for row in timed.itertuples():
        reach = (row.tokens_per_second_min, row.tokens_per_second_max)
        about = {"num": int(row.repeats), "batch": int(row.batch)}
        found.append(
            Number(
                table, row.line, "speed", row.tokens_per_second, "measured", SPEED, *reach, **about
            )
        )
    return found + speed_numbers(table, speeds(timed), speed_ratios(timed), "measured")


def speed_numbers(
    table: str, speed: pd.DataFrame, ratios: pd.DataFrame, kind: str, note: str = ""
) -> list[Number]:
    """Latency and speed-up by batch, the best and the mean of each line; measured or simulated
    alike."""
    found: list[Number] = []
    for line in speed if table == "throughput" else ():
        for batch, value in speed[line].dropna().items():
            found += mean_of(
                table,
                line,
                "latency",
                1000 * batch / value,
                "ms per token of a row",
                note,
                batch,
                kind,
            )
    for line in ratios:
        best = ratios[line].idxmax()
        about = "; ".join(
            filter(None, [f"batch {best}", UNEQUAL if line == "cached" else "", note])
        )
        found += mean_of(
            table, line, "speed-up, best batch", ratios[line].max(), RATIO, about, None, kind
        )
        found += mean_of(
            table, line, "speed-up, mean over batches", ratios[line].mean(), RATIO, note, None, kind
        )
        for batch, value in ratios[line].dropna().items():
            found += mean_of(table, line, "speed-up", value, RATIO, note, batch, kind)
    return found + _over_cached(table, ratios, kind, note)


def _over_cached(table: str, ratios: pd.DataFrame, kind: str, note: str) -> list[Number]:
    if "specmoe" not in ratios:
        return []
    found = mean_of(
        table,
        "specmoe",
        "latency, best batch",
        100 / ratios["specmoe"].max(),
        "% of on_demand",
        note,
        None,
        kind,
    )
    measure = "speed-up over cached, best batch"
    pairs = (
        ("specmoe", "cached", UNEQUAL),
        ("specmoe, equal bytes", "cached, equal bytes", "equal fast memory"),
    )
    for label, other, about in pairs:
        if other in ratios:
            over = (ratios["specmoe"] / ratios[other]).max()
            said = "; ".join(filter(None, [about, note]))
            found += mean_of(table, label, measure, over, "times cached", said, None, kind)
    return found


def migration(rows: pd.DataFrame) -> list[Number]:
    """Where a method stood still for reads, in percent of its time."""
    found: list[Number] = []
    for regime, table in (("throttled", "migration"),):
        timed = timed_rows(rows, regime)
        for line, part in timed.groupby("line", sort=False) if len(timed) else ():
            if line != "resident":
                shares = 100 * part.set_index("batch")["wait_share"].astype(float)
                found += share_numbers(
                    table, line, shares, "measured", "waiting for reads, 0.25 GB/s"
                )
    return found


def share_numbers(table: str, line: str, shares: pd.Series, kind: str, note: str) -> list[Number]:
    """Shares (%) of time in migration by batch, and the largest."""
    found = [
        number
        for batch, share in shares.items()
        for number in mean_of(
            table, line, "time in expert migration", share, PERCENT, note, batch, kind
        )
    ]
    said = f"batch {shares.idxmax()}; {note}"
    return found + mean_of(
        table, line, "time in expert migration, largest", shares.max(), PERCENT, said, None, kind
    )


def low_skew(rows: pd.DataFrame, model: str) -> list[Number]:
    timed = timed_rows(rows, "throttled")
    return low_skew_numbers(model, speed_ratios(timed), "measured") if len(timed) else []


def low_skew_numbers(
    label: str, ratios: pd.DataFrame, kind: str, note: str = "temperature 1, gamma 5"
) -> list[Number]:
    """Speed-ups of one model: by batch, and the best."""
    found: list[Number] = []
    for line in ratios:
        said = f"batch {ratios[line].idxmax()}; {note}"
        found += mean_of(
            "low_skew", label, f"{line}, best batch", ratios[line].max(), RATIO, said, None, kind
        )
        for batch, value in ratios[line].dropna().items():
            found += mean_of(
                "low_skew", f"{label}: {line}", "speed-up", value, RATIO, note, batch, kind
            )
    return found
