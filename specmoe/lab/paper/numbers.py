"""Rows of the results, chosen and put into frames: batch x line of a figure, tokens per round by
prompt set.

Comes in: the results folder. Goes out: pandas frames. ``measured`` makes numbers of them, ``page``
lines for figures; nothing here knows who ought to win.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from ...errors import OptionError
from ...shipped import need_path, package_path
from .settings import LOW_SKEW, MAIN

RESULTS = package_path("lab/paper/results")
MOVED = "fetched_bytes_per_token"
# Lines of figures and rows of tables: how they are called, and how their rows are found. Where
# nothing is said the fast memory is that of N draft experts: "equal bytes". ``cached`` alone is the
# paper's: a tenth of the experts.
BYTES_LINES = {
    "on_demand": {"method": "on_demand"},
    "overlapped": {"method": "overlapped"},
    "cached": {"method": "cached", "budget": "tenth"},
    "cached, equal bytes": {"method": "cached"},
    "cached:temporal, equal bytes": {"method": "cached", "eviction": "temporal"},
    "specmoe": {"method": "specmoe"},
}
TIMED_LINES = {
    "on_demand": {"method": "on_demand"},
    "overlapped": {"method": "overlapped"},
    "cached": {"method": "cached", "budget": "tenth"},
    "cached, equal bytes": {"method": "cached"},
    "specmoe": {"method": "specmoe"},
    "specmoe, bytes of cached": {"method": "specmoe", "budget": "tenth"},
    "auto": {"method": "auto"},
    "resident": {"method": "resident"},
}


class Results(dict):
    """Model name -> ``{"model", "machine", "rows", ...}``. ``recordings``: of the model that was
    asked for; None: those of the shipped models."""

    recordings: list | None = None


def load_results(folder: Path | str | None = None) -> Results:
    """What was measured into ``folder``, or ours, all of it; ``OptionError`` where nothing was."""
    ours = [need_path(RESULTS / f"{model}.json") for model in sorted((MAIN, *LOW_SKEW))]
    files = ours if folder is None else sorted(Path(folder).glob("*.json"))
    found = Results({file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files})
    if not found:
        raise OptionError(f"there are no results in {folder}: measure some with rerun=quick")
    return found


def rows_of(results: dict[str, dict], model: str) -> pd.DataFrame:
    """One row per run of ``model``; empty where it was not measured."""
    return pd.DataFrame(list(results[model]["rows"].values()) if model in results else [])


def main_model(results: dict[str, dict]) -> str:
    """The model of the main tables: the translation model, or the one that was asked for."""
    return MAIN if MAIN in results else next(iter(results))


def pick(rows: pd.DataFrame, **settings) -> pd.DataFrame:
    """Rows with these settings; all else at the report's defaults where the setting is not named
    (None: any)."""
    wanted = {
        "draft_set": "hot_temporal",
        "substitute": "affinity",
        "eviction": "static",
        "prompt_set": 0,
        "budget": "draft",
    }
    for name, value in (wanted | settings).items():
        if len(rows) and value is not None:
            rows = rows[rows[name].isin(value if isinstance(value, list) else [value])]
    return rows


def usual(rows: pd.DataFrame) -> float | None:
    """N of most runs: 4, or what a smaller model takes."""
    known = rows["draft_experts"].dropna() if len(rows) else rows
    return float(known.mode().iloc[0]) if len(known) else None


# ---- on the clock ----


def timed_rows(rows: pd.DataFrame, regime: str) -> pd.DataFrame:
    """Timed rows of every method, each with the ``line`` it stands for; batches ascending."""
    parts = []
    for line, settings in TIMED_LINES.items():
        found = pick(rows, regime=regime, draft_experts=usual(rows), **settings)
        parts.append(found.assign(line=line))
    found = pd.concat(parts) if len(rows) else rows
    return found.sort_values("batch", kind="stable") if len(found) else pd.DataFrame()


def speeds(timed: pd.DataFrame) -> pd.DataFrame:
    """Tokens per second: batch x line, in the order of ``TIMED_LINES``."""
    table = timed.pivot_table(index="batch", columns="line", values="tokens_per_second")
    return table[[line for line in TIMED_LINES if line in table]]


def speed_ratios(timed: pd.DataFrame) -> pd.DataFrame:
    """Speed over on_demand's: batch x line; "overlapped (oracle)": perfect overlap, computed from
    measured parts."""
    table = speeds(timed)
    if "on_demand" not in table:
        return pd.DataFrame()
    overlapped = timed[timed["line"] == "overlapped"].set_index("batch")
    if len(overlapped):
        table["overlapped (oracle)"] = overlapped["oracle_tokens_per_second"].astype(float)
    return table.div(table["on_demand"], axis=0).drop(columns="on_demand")


# ---- counted ----


def bytes_by_batch(rows: pd.DataFrame, prompt_set: int = 0) -> pd.DataFrame:
    """Expert bytes for one token of every row (bytes per token x B): batch x line of
    ``BYTES_LINES``."""
    if not len(rows):
        return pd.DataFrame()
    columns = {}
    for line, settings in BYTES_LINES.items():
        found = pick(
            rows, regime="count", draft_experts=usual(rows), prompt_set=prompt_set, **settings
        ).set_index("batch")
        columns[line] = found[MOVED] * found.index
    return pd.DataFrame(columns).sort_index().dropna(axis=1, how="all")


def choices(rows: pd.DataFrame) -> pd.DataFrame:
    """Counted specmoe rows of all prompt sets and batches."""
    wanted = {"regime": "count", "method": "specmoe", "budget": "draft"}
    for name, value in wanted.items() if len(rows) else ():
        rows = rows[rows[name] == value]
    return rows


def choice_batch(rows: pd.DataFrame) -> int | None:
    """The largest batch of those counted over the most prompt sets: where the order is judged."""
    wanted = {"substitute": ["affinity", "random"], "draft_experts": usual(rows)}
    found = pick(choices(rows), prompt_set=None, **wanted)
    if not len(found):
        return None
    sets = found.groupby(["batch", "substitute"])["prompt_set"].nunique().unstack().min(axis=1)
    return int(sets[sets == sets.max()].index.max())


def by_set(rows: pd.DataFrame, batch: int, **settings) -> pd.Series:
    """Tokens per round by prompt set, for runs with these settings."""
    wanted = {"draft_experts": usual(rows), "batch": batch} | settings
    found = pick(choices(rows), prompt_set=None, **wanted)
    if not len(found):
        return pd.Series(dtype=float)
    return found.set_index("prompt_set")["tokens_per_round"].sort_index()
