"""A draft that is cut by its price in bytes (``by_bytes``) beside fixed lengths and ``auto``'s.

Comes in: the name of a model, its fast memory, batches. Goes out: a frame of counts, and of seconds
by the simulator's clock on a described machine with three links. ``python -m
specmoe.lab.by_bytes_counts [MODEL ...]`` counts the shipped models (minutes) and writes
``results/by_bytes.json``, which ``shipped`` reads. Nothing is timed: every planner is told the
seconds of its rounds by the same described machine.

``second_branch`` asks the same price about trees.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from ..speculate.confidence import ConfidencePlanner
from ..speculate.planner import FixedGamma, Planner
from .bench.prompts import prompts_for
from .bound import BATCHES, PER_LAYER, SEED
from .by_bytes import ByBytes, Costs, Told
from .simulate.auto import cut
from .simulate.costs import Described
from .simulate.hardware import PRESETS, Hardware
from .simulate.real_models import size_of
from .simulate.recording import Recording
from .simulate.replay import simulate
from .simulate.sizes import ModelSize
from .writing import write_whole

RESULTS = package_path("lab/results/by_bytes.json")
LINKS = (2.5e8, 1.2e10, 2e9)  # bytes per second
MACHINE, SIZE = "laptop", "olmoe-1b-7b"
FIXED, LONGEST, NEW_TOKENS = (10, 16), 16, 40
NUM_PROMPTS = {1: 6, 4: 12, 16: 48, 64: 128}
# a run: a planner, and the link it is told of (None: a fixed length hears nothing)
RUNS: list[tuple[str, float | None]] = [
    *((f"gamma {gamma}", None) for gamma in FIXED),
    ("by_bytes, price", LINKS[0]),
    *((name, link) for link in LINKS for name in ("auto", "by_bytes, waste")),
]


def machine(link: float) -> Hardware:
    return replace(PRESETS[MACHINE], name=f"{link / 1e9:g} GB/s", link_bytes_per_s=link)


def costs_of(hardware: Hardware, size: ModelSize, batch: int, draft_experts: int) -> Costs:
    """What planners are told: reads one after the other, computing beside."""
    parts, layers = Described(hardware, size), size.num_layers
    step_s = parts.draft_trunk(batch, 0) + layers * parts.draft_layer(batch, draft_experts)
    pairs = batch * size.top_k
    verify_s = parts.verify_trunk(batch, 1, 0) + layers * parts.layer(pairs, pairs)
    flops = size.trunk_flops_per_token + layers * size.top_k * size.expert_flops_per_token
    return Costs(parts.read_s, step_s, verify_s, flops / hardware.flop_per_s)


def planned(engine: Engine, prompts: list, batch: int, make: Callable | None, gamma: int):
    """The rounds with every row in flight of a run whose planner ``make(experts)`` makes; None: fixed."""
    how = {"method": "specmoe", "gamma": gamma, "prefetch": False, "batch_size": batch}
    with engine.start(prompts, max_new_tokens=NEW_TOKENS, **how) as run:
        experts = run.batch.experts
        run.batch.planner = make(experts) if make else FixedGamma(gamma)
        return Recording.of(run.output(), engine.info).full()


def count(engine: Engine, prompts: list, batch: int, name: str, link: float | None) -> list[dict]:
    """A row for the ``link``, or each of ``LINKS``: ``reads_per_token``, ``bytes_per_token`` (of the
    run itself), ``tokens_per_round`` (of a row), ``rounds``, ``steps`` of drafting,
    ``seconds_per_token`` (by the simulator)."""
    size = cut(size_of(SIZE), engine.memory.num_layers)
    if link is None:
        record = planned(engine, prompts, batch, None, int(name.split()[1]))
    else:
        costs = costs_of(machine(link), size, batch, engine.memory.draft_experts)
        record = planned(engine, prompts, batch, maker(name, costs), LONGEST)
    return [
        {"model": engine.info["name"], "batch": batch, "link": each / 1e9, "planner": name}
        | _counts(record, machine(each), size)
        for each in ([link] if link else LINKS)
    ]


def maker(name: str, costs: Costs) -> Callable[..., Planner]:
    """``auto``'s planner, by confidence and told seconds, or ``ByBytes`` by one of its rules."""

    def make(experts):
        if name == "auto":
            return Told(ConfidencePlanner(True, LONGEST + 1), experts, costs)
        return ByBytes(experts, LONGEST, costs, name.split(", ")[1])

    return make


def _counts(record: Recording, hardware: Hardware, size: ModelSize) -> dict:
    tokens = record.num_new_tokens
    return {
        "reads_per_token": record.num_reads / tokens,
        "bytes_per_token": record.fetched_bytes / tokens,
        "tokens_per_round": tokens / int(record.rows.sum()),
        "rounds": len(record.rows),
        "steps": int(record.gammas.sum()),
        "seconds_per_token": simulate(record, hardware, size).seconds / tokens,
    }


def count_model(model: str, batch: int, name: str, link: float | None) -> list[dict]:
    """``count`` with held-out prompts and the fast memory of ``bound.PER_LAYER``."""
    with load(model, store="memory") as engine:
        room = PER_LAYER[model] * engine.memory.num_layers * engine.memory.slot_bytes
    with load(model, store="memory", fast_memory=room) as engine:
        return count(engine, prompts_for(engine, NUM_PROMPTS[batch], SEED), batch, name, link)


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def compared(rows: pd.DataFrame, rival: str = f"gamma {FIXED[0]}") -> pd.DataFrame:
    """``rows`` with ``bytes`` and ``seconds``: per token over those of ``rival``."""
    cell = ["model", "batch", "link"]
    theirs = rows[rows["planner"] == rival].set_index(cell)
    keys = pd.MultiIndex.from_frame(rows[cell])
    per_token = {"bytes": "reads_per_token", "seconds": "seconds_per_token"}
    over = {
        name: rows[c].to_numpy() / theirs.loc[keys, c].to_numpy() for name, c in per_token.items()
    }
    return rows.assign(**over)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per link and planner, in words: bytes and seconds per token over those of the first
    fixed length, mean (geometric) and span over all cells."""
    found = compared(rows[rows["planner"] != "by_bytes, price"])
    found = found[found["planner"] != f"gamma {FIXED[0]}"]
    words = []
    for (link, planner), part in found.groupby(["link", "planner"]):
        told = {"link": f"{link:g} GB/s", "planner": planner}
        for name in ("bytes", "seconds"):
            times = part[name]
            mean = math.exp(sum(map(math.log, times)) / len(times))
            told[name] = f"{mean:.2f}× ({times.min():.2f} to {times.max():.2f})"
        words.append(told)
    return pd.DataFrame(words)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per model and planner at the slowest link, in words: experts read per token, tokens per
    round."""
    slow = rows[rows["link"] == min(LINKS) / 1e9]
    words = [
        f"{reads:.2f}, {tokens:.1f}"
        for reads, tokens in zip(slow["reads_per_token"], slow["tokens_per_round"])
    ]
    wide = slow.assign(words=words).pivot(
        index=["model", "planner"], columns="batch", values="words"
    )
    return wide.reset_index().rename(columns={batch: f"B = {batch}" for batch in BATCHES})


def main(models: Sequence[str]) -> None:
    """Count what ``RESULTS`` has not of ``models``, and keep it after every run."""
    for (name, link), batch, model in product(RUNS, BATCHES, models or PER_LAYER):
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
        links = [each / 1e9 for each in ([link] if link else LINKS)]
        done = {(row["model"], row["batch"], row["planner"], row["link"]) for row in rows}
        if (model, batch, name, links[-1]) in done:
            continue
        counted = pd.DataFrame(count_model(model, batch, name, link)).round(5)
        print(counted.to_string(header=False), flush=True)
        record = {"machine": MACHINE, "size": SIZE, "new_tokens": NEW_TOKENS, "seed": SEED}
        record["rows"] = [*rows, *counted.to_dict("records")]
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
