"""Every number of the report, the paper's and ours, in one list.

Comes in: the results folder. Goes out: ``Number``s, each with its kind ("paper", "measured", "simulated"): a table is a
selection of them. ``tables``, ``sentences`` and ``document`` read this; nothing here knows who ought to win.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import OptionError
from .facts import FACTS, PERCENT, RATIO, SPEED, TOKENS, Number
from .settings import LOW_SKEW, MAIN

RESULTS = Path(__file__).parent / "results"
MOVED = "fetched_bytes_per_token"


def load_results(folder: Path | str = RESULTS) -> dict[str, dict]:
    """Model name -> ``{"model", "machine", "rows", ...}``; ``OptionError`` where nothing was measured."""
    files = sorted(Path(folder).glob("*.json"))
    found = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    if not found:
        raise OptionError(f"there are no results in {folder}: measure some with rerun=quick")
    return found


def rows_of(results: dict[str, dict], model: str) -> pd.DataFrame:
    """One row per run of ``model``; empty where it was not measured."""
    return pd.DataFrame(list(results[model]["rows"].values()) if model in results else [])


def main_model(results: dict[str, dict]) -> str:
    """The model of the main tables: the translation model, or the one that was asked for."""
    return MAIN if MAIN in results else next(iter(results))


def paper_and_measured(results: dict[str, dict]) -> list[Number]:
    """The paper's numbers and the measured ones; ``winners`` adds the simulated."""
    rows = rows_of(results, main_model(results))
    measured = [*_timed(rows, "throttled", "throughput"), *_timed(rows, "disk", "ssd"), *_migration(rows)]
    measured += [*_bytes(rows), *_substitution(rows), *_sets(rows), *_experts(rows), *_low_skew(results)]
    return [*FACTS, *measured]


def _measured(table: str, label: str, measure: str, values, unit: str, note: str = "") -> list[Number]:
    """The mean of ``values`` with the smallest and the largest; none where there is no value."""
    values = [float(value) for value in np.atleast_1d(values) if value is not None and np.isfinite(value)]
    if not values:
        return []
    ends = (min(values), max(values)) if len(values) > 1 else (None, None)
    return [Number(table, label, measure, float(np.mean(values)), "measured", unit, *ends, len(values), note)]


def pick(rows: pd.DataFrame, **settings) -> pd.DataFrame:
    """Rows with these settings; all else at the report's defaults where the setting is not named."""
    wanted = {"draft_set": "hot_temporal", "substitute": "affinity", "eviction": "static", "prompt_set": 0} | settings
    for name, value in wanted.items():
        if len(rows) and value is not None:
            rows = rows[rows[name].isin(value if isinstance(value, list) else [value])]
    return rows


# ---- on the clock ------------------------------------------------------------------------------------------


def timed_rows(rows: pd.DataFrame, regime: str) -> pd.DataFrame:
    """Bench rows of a regime at equal fast memory, batches ascending."""
    found = pick(rows, regime=regime, budget="tenth", eviction=None)
    return found.sort_values("batch", kind="stable") if len(found) else found


def speed_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Speed over on_demand's: batch x method, with ``oracle`` for perfect overlap (computed from measured parts)."""
    speeds = rows.pivot_table(index="batch", columns="method", values="tokens_per_second")
    if "overlapped" in speeds:
        overlapped = rows[rows["method"] == "overlapped"].set_index("batch")
        speeds["oracle"] = overlapped["oracle_tokens_per_second"].astype(float)
    return speeds.div(speeds["on_demand"], axis=0)


def _timed(rows: pd.DataFrame, regime: str, table: str) -> list[Number]:
    rows = timed_rows(rows, regime)
    if not len(rows):
        return []
    found = []
    for row in rows.itertuples():
        measure, reach = f"speed at batch {row.batch}", (row.tokens_per_second_min, row.tokens_per_second_max)
        found.append(Number(table, row.method, measure, row.tokens_per_second, "measured", SPEED, *reach, int(row.repeats)))
        latency = 1000 * row.batch / row.tokens_per_second
        found += _measured(table, row.method, f"latency at batch {row.batch}", latency, "ms per token of a row")
    return found + _best(speed_ratios(rows), table)


def _best(ratios: pd.DataFrame, table: str) -> list[Number]:
    found = []
    for method in ratios.columns.drop("on_demand"):
        label = {"oracle": "overlapped (oracle)"}.get(method, method)
        batch = f"batch {ratios[method].idxmax()}"
        found += _measured(table, label, "speed-up, best batch", ratios[method].max(), RATIO, batch)
        mean = _measured(table, label, "speed-up, mean over batches", ratios[method].mean(), RATIO)
        found += mean if table == "ssd" else []
    if "specmoe" in ratios and table == "throughput":
        best = ratios["specmoe"].idxmax()
        found += _measured(table, "specmoe", "latency, best batch", 100 / ratios["specmoe"][best], "% of on_demand")
        if "cached" in ratios:
            over = (ratios["specmoe"] / ratios["cached"]).max()
            measure = "speed-up over cached, best batch"
            found += _measured(table, "specmoe", measure, over, "times cached", "equal fast memory")
    return found


def _migration(rows: pd.DataFrame) -> list[Number]:
    rows = timed_rows(rows, "throttled")
    found = []
    for method, part in rows.groupby("method", sort=False) if len(rows) else ():
        if method != "resident":
            share = part.loc[part["wait_share"].idxmax()]
            note = f"waiting for reads, throttled; batch {share['batch']}"
            measure, value = "time in expert migration, largest", 100 * share["wait_share"]
            found += _measured("migration", method, measure, value, PERCENT, note)
    return found


def _low_skew(results: dict[str, dict]) -> list[Number]:
    found = []
    for model in LOW_SKEW:
        rows = timed_rows(rows_of(results, model), "throttled")
        if len(rows):
            ratios = speed_ratios(rows)
            for method in ratios.columns.drop(["on_demand", "resident"], errors="ignore"):
                note = f"batch {ratios[method].idxmax()}; temperature 1, gamma 5"
                found += _measured("low_skew", model, f"{method}, best batch", ratios[method].max(), RATIO, note)
    return found


# ---- counted -----------------------------------------------------------------------------------------------

# What a line of the bytes' figure stands for: how it is drawn, and how its rows are found.
BYTES_LINES = {
    "on_demand": {"method": "on_demand", "budget": "draft"},
    "overlapped": {"method": "overlapped", "budget": "draft"},
    "cached": {"method": "cached", "budget": "tenth"},
    "cached, equal bytes": {"method": "cached", "budget": "draft"},
    "cached:temporal, equal bytes": {"method": "cached", "budget": "draft", "eviction": "temporal"},
    "specmoe": {"method": "specmoe", "budget": "draft"},
}


def bytes_by_batch(rows: pd.DataFrame) -> pd.DataFrame:
    """Expert bytes for one token of every row (bytes per token x B): batch x line of ``BYTES_LINES``."""
    if not len(rows):
        return pd.DataFrame()
    columns = {}
    for label, settings in BYTES_LINES.items():
        found = pick(rows, regime="count", draft_experts=usual(rows), **settings).set_index("batch")
        columns[label] = found[MOVED] * found.index
    return pd.DataFrame(columns).sort_index().dropna(axis=1, how="all")


def _bytes(rows: pd.DataFrame) -> list[Number]:
    moved = bytes_by_batch(rows)
    found = []
    for label in moved:
        for batch, value in moved[label].items():
            found += _measured("bytes", label, f"MB for one token of every row, batch {batch}", value / 1e6, "MB")
        if {1, 256} <= set(moved[label].dropna().index):
            growth = moved[label][256] / moved[label][1]
            found += _measured("growth", label, "growth of bytes, batch 1 to 256", growth, "times")
    for other, against, note in _AGAINST:
        if {"specmoe", other} <= set(moved):
            change = 100 * (moved["specmoe"] / moved[other] - 1)
            said = f"batch {change.idxmin()}; {note}"
            found += _measured("bytes", "specmoe", f"change against {against}, best batch", change.min(), PERCENT, said)
    return found


_AGAINST = (
    ("on_demand", "on_demand", "equal fast memory"),
    ("cached", "cached", "unequal memory, as in the paper: cached keeps a tenth of the experts"),
    ("cached, equal bytes", "cached at equal bytes", "equal fast memory"),
    ("cached:temporal, equal bytes", "cached:temporal at equal bytes", "equal fast memory"),
)


def usual(rows: pd.DataFrame) -> float | None:
    """N of most runs: 4, or what a smaller model takes."""
    known = rows["draft_experts"].dropna() if len(rows) else rows
    return float(known.mode().iloc[0]) if len(known) else None


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Counted specmoe rows of all prompt sets, at the batch with the most of them (the larger of two)."""
    if not len(rows):
        return rows
    rows = rows[(rows["regime"] == "count") & (rows["method"] == "specmoe") & (rows["budget"] == "draft")]
    several = rows.loc[rows["prompt_set"] > 0, "batch"].value_counts()
    return rows[rows["batch"] == max(several[several == several.max()].index)] if len(several) else rows.iloc[:0]


def by_set(rows: pd.DataFrame, **settings) -> pd.Series:
    """Tokens per round by prompt set, for runs with these settings."""
    wanted = {"draft_experts": usual(rows)} | settings
    return pick(choices(rows), prompt_set=None, **wanted).set_index("prompt_set")["tokens_per_round"].sort_index()


def _substitution(rows: pd.DataFrame) -> list[Number]:
    if not len(choices(rows)):
        return []
    found, batch = [], f"batch {choices(rows)['batch'].max()}"
    for name in ("affinity", "random", "router", "drop", "no_experts"):
        values = by_set(rows, substitute=name)
        found += _measured("substitution", name, TOKENS, values, "tokens", batch)
        against = (100 * (values / by_set(rows, substitute="random") - 1)).dropna()
        if name != "random":
            found += _measured("substitution", name, "tokens per round against random", against, PERCENT, batch)
    return found


def _sets(rows: pd.DataFrame) -> list[Number]:
    found = []
    for name in ("random", "hot_global", "hot_temporal"):
        found += _measured("draft_set", name, TOKENS, by_set(rows, draft_set=name), "tokens") if len(choices(rows)) else []
    speeds = _choice_speeds(rows, "draft_set", draft_experts=usual(rows), draft_set=None)
    for name, value in speeds.items():
        if "random" in speeds:
            found += _measured("draft_set", name, "speed against random", value / speeds["random"], "times random")
    return found


def _experts(rows: pd.DataFrame) -> list[Number]:
    found = []
    for num in (2, 4, 8, 16):
        values = by_set(rows, draft_experts=num) if len(choices(rows)) else []
        found += _measured("draft_experts", f"N = {num}", TOKENS, values, "tokens")
    for num, value in _choice_speeds(rows, "draft_experts").items():
        found += _measured("draft_experts", f"N = {num:g}", "speed at batch 256", value, SPEED)
    return found


def _choice_speeds(rows: pd.DataFrame, by: str, **settings) -> pd.Series:
    """Timed specmoe runs with just the memory that N needs, by draft set or by N."""
    if not len(rows):
        return pd.Series(dtype=float)
    found = pick(rows, regime="throttled", budget="draft", method="specmoe", eviction=None, **settings)
    return found.set_index(by)["tokens_per_second"] if len(found) else pd.Series(dtype=float)
