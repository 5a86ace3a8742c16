"""Who would be fastest on other machines: our counts under a plain cost model, at the sizes of the paper's models.

Comes in: counted rows (loads per token, tokens per round, by method and batch). Goes out: ``Number``s of kind "simulated"
and the cells of the map of winners. The model, per round: moving = bytes / link; computing = max(FLOP / compute, weights
touched / memory rate), for each draft step and for the full model. They add up; only ``overlapped`` is an oracle: the bytes
of ``on_demand``, of moving and computing the longer one. No latency, no kernel overhead, no prefetching: it says which
regime a machine is in, not its tokens per second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .facts import PERCENT, RATIO, Number
from .numbers import MOVED, pick, rows_of

RIDGE = 295  # FLOP per byte of fast memory: H100 SXM, 989 TFLOP/s dense bf16 and 3.35 TB/s (NVIDIA's data sheet)
PAPER_BALANCE = (
    989e12 / 64e9
)  # FLOP per byte of link: the same over PCIe 5.0 x16, one way; an H200 computes at the same rate
MACHINES = {"paper's H100, H200": PAPER_BALANCE, "laptop, NVMe": 1e12 / 5e9}  # laptop: 1 TFLOP/s, 5 GB/s, assumed
HERE = 150e9 / 2.5e8  # this machine: 150 GFLOP/s fp32 (notes of the project), throttled link
BALANCES = tuple(10 ** (quarter / 4) for quarter in range(5, 23))


@dataclass(frozen=True)
class Size:
    """A large model: MoE layers that decode, top_k, parameters of one expert and of the rest that each token passes."""

    name: str
    layers: int
    top_k: int
    expert: float
    trunk: float


# From the published configs. NLLB-MoE: d 2048, FFN 8192, decoder of 24 layers and head; Mixtral: d 4096, FFN 14336.
NLLB = Size("NLLB-MoE", 6, 2, 2 * 2048 * 8192, 24 * 8 * 2048**2 + 18 * 2 * 2048 * 8192 + 256206 * 2048)
MIXTRAL = Size("Mixtral-8x7B", 32, 2, 3 * 4096 * 14336, 1.6e9)
# panel: title, model, what the fast memory holds, its size
PANELS = (
    ("tiny-translate (128 experts, skewed)\nmemory for 4 experts per layer", "tiny-translate", "draft", NLLB),
    ("tiny-translate (128 experts, skewed)\nmemory for 13 experts per layer", "tiny-translate", "tenth", NLLB),
    ("tiny-skewed (32 experts)\nmemory for N = 4", "tiny-skewed", "draft", MIXTRAL),
    ("tiny-balanced (8 experts, even use)\nmemory for N = 4", "tiny-balanced", "draft", MIXTRAL),
)


def seconds_per_token(row: pd.Series, model: dict, size: Size, balance: float, compute: float = 989e12) -> dict[str, float]:
    """``load`` and ``compute`` seconds of one row's token, from a counted row of ``model`` (its ``info``), at ``size``.

    ``balance``: FLOP per byte of the link; ``compute``: FLOP per second. bf16: two bytes for a parameter.
    """
    per_round, batch, gamma = row["tokens_per_round"], row["batch"], row["gamma"] if row["method"] == "specmoe" else 0
    layers = row["decoder_layers"]
    loads = row[MOVED] / model["record_bytes"] / layers * size.layers  # experts per token
    load = loads * 2 * size.expert * balance / compute
    # Experts that a step touches are bounded by its choices and by all there are; weights are read once per step.
    touched = min(model["experts"], batch * (gamma + 1) * size.top_k) * size.layers
    drafting = min(row["draft_experts"] or 4, batch * size.top_k) * size.layers
    work = _step(batch * (gamma + 1), touched, size, compute) + gamma * _step(batch, drafting, size, compute)
    return {"load": load, "compute": work / (per_round * batch)}


def _step(tokens: int, touched: float, size: Size, compute: float) -> float:
    """Seconds of one pass of ``tokens`` tokens that touches so many experts in all."""
    flop = 2 * tokens * (size.trunk + size.layers * size.top_k * size.expert)
    return max(flop / compute, 2 * (size.trunk + touched * size.expert) * RIDGE / compute)


def speeds(results: dict[str, dict], name: str, budget: str, size: Size, balance: float) -> pd.DataFrame:
    """Simulated tokens per second: batch x method; empty where the model was not counted."""
    rows = rows_of(results, name)
    if not len(rows):
        return pd.DataFrame()
    rows = pick(rows, regime="count", budget=budget, eviction=None)
    plain = (rows["draft_experts"].isna() | (rows["draft_experts"] == 4)) & (rows["method"] != "overlapped")
    rows, model = rows[plain], results[name]["model"]
    rows = rows.assign(decoder_layers=model["layers"] // (2 if model["architecture"] == "nllb-moe" else 1))
    found: dict[tuple[int, str], float] = {}
    for _, row in rows.iterrows():
        spent = seconds_per_token(row, model, size, balance)
        key = (row["batch"], row["method"])
        found[key] = max(found.get(key, 0.0), 1 / sum(spent.values()))  # cached: the better of its evictions
        if row["method"] == "on_demand":
            found[row["batch"], "overlapped"] = 1 / max(spent.values())
    return pd.Series(found, dtype=float).unstack() if found else pd.DataFrame()


def winners(results: dict[str, dict]) -> pd.DataFrame:
    """Cells of the map: panel, balance, batch, method (the fastest), speedup over on_demand."""
    cells = []
    for panel, name, budget, size in PANELS:
        for balance in BALANCES:
            table = speeds(results, name, budget, size, balance)
            for batch, row in table.dropna(subset=["on_demand", "specmoe"]).iterrows() if "specmoe" in table else ():
                cells.append((panel, balance, batch, row.idxmax(), row.max() / row["on_demand"]))
    return pd.DataFrame(cells, columns=["panel", "balance", "batch", "method", "speedup"])


def measured_points(results: dict[str, dict]) -> pd.DataFrame:
    """The fastest measured method at each batch (no resident, no auto), on the panel with the same memory."""
    rows = rows_of(results, "tiny-translate")
    rows = rows[(rows["regime"] == "throttled") & (rows["budget"] == "tenth")] if len(rows) else rows
    points = []
    for batch, part in rows[~rows["method"].isin(["resident", "auto"])].groupby("batch") if len(rows) else ():
        best = part.loc[part["tokens_per_second"].astype(float).idxmax(), "method"]
        points.append((PANELS[1][0], HERE, batch, best))
    return pd.DataFrame(points, columns=["panel", "balance", "batch", "method"])


def simulated_numbers(results: dict[str, dict]) -> list[Number]:
    """The paper's own numbers simulated on its machine, from the counts of the translation model (N = 4)."""
    small, large = (speeds(results, "tiny-translate", budget, NLLB, PAPER_BALANCE) for budget in ("draft", "tenth"))
    if "on_demand" not in small or "specmoe" not in small:
        return []
    note, found = "H100, PCIe 5.0, sizes of NLLB-MoE, our counts", []
    ratios = small.div(small["on_demand"], axis=0)
    if "cached" in large:  # as in the paper: 13 experts against 4, unequal memory
        ratios["cached"] = large["cached"] / small["on_demand"]
    for method in ("specmoe", "cached", "overlapped"):
        if method in ratios and ratios[method].notna().any():
            label = "overlapped (oracle)" if method == "overlapped" else method
            said = f"{note}; batch {ratios[method].idxmax()}{'; unequal memory' if method == 'cached' else ''}"
            found.append(_simulated("throughput", label, "speed-up, best batch", ratios[method].max(), RATIO, said))
    for label in ("on_demand", "specmoe") if 256 in small.index else ():
        found.append(_simulated("throughput", label, "speed at batch 256", small[label][256], "tokens/s", note))
    return found + [
        _simulated("migration", "on_demand", "time in expert migration, largest", _share(results), PERCENT, note)
    ]


def _simulated(table: str, label: str, measure: str, value: float, unit: str, note: str) -> Number:
    return Number(table, label, measure, float(value), "simulated", unit, note=note)


def _share(results: dict[str, dict]) -> float:
    """Largest share (%) of moving in on_demand's time on the paper's machine."""
    model, rows = results["tiny-translate"]["model"], rows_of(results, "tiny-translate")
    rows = pick(rows, regime="count", budget="draft", method="on_demand").assign(decoder_layers=model["layers"] // 2)
    spent = [seconds_per_token(row, model, NLLB, PAPER_BALANCE) for _, row in rows.iterrows()]
    return 100 * float(np.max([each["load"] / (each["load"] + each["compute"]) for each in spent]))
