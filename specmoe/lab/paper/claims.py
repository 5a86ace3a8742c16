"""The paper's claims, each as a boolean with the numbers of ours that decide it.

Comes in: the list of ``Number``s. Goes out: ``Claim``s, and a frame of them: the notebook ``paper``
opens with it. A claim that nothing of a kind was measured for is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from .facts import FACTS, TOKENS, Number, labelled, value_of
from .tables import words

CLOSE = 0.25  # within a quarter of the paper's
BASELINES = ("overlapped", "overlapped (oracle)", "cached", "cached, equal bytes")
Verdict = tuple[bool, list[Number]] | None
Judge = Callable[[list[Number], str], Verdict]


@dataclass(frozen=True)
class Claim:
    """What the paper says, and whether our numbers of one kind say it too."""

    table: str
    name: str
    kind: str
    holds: bool
    numbers: tuple[Number, ...]


def claims(numbers: list[Number]) -> list[Claim]:
    """Every claim that there are numbers for, those of one sentence side by side."""
    return [
        Claim(table, name, kind, bool(found[0]), tuple(found[1]))
        for table, name, judge in CLAIMS
        for kind in ("measured", "simulated")
        if (found := judge(numbers, kind)) is not None
    ]


def claims_frame(found: list[Claim]) -> pd.DataFrame:
    """Claim, the paper's number where it reports one, kind, whether it holds, our numbers."""
    rows = [
        {
            "the paper's claim": claim.name,
            "paper": "; ".join(words(fact) for fact in _reported(claim)),
            "kind": claim.kind,
            "holds": "yes" if claim.holds else "no",
            "ours": "; ".join(map(_named, claim.numbers)),
        }
        for claim in found
    ]
    return pd.DataFrame(rows)


def verdicts(found: list[Claim]) -> str:
    """Markdown: how many claims hold, by kind, and those that do not, with our numbers."""
    lines = []
    for kind in dict.fromkeys(claim.kind for claim in found):
        held = [claim.holds for claim in found if claim.kind == kind]
        lines.append(f"**{kind.capitalize()}: {sum(held)} of {len(held)} claims hold.**")
    failed = [
        f"- *{claim.name}* ({claim.kind}): {'; '.join(map(_named, claim.numbers))}"
        for claim in found
        if not claim.holds
    ]
    return "\n".join([" ".join(lines), "", *(["Not ours:", "", *failed] if failed else [])])


def _named(number: Number) -> str:
    at = "" if number.batch is None else f" at batch {number.batch}"
    return f"`{number.label}` {words(number)}{at}"


def _reported(claim: Claim) -> Iterator[Number]:
    for number in claim.numbers:
        fact = value_of(FACTS, claim.table, number.label, number.measure, "paper", number.batch)
        if fact is not None:
            yield fact


# ---- judges: the numbers and a kind come in, whether it holds and on what it stands goes out ----


def _fastest(table: str) -> Judge:
    def judge(numbers: list[Number], kind: str) -> Verdict:
        best = labelled(numbers, table, "speed-up, best batch", kind)
        others = [best[name] for name in BASELINES if name in best]
        if "specmoe" not in best or not others:
            return None
        next_best = max(others, key=lambda number: number.value)
        return best["specmoe"].value >= next_best.value, [best["specmoe"], next_best]

    return judge


def _cached_at_one(numbers: list[Number], kind: str) -> Verdict:
    at = labelled(numbers, "throughput", "speed", kind, 1)
    if not {"cached", "specmoe"} <= set(at):
        return None
    return at["cached"].value > at["specmoe"].value, [at["specmoe"], at["cached"]]


def _near(table: str, label: str, measure: str) -> Judge:
    def judge(numbers: list[Number], kind: str) -> Verdict:
        ours = value_of(numbers, table, label, measure, kind)
        theirs = value_of(FACTS, table, label, measure, "paper")
        return None if ours is None else (abs(ours.value / theirs.value - 1) <= CLOSE, [ours])

    return judge


def _grows_least(numbers: list[Number], kind: str) -> Verdict:
    growth = labelled(numbers, "growth", "growth of bytes, batch 1 to 256", kind)
    others = [number for label, number in growth.items() if label != "specmoe"]
    if "specmoe" not in growth or not others:
        return None
    least = min(others, key=lambda number: number.value)
    return least.value > 2 * growth["specmoe"].value, [growth["specmoe"], least]


def _ahead(table: str, first: str, second: str) -> Judge:
    """On every set of prompts, at the largest batch of those with the most sets; one set tells
    nothing."""

    def judge(numbers: list[Number], kind: str) -> Verdict:
        measure = f"{TOKENS} against {second}"
        pairs = [
            number
            for number in numbers
            if (number.table, number.label, number.measure, number.kind)
            == (table, first, measure, kind)
            and number.batch is not None
        ]
        if not pairs:
            return None
        pair = max(pairs, key=lambda number: (number.num, number.batch))
        return pair.num > 1 and (pair.value if pair.low is None else pair.low) > 0, [pair]

    return judge


def _control(numbers: list[Number], kind: str) -> Verdict:
    """The paper has no such control: it says that the resident experts draft at all."""
    for batch in (256, 64):
        found = labelled(numbers, "substitution", TOKENS, kind, batch)
        if {"affinity", "no_experts"} <= set(found):
            with_experts, without = found["affinity"], found["no_experts"]
            return 2 * (without.value - 1) < with_experts.value - 1, [with_experts, without]
    return None


def _rise(numbers: list[Number], kind: str) -> Verdict:
    by_number = list(labelled(numbers, "draft_experts", TOKENS, kind, 256).values())
    rises = all(a.value < b.value for a, b in zip(by_number, by_number[1:]))
    return (rises, by_number) if len(by_number) > 1 else None


def _four_is_best(numbers: list[Number], kind: str) -> Verdict:
    speeds = labelled(numbers, "draft_experts", "speed", kind, 256)
    if "N = 4" not in speeds or len(speeds) < 3:
        return None
    best = max(speeds.values(), key=lambda number: number.value)
    return best.label == "N = 4", [speeds["N = 4"], *([best] if best.label != "N = 4" else [])]


def _leads(model: str) -> Judge:
    """At every batch above 4; the numbers are those of the batch where the lead is smallest."""

    def judge(numbers: list[Number], kind: str) -> Verdict:
        leads = []
        for batch in sorted({n.batch for n in numbers if n.table == "low_skew" and n.batch}):
            at = labelled(numbers, "low_skew", "speed-up", kind, batch)
            ours = at.pop(f"{model}: specmoe", None)
            others = [number for label, number in at.items() if label.startswith(f"{model}:")]
            if batch > 4 and ours is not None and others:
                next_best = max(others, key=lambda number: number.value)
                leads.append((ours.value / max(1.0, next_best.value), [ours, next_best]))
        smallest = min(leads, key=lambda lead: lead[0], default=None)
        return smallest and (smallest[0] >= 1, smallest[1])

    return judge


MIGRATION = ("migration", "on_demand", "time in expert migration, largest")
SAVED = ("bytes", "specmoe", "change against on_demand, best batch")
CLAIMS: tuple[tuple[str, str, Judge], ...] = (
    ("throughput", "specmoe is faster than every baseline, at best", _fastest("throughput")),
    ("throughput", "at batch 1 cached is faster", _cached_at_one),
    ("bytes", "fewer bytes than on_demand, within a quarter of the paper's", _near(*SAVED)),
    ("growth", "bytes grow less than half as much as any other method's", _grows_least),
    (
        "substitution",
        "affinity is ahead of random on every set of prompts",
        _ahead("substitution", "affinity", "random"),
    ),
    ("substitution", "without any expert less than half is gained", _control),
    (
        "draft_set",
        "hot_temporal is ahead of hot_global on every set",
        _ahead("draft_set", "hot_temporal", "hot_global"),
    ),
    (
        "draft_set",
        "hot_global is ahead of random on every set",
        _ahead("draft_set", "hot_global", "random"),
    ),
    ("draft_experts", "tokens per round rise with N", _rise),
    ("draft_experts", "N = 4 is the fastest of 2, 4, 8 and 16", _four_is_best),
    *(
        ("low_skew", f"{model}: specmoe leads at every batch above 4", _leads(model))
        for model in ("tiny-balanced", "tiny-skewed", "Mixtral-8x7B", "Llama-4-Scout")
    ),
    ("ssd", "on an SSD specmoe is faster than every baseline, at best", _fastest("ssd")),
    (
        "migration",
        "on_demand's time goes into migration, within a quarter of the paper's",
        _near(*MIGRATION),
    ),
)
