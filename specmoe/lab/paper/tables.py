"""Numbers as tables: one that sets paper, measured and simulated side by side, and one per kind
pivoted by batch.

Comes in: the list of ``Number``s. Goes out: frames and Markdown; no column mixes two kinds.
The notebook calls these.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..markdown import markdown_table
from .facts import KINDS, Number

OF_A_PIVOT = (
    "speed-up, best batch",
    "speed-up, mean over batches",
    "latency, best batch",
    "time in expert migration, largest",
)


@dataclass(frozen=True)
class Pivot:
    """Numbers of one measure and one kind: rows are methods or choices, columns are batches."""

    measure: str
    kind: str
    unit: str
    note: str
    frame: pd.DataFrame

    @property
    def caption(self) -> str:
        about = f" ({self.note})" if self.note else ""
        return (
            f"{self.measure[0].upper()}{self.measure[1:]} by batch, **{self.kind}**, "
            f"{self.unit}{about}:"
        )


def compare(numbers: list[Number], key: str) -> pd.DataFrame:
    """What the paper reports too, or what has no batch and is no best or mean of what a pivot
    shows: one row per label and measure, one column per kind."""
    mine = [number for number in numbers if number.table == key]
    reported = {_row(number) for number in mine if number.kind == "paper"}
    rows: dict[tuple, dict] = {}
    for number in mine:
        if _row(number) in reported or (number.batch is None and number.measure not in OF_A_PIVOT):
            at = "" if number.batch is None else f" at batch {number.batch}"
            row = rows.setdefault(_row(number), {"row": number.label, "what": number.measure + at})
            row[number.kind] = words(number)
            note = number.note if number.kind != "paper" else number.note.partition("; ")[2]
            row["note"] = "; ".join(
                filter(None, [row.get("note", ""), f"{number.kind}: {note}" if note else ""])
            )
    columns = [
        "row",
        "what",
        *(kind for kind in KINDS if any(kind in row for row in rows.values())),
        "note",
    ]
    ordered = sorted(rows.items(), key=lambda item: item[0] not in reported)  # the paper's first
    return pd.DataFrame([row for _, row in ordered]).reindex(columns=columns).fillna("")


def _row(number: Number) -> tuple:
    return number.label, number.measure, number.batch


def pivots(numbers: list[Number], key: str) -> list[Pivot]:
    """Every measure of a table that a kind has at two batches or more."""
    found: dict[tuple, dict[str, dict[int, str]]] = {}
    about: dict[tuple, list[Number]] = {}
    for number in (
        n for n in numbers if n.table == key and n.batch is not None and n.kind != "paper"
    ):
        group = (number.measure, number.kind)
        about.setdefault(group, []).append(number)
        found.setdefault(group, {}).setdefault(number.label, {})[number.batch] = short(number)
    made = []
    for group, rows in found.items():
        batches = sorted({batch for row in rows.values() for batch in row})
        if len(batches) > 1:
            frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=batches).fillna("")
            notes = dict.fromkeys(number.note for number in about[group] if number.note)
            note = "; ".join(notes) if group[1] == "simulated" else ""
            made.append(Pivot(*group, about[group][0].unit, note, frame))
    return made


def words(number: Number) -> str:
    """Value, unit and range: ``"7.66 tokens (7.51 to 7.89, 3)"``."""
    span = ""
    if number.low is not None:
        span = f" ({figure(number.low)} to {figure(number.high)}, {number.num})"
    return f"{figure(number.value)} {number.unit}{span}"


def short(number: Number) -> str:
    """Value and range, for a cell."""
    if number.low is None or figure(number.low) == figure(number.high):
        return figure(number.value)
    return f"{figure(number.value)} ({figure(number.low)} to {figure(number.high)})"


def figure(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def markdown(numbers: list[Number], key: str) -> str:
    """Both sorts of tables of one key; those by batch are folded away."""
    compared = compare(numbers, key)
    parts = [markdown_table(compared)] if len(compared) else []
    by_batch = pivots(numbers, key)
    if by_batch:
        tables = "table" if len(by_batch) == 1 else f"{len(by_batch)} tables"
        parts.append(f"<details><summary>By batch ({tables})</summary>")
    for each in by_batch:
        parts += [each.caption, markdown_table(each.frame, index="batch")]
    parts += ["</details>"] * bool(by_batch)
    return "\n\n".join(parts) or "Nothing measured and nothing in the paper."
