"""What the page says of speed at real size: ours beside the peers, and the plan beside the run.

Comes in: the content of ``results/real.json``. Goes out: frames of words and a sentence. Pure
functions: nothing is measured here; what is missing is said.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pandas as pd

from ..simulate.engine_parts import EngineParts
from ..simulate.expectation import even_counts, expectation_of
from ..simulate.hardware import Hardware
from ..simulate.real_models import known_models
from ..simulate.sizes import ModelSize
from ..words import show_bytes
from .cells import divide
from .real_grid import BATCHES, FIXED, OURS, PEERS, SHARES

MODEL = "olmoe-1b-7b"
NAMES = {"llama": "llama.cpp", "accelerate": "accelerate (8 of 16 layers)"}
NAMES |= {FIXED: "(specmoe, gamma 4)"}
PLANNED = {"on_demand": "on_demand", "cached": "cached", FIXED: "specmoe"}
MISSING = "not measured"
AN_HOUR = timedelta(hours=1)


def rows_of(content: dict, share: int, batch: int, what: str) -> list[dict]:
    """The repeats of a cell that gave a speed."""
    return [
        row
        for row in content.get("rows", {}).values()
        if (row["link"], row["batch"], row["what"]) == (f"{share}%", batch, what)
        and "tokens_per_second" in row
    ]


def speed(content: dict, share: int, batch: int, what: str) -> float | None:
    """The median of a cell's repeats."""
    found = [row["tokens_per_second"] for row in rows_of(content, share, batch, what)]
    return statistics.median(found) if found else None


def speed_frame(content: dict) -> pd.DataFrame:
    """Tokens per second of every method and peer, a row for each share and batch of which anything
    was measured; the fastest is bold."""
    found = []
    for share in sorted(SHARES, reverse=True):
        for batch in sorted(BATCHES):
            speeds = {what: speed(content, share, batch, what) for what in (*OURS, FIXED, *PEERS)}
            if any(speeds[what] for what in (*OURS, "llama")):
                found.append(_speed_row(content, share, batch, speeds))
    return pd.DataFrame(found)


def _speed_row(content: dict, share: int, batch: int, speeds: dict) -> dict:
    known = [value for what, value in speeds.items() if value and what != FIXED]
    show = lambda value: f"**{value:.2f}**" if value == max(known) else f"{value:.2f}"  # noqa: E731
    ours = max((speeds[what] for what in OURS if speeds[what]), default=None)
    limits = [row["limit_bytes"] for row in rows_of(content, share, batch, "llama")]
    return {
        "experts in fast memory": f"{share} %",
        "B": batch,
        **{
            NAMES.get(what, what): show(value) if value else MISSING
            for what, value in speeds.items()
        },
        **{f"best of ours / {NAMES[peer]}": _times(ours, speeds[peer]) for peer in PEERS},
        "peer's memory": show_bytes(limits[0]) if limits and limits[0] else "",
    }


def _times(ours: float | None, peer: float | None) -> str:
    ratio = divide(ours, peer)
    return f"{ratio:.2f}×" if ratio else ""


def bytes_frame(content: dict) -> pd.DataFrame:
    """Gigabytes from the disk per token, a row as in ``speed_frame``: nobody is faster than these."""
    return pd.DataFrame(
        {
            "experts in fast memory": f"{share} %",
            "B": batch,
            **{NAMES.get(what, what): _gigabytes(rows_of(content, share, batch, what)) for what in (*OURS, *PEERS)},
        }
        for share, batch in product(sorted(SHARES, reverse=True), sorted(BATCHES))
        if any(speed(content, share, batch, what) for what in (*OURS, "llama"))
    )  # fmt: skip


def _gigabytes(rows: list[dict]) -> str:
    found = [row["fetched_bytes"] / row["num_new_tokens"] for row in rows if "fetched_bytes" in row]
    return f"{statistics.median(found) / 1e9:.3f}" if found else MISSING


def words(content: dict) -> str:
    """Machine, dates, code, and the cells that nobody has measured."""
    rows = [row for row in content.get("rows", {}).values() if "tokens_per_second" in row]
    if not rows:
        return "Nothing has been measured yet: `make bench-real` does."
    machine, model = content["machine"], content["model"]
    days = sorted({row["measured"][:10] for row in rows})
    codes = sorted({row["code"] for row in rows if row.get("code")})
    slices = [len(rows_of(content, *cell)) for cell in _cells() if rows_of(content, *cell)]
    number = f"{slices[0]}" if len({*slices}) == 1 else f"{min(slices)} to {max(slices)}"
    peer = next((row["peer"] for row in rows if row.get("peer")), "llama.cpp")
    return (
        f"Measured {' and '.join(days)} on {machine.get('cpu')}, {machine.get('cores')} cores "
        f"({machine.get('threads')} torch threads), "
        f"{machine['memory']['total_bytes'] / 2**30:.0f} GiB, no GPU; digest of the engine's code "
        f"{', '.join(codes)}; "
        f"{peer}. {model['num_layers']} layers of {model['num_experts']} experts of "
        f"{show_bytes(model['expert_bytes'])}, {show_bytes(model['experts_bytes'])} in all, top-"
        f"{model['top_k']}. Runs of each cell, a process each: {number}; the median stands here. "
        f"{_rounds(content)}{_apart(content)}{_absent(content)}"
    )


def _rounds(content: dict) -> str:
    """Tokens that a row got in a round of ``specmoe``: what its speed is worth depends on them."""
    gave = {
        f"{share} %, B = {batch}": sum(r["num_new_tokens"] / r["row_rounds"] for r in rows)
        / len(rows)
        for share in sorted(SHARES, reverse=True)
        for batch in sorted(BATCHES)
        if (rows := rows_of(content, share, batch, "specmoe"))
    }
    said = ", ".join(f"{tokens:.1f} ({cell})" for cell, tokens in gave.items())
    return f"Tokens of a row in a round of specmoe: {said}. " if gave else ""


def _apart(content: dict) -> str:
    """Whose cells are of another hour than ``cached`` beside them: the disk changes within one."""
    found = []
    for share, batch, what in _cells():
        each = [rows_of(content, share, batch, name) for name in (what, "cached")]
        first, beside = (min((row["measured"] for row in rows), default=None) for rows in each)
        if first and beside and abs(_moment(first) - _moment(beside)) > AN_HOUR:
            found.append(NAMES.get(what, what).strip("()"))
    names = " and ".join(dict.fromkeys(found))
    said = f"Of another hour than the cells beside them, and of another disk's rate: {names}. "
    return said if found else ""


_moment = datetime.fromisoformat


def _cells() -> list[tuple[int, int, str]]:
    return list(product(SHARES, BATCHES, (*OURS, FIXED, *PEERS)))


def _absent(content: dict) -> str:
    every = _cells()
    missing = [cell for cell in every if speed(content, *cell) is None]
    if not missing:
        return ""
    whole = [
        f"{share} % with B = {batch}"
        for share in sorted(SHARES, reverse=True)
        for batch in sorted(BATCHES)
        if not any(speed(content, share, batch, what) for what in (*OURS, "llama"))
    ]
    said = f" (of {', '.join(whole)} nothing)" if whole else ""
    return f"Not measured: {len(missing)} of {len(every)} cells{said}."


# ---- plan against run


def parts_of(content: dict) -> EngineParts | None:
    return EngineParts.of_json(content["parts"]) if content.get("parts") else None


def planned(content: dict, row: dict):
    """The plan's ``Expectation`` for the cell of ``row``: rates measured right before it, even use
    of experts. What a draft gives is no matter of sizes: tokens of a round and gamma are the
    run's."""
    size, rates, info = _size(content), row["rates"], row["info"]
    machine = Hardware(
        "as probed",
        rates["link_bytes_per_s"],
        0.0,
        rates["flop_per_s"],
        rates["memory_bytes_per_s"],
        engine=parts_of(content),
    )
    share = min(1.0, info["slots"] / size.num_layers / size.num_experts)
    method = PLANNED[row["what"]]
    counts = even_counts(size, share, row["gamma"], row["batch"])
    if method == "specmoe":
        counts = replace(counts, round_tokens=row["num_new_tokens"] / row["num_rounds"])
    return expectation_of(method, size, machine, counts)


def _size(content: dict) -> ModelSize:
    size, layers = known_models()[MODEL].size, content["model"]["num_layers"]
    assert layers == size.num_layers, "the plan is of all layers"
    return size


def ratios(content: dict) -> list[dict]:
    """Plan over run of every row of ours that can be planned: bytes per token and speed. Where the
    link was probed for less than a second the plan would be of another link than the run's, and
    where the engine's parts were timed in other code, of another engine."""
    found = []
    for key, row in content.get("rows", {}).items():
        known = "tokens_per_second" in row and row["rates"].get("probed_bytes")
        known = known and row.get("code") == content.get("parts_code", row.get("code"))
        if row["what"] in PLANNED and known:
            plan, ran = planned(content, row), row["fetched_bytes"] / row["num_new_tokens"]
            found.append(
                {
                    "key": key,
                    "share": row["link"].replace("%", " %"),
                    "B": row["batch"],
                    "method": NAMES.get(row["what"], row["what"]).strip("()"),
                    "planned_bytes": plan.link_bytes,
                    "bytes": ran,
                    "planned": plan.tokens_per_second,
                    "ceiling": 1 / max(plan.link_s, plan.memory_s, plan.compute_s),
                    "measured": row["tokens_per_second"],
                }
            )
    return found


def plan_frame(content: dict) -> pd.DataFrame:
    """Plan beside run, in words; the ceiling is what the rates alone would allow."""
    found = pd.DataFrame(ratios(content))
    if not len(found):
        return found
    keys = ["share", "B", "method"]
    found = found.groupby(keys, sort=False).median(numeric_only=True).reset_index()
    return pd.DataFrame(
        {
            "experts in fast memory": row["share"],
            "B": row["B"],
            "method": row["method"],
            "GB per token, plan": f"{row['planned_bytes'] / 1e9:.3f}",
            "run": f"{row['bytes'] / 1e9:.3f}",
            "ratio": f"{row['planned_bytes'] / row['bytes']:.2f}" if row["bytes"] else "",
            "tokens/s, plan": f"{row['planned']:.2f}",
            "run ": f"{row['measured']:.2f}",
            "ratio ": f"{row['planned'] / row['measured']:.2f}",
            "ceiling of the rates": f"{row['ceiling']:.2f}",
        }
        for _, row in found.iterrows()
    )
