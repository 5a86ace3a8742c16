"""A report beside an earlier one: the same runs, then and now.

Comes in: the folder of an earlier run, whose ``metrics.json`` says how it was made. Goes out: a
section in Markdown, or one sentence that says why the two cannot be compared. ``run`` asks before
anything is measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import OptionError, door, path_of
from ...options import METHODS
from ..figures import as_table, show_number
from ..words import markdown_rows
from .setup import as_markdown
from .summary import Ratio, speed

# what two reports may differ in: they have some runs in common all the same
FREE = ("methods", "batch_sizes", "repeats")
_NUMBERS = ("tokens_per_second", "tokens_per_second_min", "tokens_per_second_max")
_REMEDY = "name the folder of a run of `specmoe report run report`"


def check_against(folder: Any, report: str, settings: Mapping[str, Any]) -> None:
    """Refuse an earlier report that this one could not be compared with."""
    path, numbers = _read(folder)
    made = numbers.get("made")
    if not isinstance(made, dict) or not isinstance(made.get("settings"), dict):
        raise OptionError(
            f"{path} does not say how it was made (an older specmoe wrote it, or a notebook run by "
            "hand): make that report again"
        )
    if made.get("report") != report:
        raise OptionError(
            f"{path} is of the report {made.get('report')!r}, this one is {report!r}: name a folder "
            "of the same report"
        )
    _check_settings(path, made["settings"], settings)


def _check_settings(path: Path, then: Mapping, now: Mapping) -> None:
    names = ["model", *sorted((set(then) | set(now)) - {"model", *FREE})]
    other = [name for name in names if then.get(name) != now.get(name)]
    if other:
        said = ", ".join(f"{name}={then.get(name)!r} (now {now.get(name)!r})" for name in other[:4])
        raise OptionError(
            f"{path} was measured with {said}: give the same settings, or compare with another "
            "report"
        )
    for name in FREE[:2]:
        if not set(_listed(then.get(name))) & set(_listed(now.get(name))):
            raise OptionError(
                f"{path} has none of the {name} of this report: it has {then.get(name)!r}, this one "
                f"{now.get(name)!r}"
            )


def _listed(value: Any) -> Iterable:
    return [str(each) for each in value] if isinstance(value, list) else []


def _read(folder: Any) -> tuple[Path, dict]:
    """The ``metrics.json`` in a folder, its rows looked through."""
    path = path_of(folder, "a folder") / "metrics.json"
    if not path.is_file():
        raise OptionError(f"there is no metrics.json of an earlier report in {folder}: {_REMEDY}")
    with door(f"{path} is not what a report writes", _REMEDY, OptionError):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        if not numbers["rows"]:
            raise ValueError("it has no rows")
        for row in numbers["rows"]:
            _check_row(row)
    return path, numbers


def _check_row(row: Mapping[str, Any]) -> None:
    if row["method"] not in METHODS:
        raise ValueError(f"method {row['method']!r:.60} is unknown")
    if type(row["batch"]) is not int:
        raise ValueError(f"batch {row['batch']!r:.60} is not a whole number")
    for name in (*_NUMBERS, "fetched_bytes_per_token"):
        value = row[name]
        least = 0 if name == "fetched_bytes_per_token" else 1e-300
        if type(value) not in (int, float) or not least <= value < math.inf:
            raise ValueError(f"{name} {value!r:.60} is no measured number")


@dataclass(frozen=True)
class Change:
    """One run, then and now."""

    now: pd.Series
    then: pd.Series

    @property
    def ratio(self) -> Ratio:
        return Ratio.of(self.now, self.then)

    @property
    def word(self) -> str:
        verdict = self.ratio.verdict
        words = {"ahead": "faster", "behind": "slower"}
        return words.get(verdict, "within the ranges" if "holds 1" in verdict else "measured once")


def changes(folder: Any, rows) -> list[Change]:
    """Of every run that both have."""
    _, numbers = _read(folder)
    then = {(row["label"], row["batch"]): row for _, row in as_table(numbers["rows"]).iterrows()}
    now = [row for _, row in as_table(rows).iterrows()]
    return [
        Change(row, then[row["label"], row["batch"]])
        for row in now
        if (row["label"], row["batch"]) in then
    ]


def count_changes(folder: Any, rows) -> str:
    """One line for the summary."""
    words = [change.word for change in changes(folder, rows)]
    faster, slower = (words.count(word) for word in ("faster", "slower"))
    made = as_markdown(_read(folder)[1].get("made", {}).get("made", "an earlier day"))
    return (
        f"Against the report of {made}: {faster} of {len(words)} runs are faster beyond both ranges, "
        f"{slower} slower."
    )


HEAD = ["batch", "method", "tokens/s then", "now", "now / then", "change"]
HEAD += ["bytes per token, now / then"]


def say_change(folder: Any, rows) -> str:
    """The section: speed and bytes then and now, and whether the change is beyond both ranges."""
    made = _read(folder)[1].get("made", {})
    lines = [
        "## Against the earlier report",
        "",
        f"Earlier: {as_markdown(made.get('made'))}, {as_markdown(made.get('revision'))}, on "
        f"{as_markdown(made.get('machine'))}. *Faster* and *slower* mean that the two ranges of the "
        "repeats do not meet; what is within the ranges may be chance.",
        "",
    ]
    said = []
    for change in changes(folder, rows):
        now, then = change.now, change.then
        moved = now["fetched_bytes_per_token"], then["fetched_bytes_per_token"]
        bytes_ratio = show_number(moved[0] / moved[1]) if moved[1] else ""
        label = f"`{now['label']}`"
        said.append(
            [now["batch"], label, speed(then), speed(now), change.ratio, change.word, bytes_ratio]
        )
    return "\n".join([*lines, markdown_rows(HEAD, said)])
