"""What a report says first: which method is fastest here, by how much, and what the memory saved
costs.

Comes in: the result of a bench. Goes out: Markdown. A ratio has a range: from the slowest repeat of
the one over the fastest of the other to the reverse. Where it holds 1, nothing is settled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from ..figures import as_table, show_bytes, show_number
from ..words import markdown_rows
from .sentences import level_with
from .setup import all_experts

DRAFTING = ("specmoe", "auto")


@dataclass(frozen=True)
class Ratio:
    """One speed over another; ``low`` and ``high`` are nan where nothing was repeated."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, one: pd.Series, other: pd.Series) -> Ratio:
        value = one["tokens_per_second"] / other["tokens_per_second"]
        if not (_repeated(one) and _repeated(other)):
            return cls(value, math.nan, math.nan)
        name = "tokens_per_second"
        low = one[f"{name}_min"] / other[f"{name}_max"]
        return cls(value, low, one[f"{name}_max"] / other[f"{name}_min"])

    @property
    def verdict(self) -> str:
        if math.isnan(self.low):
            return "measured once, so not settled"
        if self.low <= 1 <= self.high:
            return "not settled: the range holds 1"
        return "ahead" if self.low > 1 else "behind"

    def __str__(self) -> str:
        return f"{self.value:.2f}" + span(self.low, self.high, "{:.2f}")


def _repeated(row: pd.Series) -> bool:
    names = ("tokens_per_second_min", "tokens_per_second_max")
    there = all(name in row and pd.notna(row[name]) for name in names)
    return there and row.get("repeats", 2) > 1


def span(low: float, high: float, form: str | None = None) -> str:
    """`` (0.9 to 1.2)``, or nothing where there is no range."""
    if math.isnan(low) or math.isnan(high):
        return ""
    low, high = (form.format(end) if form else show_number(end) for end in (low, high))
    return f" ({low} to {high})"


def speed(row: pd.Series) -> str:
    """``153 (150 to 156)`` tokens/s."""
    ends = ["tokens_per_second_min", "tokens_per_second_max"]
    reach = span(*row[ends]) if _repeated(row) else ""
    return show_number(row["tokens_per_second"]) + reach


def say_summary(result, compared: str = "") -> str:
    """The box at the top of the report; ``compared`` is one more line of it."""
    table = as_table(result.rows)
    batches = list(table[table["method"] != "resident"].groupby("batch"))
    if not batches:
        return "**In short.** Only `resident` was run: there is nothing to choose between."
    lines = [
        f"**In short.** {_memory_words(result)} Fastest of the methods that have no more:",
        "",
        _table(batches),
        "",
        *(f"- {line}" for line in (_drafting(batches), _beside_resident(table), compared) if line),
        "",
        f"{_ranges(table)} All of it holds for this model, machine and link.",
    ]
    return "\n".join(lines)


def _memory_words(result) -> str:
    fast, every = result.model["fast_memory_bytes"], all_experts(result.model)
    return (
        f"The experts get {show_bytes(fast)} of fast memory, {100 * fast / every:.2g} % of the "
        f"{show_bytes(every)} that all of them take."
    )


def _table(batches: list[tuple[int, pd.DataFrame]]) -> str:
    rows = []
    for batch, part in batches:
        best, base = fastest(part), _named(part, "on_demand")
        level = [f"`{label}`" for label in part[level_with(part, best)]["label"]]
        level.remove(f"`{best['label']}`")
        names = f"`{best['label']}`" + (f", level with {' and '.join(level)}" if level else "")
        own = base is None or best["label"] == "on_demand"
        times = "" if own else str(Ratio.of(best, base))
        rows.append([batch, names, speed(best), times, _duel_words(part)])
    head = ["batch", "fastest", "tokens/s", "times `on_demand`", "drafting or not"]
    return markdown_rows(head, rows)


def fastest(part: pd.DataFrame) -> pd.Series:
    return part.loc[part["tokens_per_second"].idxmax()]


def _named(part: pd.DataFrame, label: str) -> pd.Series | None:
    found = part[part["label"] == label]
    return found.iloc[0] if len(found) else None


def _duel(part: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """The fastest method that drafts and the fastest that does not."""
    drafts = part["method"].isin(DRAFTING)
    if drafts.all() or not drafts.any():
        return None
    return fastest(part[drafts]), fastest(part[~drafts])


def _duel_words(part: pd.DataFrame) -> str:
    if not (duel := _duel(part)):
        return ""
    ratio = Ratio.of(*duel)
    return f"`{duel[0]['label']}` / `{duel[1]['label']}` = {ratio}: {ratio.verdict}"


def _drafting(batches: list[tuple[int, pd.DataFrame]]) -> str:
    """At which batches drafting pays."""
    said: dict[str, list[str]] = {}
    for batch, part in batches:
        if duel := _duel(part):
            verdict = Ratio.of(*duel).verdict
            word = {"ahead": "pays", "behind": "loses"}.get(verdict, "is not settled")
            said.setdefault(word, []).append(str(batch))
    each = [f"{word} at batch {', '.join(batches)}" for word, batches in said.items()]
    return f"Drafting {'; it '.join(each)}." if each else ""


def _beside_resident(table: pd.DataFrame) -> str:
    shares = []
    for batch, part in table.groupby("batch"):
        resident, rest = _named(part, "resident"), part[part["method"] != "resident"]
        if resident is not None and len(rest):
            ratio = Ratio.of(fastest(rest), resident)
            shares.append(f"{100 * ratio.value:.0f} % at batch {batch}")
    if not shares:
        return ""
    said = "The fastest reaches, of the speed of `resident` (all experts in memory)"
    return f"{said}: {', '.join(shares)}."


def _ranges(table: pd.DataFrame) -> str:
    repeats = int(table["repeats"].min()) if "repeats" in table else 1
    if repeats < 2:
        return "Each was measured once, so there are no ranges."
    return (
        f"In brackets: from the slowest to the fastest of {repeats} repeats; of a ratio, the worst "
        "and the best that they allow."
    )


def say_memory(result) -> str:
    """What the memory saved costs in speed: the fastest method under the budget beside all experts
    in memory."""
    table, every = as_table(result.rows), all_experts(result.model)
    fast = result.model["fast_memory_bytes"]
    head = "batch, memory for experts, method, tokens/s, of `resident`, tokens/s per MiB".split(
        ", "
    )
    rows = []
    for batch, part in table.groupby("batch"):
        resident = _named(part, "resident")
        rest = part[part["method"] != "resident"]
        both = [(fastest(rest), fast)] if len(rest) else []
        both += [] if resident is None else [(resident, every)]
        for row, num_bytes in both:
            ratio = "1" if num_bytes != fast or resident is None else Ratio.of(row, resident)
            share = "" if resident is None else ratio
            dense = show_number(row["tokens_per_second"] / (num_bytes / 2**20))
            label = f"`{row['label']}`"
            rows.append([batch, show_bytes(num_bytes), label, speed(row), share, dense])
    return "\n".join([markdown_rows(head, rows), "", _decision(table, fast, every)])


def _decision(table: pd.DataFrame, fast: int, every: int) -> str:
    saved = (
        f"{show_bytes(every - fast)} of fast memory are saved, {100 * (1 - fast / every):.3g} % of "
        "what the experts take"
    )
    times = [
        1 / Ratio.of(fastest(part[part["method"] != "resident"]), resident).value
        for _, part in table.groupby("batch")
        if (resident := _named(part, "resident")) is not None and part["label"].nunique() > 1
    ]
    if not times:
        return f"{saved}. What that costs was not measured: add `resident` to `methods`."
    said = " to ".join(dict.fromkeys(f"{each:.2f}" for each in (min(times), max(times))))
    advice = (
        f"Where {show_bytes(every)} are free, take `resident`; where they are not, the method "
        "beside it above is the best of the smaller memory."
        if min(times) > 1
        else "It is not ahead everywhere, so the memory does not always buy speed."
    )
    return (
        f"{saved}. `resident` is {said} times as fast, for {every / fast:.3g} times the memory. "
        f"{advice}"
    )
