"""Would a second branch pay? A draft's second choice verified beside its first, by the price of
``by_bytes``.

Comes in: a run of one model. Goes out: for each batch what such a branch would bring and cost.
``python -m specmoe.lab.second_branch`` writes ``results/second_branch.json``. Nothing is built: it
is counted on recorded routings, and all that is not known is counted in the branch's favour. One
token stands beside each row's draft, where the draft thinks it likeliest to be needed (the chance of
all before it, times that of the second choice). Where the first choice is wrong there and the second
is the target's, the row gains one token. Its price are experts that the block reads for one token
alone, per token of the block: a second choice asks for what others of the block ask for no more
often than they do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from ..engine.engine import Engine, load
from ..shipped import need_path, package_path
from .bench.prompts import prompts_for
from .bound import GAMMA, PER_LAYER, SEED
from .replay import as_frame
from .writing import write_whole

RESULTS = package_path("lab/results/second_branch.json")
BATCHES, NUM_PROMPTS, NEW_TOKENS = (1, 4), 8, 48


class Choices:
    """A run's sampler that remembers the draft's two likeliest tokens and their chances, a step each,
    by round and prompt."""

    def __init__(self, batch):
        self.sampler, self.trace = batch.sampler, batch.trace
        self.steps: dict[tuple[int, int], list] = defaultdict(list)

    def draft(self, logits, prompts, positions):
        best = logits.float().softmax(dim=-1).topk(2)
        found = zip(prompts, best.indices.tolist(), best.values.tolist(), strict=True)
        for prompt, tokens, chances in found:
            self.steps[self.trace.round, prompt].append((*tokens, *chances))
        return self.sampler.draft(logits, prompts, positions)

    def __getattr__(self, name):
        return getattr(self.sampler, name)


def count(engine: Engine, prompts: list, batch: int) -> dict:
    """``second_right``: of rejected tokens, those whose second choice was the target's; ``gain``:
    tokens that the branch brings a row and round; ``price``: experts read for it; ``worth``: gain *
    reads per token / price (above 1 it pays)."""
    how = {"method": "specmoe", "gamma": GAMMA, "prefetch": False, "batch_size": batch}
    with engine.start(prompts, max_new_tokens=NEW_TOKENS, **how) as run:
        choices = run.batch.sampler = Choices(run.batch)
        output = run.output()
    blocks = [block for block in output.trace.blocks if block.drafted]
    cut = [
        block for block in blocks if block.accepted < min(len(block.drafted), len(block.committed))
    ]
    right = [block for block in cut if _second(choices, block) == block.committed[block.accepted]]
    gain = sum(_place(choices, block) == block.accepted for block in right) / len(blocks)
    price, reads = _price(as_frame(output))
    return {
        "model": engine.info["name"],
        "batch": batch,
        "rejected": len(cut) / len(blocks),
        "second_right": len(right) / max(1, len(cut)),
        "gain": gain,
        "reads_per_token": reads,
        "price": price,
        "worth": gain * reads / price,
    }


def _second(choices: Choices, block) -> int:
    return choices.steps[block.round, block.row][block.accepted][1]


def _place(choices: Choices, block) -> int:
    """Where the branch stands."""
    steps = choices.steps[block.round, block.row][: len(block.drafted)]
    first, second = torch.tensor([step[2:] for step in steps]).double().T
    before = torch.cat([torch.ones(1, dtype=torch.float64), first.cumprod(0)[:-1]])
    return int((before * second).argmax())


def _price(frame: pd.DataFrame) -> tuple[float, float]:
    """Experts read for one token alone, per verified token; reads per new token."""
    frame = frame[(frame["phase"] == "verify") | (frame["kind"] == "round")]
    keys = ["round", "layer", "expert"]
    reads = frame.loc[frame["kind"] == "fetch", keys]
    alone = frame.loc[(frame["kind"] == "route") & (frame["count"] == 1), keys]
    verified = frame.loc[frame["kind"] == "verify", "count"].sum()
    tokens = frame.loc[frame["kind"] == "round", "count"].sum()
    return len(reads.merge(alone)) / verified, len(reads) / tokens


def count_model(model: str, batch: int) -> dict:
    """``count`` with held-out prompts and the fast memory of ``bound.PER_LAYER``."""
    with load(model, store="memory") as engine:
        room = PER_LAYER[model] * engine.memory.num_layers * engine.memory.slot_bytes
    with load(model, store="memory", fast_memory=room) as engine:
        return count(engine, prompts_for(engine, NUM_PROMPTS, SEED), batch)


def shipped(path: str | Path = RESULTS) -> pd.DataFrame:
    """What ``main`` counted."""
    return pd.DataFrame(json.loads(need_path(Path(path)).read_text(encoding="utf-8"))["rows"])


def main() -> None:
    rows = pd.DataFrame([count_model(*each) for each in product(PER_LAYER, BATCHES)]).round(4)
    print(rows.to_string())
    record = {"gamma": GAMMA, "new_tokens": NEW_TOKENS, "seed": SEED}
    record["rows"] = rows.to_dict("records")
    write_whole(RESULTS, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
