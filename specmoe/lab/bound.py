"""Bytes beside the fewest that any lossless method of the same fast memory needs.

Comes in: the name of a model, its fast memory, batches. Goes out: a frame of counts. ``python -m
specmoe.lab.bound [MODEL ...]`` counts the shipped models (minutes) and writes ``results/bytes.json``,
which ``shipped`` and ``over_on_demand`` read. There is no clock in it.

The bound is an oracle's draft and Belady's pool: every drafted token is right, so each block asks
for what has to be verified and nothing else, once; and one pool of all slots, full of what is needed
soonest when decoding begins, keeps across all layers what is asked for again soonest. A method that
accepts less, keeps worse or reads in vain reads more. Longer blocks have a lower bound: ``gamma`` is
part of it.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from .bench.prompts import prompts_for
from .replay import as_frame
from .writing import write_whole

RESULTS = package_path("lab/results/bytes.json")
# model -> experts of fast memory for each layer that decodes: those of the benchmark, and half of
# the experts where a layer has only eight
PER_LAYER = {"tiny-translate": 20, "tiny-skewed": 16, "tiny-balanced": 4}
BATCHES = (1, 4, 16, 64)
# the cell of the benchmark's target for bytes; drafts as long as the paper's, and as any planner's
LARGEST = ("tiny-translate", 256, (10, 32))
EVICTIONS = ("lru", "lfu", "static", "temporal")
GAMMA, NEW_TOKENS, SEED = 10, 64, 1
FEWEST_PROMPTS, MOST_PROMPTS = 8, 64
Key = tuple[int, int]  # layer, expert


def asked(frame: pd.DataFrame, rounds: set[int]) -> list[set[Key]]:
    """What every layer asked for in every verification of ``rounds``, in the order of asking."""
    routes = frame[(frame["kind"] == "route") & (frame["phase"] == "verify")]
    routes = routes[routes["round"].isin(rounds)]
    steps: dict[tuple[int, int], set[Key]] = defaultdict(set)
    for turn, layer, expert in zip(routes["round"], routes["layer"], routes["expert"]):
        steps[turn, layer].add((layer, expert))
    return [steps[step] for step in sorted(steps)]


def fewest_reads(steps: Sequence[set[Key]], slots: int) -> int:
    """Reads of a pool of ``slots`` that knows what will be asked, keeps what is asked for again
    soonest (Belady 1966; a set of keys at a time, and a key may pass through without staying), and
    begins with the best content."""
    uses: dict[Key, list[int]] = defaultdict(list)
    for place, step in enumerate(steps):
        for key in step:
            uses[key].append(place)

    def soonest(keys: Iterable[Key], place: int) -> set[Key]:
        def next_use(key: Key) -> tuple[int, Key]:
            later = bisect_right(uses[key], place)
            return (uses[key][later] if later < len(uses[key]) else len(steps)), key

        return set(sorted(keys, key=next_use)[:slots])

    held, reads = soonest(uses, -1), 0
    for place, step in enumerate(steps):
        reads += len(step - held)
        held = soonest(held | step, place)
    return reads


def count(engine: Engine, prompts: list, batch: int, gamma: int = GAMMA) -> list[dict]:
    """A row per method: ``bytes_per_token`` of the rounds with every row in flight, and
    ``over_oracle``, times the bound's, whose draft has ``gamma`` tokens, too."""
    run = partial(_counted, engine, prompts, batch)

    found = {"on_demand": run("on_demand")}
    pools = [run("cached", eviction=name) for name in EVICTIONS]
    found["cached"] = min(pools, key=lambda row: row["reads"] / row["tokens"])
    found["specmoe"] = run("specmoe", gamma=gamma, prefetch=False)
    found["specmoe, reading ahead"] = run("specmoe", gamma=gamma)
    found["oracle's draft"] = run("specmoe", gamma=gamma, prefetch=False, draft="oracle")
    # reads that the same rounds cannot do without
    found["Belady's pool"] = _of_belady(found["specmoe"], engine)
    bound = _of_belady(found["oracle's draft"], engine)
    found["oracle"] = bound
    least = bound["reads"] / bound["tokens"]
    return [
        {
            "model": engine.info["name"],
            "batch": batch,
            "method": method,
            "bytes_per_token": engine.info["record_bytes"] * row["reads"] / row["tokens"],
            "tokens_per_round": row["tokens"] / row["rows"],
            "over_oracle": row["reads"] / row["tokens"] / least,
        }
        for method, row in found.items()
    ]


def count_largest(engine: Engine, prompts: list, batch: int, gammas: Sequence[int]) -> dict:
    """Length of the draft -> the bound's bytes per token over on-demand's."""
    run = partial(_counted, engine, prompts, batch)
    plain, found = run("on_demand"), {}
    for gamma in gammas:
        right = run("specmoe", gamma=gamma, prefetch=False, draft="oracle")
        least = _of_belady(right, engine)
        over = least["reads"] / least["tokens"] / (plain["reads"] / plain["tokens"])
        found[str(gamma)] = round(over, 4)
    return found


def _counted(engine: Engine, prompts: list, batch: int, method: str, **settings) -> dict:
    """Of the rounds with every row in flight."""
    size = {"batch_size": batch, "max_new_tokens": NEW_TOKENS}
    return _full(as_frame(engine.generate(prompts, method=method, **size, **settings)), batch)


def _full(frame: pd.DataFrame, batch: int) -> dict:
    """Reads, tokens and requests of the rounds with every row in flight."""
    rounds = frame[(frame["kind"] == "round") & (frame["size"] == batch)]
    numbers = set(rounds["round"])
    decoding = frame[frame["round"].isin(numbers) & (frame["phase"] != "prefill")]
    reads = decoding["kind"].isin(["fetch", "prefetch"]).sum()
    return {
        "reads": int(reads),
        "tokens": int(rounds["count"].sum()),
        "rows": int(rounds["size"].sum()),
        "asked": asked(decoding, numbers),
    }


def _of_belady(row: dict, engine: Engine) -> dict:
    return row | {"reads": fewest_reads(row["asked"], engine.info["slots"])}


@contextmanager
def opened(model: str) -> Iterator[Engine]:
    """The model with the fast memory of ``PER_LAYER``."""
    with load(model, store="memory") as engine:
        memory = engine.memory
        room = PER_LAYER[model] * memory.num_layers * memory.slot_bytes
    with load(model, store="memory", fast_memory=room) as engine:
        yield engine


def count_model(model: str, batch: int) -> list[dict]:
    """``count`` with held-out prompts and the fast memory of ``PER_LAYER``."""
    with opened(model) as engine:
        num = max(FEWEST_PROMPTS, min(2 * batch, MOST_PROMPTS))
        return count(engine, prompts_for(engine, num, SEED), batch)


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def over_on_demand(path: str | Path = RESULTS) -> dict[int, float]:
    """Length of the draft -> the bound's bytes per token over on-demand's at ``LARGEST``."""
    found = json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["largest"]
    return {int(length): over for length, over in found.items()}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per model and method, its bytes over the bound's by batch, in words."""
    order = list(dict.fromkeys(rows["method"]))
    times = rows.assign(words=[f"{value:.2f}×" for value in rows["over_oracle"]])
    wide = times.pivot(index=["model", "method"], columns="batch", values="words")
    wide = wide.sort_index(level=1, key=lambda index: index.map(order.index), sort_remaining=False)
    wide = wide.sort_index(level=0, sort_remaining=False, kind="stable").reset_index()
    return wide.rename(columns={batch: f"B = {batch}" for batch in rows["batch"].unique()})


def main(models: Sequence[str]) -> None:
    """Count what ``RESULTS`` has not of ``models``, and keep it after every batch."""
    record = {"gamma": GAMMA, "new_tokens": NEW_TOKENS, "seed": SEED, "largest": {}, "rows": []}
    if RESULTS.exists():
        record |= json.loads(RESULTS.read_text(encoding="utf-8"))
    for model, batch in product(models or PER_LAYER, BATCHES):
        if any((row["model"], row["batch"]) == (model, batch) for row in record["rows"]):
            continue
        counted = pd.DataFrame(count_model(model, batch)).round(4)
        print(counted.to_string(header=False), flush=True)
        record["rows"] += counted.to_dict("records")
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    model, batch, gammas = LARGEST
    if not record["largest"] and model in (models or PER_LAYER):
        with opened(model) as engine:
            prompts = prompts_for(engine, 2 * batch, SEED)
            record["largest"] = count_largest(engine, prompts, batch, gammas)
        write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
