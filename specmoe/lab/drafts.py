"""Which draft for which router: tokens per round of every draft source by the bytes that it holds.

Comes in: the name of a model, sources, batches. Goes out: a frame. ``python -m specmoe.lab.drafts
[MODEL ...]`` measures the shipped models (minutes) and writes ``results/drafts.json``, which
``shipped`` reads. Tokens and bytes are counts: the same on every quiet or busy machine. (Two models
of the same arithmetic on another processor may differ in a tie.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from .bench.prompts import prompts_for
from .bench.rows import name_of
from .writing import write_whole

RESULTS = package_path("lab/results/drafts.json")
# model -> experts per layer that are resident, or merged from all
SIZES = {
    "tiny-skewed": (2, 4, 8, 16),
    "tiny-balanced": (1, 2, 4),
    "tiny-translate": (2, 4, 8, 16, 32),
}
COPIES = ("low_bit:2", "low_bit:3", "low_bit:4", "low_bit:8")
OTHERS = ("ngram", "ngram+resident", "layer_skip", "oracle")
BATCHES = (16,)
SHARE = 0.75  # of the experts: copies of 8 bits, and some to read into, fit
GAMMA, NEW_TOKENS, SEED = 10, 40, 1


def sources_of(sizes: Sequence[int]) -> list[tuple[int, str]]:
    """(experts per layer, source) of every point of the map of a model."""
    middle = sizes[len(sizes) // 2]
    points = [(size, "resident") for size in sizes] + [(middle, name) for name in COPIES]
    points += [(size, f"merged:{size}") for size in sizes]
    return points + [(middle, name) for name in OTHERS]


def map_of_drafts(
    model: str,
    points: Iterable[tuple[int, object]],
    batches: Sequence[int] = BATCHES,
    num_prompts: int = 16,
    **options,
) -> pd.DataFrame:
    """Decode the same held-out prompts with every source: a row per source and batch with
    ``experts_held`` (what the draft stands on, in bytes of whole experts per layer), ``draft_bytes``,
    ``tokens_per_round``, ``acceptance_rate``, ``fetched_bytes_per_token``, ``seconds_per_token``.

    ``points``: (``size``: resident experts per layer, source: a name or your own). Every source has the same
    fast memory, of ``SHARE`` of the experts that draft; ``options`` are ``generate``'s.
    """
    rows, fast_memory = [], _fast_memory(model)
    for number, source in points:
        with load(model, store="memory", draft_experts=number, fast_memory=fast_memory) as engine:
            prompts = prompts_for(engine, num_prompts, SEED)
            rows += [_row(engine, model, source, prompts, batch, options) for batch in batches]
    return pd.DataFrame(rows)


def _fast_memory(model: str) -> int:
    with load(model, store="memory") as engine:
        memory = engine.memory
        experts = memory.num_layers * engine.info["experts"]
    return int(SHARE * experts) * memory.record_bytes + memory.scratch_bytes


def _row(engine: Engine, model: str, source, prompts: list, batch: int, options: dict) -> dict:
    run = {"gamma": GAMMA, "max_new_tokens": NEW_TOKENS, **options}
    stats = engine.generate(prompts, method="specmoe", draft=source, batch_size=batch, **run).stats
    memory, name = engine.memory, name_of(source)
    layer_bytes = memory.num_layers * memory.record_bytes
    stands_on_residents = "resident" in name or name == "layer_skip"
    held = stats.draft_bytes + stands_on_residents * memory.draft_experts * layer_bytes
    return {
        "model": model,
        "source": name,
        "size": memory.draft_experts,
        "batch": batch,
        "experts_held": held / layer_bytes,
        "draft_bytes": held,
        "tokens_per_round": stats.tokens_per_round,
        "acceptance_rate": stats.acceptance_rate,
        "fetched_bytes_per_token": stats.fetched_bytes_per_token,
        "seconds_per_token": stats.seconds / max(1, stats.num_new_tokens),
    }


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def main(models: Sequence[str]) -> None:
    """Count what ``RESULTS`` has not of ``models``, and keep it after every point."""
    for name in models or SIZES:
        for point in sources_of(SIZES[name]):
            rows = (
                json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
            )
            if any(
                (row["model"], row["source"], row["size"]) == (name, point[1], point[0])
                for row in rows
            ):
                continue
            # seconds are the machine's: no count, and not kept
            table = map_of_drafts(name, [point]).drop(columns="seconds_per_token")
            print(table.round(2).to_string(header=False), flush=True)
            rows += table.round(4).to_dict("records")
            record = {"gamma": GAMMA, "new_tokens": NEW_TOKENS, "seed": SEED, "rows": rows}
            write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
