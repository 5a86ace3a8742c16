"""The paper's claims in one table, beside ours, and whether each holds here.

Comes in: the list of ``Number``s. Goes out: a frame; ``document`` and the notebook open with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .facts import KINDS, TOKENS, Number
from .sentences import OURS, batches_of, labelled, order_of, say_growth, value_of
from .tables import figure


def claims(numbers: list[Number]) -> pd.DataFrame:
    """What the paper claims, beside ours, and whether it holds here."""
    rows = []
    for what, (table, label, measure, batch), judge in CLAIMS:
        found = {kind: value_of(numbers, table, label, measure, kind, batch) for kind in KINDS}
        cells = {kind: "" if n is None else f"{figure(n.value)} {n.unit}" for kind, n in found.items()}
        rows.append({"the paper's claim": what} | cells | {"here": judge(numbers)})
    return pd.DataFrame(rows)


def _growth_holds(numbers: list[Number]) -> str:
    said = say_growth(numbers)
    return "not measured" if "not measured" in said else "holds" if "as the mechanism" in said else "does not"


def _ahead(table: str) -> Callable:
    def judge(numbers: list[Number]) -> str:
        said = []
        for kind in OURS:
            best = labelled(numbers, table, "speed-up, best batch", kind)
            if "specmoe" in best:
                others = [n.value for label, n in best.items() if label in ("overlapped", "cached", "cached, equal bytes")]
                said.append(
                    f"{kind}: {'the fastest' if best['specmoe'].value >= max(others, default=0) else 'not the fastest'}"
                )
        return "; ".join(said) or "not measured"

    return judge


def _order_holds(table: str, order: tuple[str, ...]) -> Callable:
    def judge(numbers: list[Number]) -> str:
        words, said = {1: "ahead of", 0: "level with", -1: "behind"}, []
        for batch in batches_of(numbers, table, TOKENS)[-1:]:
            for first, second in zip(order, order[1:]):
                pair = value_of(numbers, table, first, f"{TOKENS} against {second}", batch=batch)
                if pair is not None:
                    said.append(f"{first} {words[order_of(pair)]} {second}")
                    sets = f" (batch {batch}, {pair.num} sets)"
        return "; ".join(said) + sets if said else "not measured"

    return judge


def _best_number(numbers: list[Number]) -> str:
    said = []
    for kind in OURS:
        speeds = labelled(numbers, "draft_experts", "speed", kind, 256)
        if len(speeds) > 2:
            said.append(f"{kind}: {max(speeds, key=lambda label: speeds[label].value)}")
    return "; ".join(said) or "not measured"


def _batch_one(numbers: list[Number]) -> str:
    said = []
    for kind in OURS:
        speeds = labelled(numbers, "throughput", "speed", kind, 1)
        if {"cached", "specmoe"} <= set(speeds):
            said.append(f"{kind}: {speeds['specmoe'].value / speeds['cached'].value:.2f} times cached")
    return "; ".join(said) or "not measured"


CLAIMS = (
    ("faster than every baseline, batch 256", ("throughput", "specmoe", "speed-up, best batch", None), _ahead("throughput")),
    ("fewer bytes than on_demand", ("bytes", "specmoe", "change against on_demand, best batch", None), lambda numbers: ""),
    ("bytes grow slowest with the batch", ("growth", "specmoe", "growth of bytes, batch 1 to 256", None), _growth_holds),
    ("caching slightly faster at batch 1", ("throughput", "cached", "speed-up", 1), _batch_one),
    ("affinity better than random substitutes", ("substitution", "affinity", "tokens per round against random", None),
     _order_holds("substitution", ("affinity", "random"))),
    ("temporal, global, random draft sets, in that order", ("draft_set", "hot_temporal", TOKENS, 256),
     _order_holds("draft_set", ("hot_temporal", "hot_global", "random"))),
    ("N = 4 fastest of 2, 4, 8, 16", ("draft_experts", "N = 4", "speed", 256), _best_number),
    ("faster on an SSD", ("ssd", "specmoe", "speed-up, mean over batches", None), _ahead("ssd")),
    ("time goes into migration", ("migration", "on_demand", "time in expert migration, largest", None), lambda numbers: ""),
)  # fmt: skip
