"""The paper's claims in one table, beside ours, and whether each holds here.

Comes in: the list of ``Number``s. Goes out: a frame; ``document`` and the notebook open with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .facts import KINDS, TOKENS, Number
from .sentences import CLOSE, OURS, batches_of, labelled, order_of, say_growth, value_of
from .tables import figure


def claims(numbers: list[Number]) -> pd.DataFrame:
    """What the paper claims, beside ours, and whether it holds here."""
    rows = []
    for what, (table, label, measure, batch), judge in CLAIMS:
        found = {kind: value_of(numbers, table, label, measure, kind, batch) for kind in KINDS}
        cells = {
            kind: "" if n is None else f"{figure(n.value)} {n.unit}" for kind, n in found.items()
        }
        rows.append({"the paper's claim": what} | cells | {"here": judge(numbers)})
    return pd.DataFrame(rows)


def _growth_holds(numbers: list[Number]) -> str:
    said = say_growth(numbers)
    return (
        "not measured"
        if "not measured" in said
        else "holds"
        if "as the mechanism" in said
        else "does not"
    )


def _ahead(table: str) -> Callable:
    def judge(numbers: list[Number]) -> str:
        said = []
        for kind in OURS:
            best = labelled(numbers, table, "speed-up, best batch", kind)
            if "specmoe" in best:
                others = [n.value for label, n in best.items() if label in BASELINES]
                said.append(
                    f"{kind}: "
                    f"{'the fastest' if best['specmoe'].value >= max(others, default=0) else 'not the fastest'}"
                )
        return "; ".join(said) or "not measured"

    return judge


def _order_holds(table: str, order: tuple[str, ...]) -> Callable:
    """Judged at the batch of the most sets of prompts (the largest of them)."""

    def judge(numbers: list[Number]) -> str:
        words = {1: "ahead of", 0: "level with", -1: "behind"}
        pairs = [(first, f"{TOKENS} against {second}") for first, second in zip(order, order[1:])]
        found = {}
        for batch in batches_of(numbers, table, TOKENS):
            at = [value_of(numbers, table, first, measure, batch=batch) for first, measure in pairs]
            if all(at):
                found[min(pair.num for pair in at), batch] = at
        if not found:
            return "not measured"
        sets, batch = max(found)
        said = "; ".join(
            f"{n.label} {words[order_of(n)]} {n.measure.rpartition(' ')[2]}"
            for n in found[sets, batch]
        )
        return f"{said} (batch {batch}, {sets} set{'s' if sets > 1 else ''})"

    return judge


def _like_the_papers(table: str, label: str, measure: str) -> Callable:
    def judge(numbers: list[Number]) -> str:
        theirs = value_of(numbers, table, label, measure, "paper")
        ours = [
            n
            for n in (value_of(numbers, table, label, measure, kind) for kind in OURS)
            if n is not None
        ]
        near = [abs(n.value / theirs.value - 1) <= CLOSE for n in ours]
        return (
            "not measured"
            if not near
            else "holds"
            if all(near)
            else "in part"
            if any(near)
            else "does not"
        )

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
            said.append(
                f"{kind}: {speeds['specmoe'].value / speeds['cached'].value:.2f} times cached"
            )
    return "; ".join(said) or "not measured"


BASELINES = ("overlapped", "overlapped (oracle)", "cached", "cached, equal bytes")
BYTES, SHARE = "change against on_demand, best batch", "time in expert migration, largest"
CLAIMS = (
    (
        "faster than all baselines, best batch",
        ("throughput", "specmoe", "speed-up, best batch", None),
        _ahead("throughput"),
    ),
    (
        "fewer bytes than on_demand",
        ("bytes", "specmoe", BYTES, None),
        _like_the_papers("bytes", "specmoe", BYTES),
    ),
    (
        "bytes grow slowest with the batch",
        ("growth", "specmoe", "growth of bytes, batch 1 to 256", None),
        _growth_holds,
    ),
    ("caching slightly faster at batch 1", ("throughput", "cached", "speed-up", 1), _batch_one),
    (
        "affinity better than random substitutes",
        ("substitution", "affinity", "tokens per round against random", None),
        _order_holds("substitution", ("affinity", "random")),
    ),
    (
        "temporal, global, random draft sets, in that order",
        ("draft_set", "hot_temporal", TOKENS, 256),
        _order_holds("draft_set", ("hot_temporal", "hot_global", "random")),
    ),
    ("N = 4 fastest of 2, 4, 8, 16", ("draft_experts", "N = 4", "speed", 256), _best_number),
    ("faster on an SSD", ("ssd", "specmoe", "speed-up, mean over batches", None), _ahead("ssd")),
    (
        "time goes into migration",
        ("migration", "on_demand", SHARE, None),
        _like_the_papers("migration", "on_demand", SHARE),
    ),
)
