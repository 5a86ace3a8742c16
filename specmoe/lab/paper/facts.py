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


def mean_of(
    table: str,
    label: str,
    measure: str,
    values,
    unit: str,
    note: str = "",
    batch: int | None = None,
    kind: str = "measured",
) -> list[Number]:
    """The mean of ``values`` with the smallest and the largest; none where there is no value."""
    values = [
        float(value) for value in np.atleast_1d(values) if value is not None and np.isfinite(value)
    ]
    if not values:
        return []
    ends = (min(values), max(values)) if len(values) > 1 else (None, None)
    return [
        Number(
            table,
            label,
            measure,
            float(np.mean(values)),
            kind,
            unit,
            *ends,
            len(values),
            note,
            batch,
        )
    ]


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


def _paper(
    table: str,
    label: str,
    measure: str,
    value: float,
    unit: str,
    note: str = "",
    batch: int | None = None,
) -> Number:
    return Number(
        table,
        label,
        measure,
        value,
        "paper",
        unit,
        note=f"{SOURCE}{'; ' + note if note else ''}",
        batch=batch,
    )


def _speeds() -> list[Number]:
    return [
        _paper("throughput", "specmoe", "speed-up, best batch", 4.30, RATIO, "batch 256"),
        _paper("throughput", "specmoe", "speed", 123.0, SPEED, batch=256),
        _paper("throughput", "on_demand", "speed", 28.6, SPEED, "about", 256),
        _paper("throughput", "specmoe", "latency, best batch", 23.0, "% of on_demand"),
        _paper(
            "throughput",
            "specmoe",
            "speed-up over cached, best batch",
            3.7,
            "times cached",
            "more than; unequal memory",
        ),
        _paper(
            "low_skew", "Mixtral-8x7B", "specmoe, best batch", 2.17, RATIO, "temperature 1, gamma 5"
        ),
        _paper(
            "low_skew",
            "Llama-4-Scout",
            "specmoe, best batch",
            1.42,
            RATIO,
            "temperature 1, gamma 5",
        ),
        _paper(
            "low_skew",
            "Llama-4-Scout",
            "overlapped, best batch",
            1.53,
            RATIO,
            "one note; model not certain",
        ),
        _paper(
            "low_skew",
            "Llama-4-Scout",
            "cached, best batch",
            1.15,
            RATIO,
            "one note; model not certain",
        ),
        _paper("ssd", "specmoe", "speed-up, mean over batches", 2.25, RATIO),
        _paper("ssd", "cached", "speed-up, mean over batches", 1.29, RATIO),
        _paper("ssd", "overlapped (oracle)", "speed-up, mean over batches", 1.05, RATIO),
        _paper(
            "migration",
            "on_demand",
            "time in expert migration, largest",
            90.11,
            PERCENT,
            "up to, NLLB-MoE on H100",
        ),
    ]


def _bytes() -> list[Number]:
    growth = {"on_demand": 45.28, "cached": 50.97, "specmoe": 10.96}
    return [
        _paper(
            "bytes", "specmoe", "change against on_demand, best batch", -76.73, PERCENT, "up to"
        ),
        _paper(
            "bytes",
            "specmoe",
            "change against cached, best batch",
            -71.89,
            PERCENT,
            "up to; unequal memory",
        ),
        *(
            _paper("growth", label, "growth of bytes, batch 1 to 256", value, "times")
            for label, value in growth.items()
        ),
    ]


def _choices() -> list[Number]:
    sets = {"random": (6.812, 1.000), "hot_global": (7.220, 1.084), "hot_temporal": (7.265, 1.143)}
    experts = {2: (6.929, 116.401), 4: (7.265, 122.974), 8: (7.620, 121.309), 16: (7.819, 117.157)}
    facts = [_paper("substitution", "affinity", "tokens per round against random", 7.23, PERCENT)]
    for label, (tokens, speed) in sets.items():
        facts.append(_paper("draft_set", label, TOKENS, tokens, "tokens", batch=256))
        facts.append(
            _paper("draft_set", label, "speed against random", speed, "times random", batch=256)
        )
    facts += [
        _paper("implied", label, "speed at batch 256", value, SPEED)
        for label, value in _IMPLIED.items()
    ]
    for num, (tokens, speed) in experts.items():
        facts.append(_paper("draft_experts", f"N = {num}", TOKENS, tokens, "tokens", batch=256))
        facts.append(_paper("draft_experts", f"N = {num}", "speed", speed, SPEED, batch=256))
        ratio = speed / experts[4][1]
        facts.append(
            _paper(
                "draft_experts",
                f"N = {num}",
                "speed against N = 4",
                ratio,
                "times N = 4",
                "from its speeds",
                256,
            )
        )
    return facts


# The same speeds once more, for the table that replays them on the machine that they imply.
_IMPLIED = {
    "on_demand": 28.6,
    "specmoe": 122.974,
    "specmoe, N = 2": 116.401,
    "specmoe, N = 8": 121.309,
    "specmoe, N = 16": 117.157,
}
FACTS: tuple[Number, ...] = (*_speeds(), *_bytes(), *_choices())
# name: experts per MoE layer, MoE layers, layers, top_k, size (GB), hotness skewness (its
# definition is not known)
PAPER_MODELS = {
    "NLLB-MoE": (128, 6, 24, 2, 54, 0.84),
    "Mixtral-8x7B": (8, 32, 32, 2, 94, 0.32),
    "Llama-4-Scout": (16, 48, 48, 1, 218, 0.59),
}
