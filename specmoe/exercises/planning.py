"""Exercise 7: a planner of three lines.

Comes in: the student's ``plan(rounds, link_bytes_per_s)``: a list of dictionaries, one per gamma, with ``gamma``, ``tokens``
(per row and round), ``bytes`` (fetched per round) and ``compute_s`` (drafting and verifying) -> the gamma to use. Goes out:
a verdict, with *simulated* seconds per token on three links: tokens and fetches are of real runs of a shipped model; record
size, compute and link rates are assumed, and reads and compute follow each other.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from .verdict import Case, ExerciseError, Passed, call, check_cases, require
from .workload import recorded_rounds

EXPECTS = "the gamma of one of the rounds"
LINKS = {"SSD 1 GB/s": 1e9, "PCIe 16 GB/s": 16e9, "in memory 400 GB/s": 400e9}
RECORD_BYTES, DRAFT_STEP_S, VERIFY_S, VERIFY_TOKEN_S = 3 * 2**20, 2e-3, 2e-3, 0.2e-3  # assumed


def seconds_per_token(one: dict, link_bytes_per_s: float) -> float:
    """Simulated: (bytes / link rate + compute) / tokens."""
    return (one["bytes"] / link_bytes_per_s + one["compute_s"]) / one["tokens"]


def _round(gamma: int, tokens: float, num_bytes: float, compute_s: float) -> dict:
    return {"gamma": gamma, "tokens": tokens, "bytes": num_bytes, "compute_s": compute_s}


SHORT_OR_LONG = [_round(0, 1.0, 100.0, 1.0), _round(4, 4.0, 200.0, 2.0), _round(8, 4.1, 260.0, 4.0)]
COMPUTE_RULES = [_round(0, 1.0, 100.0, 1.0), _round(6, 3.0, 120.0, 9.0), _round(8, 3.1, 110.0, 12.0)]
LINK_RULES = [_round(0, 1.0, 100.0, 1.0), _round(3, 2.0, 120.0, 3.0), _round(5, 2.4, 400.0, 2.0)]


def _first_mistake(answer: int) -> str:
    """For SHORT_OR_LONG at 100 bytes/s, where 4 is right."""
    known = {
        0: "you take the shortest round, but it gives one token only: divide its seconds by its tokens",
        8: "you take the round with the most tokens, whatever it costs: divide seconds by tokens",
        1: "this is a position in the list of rounds: return its gamma",
    }
    return known.get(answer, "this gamma was never measured: choose among the rounds that are given")


CASES = [
    Case((SHORT_OR_LONG, 100.0), 4, _first_mistake),
    Case((COMPUTE_RULES, 1e9), 0, "on a fast link compute rules: add compute_s to the seconds of the link"),
    Case((LINK_RULES, 10.0), 3, "on a slow link bytes rule: the link takes bytes / link_bytes_per_s seconds"),
    Case((LINK_RULES, 1e9), 5, "the link's seconds are bytes divided by the rate: on a fast link they vanish"),
    Case((LINK_RULES[::-1], 10.0), 3, "rounds may come in any order"),
]


def measured_rounds() -> list[dict]:
    """The recorded rounds with the assumed sizes and times."""
    frame = recorded_rounds()
    return [
        _round(int(g), float(t), float(n) * RECORD_BYTES, g * DRAFT_STEP_S + VERIFY_S + (g + 1) * VERIFY_TOKEN_S)
        for g, t, n in frame.itertuples(index=False)
    ]


def check_planner(plan: Callable) -> Passed:
    """Verdict on ``plan(rounds, link_bytes_per_s)``; raises ``ExerciseError`` naming the mistake."""
    check_cases(plan, CASES, EXPECTS, int)
    rounds, rows = measured_rounds(), []
    by_gamma = {one["gamma"]: one for one in rounds}
    for name, rate in LINKS.items():
        gamma = int(call(plan, rounds, rate, expects=EXPECTS))
        if gamma not in by_gamma:
            raise ExerciseError(f"gamma={gamma} was never measured: choose among {sorted(by_gamma)}")
        times = {g: seconds_per_token(one, rate) * 1e3 for g, one in by_gamma.items()}
        rows.append((name, gamma, *(round(times[g], 2) for g in (gamma, 0, 5)), round(min(times.values()), 2)))
    columns = ["link", "gamma", "yours_ms", "gamma_0_ms", "gamma_5_ms", "best_ms"]
    scores = pd.DataFrame(rows, columns=columns)
    require((scores["yours_ms"] <= scores["best_ms"]).all(), "the small tables are right, a recorded one is not")
    return Passed("the fewest simulated milliseconds per token on each link", scores)
