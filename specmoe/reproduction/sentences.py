"""What the report concludes, in sentences that follow the numbers.

Comes in: the list of ``Number``s. Goes out: Markdown. Every claim (ordering, best N, growth) is computed from them, and
says so when they do not settle it.
"""

from __future__ import annotations

import pandas as pd

from .facts import RATIO, TOKENS, Number

CLOSE = 0.25  # a number within 25 % of the paper's is called near


def frame_of(numbers: list[Number]) -> pd.DataFrame:
    return pd.DataFrame([number.to_dict() for number in numbers])


def value_of(numbers: list[Number], table: str, label: str, measure: str, kind: str = "measured") -> Number | None:
    wanted = (table, label, measure, kind)
    return next((n for n in numbers if (n.table, n.label, n.measure, n.kind) == wanted), None)


def _of(numbers: list[Number], table: str, measure: str, kind: str = "measured") -> dict[str, Number]:
    return {n.label: n for n in numbers if (n.table, n.measure, n.kind) == (table, measure, kind)}


def say_compared(numbers: list[Number], table: str) -> str:
    """One line for each number that both the paper and we have: near, above or below."""
    lines = []
    for fact in (n for n in numbers if n.table == table and n.kind == "paper"):
        ours = value_of(numbers, table, fact.label, fact.measure)
        if ours is not None:
            lines.append(f"- `{fact.label}`, {fact.measure}: **paper** {fact.value:.4g}, **measured** {ours.value:.4g}"
                         f" {ours.unit} ({_near(ours.value, fact.value)}).")  # fmt: skip
    return "\n".join(lines) or "Nothing here was measured under the paper's own name for it."


def _near(ours: float, paper: float) -> str:
    ratio = ours / paper if paper else float("inf")
    if abs(ratio - 1) <= CLOSE:
        return "near"
    return f"{ratio:.2f} times the paper's"


def say_growth(numbers: list[Number]) -> str:
    """Is the growth of specmoe's bytes below the others'?"""
    growth = {label: n.value for label, n in _of(numbers, "growth", "growth of bytes, batch 1 to 256").items()}
    if "specmoe" not in growth or len(growth) < 2:
        return "The growth from batch 1 to 256 was not measured."
    others = {label: value for label, value in growth.items() if label != "specmoe"}
    below = [label for label, value in others.items() if value > 2 * growth["specmoe"]]
    if len(below) == len(others):
        return (f"The bytes of `specmoe` grow {growth['specmoe']:.1f} times, less than half of every other method's"
                f" ({min(others.values()):.1f} times at least), as the mechanism says.")  # fmt: skip
    level = sorted(set(others) - set(below))
    return f"The bytes of `specmoe` grow {growth['specmoe']:.1f} times; not less than half of that of {', '.join(level)}."


def say_order(numbers: list[Number], table: str, order: tuple[str, ...], measure: str = TOKENS) -> str:
    """Does the paper's order hold? Two labels are told apart only where their ranges over the prompt sets are disjoint."""
    found = _of(numbers, table, measure)
    if not set(order) <= set(found):
        return "Not all of these were measured."
    said = []
    for first, second in zip(order, order[1:]):
        said.append(_order_words(found[first], found[second]))
    few = min(found[label].num for label in order)
    return f"Over {few} prompt sets: {'; '.join(said)}."


def _order_words(first: Number, second: Number) -> str:
    names = f"`{first.label}` ({first.value:.2f}) and `{second.label}` ({second.value:.2f})"
    ends = [(n.value if n.low is None else n.low, n.value if n.high is None else n.high) for n in (first, second)]
    if ends[0][0] > ends[1][1]:
        return f"{names}: the first is ahead on every set, as in the paper"
    if ends[1][0] > ends[0][1]:
        return f"{names}: the **second** is ahead on every set, other than in the paper"
    unsettled = "not settled, the ranges overlap; more prompt sets, or the paper's own weights, would settle it"
    return f"{names}: {unsettled}"


def say_best_number(numbers: list[Number]) -> str:
    """Which N is fastest, and is it in the middle?"""
    speeds = _of(numbers, "draft_experts", "speed at batch 256")
    tokens = _of(numbers, "draft_experts", TOKENS)
    said = []
    if len(tokens) > 1:
        values = [number.value for number in tokens.values()]
        rises = all(one <= other for one, other in zip(values, values[1:]))
        said.append(f"Tokens per round {'rise' if rises else 'do not always rise'} with N.")
    if len(speeds) > 2:
        best = max(speeds, key=lambda label: speeds[label].value)
        inside = best not in (list(speeds)[0], list(speeds)[-1])
        said.append(
            f"The fastest is {best}, {'in the middle as in the paper' if inside else 'at the end, not in the middle'}."
        )
    return " ".join(said) or "N was not varied here."


def say_batch_one(numbers: list[Number]) -> str:
    """The paper: at batch 1 caching is slightly faster."""
    speeds = _of(numbers, "throughput", "speed at batch 1")
    if not {"cached", "specmoe"} <= set(speeds):
        return "Batch 1 was not measured on the clock."
    ratio = speeds["specmoe"].value / speeds["cached"].value
    word = "slower than" if ratio < 1 / 1.05 else "faster than" if ratio > 1.05 else "level with"
    agree = "as in the paper" if ratio < 1.05 else "other than in the paper"
    return f"At batch 1 `specmoe` is {word} `cached` ({ratio:.2f} times its speed), {agree}."


def say_control(numbers: list[Number]) -> str:
    """How much do the resident experts matter at all?"""
    found = _of(numbers, "substitution", TOKENS)
    if not {"affinity", "no_experts"} <= set(found):
        return "The control without experts was not measured."
    share = (found["no_experts"].value - 1) / max(1e-9, found["affinity"].value - 1)
    return f"A draft with **no** expert output still gains {100 * share:.0f} % of the drafted tokens that `affinity` gains."


def say_speed_up(numbers: list[Number], table: str) -> str:
    """Whose best speed-up is the largest, of the methods under the budget."""
    best = {label: n for label, n in _of(numbers, table, "speed-up, best batch").items() if label != "resident"}
    if not best:
        return "Nothing was measured on the clock here."
    first = max(best, key=lambda label: best[label].value)
    return f"The largest speed-up is that of `{first}`: {best[first].value:.2f} {RATIO} ({best[first].note})."


def say_map(cells: pd.DataFrame, balance: float) -> str:
    """Who wins at the simulated cells nearest to ``balance`` (FLOP per byte), by panel and batch."""
    if not len(cells):
        return "Nothing was counted to draw the map from."
    lines = []
    for panel, part in cells.groupby("panel", sort=False):
        near = part[part["balance"] == min(part["balance"], key=lambda each: abs(each / balance - 1))].sort_values("batch")
        said = ", ".join(f"{row.batch}: `{row.method}` {row.speedup:.2f}" for row in near.itertuples())
        lines.append(f"- {' '.join(panel.split())}: batch {said} times on_demand.")
    return f"At the balance of the paper's machine ({balance:,.0f} FLOP per byte):\n\n" + "\n".join(lines)


def say_clock(rows: pd.DataFrame) -> str:
    """How far the simulator is from our clock, by link: median and worst of the runs."""
    if not len(rows):
        return "No results of the simulator against our own clock are committed: nothing is claimed about it here."
    lines = []
    for link, part in rows.groupby("link"):
        size = 100 * part.groupby(["method", "batch"])["error"].median().abs()
        worst = " at batch ".join(map(str, size.idxmax()))
        lines.append(f"- {link}: median error {size.median():.0f} %, worst {size.max():.0f} % (`{worst}`).")
    return "\n".join(lines)
