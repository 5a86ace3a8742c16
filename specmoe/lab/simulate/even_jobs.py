"""Jobs at a real model's own shape: what a round asks for and gives is calculated, not recorded.

Comes in: a ``ModelSize``, a batch, how much fast memory there is, how often a draft is right. Goes
out: ``auto.Jobs``. Every expert is as likely as any other; of those that a pass names, the share of
all that fast memory holds is there, and half of that memory reads ahead while something is drafted.
``real_size`` plays them: few rounds for a text, each of seconds. ``python -m specmoe.lab.simulate
few-rounds`` writes ``results/auto_few_rounds.json``.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ...shipped import need_path, package_path
from ..writing import write_whole
from .auto import FIXED, GAMMAS, PLANNERS, ROUNDS, Jobs, fastest, machines, play
from .hardware import Hardware
from .real_models import size_of
from .recording import Recording
from .sizes import ModelSize

RESULTS = package_path("lab/simulate/results/auto_few_rounds.json")
MODEL = "olmoe-1b-7b"
SHARES, BATCHES = (0.12, 0.5), (1, 16)
TEXT = 32  # tokens of each row: at most so many rounds
# how often a drafted token is right, and how sure of it the draft is: trained weights know, random
# ones spread what they say over the whole vocabulary
DRAFTS = {"trained": (0.75, 0.75), "random": (0.84, 0.001)}
# What ``lab.bench.real`` found beside its rows, and nothing taken off for overlap.
HERE = Hardware("two cores and a disk", 9.5e8, 1e-4, 1.5e11, 3e10)


def even_jobs(size: ModelSize, batch: int, share: float, drafts: str) -> Jobs:
    """``drafts``: of ``DRAFTS``."""
    right, sure = DRAFTS[drafts]
    record = {gamma: _recording(size, batch, gamma, share, right) for gamma in GAMMAS}
    single = {f"specmoe, gamma {gamma}": record[gamma] for gamma in FIXED}
    return Jobs(record, {"cached": record[0]} | single, sure)


def _recording(size: ModelSize, batch: int, gamma: int, share: float, right: float) -> Recording:
    chance, live = random.Random(gamma), batch * (1 + gamma)
    named = round(size.num_experts * (1 - (1 - size.top_k / size.num_experts) ** live))
    hits = round(share * named)
    ahead = min(named - hits, round(share * size.num_experts / 2)) if gamma else 0
    counts = {"experts": named, "pairs": live * size.top_k, "hits": hits, "prefetches": ahead}
    counts["fetches"] = named - hits - ahead
    each = {"rows": batch, "live": live, "gammas": gamma, "positions": TEXT}
    info = {"name": size.name, "experts": size.num_experts, "top_k": size.top_k}
    info["draft_experts"] = max(1, round(share * size.num_experts / 2))
    given = [sum(1 + _right(chance, right, gamma) for _ in range(batch)) for _ in range(ROUNDS)]
    return Recording(
        info,
        "specmoe" if gamma else "auto",
        batch,
        **{name: np.full((ROUNDS, size.num_layers), value) for name, value in counts.items()},
        **{name: np.full(ROUNDS, value) for name, value in each.items()},
        committed=np.array(given),
        drafting=np.full((ROUNDS, gamma), batch),
        settings={"gamma": gamma},
    )


def _right(chance: random.Random, right: float, most: int) -> int:
    """Drafted tokens that are accepted."""
    run = 0
    while run < most and chance.random() < right:
        run += 1
    return run


def real_size(
    places=None, shares=SHARES, batches=BATCHES, drafts=DRAFTS, noise=None
) -> pd.DataFrame:
    """A row per draft, share, batch, machine (None: the thirty and ``HERE``) and planner: the
    seconds of a text of ``TEXT`` tokens for each row over those of the best single method."""
    size, rows = size_of(MODEL), []
    for kind, share, batch in product(drafts, shares, batches):
        jobs = even_jobs(size, batch, share, kind)
        for machine in places or [*machines(), HERE]:
            best, least_s = fastest(jobs, machine, size)
            for planner, make in PLANNERS.items():
                times = noise() if noise else lambda: 1.0
                spent_s = play(jobs, make(jobs.first), machine, size, TEXT * batch, times)
                told = {"drafts": kind, "share": share, "batch": batch, "machine": machine.name}
                ratio = spent_s / (least_s * TEXT * batch)
                rows.append(told | {"planner": planner, "best": best, "ratio": ratio})
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """The worst ratio by planner, draft and batch: of all shares of fast memory and machines."""
    return rows.groupby(["planner", "drafts", "batch"], sort=False)["ratio"].max().reset_index()


def table(kept: pd.DataFrame) -> pd.DataFrame:
    """``summary`` in words."""
    return kept.assign(ratio=kept["ratio"].map("{:.2f}×".format))


def write(path: Path = RESULTS) -> Path:
    """On ``HERE``."""
    rows = summary(real_size([HERE])).round(4).to_dict("records")
    write_whole(path, json.dumps(rows, indent=0) + "\n")
    return path


def shipped(path: Path = RESULTS) -> pd.DataFrame:
    """What ``write`` kept."""
    return pd.DataFrame(json.loads(need_path(path).read_text(encoding="utf-8")))
