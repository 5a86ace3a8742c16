"""What the report concludes, in sentences that follow the numbers.

Comes in: the list of ``Number``s. Goes out: Markdown. Every claim (ordering, best N, growth) is
computed from them, and says so when they do not settle it.
"""

from __future__ import annotations

import math

import pandas as pd

from .facts import RATIO, TOKENS, Number

CLOSE = 0.25  # a number within 25 % of the paper's is called near
OURS = ("measured", "simulated")
SETTLE = (
    "more sets of prompts would settle the order here, and only the paper's own weights and "
    "prompts its own"
)


def frame_of(numbers: list[Number]) -> pd.DataFrame:
    return pd.DataFrame([number.to_dict() for number in numbers])


def value_of(
    numbers: list[Number],
    table: str,
    label: str,
    measure: str,
    kind: str = "measured",
    batch: int | None = None,
) -> Number | None:
    wanted = (table, label, measure, kind, batch)
    return next(
        (n for n in numbers if (n.table, n.label, n.measure, n.kind, n.batch) == wanted), None
    )


def labelled(
    numbers: list[Number],
    table: str,
    measure: str,
    kind: str = "measured",
    batch: int | None = None,
) -> dict[str, Number]:
    """Label -> number."""
    wanted = (table, measure, kind, batch)
    return {n.label: n for n in numbers if (n.table, n.measure, n.kind, n.batch) == wanted}


def say_compared(numbers: list[Number], table: str) -> str:
    """One line for each number that both the paper and we have: near, above or below."""
    lines = []
    for fact in (n for n in numbers if n.table == table and n.kind == "paper"):
        ours = [
            value_of(numbers, table, fact.label, fact.measure, kind, fact.batch) for kind in OURS
        ]
        said = [
            f"**{n.kind}** {n.value:.4g} ({_near(n.value, fact.value)})"
            for n in ours
            if n is not None
        ]
        if said:
            at = "" if fact.batch is None else f" at batch {fact.batch}"
            lines.append(
                f"- `{fact.label}`, {fact.measure}{at}: **paper** {fact.value:.4g} "
                f"{fact.unit}, {', '.join(said)}."
            )
    return "\n".join(lines) or "Nothing here was measured under the paper's own name for it."


def _near(ours: float, paper: float) -> str:
    ratio = ours / paper if paper else float("inf")
    return "near" if abs(ratio - 1) <= CLOSE else f"{ratio:.2g} times the paper's"


def say_growth(numbers: list[Number]) -> str:
    """Is the growth of specmoe's bytes below the others'?"""
    growth = {
        label: n.value
        for label, n in labelled(numbers, "growth", "growth of bytes, batch 1 to 256").items()
    }
    if "specmoe" not in growth or len(growth) < 2:
        return "The growth from batch 1 to 256 was not measured."
    others = {label: value for label, value in growth.items() if label != "specmoe"}
    below = [label for label, value in others.items() if value > 2 * growth["specmoe"]]
    if len(below) == len(others):
        return (
            f"The bytes of `specmoe` grow {growth['specmoe']:.1f} times, less than half of "
            "every other method's"
            f" ({min(others.values()):.1f} times at least), as the mechanism says."
        )
    level = sorted(set(others) - set(below))
    return (
        f"The bytes of `specmoe` grow {growth['specmoe']:.1f} times; not less than half of "
        "that "
        f"of {', '.join(level)}."
    )


def say_order(
    numbers: list[Number], table: str, order: tuple[str, ...], measure: str = TOKENS
) -> str:
    """Does the paper's order hold? Two labels are told apart only where one is ahead on every set
    of prompts."""
    lines, neighbours = [], list(zip(order, order[1:]))
    for batch in batches_of(numbers, table, measure):
        at = {"batch": batch}
        pairs = [
            value_of(numbers, table, first, f"{measure} against {second}", **at)
            for first, second in neighbours
        ]
        if batch is not None and all(pairs):
            few = min(number.num for number in pairs)
            said = "; ".join(map(_order_words, pairs))
            lines.append(f"- Batch {batch}, {few} prompt set{'s' if few > 1 else ''}: {said}.")
    return (
        "\n".join(lines) + (f"\n\nWhere it is not settled, {SETTLE}.")
        if lines
        else "Not all of these were measured."
    )


def batches_of(numbers: list[Number], table: str, measure: str, kind: str = "measured") -> list:
    found = {n.batch for n in numbers if (n.table, n.measure, n.kind) == (table, measure, kind)}
    return sorted(found, key=lambda batch: batch or 0)


def _order_words(pair: Number) -> str:
    names = f"`{pair.label}` against `{pair.measure.rpartition(' ')[2]}` {pair.value:+.1f} %"
    told = order_of(pair)
    if pair.num < 2:
        return f"{names}: one set of prompts settles nothing"
    if told > 0:
        return f"{names}: ahead on every set, as in the paper"
    if told < 0:
        return f"{names}: **behind** on every set, other than in the paper"
    return f"{names}: not settled (from {pair.low:+.1f} to {pair.high:+.1f} %)"


def order_of(pair: Number) -> int:
    """Of a change in percent, set by set: 1 where all are above zero, -1 where all are below, 0
    else, and of one set."""
    if pair.num < 2:
        return 0
    low, high = (pair.value if end is None else end for end in (pair.low, pair.high))
    return 1 if low > 0 else -1 if high < 0 else 0


def say_best_number(numbers: list[Number]) -> str:
    """Which N is fastest at the largest batch, and is it in the middle? On our clock, and
    simulated."""
    said = []
    for batch in batches_of(numbers, "draft_experts", TOKENS)[-1:]:
        values = [
            number.value
            for number in labelled(numbers, "draft_experts", TOKENS, batch=batch).values()
        ]
        rises = all(one <= other for one, other in zip(values, values[1:]))
        said.append(f"Tokens per round {'rise' if rises else 'do not always rise'} with N.")
    for kind in OURS:
        speeds = labelled(numbers, "draft_experts", "speed", kind, 256)
        if len(speeds) > 2:
            best = max(speeds, key=lambda label: speeds[label].value)
            inside = best not in (list(speeds)[0], list(speeds)[-1])
            place = "in the middle as in the paper" if inside else "at the end, not in the middle"
            level = [
                name for name, n in speeds.items() if name != best and _reaches(n, speeds[best])
            ]
            doubt = (
                (f", though the repeats of {' and '.join(level)} reach as far as its own")
                if level
                else ""
            )
            said.append(f"The fastest, {kind}, is {best}, {place}{doubt}.")
    return " ".join(said) or "N was not varied here."


def _reaches(number: Number, best: Number) -> bool:
    """Do the repeats of the two overlap?"""
    return number.high is not None and best.low is not None and number.high >= best.low


def say_batch_one(numbers: list[Number]) -> str:
    """The paper: at batch 1 caching is slightly faster."""
    said = []
    for kind in OURS:
        speeds = labelled(numbers, "throughput", "speed", kind, 1)
        for label, memory in (
            ("cached", "with the paper's larger memory"),
            ("cached, equal bytes", "at equal bytes"),
        ):
            if {label, "specmoe"} <= set(speeds):
                ratio = speeds["specmoe"].value / speeds[label].value
                word = (
                    "slower than"
                    if ratio < 1 / 1.05
                    else "faster than"
                    if ratio > 1.05
                    else "level with"
                )
                agree = "as in the paper" if ratio < 1.05 else "other than in the paper"
                said.append(
                    f"At batch 1 `specmoe` is {word} `cached` {memory} ({ratio:.2f} times its "
                    f"speed, {kind}), {agree}."
                )
    return " ".join(said) or "Batch 1 was not measured on the clock."


def say_control(numbers: list[Number]) -> str:
    """How much do the resident experts matter at all?"""
    for batch in reversed(batches_of(numbers, "substitution", TOKENS)):
        found = labelled(numbers, "substitution", TOKENS, batch=batch)
        if {"affinity", "no_experts"} <= set(found):
            share = (found["no_experts"].value - 1) / max(1e-9, found["affinity"].value - 1)
            return (
                f"A draft with **no** expert output still gains {100 * share:.0f} % of the "
                "tokens that `affinity` gains."
            )
    return "The control without experts was not measured."


def say_speed_up(numbers: list[Number], table: str) -> str:
    """Whose best speed-up is the largest, of the methods under the budget."""
    said = []
    for kind in OURS:
        best = labelled(numbers, table, "speed-up, best batch", kind)
        best = {label: n for label, n in best.items() if label != "resident"}
        if best:
            first = max(best, key=lambda label: best[label].value)
            said.append(
                f"The largest speed-up, {kind}, is that of `{first}`: "
                f"{best[first].value:.2f} {RATIO}"
                f" ({best[first].note})."
            )
    return " ".join(said) or "Nothing was measured on the clock here."


def say_low_skew(numbers: list[Number]) -> str:
    """Is specmoe ahead of the baselines at every batch above 4?"""
    lines = []
    found = [n for n in numbers if n.table == "low_skew" and n.measure == "speed-up"]
    for kind in OURS:
        for model in dict.fromkeys(n.label.partition(":")[0] for n in found if n.kind == kind):
            batches = sorted(
                {
                    n.batch
                    for n in found
                    if n.kind == kind and n.label.startswith(f"{model}:") and n.batch > 4
                }
            )
            at = {
                batch: labelled(numbers, "low_skew", "speed-up", kind, batch) for batch in batches
            }
            behind = [
                b
                for b in batches
                if not _leads(
                    {name: n.value for name, n in at[b].items() if name.startswith(model)}
                )
            ]
            said = (
                f"behind at batch {', '.join(map(str, behind))}"
                if behind
                else "ahead at every batch above 4, as in the paper"
            )
            lines.append(f"- {model}, {kind}: `specmoe` is {said}.")
    return "\n".join(lines)


def _leads(speeds: dict[str, float]) -> bool:
    ours = next((value for name, value in speeds.items() if name.endswith(": specmoe")), 0.0)
    return ours >= max(
        [1.0, *(value for name, value in speeds.items() if not name.endswith(": specmoe"))]
    )


# ---- the simulator ----


def say_map(cells: pd.DataFrame, balance: float, machine: str = "the paper's machine") -> str:
    """Who wins at the simulated cells nearest to ``balance`` (FLOP per byte), by model, N and
    batch."""
    if not len(cells):
        return "Nothing was recorded to draw the map from."
    lines = []
    for (model, number), part in cells.groupby(["model", "draft_experts"], sort=False):
        near = part[
            part["balance"] == min(part["balance"], key=lambda each: abs(each / balance - 1))
        ].sort_values("batch")
        said = ", ".join(
            f"{row.batch}: `{row.winner}` {row.margin:.2f}" for row in near.itertuples()
        )
        lines.append(f"- {model}, N = {number:g}: batch {said} times the next.")
    return f"At the balance of {machine} ({balance:,.0f} FLOP per byte):\n\n" + "\n".join(lines)


def say_agreement(cells: pd.DataFrame, own: pd.DataFrame) -> str:
    """Does the map, drawn with one machine's link and memory, name the winners that other machines'
    own rates give?"""
    said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in agreement(cells, own).items())
    return (
        "Of all models, N and batches, the map names the winner that a machine's own rates give "
        f"(both simulated): {said}."
    )


def agreement(cells: pd.DataFrame, own: pd.DataFrame) -> dict[str, float]:
    """Machine -> share of its points (model, N, batch) at which the map names the same winner."""
    found = {}
    for name, part in own.groupby("machine", sort=False):
        nearest = min(
            cells["balance"].unique(),
            key=lambda each: abs(math.log(each / part["balance"].iloc[0])),
        )
        at = cells[cells["balance"] == nearest]
        both = part.merge(at, on=["model", "draft_experts", "batch"], suffixes=("", "_map"))
        found[name] = float((both["winner"] == both["winner_map"]).mean())
    return found


def say_clock(rows: pd.DataFrame) -> str:
    """How far the simulator is from our clock, by model and link: median and worst of the runs."""
    if not len(rows):
        return (
            "No results of the simulator against our own clock are committed: nothing is "
            "claimed about it here."
        )
    lines = []
    for where, part in rows.groupby([name for name in ("model", "link") if name in rows]):
        size = 100 * part.groupby(["method", "batch"])["error"].median().abs()
        worst = " at batch ".join(map(str, size.idxmax()))
        lines.append(
            f"- {', '.join(where)}: median error {size.median():.0f} %, worst "
            f"{size.max():.0f} % (`{worst}`)."
        )
    return "\n".join(lines)
