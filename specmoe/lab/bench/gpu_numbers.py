"""Numbers of the GPU script: floors, comparisons, targets.

Comes in: rows and parts of ``gpu``. Goes out: plain values. Pure but for ``compute_rates``, which
measures.
"""

from __future__ import annotations

import torch

from ..machine import probes
from . import floors
from .cells import SINGLE, among, divide


def compare(expected: list[list[int]], got: list[list[int]]) -> dict:
    """Prompts with equal tokens, and the position of the first difference of the others."""
    first = [
        next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
        for one, other in zip(expected, got)
        if one != other
    ]
    return {
        "prompts": len(expected),
        "same": len(expected) - len(first),
        "first_divergences": sorted(first),
    }


def compute_rates(device: torch.device) -> dict:
    """FLOP per second of square products, fp32 and bf16."""
    if device.type == "cuda":
        return probes.compute_rates(0.3, "cuda", 8192)
    return probes.compute_rates(0.05, size=256)


def beside_floors(
    rows: list[dict], facts: dict, rates: dict, link_bytes_per_s: float
) -> list[dict]:
    """Each row with its floor in seconds per token and measured over floor; the rate is that of the
    model's dtype."""
    rate = rates["fp32_flop_per_s" if facts["dtype"] == "float32" else "bf16_flop_per_s"]
    link = {
        "random_bytes_per_s": {"1": link_bytes_per_s},
        "sequential_bytes_per_s": link_bytes_per_s,
    }
    probe = {**link, "fp32_flop_per_s": rate, "bf16_flop_per_s": rate}
    found = []
    for row in rows:
        counted = row | {"num_steps": row["gamma"] * row["num_rounds"]}
        least = floors.floor(counted, facts, probe, None)
        over = 1 / row["tokens_per_second"] / least["floor_s"]
        found.append({**row, **least, "measured_over_floor": over})
    return found


def targets(content: dict) -> list[dict]:
    """Each target with what was measured; None where it was not."""
    rows = []
    for name in ("speed tiny-translate", "speed tiny-balanced"):
        part = content.get(name)
        if part is None:
            continue
        speeds = {(row["batch"], row["method"]): row["tokens_per_second"] for row in part["rows"]}
        over = divide(speeds.get((256, "specmoe")), speeds.get((256, "on_demand")))
        autos = [divide(speeds.get((batch, "auto")), _best(speeds, batch)) for batch, _ in speeds]
        rows += [
            target(f"{name}: store's copies / raw copies", 0.90, part["copies"]["share"]),
            target(f"{name}: specmoe / on-demand, B = 256", 4.30, over),
            target(f"{name}: auto / best single method, every B", 0.97, among(min, autos)),
        ]
    steps = content.get("compiled", {})
    faster = divide(steps.get("plain_step_s"), steps.get("compiled_step_s"))
    rows.append(target("plain / compiled draft step", 2.0, faster))
    faster = divide(steps.get("plain_step_s"), steps.get("replayed_step_s"))
    rows.append(target("plain / replayed draft step", 2.0, faster))
    rows += _of_low_bits(content.get("low bits", {}))
    exact = [row for row in content.get("correctness", []) if row["dtype"] == "float32"]
    same = min((row["same"] / row["prompts"] for row in exact), default=None)
    return [*rows, target("prompts with the CPU's fp32 tokens, every method", 1.0, same)]


def _of_low_bits(kinds: dict[str, dict]) -> list[dict]:
    """Of every format the same bits and the link's rate; of two, what they gain over bf16."""
    rates = {kind: row["tokens_per_second"] for kind, row in kinds.items()}
    same = [row["same_bits"] for row in kinds.values()]
    shares = [row["share"] for row in kinds.values()]
    return [
        target("low bits: formats widened bit for bit as on the CPU", 1.0, _mean(same)),
        target("low bits: store's copies / raw copies, every format", 0.90, among(min, shares)),
        target("on-demand, fp8 / bf16", 1.7, divide(rates.get("fp8"), rates.get("bf16"))),
        target("on-demand, int4 / bf16", 2.5, divide(rates.get("int4"), rates.get("bf16"))),
    ]


def _mean(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _best(speeds: dict[tuple[int, str], float], batch: int) -> float | None:
    """Of the single methods, as far as they were measured."""
    return among(max, [speeds.get((batch, method)) for method in SINGLE])


def target(name: str, goal: float, measured: float | None) -> dict:
    return {
        "name": name,
        "goal": goal,
        "measured": measured,
        "met": None if measured is None else measured >= goal,
    }
