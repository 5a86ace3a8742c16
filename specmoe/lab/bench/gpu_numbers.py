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
    exact = [row for row in content.get("correctness", []) if row["dtype"] == "float32"]
    same = min((row["same"] / row["prompts"] for row in exact), default=None)
    return [*rows, target("prompts with the CPU's fp32 tokens, every method", 1.0, same)]


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
