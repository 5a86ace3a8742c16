"""Which draft for which router: tokens per round of every draft source by the bytes that it holds.

Comes in: the name of a model, sources, batches. Goes out: a frame. ``python -m specmoe.lab.drafts
[MODEL ...]`` counts the shipped models (a quarter of an hour; it goes on where it was stopped) and
writes ``results/drafts.json``, which ``shipped`` reads. Tokens and bytes are counts: the same on
every quiet or busy machine. (Two models of the same arithmetic on another processor may differ in a
tie.) Seconds of that file are simulated from the counts, see ``draft_seconds``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from . import draft_seconds
from .bench.prompts import prompts_for
from .bench.rows import name_of
from .simulate.recording import Recording
from .writing import write_whole

RESULTS = package_path("lab/results/drafts.json")
# model -> experts per layer that are resident, or merged from all
SIZES = {
    "tiny-skewed": (2, 4, 8, 16),
    "tiny-balanced": (1, 2, 4),
    "tiny-translate": (2, 4, 8, 16, 32),
}
COPIES = ("low_bit:2", "low_bit:3", "low_bit:4", "low_bit:8")
PLAIN = "no draft"  # the same pool, plain decoding: what drafting has to beat
OTHERS = ("ngram", "ngram+resident", "layer_skip", "oracle", PLAIN)
TELLING = (PLAIN, "oracle", "low_bit:4", "ngram+resident")
PROMPTS = {1: 4, 16: 16}  # rows in flight -> prompts: batch 1 decodes the first of the same ones
SHARE = 0.75  # of the experts: copies of 8 bits, and some to read into, fit
GAMMA, NEW_TOKENS, SEED = 10, 40, 1


def sources_of(sizes: Sequence[int]) -> list[tuple[int, str]]:
    """(experts per layer, source) of every point of the map of a model."""
    middle = sizes[len(sizes) // 2]
    points = [(size, "resident") for size in sizes] + [(middle, name) for name in COPIES]
    points += [(size, f"merged:{size}") for size in sizes]
    return points + [(middle, name) for name in OTHERS]


def points_of(sizes: Sequence[int]) -> list[tuple[int, int, str]]:
    """(rows in flight, experts per layer, source): with one row the telling ones, with many all; the
    telling ones first."""
    middle = sizes[len(sizes) // 2]
    telling = [(middle, name) for name in TELLING] + [(size, "resident") for size in sizes]
    points = [(batch, *point) for point in telling for batch in (16, 1)]
    return list(dict.fromkeys(points + [(16, *point) for point in sources_of(sizes)]))


def map_of_drafts(
    model: str,
    points: Iterable[tuple[int, object]],
    batches: Sequence[int] = (16,),
    num_prompts: int | None = None,
    **options,
) -> pd.DataFrame:
    """Decode the same held-out prompts with every source: a row per source and batch with
    ``experts_held`` (what the draft stands on, in bytes of whole experts per layer), ``draft_bytes``,
    ``tokens_per_round``, ``acceptance_rate``, ``fetched_bytes_per_token``, ``seconds_per_token`` (the
    clock's), and ``simulated``: seconds per token at real sizes (``draft_seconds.speeds`` reads it),
    None for a source of your own.

    ``points``: (``size``: resident experts per layer, source: a name or your own). Every source has the same
    fast memory, of ``SHARE`` of the experts that draft; ``options`` are ``generate``'s.
    """
    rows, fast_memory = [], _fast_memory(model)
    for number, source in points:
        with load(model, store="memory", draft_experts=number, fast_memory=fast_memory) as engine:
            for batch in batches:
                prompts = prompts_for(engine, num_prompts or PROMPTS.get(batch, 16), SEED)
                rows.append(_row(engine, model, source, prompts, batch, options))
    return pd.DataFrame(rows)


def _fast_memory(model: str) -> int:
    with load(model, store="memory") as engine:
        memory = engine.memory
        experts = memory.num_layers * engine.info["experts"]
    return int(SHARE * experts) * memory.slot_bytes + memory.scratch_bytes


def _row(engine: Engine, model: str, source, prompts: list, batch: int, options: dict) -> dict:
    name = name_of(source)
    drafts = {"method": "specmoe", "draft": source, "gamma": GAMMA}
    run = {"method": "cached"} if name == PLAIN else drafts
    run |= {"max_new_tokens": NEW_TOKENS, "batch_size": batch, **options}
    output = engine.generate(prompts, **run)
    stats, memory = output.stats, engine.memory
    layer_bytes = memory.num_layers * memory.slot_bytes
    stands_on_residents = "resident" in name or name == "layer_skip"
    held = stats.draft_bytes + stands_on_residents * memory.draft_experts * layer_bytes
    return {
        "model": model,
        "source": name,
        "size": memory.draft_experts,
        "batch": batch,
        "experts_held": held / layer_bytes,
        "draft_bytes": held,
        "tokens_per_round": 1.0 if name == PLAIN else stats.tokens_per_round,
        "acceptance_rate": stats.acceptance_rate,
        "fetched_bytes_per_token": stats.fetched_bytes_per_token,
        "seconds_per_token": stats.seconds / max(1, stats.num_new_tokens),
        "simulated": _simulated(output, engine, name, held),
    }


def _simulated(output, engine: Engine, source: str, held: int) -> dict | None:
    """What ``draft_seconds.seconds`` makes of the run; ``held``: bytes that the draft stands on."""
    info, memory = engine.info, engine.memory
    all_bytes = memory.num_layers * info["experts"] * memory.slot_bytes
    shares = draft_seconds.shares_of(output.trace.to_frame(), info["experts"])
    steps = draft_seconds.steps_of(source, memory.draft_experts, held / all_bytes, shares)
    return steps and draft_seconds.seconds(Recording.of(output, info), steps)


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def main(models: Sequence[str]) -> None:
    """Count what ``RESULTS`` has not of ``models``, and keep it after every point."""
    record = {"gamma": GAMMA, "new_tokens": NEW_TOKENS, "seed": SEED, "rows": []}
    if RESULTS.exists():
        record = json.loads(RESULTS.read_text(encoding="utf-8"))
    points = [(name, *point) for name in models or SIZES for point in points_of(SIZES[name])]
    for name, batch, size, source in points:
        if (name, batch, size, source) in map(_point, record["rows"]):
            continue
        # seconds of the clock are the machine's: no count, and not kept
        table = map_of_drafts(name, [(size, source)], [batch]).drop(columns="seconds_per_token")
        print(table.drop(columns="simulated").round(2).to_string(header=False), flush=True)
        record["rows"] += table.round(4).to_dict("records")
        write_whole(RESULTS, _written(record))


def _point(row: dict) -> tuple:
    return row["model"], row["batch"], row["size"], row["source"]


def _written(record: dict) -> str:
    """A row on a line."""
    head = json.dumps({name: value for name, value in record.items() if name != "rows"})
    rows = ",\n  ".join(json.dumps(row) for row in record["rows"])
    return f'{head[:-1]},\n "rows": [\n  {rows}\n ]}}\n'


if __name__ == "__main__":
    main(sys.argv[1:])
