"""Which pool: the experts that every eviction fetches, by model, batch and size of the pool.

Comes in: the name of a model, batches, sizes. Goes out: a frame. What a router asks for does not
depend on the pool, so one run is recorded and replayed under all evictions, your own and Belady's
bound among them. ``python -m specmoe.lab.pools`` counts the shipped models (a few minutes) and
writes ``results/pools.json``, which ``shipped`` reads and docs/pools.md shows.

Two evictions that others have published stand here and not in ``offload.policies``: they were
tried, and fetch more than what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..engine.engine import load
from ..offload import evictions, policies
from ..offload.policies import LRU, KeepPolicy, needed_of
from ..shipped import need_path, package_path
from . import replay
from .bench.prompts import prompts_for
from .writing import write_whole

RESULTS = package_path("lab/results/pools.json")
SIZES = {"tiny-skewed": (4, 8, 16), "tiny-balanced": (2, 4), "tiny-translate": (8, 20, 40)}
BATCHES = {1: 6, 4: 16, 16: 48, 64: 128}  # rows in flight -> prompts
NEW_TOKENS, SEED = 48, 7
# model, rows in flight, experts per layer: where the engine counts, too
POINTS = (
    *(("tiny-skewed", 1, 8), ("tiny-skewed", 16, 8), ("tiny-translate", 1, 20)),
    *(("tiny-translate", 16, 20), ("tiny-balanced", 1, 4), ("tiny-balanced", 4, 4)),
)
TODAY = ("temporal", "lru", "lfu", "static")  # before this table was made
ENGINE = (*TODAY, "decayed")
SHOWN = (*TODAY, "decayed", "least_stale", "guarded", "belady")


class LeastStale(KeepPolicy):
    """Our reading of Least-Stale (SpecMD, arXiv 2602.03921) for a pool that has a share of each
    layer: what this step does not ask for is stale, and leaves first in, first out."""

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        self._arrived = [[0] * num_experts for _ in range(num_layers)]
        self._step = [0] * num_layers

    def keep(self, layer, counts, resident):
        self._step[layer] += 1
        arrived, needed = self._arrived[layer], needed_of(counts)
        for expert in needed - resident:
            arrived[expert] = self._step[layer]
        rank = lambda expert: (counts[expert], arrived[expert], -expert)  # noqa: E731
        return set(sorted(needed | resident, key=rank, reverse=True)[: self.num_kept])


class Stay(KeepPolicy):
    """Whoever came first stays: what no cyclic request can empty."""

    def keep(self, layer, counts, resident):
        stay = sorted(resident)[: self.num_kept]
        new = sorted(needed_of(counts) - resident, key=lambda expert: -counts[expert])
        return {*stay, *new[: self.num_kept - len(stay)]}


class Guarded(KeepPolicy):
    """A guard against the cliff of LRU, which finds nothing when experts come in turn and the pool
    is a little too small for all: LRU and ``Stay`` are played beside each other, and the one that
    has missed less of late decides (set dueling, Qureshi 2007)."""

    RECENT = 0.95

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        size = num_layers, num_experts, num_kept
        self._rules = [LRU(*size), Stay(*size)]
        self._held = [[set() for _ in self._rules] for _ in range(num_layers)]
        self._missed = [[0.0 for _ in self._rules] for _ in range(num_layers)]

    def keep(self, layer, counts, resident):
        needed, held, missed = needed_of(counts), self._held[layer], self._missed[layer]
        for place, rule in enumerate(self._rules):
            missed[place] = self.RECENT * missed[place] + len(needed - held[place])
            held[place] = rule.keep(layer, counts, held[place])
        wanted, here = held[missed.index(min(missed))], needed | resident
        others = sorted(here - wanted, key=lambda expert: (-counts[expert], expert))
        kept = [*(wanted & here), *others]
        return set(kept[: self.num_kept])


TRIED = {"least_stale": LeastStale, "guarded": Guarded}


def table_of_pools(
    model: str,
    batches: Sequence[int],
    sizes: Sequence[int],
    names: Sequence[str] = SHOWN,
    num_prompts: int | None = None,
) -> pd.DataFrame:
    """A row per batch, ``kept`` (experts per layer) and ``eviction``: ``fetched_per_token``, experts
    that are not in the pool when their router asks, of decoding without drafts over held-out
    prompts. ``names``: of ``SHOWN``, or registered by ``specmoe.register``."""
    rows = []
    with load(model, store="memory") as engine:
        hotness = engine.calibrate(prompts_for(engine, 8, SEED + 1))
        for batch in batches:
            prompts = prompts_for(engine, num_prompts or BATCHES[batch], SEED)
            run = {"method": "cached", "batch_size": batch, "max_new_tokens": NEW_TOKENS}
            output = engine.generate(prompts, **run)
            steps = _steps(output, engine)
            for kept in sizes:
                point = {"model": model, "batch": batch, "kept": kept}
                for name in names:
                    missed = sum(
                        _missed(name, part, kept, hotness[at]) for at, part in steps.items()
                    )
                    found = {"fetched_per_token": missed / output.stats.num_new_tokens}
                    rows.append(point | {"eviction": name} | found)
    return pd.DataFrame(rows)


def in_the_engine(model: str, batch: int, kept: int, names: Sequence[str]) -> list[dict]:
    """Rows as those of ``table_of_pools``, of real runs: there some slots beside the kept ones hold
    what was used most lately until they are wanted, and "static" is calibrated on the first of the
    prompts themselves."""
    with load(model, store="memory", draft_experts=1) as engine:
        memory = engine.memory
    slots = kept * memory.num_layers + memory.num_readers
    room = {"fast_memory": slots * memory.slot_bytes + memory.scratch_bytes, "draft_experts": 1}
    rows = []
    with load(model, store="memory", trace=False, **room) as engine:
        prompts = prompts_for(engine, BATCHES[batch], SEED)
        run = {"method": "cached", "batch_size": batch, "max_new_tokens": NEW_TOKENS}
        for name in names:
            stats = engine.generate(prompts, eviction=name, **run).stats
            fetched = stats.fetched_bytes_per_token / engine.info["record_bytes"]
            point = {"model": model, "batch": batch, "kept": kept, "eviction": name}
            rows.append(point | {"fetched_per_token": fetched})
    return rows


def _steps(output, engine) -> dict[int, list]:
    """MoE layer -> tokens per expert [E] of every decoding step; an encoder's layers have none."""
    frame, num_experts = output.trace.to_frame(), engine.info["experts"]
    layers = {
        layer: replay.layer_requests(frame, layer, num_experts)
        for layer in engine.experts.draft_layers
    }
    return {at: [one.counts for one in replay.decoding(part)[0]] for at, part in layers.items()}


def _missed(name: str, steps: list, kept: int, totals: list[int]) -> int:
    size = 1, len(steps[0]), kept
    if name == "belady":
        policy = policies.Belady(*size, [[needed_of(counts) for counts in steps]])
    elif name in TRIED:
        policy = TRIED[name](*size)
    else:
        policy = evictions.make_policy(name, *size, [totals])
    return policies.replay(steps, policy)[1]


def against_today(table: pd.DataFrame) -> pd.DataFrame:
    """A row per model, batch and size: what each eviction fetches over what the best of ``TODAY``
    fetches there, which nobody knows beforehand."""
    wide = table.pivot(
        index=["model", "batch", "kept"], columns="eviction", values="fetched_per_token"
    )
    wide = wide[[name for name in SHOWN if name in wide]]
    return wide.div(wide[[*TODAY]].min(axis=1), axis=0)


def by_model_and_batch(table: pd.DataFrame) -> pd.DataFrame:
    """``against_today``, the mean over sizes; the last rows are mean, worst and best of all."""
    ratios = against_today(table)[[*SHOWN]]
    shown = ratios.groupby(["model", "batch"]).mean()
    shown.index = [f"{model}, B = {batch}" for model, batch in shown.index]
    ends = {"mean of all": ratios.mean(), "worst": ratios.max(), "best": ratios.min()}
    return pd.concat([shown, pd.DataFrame(ends).T]).map("{:.3f}".format)


def by_point(table: pd.DataFrame) -> pd.DataFrame:
    """``against_today`` of ``in_the_engine``, a row per point."""
    ratios = against_today(table)
    ratios.index = [f"{model}, B = {batch}, {kept} kept" for model, batch, kept in ratios.index]
    return ratios.map("{:.3f}".format)


def shipped(part: str = "rows", path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted: "rows", replayed, or "engine"."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))[part])


def main() -> None:
    tables = [table_of_pools(model, [*BATCHES], sizes) for model, sizes in SIZES.items()]
    runs = pd.DataFrame(row for point in POINTS for row in in_the_engine(*point, ENGINE))
    rows = {"rows": pd.concat(tables), "engine": runs}
    rows = {name: found.round(4).to_dict("records") for name, found in rows.items()}
    record = {"new_tokens": NEW_TOKENS, "seed": SEED, "prompts": BATCHES, **rows}
    write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
