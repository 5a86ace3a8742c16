"""Exercise 7: a planner of three lines.

Comes in: the student's ``plan(rounds, link_bytes_per_s)``: a list of dictionaries, one per gamma,
with ``gamma``, ``tokens`` (per row and round), ``bytes`` (fetched per round) and ``compute_s``
(drafting and verifying) -> the gamma to use. Goes out: a verdict with *simulated* milliseconds per
token on three links, by ``specmoe.lab.simulate`` from real runs of a shipped model: what the choice
costs there, reads overlapping with compute as the engine lets them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from ..simulate import Hardware, ModelSize, Recording, preset, simulate
from .verdict import Case, ExerciseError, Passed, call, check_cases, require
from .workload import recorded_rounds

EXPECTS = "the gamma of one of the rounds"
LINKS = {"SSD 1 GB/s": 1e9, "PCIe 16 GB/s": 16e9, "in memory 400 GB/s": 400e9}
# the machine around the link, and an expert's size there: imagined
HARDWARE, EXPERT_BYTES = "consumer", 3 * 2**20
NEAR = 1.05  # a sum of two times does not know what overlaps: this near the best gamma is right


def _round(gamma: int, tokens: float, num_bytes: float, compute_s: float) -> dict:
    return {"gamma": gamma, "tokens": tokens, "bytes": num_bytes, "compute_s": compute_s}


SHORT_OR_LONG = [_round(0, 1.0, 100.0, 1.0), _round(4, 4.0, 200.0, 2.0), _round(8, 4.1, 260.0, 4.0)]
COMPUTE_RULES = [
    _round(0, 1.0, 100.0, 1.0),
    _round(6, 3.0, 120.0, 9.0),
    _round(8, 3.1, 110.0, 12.0),
]
LINK_RULES = [_round(0, 1.0, 100.0, 1.0), _round(3, 2.0, 120.0, 3.0), _round(5, 2.4, 400.0, 2.0)]


def _first_mistake(answer: int) -> str:
    """For SHORT_OR_LONG at 100 bytes/s, where 4 is right."""
    known = {
        0: "you take the shortest round, but it gives one token only: divide its seconds by its "
        "tokens",
        8: "you take the round with the most tokens, whatever it costs: divide seconds by tokens",
        1: "this is a position in the list of rounds: return its gamma",
    }
    return known.get(
        answer, "this gamma was never measured: choose among the rounds that are given"
    )


CASES = [
    Case((SHORT_OR_LONG, 100.0), 4, _first_mistake),
    Case(
        (COMPUTE_RULES, 1e9),
        0,
        "on a fast link compute rules: add compute_s to the seconds of the link",
    ),
    Case(
        (LINK_RULES, 10.0),
        3,
        "on a slow link bytes rule: the link takes bytes / link_bytes_per_s seconds",
    ),
    Case(
        (LINK_RULES, 1e9),
        5,
        "the link's seconds are bytes divided by the rate: on a fast link they vanish",
    ),
    Case((LINK_RULES[::-1], 10.0), 3, "rounds may come in any order"),
]


def machine(link_bytes_per_s: float) -> Hardware:
    """The described machine with another link."""
    return replace(preset(HARDWARE), link_bytes_per_s=link_bytes_per_s)


def size_of(recording: Recording) -> ModelSize:
    """The recorded model with larger experts: their bytes and FLOP grow alike (2 FLOP for each bf16
    weight)."""
    flops = float(EXPERT_BYTES)
    return replace(
        ModelSize.of(recording.info), expert_bytes=EXPERT_BYTES, expert_flops_per_token=flops
    )


def rounds_on(link_bytes_per_s: float) -> list[dict]:
    """What the student is given: each recorded gamma's tokens and bytes, and its simulated
    compute."""
    rounds = []
    for gamma, run in recorded_rounds().items():
        played, num = simulate(run, machine(link_bytes_per_s), size_of(run)), len(run.rows)
        tokens = run.num_new_tokens / float(run.rows.sum())
        rounds.append(
            _round(
                gamma, tokens, played.fetched_bytes / num, (played.seconds - played.wait_s) / num
            )
        )
    return rounds


def milliseconds_per_token(link_bytes_per_s: float) -> dict[int, float]:
    """Gamma -> simulated milliseconds of a row's token."""
    times = {}
    for gamma, run in recorded_rounds().items():
        played = simulate(run, machine(link_bytes_per_s), size_of(run))
        times[gamma] = 1e3 * played.batch * played.seconds / played.num_new_tokens
    return times


def check_planner(plan: Callable) -> Passed:
    """Verdict on ``plan(rounds, link_bytes_per_s)``; raises ``ExerciseError`` naming the
    mistake."""
    check_cases(plan, CASES, EXPECTS, int)
    rows = []
    for name, rate in LINKS.items():
        times = milliseconds_per_token(rate)
        gamma = int(call(plan, rounds_on(rate), rate, expects=EXPECTS))
        if gamma not in times:
            raise ExerciseError(f"gamma={gamma} was never measured: choose among {sorted(times)}")
        rows.append(
            (
                name,
                gamma,
                *(round(times[g], 2) for g in (gamma, 0, 5)),
                round(min(times.values()), 2),
            )
        )
    columns = ["link", "gamma", "yours_ms", "gamma_0_ms", "gamma_5_ms", "best_ms"]
    scores = pd.DataFrame(rows, columns=columns)
    near = (scores["yours_ms"] <= NEAR * scores["best_ms"]).all()
    require(
        near,
        "the small tables are right, a recorded one is not: your gamma is far from the "
        "best on one of the links",
    )
    return Passed(
        "within five percent of the fewest simulated milliseconds per token on each link", scores
    )
