"""The map of winners: which method is fastest where, at equal fast memory, simulated from
recordings of real runs.

Comes in: recordings of every method by model, N and batch; measured rows. Goes out: cells (tokens
per second of each method by model, N, balance and batch), the machines that are marked on them,
measured points. ``figures.winners`` draws them.

The balance (FLOP that are computed while one byte crosses the link) is set by the compute rate:
link, memory and overheads are those of the paper's machine, at whose balance the map is that
machine's. Memory is 50 times as fast as the link there; of the marked machines 11 to 71 times, on
an SSD 450 times.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from ...options import METHODS
from ..simulate import PRESETS, Hardware, ModelSize, Recording
from ..simulate import winners as winners_at
from .numbers import main_model, rows_of, timed_rows
from .settings import LINK, LOW_SKEW, MAIN
from .simulated import SPECIAL, all_recordings, size_of

BASE = PRESETS["h100"]
BALANCES = tuple(10 ** (1 + step / 6) for step in range(28))  # 10 to 316,000 FLOP per byte
MACHINES = {
    "laptop": "laptop",
    "consumer": "RTX 4090",
    "h100": "H100, H200",
    "h100-ssd": "H100 + SSD",
}
STAR = (MAIN, 4, BASE.balance, 256, "paper: 4.3\N{MULTIPLICATION SIGN}")
NOT_ON_MAP = ("resident", "auto")
ROUNDS = 60  # of a recording, evenly spread, stand for all of it on the map
TITLES = {
    MAIN: "tiny-translate: 128 experts, skewed use, at the size of NLLB-MoE",
    "tiny-skewed": "tiny-skewed: 32 experts, skewed use, at the size of Llama-4-Scout",
    "tiny-balanced": "tiny-balanced: 8 experts, even use, at the size of Mixtral-8x7B",
}


def map_recordings(
    models: Iterable[str] = (MAIN, "tiny-skewed", "tiny-balanced"),
) -> list[Recording]:
    """Recordings at equal fast memory: greedy, of N draft experts, thinned."""
    models = tuple(models)
    found = [
        each
        for each in all_recordings()
        if each.info["name"] in models
        and not any(each.settings.get(name) for name in SPECIAL)
        and each.method not in NOT_ON_MAP
    ]
    return [thin(each) for each in sorted(found, key=lambda each: models.index(each.info["name"]))]


def thin(recording: Recording, most: int = ROUNDS) -> Recording:
    """At most so many rounds, evenly spread. Each round keeps its own counts, so speeds stay those
    of the run."""
    rounds = len(recording.rows)
    kept = np.unique(np.linspace(0, rounds - 1, min(most, rounds)).round().astype(int))
    arrays = {field.name: getattr(recording, field.name) for field in fields(recording)}
    return replace(
        recording,
        **{name: array[kept] for name, array in arrays.items() if isinstance(array, np.ndarray)},
    )


def layer_share(
    size: ModelSize, hardware: Hardware, num_layers: int
) -> tuple[ModelSize, Hardware, float]:
    """The part of a model and of a pass's overhead that belongs to so many MoE layers, and its
    share: replaying the layers that were recorded takes that share of the time of all, which only
    repeat them."""
    share = num_layers / size.num_layers
    trunk = {
        "trunk_flops_per_token": size.trunk_flops_per_token * share,
        "trunk_bytes": int(size.trunk_bytes * share),
    }
    part = replace(hardware, step_overhead_s=hardware.step_overhead_s * share)
    return replace(size, num_layers=num_layers, **trunk), part, share


def winners(
    recordings: Iterable[Recording] | None = None, balances: Iterable[float] = BALANCES
) -> pd.DataFrame:
    """One row per model, draft_experts (N), balance and batch: tokens per second of each method,
    winner, margin."""
    chosen = list(map_recordings() if recordings is None else recordings)
    on = [replace(BASE, flop_per_s=balance * BASE.link_bytes_per_s) for balance in balances]
    return pd.concat([_on(machine, chosen) for machine in on], ignore_index=True)


def own_rates(recordings: Iterable[Recording] | None = None) -> pd.DataFrame:
    """The marked machines, each with all its own rates, not the map's: the same columns and
    ``machine``."""
    chosen = list(map_recordings() if recordings is None else recordings)
    return pd.concat(
        [_on(PRESETS[name], chosen).assign(machine=name) for name in MACHINES], ignore_index=True
    )


def _on(machine: Hardware, chosen: list[Recording]) -> pd.DataFrame:
    parts = []
    for model in dict.fromkeys(each.info["name"] for each in chosen):
        runs = [each for each in chosen if each.info["name"] == model]
        size, part, share = layer_share(size_of(runs[0]), machine, runs[0].experts.shape[1])
        found = winners_at(runs, part, size, [machine.balance])
        speeds = [name for name in METHODS if name in found]
        parts.append(found.assign(**{name: found[name] * share for name in speeds}))
    return pd.concat(parts, ignore_index=True)


def leads(cells: pd.DataFrame, balance: float) -> pd.DataFrame:
    """Who wins at the simulated cells nearest to ``balance`` (FLOP per byte), and how many times
    the next it is: a row for each model and N, a column for each batch."""
    away = (cells["balance"] / balance - 1).abs()
    nearest = cells[away == away.groupby([cells["model"], cells["draft_experts"]]).transform("min")]
    said = nearest["winner"] + nearest["margin"].map(" {:.2f}".format)
    rows = nearest.assign(said=said, N=nearest["draft_experts"].map("{:g}".format))
    order = rows[["model", "N"]].drop_duplicates().itertuples(index=False, name=None)
    table = rows.pivot(index=["model", "N"], columns="batch", values="said")
    return table.reindex(list(order)).reset_index()


def agreement(cells: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Does the map, drawn with one machine's link and memory, name the winners that other machines'
    own rates give? The share of a machine's points (model, N, batch) at which it does."""
    found = []
    for name, part in own.groupby("machine", sort=False):
        away = (np.log(cells["balance"]) - np.log(part["balance"].iloc[0])).abs()
        at = cells[away == away.min()]
        both = part.merge(at, on=["model", "draft_experts", "batch"], suffixes=("", "_map"))
        same = (both["winner"] == both["winner_map"]).mean()
        found.append({"machine": name, "same winner": f"{same:.0%}"})
    return pd.DataFrame(found)


def machines() -> dict[str, float]:
    """Names to write on the map -> balance."""
    return {label: PRESETS[name].balance for name, label in MACHINES.items()}


def measured_points(results: dict[str, dict]) -> pd.DataFrame:
    """The fastest measured method at equal bytes at each batch: model, draft_experts, balance,
    batch, winner, regime."""
    points = []
    for model in (main_model(results), *LOW_SKEW):
        rows = rows_of(results, model)
        for regime in ("throttled", "disk"):
            timed = timed_rows(rows, regime)
            timed = (
                timed[~timed["method"].isin(NOT_ON_MAP) & (timed["budget"] == "draft")]
                if len(timed)
                else timed
            )
            for batch, part in timed.groupby("batch") if len(timed) else ():
                best = part.loc[part["tokens_per_second"].astype(float).idxmax()]
                where = (
                    model,
                    results[model]["model"]["draft_experts"],
                    balance_here(results[model]["machine"], regime),
                )
                points.append((*where, batch, best["method"], regime))
    return pd.DataFrame(
        points, columns=["model", "draft_experts", "balance", "batch", "winner", "regime"]
    )


def balance_here(machine: dict, regime: str) -> float:
    """FLOP per byte of the machine that measured: its fp32 products over the throttled link, or
    over its disk."""
    probed = machine["balance"]
    flop_per_s = probed["fp32_flop_per_byte"] * probed["link_bytes_per_s"]
    return flop_per_s / (LINK if regime == "throttled" else probed["link_bytes_per_s"])
