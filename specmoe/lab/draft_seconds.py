"""What a draft would cost in seconds on a described machine, at the size of a real model. Simulated.

Comes in: a recorded run of a shipped model and who drafted. Goes out: seconds per token. Counts
(tokens, reads, experts of a verification) are the run's; bytes and FLOP are the real model's; rates
are ``simulate.hardware``'s. The simulator prices drafts by residents; here are the others' steps:

- copies of all experts: as many of them as tokens would ask for that chose independently, by the use
  that the verifications counted, at the copies' bytes; widening them costs nothing,
- merged experts: N, as residents,
- layers left out: half of every step,
- a text (n-gram, the oracle): nothing. An n-gram joined with residents pays as if all rows used these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .simulate.costs import Described
from .simulate.hardware import PRESETS, Hardware
from .simulate.real_models import known_models, size_of
from .simulate.recording import Recording
from .simulate.replay import Replay
from .simulate.sizes import ModelSize

# link -> machine; real models whose tokens ask for as many experts as those of the shipped ones
LINKS = {"PCIe 5.0": "h100", "SSD": "h100-ssd"}
REAL = ("mixtral-8x7b", "nllb-moe-54b")


@dataclass(frozen=True)
class Steps:
    """Draft steps of a source: the ``share`` of a pass that they compute, the bytes of an expert
    that drafts over those of a whole one (``weight``), and how many distinct ones a number of tokens
    asks for (``reach``)."""

    share: float
    weight: float
    reach: Callable[[int], float]


class Drafting(Described):
    """``Described`` whose drafts are by ``steps``."""

    def __init__(self, hardware: Hardware, size: ModelSize, steps: Steps):
        super().__init__(hardware, size)
        self.steps = steps

    def draft_trunk(self, rows: int, positions: int) -> float:
        return self.steps.share * super().draft_trunk(rows, positions)

    def draft_layer(self, tokens: int, draft_experts: int) -> float:
        pairs = tokens * self.size.top_k
        experts = min(self.steps.reach(tokens), pairs)
        machine, weight = self.hardware, self.steps.weight
        work_s = pairs * self.size.expert_flops_per_token / machine.flop_per_s
        touched_s = experts * weight * self.size.expert_bytes / machine.memory_bytes_per_s
        fixed_s = machine.layer_overhead_s + experts * machine.expert_overhead_s
        return self.steps.share * (fixed_s + max(work_s, touched_s))


def steps_of(source: str, num_draft: int, weight: float, shares: np.ndarray) -> Steps | None:
    """Of a source's name; None for one of your own, whose steps nobody knows. ``num_draft``: experts
    per layer that draft; ``weight``: bytes of a copy over those of an expert; ``shares`` [L, E]: of
    the tokens, those that choose an expert."""
    family = source.partition(":")[0]
    if family in ("ngram", "oracle", "no draft"):
        return Steps(0.0, 0.0, lambda tokens: 0.0)
    if family == "low_bit":
        distinct = lambda tokens: float((1 - (1 - shares) ** tokens).sum(axis=1).mean())  # noqa: E731
        return Steps(1.0, weight, distinct)
    if family in ("resident", "merged", "ngram+resident"):
        return Steps(1.0, 1.0, lambda tokens: num_draft)
    return Steps(0.5, 1.0, lambda tokens: num_draft) if source == "layer_skip" else None


def shares_of(frame: pd.DataFrame, num_experts: int) -> np.ndarray:
    """[L, E]: of the tokens that were verified, those that chose an expert."""
    verified = frame[frame["phase"] == "verify"]
    tokens = verified.loc[verified["kind"] == "verify", "count"].sum()
    routed = verified[verified["kind"] == "route"]
    chosen = routed.groupby(["layer", "expert"])["count"].sum().unstack(fill_value=0)
    return (chosen.reindex(columns=range(num_experts), fill_value=0) / tokens).to_numpy()


def seconds(recording: Recording, steps: Steps) -> dict[str, dict[str, float]]:
    """real model -> link -> simulated seconds per token."""
    found: dict[str, dict[str, float]] = {}
    for real in REAL:
        size = replace(size_of(real), top_k=recording.info["top_k"])
        for link, machine in LINKS.items():
            costs = Drafting(PRESETS[machine], size, steps)
            run = Replay(recording, PRESETS[machine], size, costs, own=False)
            for number in range(len(recording.rows)):
                run.round(number, oracle=False)
            per_token = float(run.lanes.now_s / recording.num_new_tokens)
            found.setdefault(real, {})[link] = round(per_token, 7)
    return found


def speeds(table: pd.DataFrame) -> pd.DataFrame:
    """A row per row of ``table`` (``drafts.shipped``), real model and link: ``seconds`` per token and
    ``speed``, over a pool of the same fast memory that does not draft. Rows without seconds, such as
    those of a source of your own, are left out."""
    rows = []
    known = table["simulated"].map(lambda each: isinstance(each, dict))
    for row in table[known].to_dict("records"):
        for real, links in row.pop("simulated").items():
            rows += [row | {"real": real, "link": link, "seconds": s} for link, s in links.items()]
    found = pd.DataFrame(rows)
    at = ["model", "batch", "real", "link"]
    plain = found[found["source"] == "no draft"].set_index(at)["seconds"]
    base = found[at].merge(plain.rename("plain"), left_on=at, right_index=True, how="left")
    return found.assign(speed=base["plain"] / found["seconds"])


def fastest(table: pd.DataFrame) -> pd.DataFrame:
    """A row per model and batch, a column per real model and link: the fastest draft that is no bound
    (or none), with its speed over no draft."""
    found = speeds(table)
    found = found[found["source"] != "oracle"]
    best = found.loc[found.groupby(["model", "batch", "real", "link"])["speed"].idxmax()]
    best = best.sort_values("link")
    names = best["source"].where(
        best["source"] != "resident", "resident, N = " + best["size"].astype(str)
    )
    best = best.assign(
        said=names + best["speed"].map(" {:.2f}\N{MULTIPLICATION SIGN}".format),
        where=best["model"] + ", B = " + best["batch"].astype(str),
        at=best["real"].map(lambda name: known_models()[name].title) + ", " + best["link"],
    )
    wide = best.pivot(index="where", columns="at", values="said")
    wide.index.name = wide.columns.name = None
    order = best.sort_values(["model", "batch"])["where"].unique()
    return wide.loc[order]
