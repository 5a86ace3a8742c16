"""Your own parts on what the exercises are scored on: each that somebody registered, beside the part
that it replaces.

Comes in: a kind of ``specmoe.register`` (what a part is asked stands there). Goes out: a frame, from
real runs of a shipped model; its milliseconds are simulated on the three links of exercise 7.
"""

from __future__ import annotations

import pandas as pd

from ...engine.engine import load
from ...errors import OptionError, check_choice
from ...registry import KINDS, yours
from ..simulate import Recording
from .planning import LINKS, simulated_ms
from .workload import MODEL, NUM_DRAFT, generate

DRAFTING = {"method": "specmoe", "gamma": 5}
# what a part of each kind takes the place of; a planner that measures the clock would not repeat
INSTEAD = {
    "draft": {"resident": DRAFTING | {"draft": "resident"}},
    "draft_set": {"hot_temporal": DRAFTING | {"draft_set": "hot_temporal"}},
    "substitute": {"affinity": DRAFTING | {"substitute": "affinity"}},
    "eviction": {"temporal": {"method": "cached", "eviction": "temporal"}},
    "planner": {"always 5": DRAFTING, "never": {"method": "cached"}},
}


def score_parts(kind: str, num_prompts: int = 12) -> pd.DataFrame:
    """A row per registered part of ``kind``, after the built-in one: part, same_text (as without a
    draft), tokens_per_round, kB_per_token, and for each link the simulated milliseconds of a row's
    token; of a part that did wrong only the sentence, as ``refused``. ``OptionError`` for an unknown
    kind."""
    check_choice("kind", kind, KINDS)
    base = {"method": "cached"} if kind == "eviction" else DRAFTING
    base = {"method": "specmoe"} if kind == "planner" else base
    ways = INSTEAD[kind] | {name: base | {kind: name} for name in yours(kind)}
    with load(MODEL, store="memory", draft_experts=NUM_DRAFT) as engine:
        run = {"num_prompts": num_prompts, "batch_size": 4}
        plain = generate(engine, method="on_demand", **run).sequences
        rows = []
        for name, how in ways.items():
            try:
                output = generate(engine, **run, **how)
            except OptionError as refusal:  # the others are still scored
                rows.append({"part": name, "refused": str(refusal)})
                continue
            row = _row(output, Recording.of(output, engine.info).full())
            same = all(map(_equal, output.sequences, plain))
            rows.append({"part": name, "same_text": same} | row)
    return pd.DataFrame(rows)


def _equal(one, other) -> bool:
    return one.tolist() == other.tolist()


def _row(output, run: Recording) -> dict:
    stats = output.stats
    return {
        "tokens_per_round": round(stats.tokens_per_round, 2),
        "kB_per_token": round(stats.fetched_bytes_per_token / 1e3, 1),
        **{f"{link}, ms": round(simulated_ms(run, rate), 2) for link, rate in LINKS.items()},
    }
