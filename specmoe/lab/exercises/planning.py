"""Exercise 7: a planner of three lines.

Comes in: the student's ``plan(rounds, link_bytes_per_s)``: a list of dictionaries, one per gamma,
with ``gamma``, ``tokens`` (per row and round), ``bytes`` (fetched per round) and ``compute_s``
(drafting and verifying) -> the gamma to use. Goes out: a verdict with *simulated* milliseconds per
token on three links, by ``specmoe.lab.simulate`` from real runs of a shipped model: what the choice
costs there, reads overlapping with compute as the engine lets them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pandas as pd

from ...registry import yours
from ..simulate import Hardware, ModelSize, Recording, preset, simulate
from . import parts
from .calling import Task, whole
from .matching import Case, Mistake, Rule
from .verdict import ExerciseError, Passed, require
from .workload import recorded, recorded_rounds

TASK = Task("plan", ("rounds", "link_bytes_per_s"), "the gamma of one of the rounds")
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


def seconds(one, rate) -> float:
    """Of a round whose reads and compute follow each other."""
    return one["bytes"] / rate + one["compute_s"]


def least(key: Callable, choose: Callable = min) -> Callable:
    """A wrong rule: the gamma of the round with the least ``key(round, rate)``."""
    return lambda rounds, rate: choose(rounds, key=lambda one: key(one, rate))["gamma"]


def _position(rounds, rate) -> int:
    gamma = parts.plan(rounds, rate)
    return [one["gamma"] for one in rounds].index(gamma)


MISTAKES = (
    Mistake(
        "you take the round with the most tokens, whatever it costs: divide seconds by tokens",
        least(lambda one, rate: -one["tokens"]),
    ),
    Mistake(
        "you take the shortest round, but it gives few tokens: divide its seconds by its tokens",
        least(seconds),
    ),
    Mistake("this is a position in the list of rounds: return its gamma", _position),
    Mistake(
        "you multiply bytes by the rate: a link takes bytes / link_bytes_per_s seconds",
        least(lambda one, rate: (one["bytes"] * rate + one["compute_s"]) / one["tokens"]),
    ),
    Mistake(
        "you divide the rate by the bytes: a link takes bytes / link_bytes_per_s seconds",
        least(lambda one, rate: (rate / one["bytes"] + one["compute_s"]) / one["tokens"]),
    ),
    Mistake(
        "you divide by gamma + 1, as if every drafted token were accepted: divide by tokens",
        least(lambda one, rate: seconds(one, rate) / (one["gamma"] + 1)),
    ),
    Mistake(
        "you leave compute_s out, and on a fast link compute rules: add it to the link's seconds",
        least(lambda one, rate: one["bytes"] / one["tokens"]),
    ),
    Mistake(
        "you leave the link out, and on a slow link bytes rule: add bytes / link_bytes_per_s",
        least(lambda one, rate: one["compute_s"] / one["tokens"]),
    ),
    Mistake(
        "you add bytes to seconds: bytes / link_bytes_per_s are the link's seconds",
        least(lambda one, rate: (one["bytes"] + one["compute_s"]) / one["tokens"]),
    ),
    Mistake(
        "you take the longer of the two: here reads and compute follow each other, so add them",
        least(lambda one, rate: max(one["bytes"] / rate, one["compute_s"]) / one["tokens"]),
    ),
    Mistake(
        "you multiply seconds by tokens: seconds per token is a quotient",
        least(lambda one, rate: seconds(one, rate) * one["tokens"]),
    ),
    Mistake(
        "you take the slowest: seconds per token are to be few",
        least(lambda one, rate: seconds(one, rate) / one["tokens"], max),
    ),
    Mistake(
        "only part of the sum is divided by tokens: put brackets around the sum",
        least(lambda one, rate: one["bytes"] / rate + one["compute_s"] / one["tokens"]),
    ),
    Mistake(
        "only part of the sum is divided by tokens: put brackets around the sum",
        least(lambda one, rate: one["bytes"] / rate / one["tokens"] + one["compute_s"]),
    ),
    Mistake(
        "you subtract compute_s, as if the link hid it: here they follow each other, so add them",
        least(lambda one, rate: (one["bytes"] / rate - one["compute_s"]) / one["tokens"]),
    ),
    Mistake(
        "you take the first round in the list: compare them all",
        lambda rounds, rate: rounds[0]["gamma"],
    ),
    Mistake(
        "you always draft as far as was tried: compare seconds per token",
        lambda rounds, rate: max(one["gamma"] for one in rounds),
    ),
    Mistake(
        "you never draft: compare seconds per token",
        lambda rounds, rate: min(one["gamma"] for one in rounds),
    ),
)


def read_gamma(answer) -> int:
    if isinstance(answer, dict):
        raise ExerciseError("this is the whole round: return its gamma")
    return whole(answer)


RULE = Rule(
    TASK,
    parts.plan,
    read_gamma,
    MISTAKES,
    "this round does not have the fewest seconds per token: (bytes / link + compute_s) / tokens",
)


def _random_case(draw: random.Random) -> Case:
    """Rounds in any order on a link where bytes and compute weigh about the same; the best is
    ahead by 2 % or more."""
    while True:
        gammas = draw.sample(range(9), draw.randint(2, 5))
        rounds = [
            _round(
                gamma,
                round(1 + gamma * draw.uniform(0.1, 0.9), 2),
                float(draw.randint(1, 9)),
                round(draw.uniform(0.3, 5.0), 2),
            )
            for gamma in gammas
        ]
        rate = draw.choice([0.5, 1.0, 2.0, 8.0, 100.0])
        costs = sorted(seconds(one, rate) / one["tokens"] for one in rounds)
        if costs[1] > 1.02 * costs[0]:
            return Case((rounds, rate))


def _cases() -> list[Case]:
    draw = random.Random(7)
    small = [
        Case((SHORT_OR_LONG, 100.0)),
        Case((COMPUTE_RULES, 1e9)),
        Case((LINK_RULES, 10.0)),
        Case((LINK_RULES, 1e9)),
        Case((LINK_RULES[::-1], 10.0), "rounds may come in any order"),
    ]
    return small + [_random_case(draw) for _ in range(60)]


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
    return {g: simulated_ms(run, link_bytes_per_s) for g, run in recorded_rounds().items()}


def simulated_ms(run: Recording, link_bytes_per_s: float) -> float:
    """Milliseconds of a row's token."""
    played = simulate(run, machine(link_bytes_per_s), size_of(run))
    return 1e3 * played.batch * played.seconds / played.num_new_tokens


def check_planner(plan: Callable) -> Passed:
    """Verdict on ``plan(rounds, link_bytes_per_s)``; raises ``ExerciseError`` naming the
    mistake."""
    cases = _cases()
    given = cases[0].arguments
    gamma = TASK.ask(plan, given, read_gamma, 4)
    require(
        gamma in (0, 1, 4, 8),
        f"gamma={gamma} was never measured: choose among the rounds that are given",
        TASK.told(given, answer=gamma, right=4),
    )
    RULE.check(plan, cases)
    scores = pd.DataFrame([_on_link(plan, *link) for link in LINKS.items()])
    for name in yours("planner"):
        run = recorded(planner=name)
        scores[f"{name}_ms"] = [round(simulated_ms(run, rate), 2) for rate in LINKS.values()]
    return Passed(
        "within five percent of the fewest simulated milliseconds per token on each link", scores
    )


def _on_link(plan: Callable, name: str, rate: float) -> dict:
    """What the choice costs on one link, simulated; raises where it is far from the best."""
    times, rounds = milliseconds_per_token(rate), rounds_on(rate)
    gamma = TASK.ask(plan, (rounds, rate), read_gamma)
    told = TASK.told((rounds, rate), answer=gamma, right=parts.plan(rounds, rate))
    require(gamma in times, f"gamma={gamma} was never measured: choose among {sorted(times)}", told)
    require(
        times[gamma] <= NEAR * min(times.values()),
        f"the small tables are right, a recorded one is not: your gamma is far from the best on {name}",
        told,
    )
    shown = {"yours_ms": gamma, "gamma_0_ms": 0, "gamma_5_ms": 5}
    return {
        "link": name,
        "gamma": gamma,
        **{column: round(times[g], 2) for column, g in shown.items()},
        "best_ms": round(min(times.values()), 2),
    }
