"""What the SpecMoE paper reports, as data.

Goes out: ``FACTS``, one ``Number`` of kind "paper" for each figure, with its source;
``PAPER_MODELS``. ``numbers`` sets the measured ones beside them. Source of all: arXiv 2604.10152
(DAC 2026), as collected in the project's notes from its abstract and independent reading notes;
nothing was read off a plot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

SOURCE = "arXiv 2604.10152, from reading notes"
KINDS = ("paper", "measured", "simulated")
BATCHES = (1, 4, 16, 64, 128, 256)
TOKENS, SPEED, RATIO, PERCENT = "tokens per round", "tokens/s", "times on_demand", "%"


@dataclass(frozen=True)
class Number:
    """One number of a table. ``low`` and ``high``: smallest and largest of the prompt sets or
    repeats, where there are."""

    table: str  # a section of the notebook
    label: str  # row: a method, a draft set, N, ...
    measure: str
    value: float
    kind: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    num: int = 1  # prompt sets or repeats behind it
    note: str = ""
    batch: int | None = None  # None: of no one batch, such as the best of all

    def to_dict(self) -> dict:
        return asdict(self)


def frame_of(numbers: Iterable[Number]) -> pd.DataFrame:
    return pd.DataFrame([number.to_dict() for number in numbers])


@dataclass(frozen=True)
class Table:
    """The numbers of one table and kind are made here. ``note``: of each that has none of its
    own."""

    name: str
    kind: str = "measured"
    note: str = ""

    def mean(
        self, label: str, measure: str, values, unit: str, note: str | None = None, batch=None
    ) -> list[Number]:
        """The mean of ``values`` with the smallest and the largest; none where there is no
        value."""
        known = [float(value) for value in np.atleast_1d(values) if value is not None]
        known = [value for value in known if np.isfinite(value)]
        if not known:
            return []
        low, high = (min(known), max(known)) if len(known) > 1 else (None, None)
        said, mean = self.note if note is None else note, float(np.mean(known))
        about = (self.name, label, measure, mean, self.kind, unit)
        return [Number(*about, low, high, len(known), said, batch)]

    def by_batch(self, label: str, measure: str, values: pd.Series, unit: str) -> list[Number]:
        """One number for each batch that has a value."""
        return [
            number
            for batch, value in values.dropna().items()
            for number in self.mean(label, measure, value, unit, batch=batch)
        ]

    def timed(self, label: str, row, batch: int) -> Number:
        """The speed of one timed run: the median of its repeats, and their reach."""
        about = (self.name, label, "speed", row.tokens_per_second, self.kind, SPEED)
        reach = (row.tokens_per_second_min, row.tokens_per_second_max)
        return Number(*about, *reach, int(row.repeats), batch=batch)


def value_of(
    numbers: Iterable[Number],
    table: str,
    label: str,
    measure: str,
    kind: str = "measured",
    batch: int | None = None,
) -> Number | None:
    """The one number of this name, if there is one."""
    return labelled(numbers, table, measure, kind, batch).get(label)


def labelled(
    numbers: Iterable[Number],
    table: str,
    measure: str,
    kind: str = "measured",
    batch: int | None = None,
) -> dict[str, Number]:
    """Label -> number."""
    wanted = (table, measure, kind, batch)
    return {n.label: n for n in numbers if (n.table, n.measure, n.kind, n.batch) == wanted}


_MORE_THAN, _UP_TO = "more than; unequal memory", "up to; unequal memory"
_ON_H100, _UNCERTAIN = "up to, NLLB-MoE on H100", "one note; model not certain"
# table, label, measure, value, unit, what to know of it, batch
_REPORTED = (
    ("throughput", "specmoe", "speed-up, best batch", 4.30, RATIO, "batch 256"),
    ("throughput", "specmoe", "speed", 123.0, SPEED, "", 256),
    ("throughput", "on_demand", "speed", 28.6, SPEED, "about", 256),
    ("throughput", "specmoe", "latency, best batch", 23.0, "% of on_demand"),
    ("throughput", "specmoe", "speed-up over cached, best batch", 3.7, "times cached", _MORE_THAN),
    ("low_skew", "Mixtral-8x7B", "specmoe, best batch", 2.17, RATIO, "temperature 1, gamma 5"),
    ("low_skew", "Llama-4-Scout", "specmoe, best batch", 1.42, RATIO, "temperature 1, gamma 5"),
    ("low_skew", "Llama-4-Scout", "overlapped, best batch", 1.53, RATIO, _UNCERTAIN),
    ("low_skew", "Llama-4-Scout", "cached, best batch", 1.15, RATIO, _UNCERTAIN),
    ("ssd", "specmoe", "speed-up, mean over batches", 2.25, RATIO),
    ("ssd", "cached", "speed-up, mean over batches", 1.29, RATIO),
    ("ssd", "overlapped (oracle)", "speed-up, mean over batches", 1.05, RATIO),
    ("migration", "on_demand", "time in expert migration, largest", 90.11, PERCENT, _ON_H100),
    ("bytes", "specmoe", "change against on_demand, best batch", -76.73, PERCENT, "up to"),
    ("bytes", "specmoe", "change against cached, best batch", -71.89, PERCENT, _UP_TO),
    ("growth", "on_demand", "growth of bytes, batch 1 to 256", 45.28, "times"),
    ("growth", "cached", "growth of bytes, batch 1 to 256", 50.97, "times"),
    ("growth", "specmoe", "growth of bytes, batch 1 to 256", 10.96, "times"),
    ("substitution", "affinity", "tokens per round against random", 7.23, PERCENT),
)
# Draft set -> tokens per round, speed against random; N -> tokens per round, tokens/s.
_SETS = {"random": (6.812, 1.000), "hot_global": (7.220, 1.084), "hot_temporal": (7.265, 1.143)}
_EXPERTS = {2: (6.929, 116.401), 4: (7.265, 122.974), 8: (7.620, 121.309), 16: (7.819, 117.157)}
# The same speeds once more, for the table that replays them on the machine that they imply.
_IMPLIED = {
    "on_demand": 28.6,
    "specmoe": 122.974,
    "specmoe, N = 2": 116.401,
    "specmoe, N = 8": 121.309,
    "specmoe, N = 16": 117.157,
}


def _paper(table: str, label: str, measure: str, value: float, unit: str, note="", batch=None):
    said = f"{SOURCE}{'; ' + note if note else ''}"
    return Number(table, label, measure, value, "paper", unit, note=said, batch=batch)


def _choices() -> Iterable[Number]:
    for label, (tokens, speed) in _SETS.items():
        yield _paper("draft_set", label, TOKENS, tokens, "tokens", batch=256)
        yield _paper("draft_set", label, "speed against random", speed, "times random", batch=256)
    for label, value in _IMPLIED.items():
        yield _paper("implied", label, "speed at batch 256", value, SPEED)
    for num, (tokens, speed) in _EXPERTS.items():
        at, over = ("draft_experts", f"N = {num}"), speed / _EXPERTS[4][1]
        yield _paper(*at, TOKENS, tokens, "tokens", batch=256)
        yield _paper(*at, "speed", speed, SPEED, batch=256)
        yield _paper(*at, "speed against N = 4", over, "times N = 4", "from its speeds", 256)


FACTS: tuple[Number, ...] = (*(_paper(*each) for each in _REPORTED), *_choices())
# name: experts per MoE layer, MoE layers, layers, top_k, size (GB), hotness skewness (its
# definition is not known)
PAPER_MODELS = {
    "NLLB-MoE": (128, 6, 24, 2, 54, 0.84),
    "Mixtral-8x7B": (8, 32, 32, 2, 94, 0.32),
    "Llama-4-Scout": (16, 48, 48, 1, 218, 0.59),
}
