"""Recordings replayed on many machines: which method is fastest where, and rows for the knobs.

Comes in: recordings made beforehand, a ``Hardware``. Goes out: frames, which figures and widgets
draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from ...errors import OptionError, check_choice
from ...registry import KINDS
from .hardware import Hardware
from .recording import Recording
from .replay import simulate
from .sizes import ModelSize

DRAFTING = ("specmoe", "auto")
KEEPING = (*DRAFTING, "cached")  # methods whose fast memory follows N
PLAYS = {"eviction": ("cached",)}  # methods on which a kind of part bears, where not ``DRAFTING``


def winners(
    recordings: Iterable[Recording],
    hardware: Hardware,
    size: ModelSize | None = None,
    balances: Iterable[float] = (10, 100, 1000, 10000, 100000),
) -> pd.DataFrame:
    """One row per model, draft_experts (N), balance (FLOP per byte of the link) and batch: tokens
    per second of each method, the winner, and margin (its speed over the next one's).

    The link is made slower or faster to reach a balance; all else is ``hardware``'s. ``resident``
    is left out: it has more memory. ``OptionError`` when runs that are compared have different fast
    memory.
    """
    groups: dict[tuple, list[Recording]] = {}
    for recording in recordings:
        if recording.method != "resident":
            key = (recording.info["name"], recording.info["draft_experts"], recording.batch)
            groups.setdefault(key, []).append(recording)
    rows = []
    for (model, draft_experts, batch), runs in groups.items():
        if len({run.info["slots"] for run in runs}) > 1:
            raise OptionError(
                f"runs of {model!r} at batch {batch} have different fast memory: "
                "compare them at equal slots"
            )
        for balance in balances:
            machine = replace(hardware, link_bytes_per_s=hardware.flop_per_s / balance)
            cell = {"model": model, "draft_experts": draft_experts, "batch": batch}
            rows.append(cell | {"balance": balance} | _winner(runs, machine, size))
    if not rows:
        raise OptionError(
            "no recordings to compare: give runs of at least one method other than 'resident'"
        )
    return pd.DataFrame(rows)


def _winner(runs: list[Recording], machine: Hardware, size: ModelSize | None) -> dict:
    """The winner of one cell, by how much, and everybody's tokens per second."""
    speeds: dict[str, float] = {}
    for run in runs:  # several runs of one method (cached by evictions): the better
        speed = simulate(run, machine, size).tokens_per_second
        speeds[run.method] = max(speeds.get(run.method, 0.0), speed)
    best, *others = sorted(speeds, key=speeds.get, reverse=True)
    margin = speeds[best] / speeds[others[0]] if others else np.nan
    return {"winner": best, "margin": margin, **speeds}


def knob_rows(
    recordings: Iterable[Recording] | Mapping[str, Iterable[Recording]],
    hardware: Hardware,
    links: Iterable[float] | None = None,
    size: ModelSize | None = None,
    kind: str = "draft_set",
) -> pd.DataFrame:
    """One row per recording and link rate: model, method, batch, gamma, draft_experts, draft_set,
    link_bytes_per_s, fetched_bytes_per_token, tokens_per_round, tokens_per_second (simulated). A
    setting that a method does not have is nan; so is gamma where planners, which decide it, are
    compared. Where one N was recorded with several sizes of fast memory (``shipped.budgets``),
    there is fast_memory too: its share of all experts.

    ``recordings``: of any methods; a mapping names the draft set of each group, or another ``kind``
    of part, built in or yours (``specmoe.register``), which is a column then. ``links``: bytes per
    second (None: a quarter of ``hardware``'s rate to four times it). Raises ``OptionError`` without
    recordings, and for draft sources: draft steps are priced as those of resident experts.
    """
    check_choice("kind", kind, KINDS)
    if kind == "draft":
        raise OptionError(
            "kind='draft': what a step of another draft source costs is not simulated here; "
            "specmoe.lab.drafts.map_of_drafts compares sources by counts"
        )
    groups = recordings if isinstance(recordings, Mapping) else {None: recordings}
    if links is None:
        links = [hardware.link_bytes_per_s * 2.0**power for power in range(-2, 3)]
    machines, rows = [replace(hardware, link_bytes_per_s=link) for link in links], []
    for name, runs in groups.items():
        for run in runs:
            if not isinstance(run, Recording):
                raise OptionError(
                    f"{type(run).__name__} is not a recording: make one with Recording.of(output, "
                    "engine.info)"
                )
            part = {kind: name if run.method in PLAYS.get(kind, DRAFTING) else None}
            rows += [_row(run, machine, part, size) for machine in machines]
    if not rows:
        raise OptionError("there are no recordings: give at least one")
    return _with_memory(pd.DataFrame(rows))


def _with_memory(rows: pd.DataFrame) -> pd.DataFrame:
    """Fast memory as a setting of its own, if it does not follow N; then a pool does not, either."""
    drafting = rows[rows["method"].isin(DRAFTING)].groupby(["model", "draft_experts"])
    if not (drafting["fast_memory"].nunique() > 1).any():
        return rows.drop(columns="fast_memory")
    return rows.assign(draft_experts=rows["draft_experts"].mask(rows["method"] == "cached"))


def _row(run: Recording, hardware: Hardware, part: dict, size: ModelSize | None) -> dict:
    played = simulate(run, hardware, size)
    fixed = run.method == "specmoe" and "planner" not in part
    return {
        "model": run.info["name"],
        "method": run.method,
        "batch": run.batch,
        "gamma": int(run.gammas.max()) if fixed else np.nan,
        "draft_experts": run.info["draft_experts"] if run.method in KEEPING else np.nan,
        "fast_memory": _share(run.info) if run.method in KEEPING else np.nan,
        **({"draft_set": None} | part),
        "link_bytes_per_s": hardware.link_bytes_per_s,
        "fetched_bytes_per_token": played.fetched_bytes / played.num_new_tokens,
        "tokens_per_round": run.num_new_tokens / int(run.rows.sum()),
        "tokens_per_second": played.tokens_per_second,
    }


def _share(info: Mapping) -> float:
    """Of all experts, how many find room in fast memory."""
    return info["slots"] / (info["layers"] * info["experts"])
