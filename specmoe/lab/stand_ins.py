"""Does it matter who stands in? The nearest resident expert (affinity, the paper) against a random
one and the farthest.

Comes in: the name of a model. Goes out: a frame of counts, and differences with their intervals.
``python -m specmoe.lab.stand_ins [MODEL ...]`` counts the shipped models (ten minutes; it goes on
where it was stopped) and writes ``results/stand_ins.json``, which ``shipped`` reads and
docs/claims.md shows. Every set has prompts of its own, and each way decodes the same sets, so ways
are compared pair by pair. Nothing is read ahead: no count depends on a clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from .bench.prompts import prompts_for
from .writing import write_whole

RESULTS = package_path("lab/results/stand_ins.json")
SIZES = {"tiny-skewed": 4, "tiny-balanced": 2, "tiny-translate": 8}  # experts that draft
NUM_SETS, PER_SET, NEW_TOKENS, GAMMA, BATCH, SEED = 24, 4, 24, 5, 4, 5
MEASURES = ("acceptance_rate", "tokens_per_round")
RESAMPLES = 10_000


def farthest(layer: int, residents: list[int], distances: torch.Tensor) -> list[int]:
    """A substitute: the resident least like each expert."""
    return [max(residents, key=lambda one: float(row[one])) for row in distances]


WAYS = {"nearest": "affinity", "random": "random", "farthest": farthest}


def count_set(
    engine: Engine, texts: Sequence, number: int, ways: Iterable[str] = (*WAYS,)
) -> list[dict]:
    """A row per way with the ``texts`` of one set: ``acceptance_rate``, ``tokens_per_round``. Random
    stand-ins are drawn by the ``number`` of the set."""
    rows = []
    run = {"method": "specmoe", "gamma": GAMMA, "max_new_tokens": NEW_TOKENS, "batch_size": BATCH}
    for way in ways:
        how = {"substitute": WAYS[way], "seed": number, "prefetch": False}
        stats = engine.generate(list(texts), **run, **how).stats
        found = {name: getattr(stats, name) for name in MEASURES}
        rows.append({"set": number, "way": way} | found)
    return rows


def spread_of_distances(engine: Engine) -> float:
    """How far the farthest other expert of a layer is, over the nearest; the median over experts.
    Near 1: by distance no expert is like another more than like a third."""
    ratios = []
    for layer in engine.experts.draft_layers:
        for row in engine.experts.distances[layer]:
            others = row[row > 0]
            ratios.append(float(others.max() / others.min()))
    return float(np.median(ratios))


def differences(table: pd.DataFrame, measure: str = "acceptance_rate") -> pd.DataFrame:
    """A row per model and other way: the mean over sets of nearest minus the other, ``low`` and
    ``high`` of its 95 % interval (percentiles of resampled sets), ``sets`` and in how many of them
    the nearest is ``ahead``."""
    rows = []
    for model, part in table.groupby("model", sort=False):
        wide = part.pivot(index="set", columns="way", values=measure)
        for other in [way for way in WAYS if way in wide and way != "nearest"]:
            gap = (wide["nearest"] - wide[other]).dropna().to_numpy()
            low, high = interval(gap)
            found = {"mean": gap.mean(), "low": low, "high": high}
            counts = {"sets": len(gap), "ahead": int((gap > 0).sum())}
            rows.append({"model": model, "other": other} | found | counts)
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """``differences`` in words: points of acceptance, tokens per round, and whether the sign is
    settled."""
    found, tokens = differences(rows), differences(rows, "tokens_per_round")
    signs = [
        "ahead" if low > 0 else "behind" if high < 0 else "open"
        for low, high in zip(found["low"], found["high"])
    ]
    return pd.DataFrame(
        {
            "model": found["model"],
            "nearest over": found["other"],
            "acceptance, points": _said(found, 100, "{:+.1f}"),
            "tokens per round": _said(tokens, 1, "{:+.2f}"),
            "sets it is ahead in": found["ahead"].astype(str) + " of " + found["sets"].astype(str),
            "the nearest is": signs,
        }
    )


def _said(found: pd.DataFrame, times: float, shape: str) -> pd.Series:
    numbers = (times * found[["mean", "low", "high"]]).map(shape.format)
    return numbers["mean"] + " (" + numbers["low"] + " to " + numbers["high"] + ")"


def interval(gaps: np.ndarray) -> tuple[float, float]:
    """95 % of the means of ``gaps`` resampled."""
    draw = np.random.default_rng(0).integers(len(gaps), size=(RESAMPLES, len(gaps)))
    low, high = np.percentile(gaps[draw].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def distances(path: str | Path = RESULTS) -> dict[str, float]:
    """``spread_of_distances`` of each model, as ``main`` found it."""
    return json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["spread_of_distances"]


def main(models: Sequence[str]) -> None:
    """Count the sets that ``RESULTS`` has not, and keep it after every one."""
    settings = {"gamma": GAMMA, "batch": BATCH, "new_tokens": NEW_TOKENS, "per_set": PER_SET}
    record = settings | {"seed": SEED, "spread_of_distances": {}, "rows": []}
    if RESULTS.exists():
        record = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name in models or SIZES:
        done = {row["set"] for row in record["rows"] if row["model"] == name}
        with load(name, store="memory", trace=False, draft_experts=SIZES[name]) as engine:
            record["spread_of_distances"][name] = round(spread_of_distances(engine), 3)
            texts = prompts_for(engine, NUM_SETS * PER_SET, SEED)
            for number in sorted(set(range(NUM_SETS)) - done):
                # the texts of a set stand side by side, so that it has every domain
                rows = count_set(engine, texts[number * PER_SET :][:PER_SET], number)
                record["rows"] += [{"model": name} | row for row in rows]
                write_whole(RESULTS, _written(record))
                print(name, number, [round(row["acceptance_rate"], 3) for row in rows], flush=True)


def _written(record: dict) -> str:
    """A row on a line: short enough to be read in a diff."""
    head = {name: value for name, value in record.items() if name != "rows"}
    rows = ",\n  ".join(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        for row in record["rows"]
    )
    return f'{json.dumps(head)[:-1]},\n "rows": [\n  {rows}\n ]}}\n'


if __name__ == "__main__":
    main(sys.argv[1:])
