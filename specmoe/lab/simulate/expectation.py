"""What to expect of a machine that decodes with a model too large for its fast memory: the link, the
memory and the arithmetic each take their time, and the slowest decides; or, where the engine's own
parts were probed on the machine, the sum of what they take (``timed``).

Comes in: a ``ModelSize``, a ``Hardware``, how much fast memory there is. Goes out: an
``Expectation`` for each method, calculated. Reads, memory and arithmetic are taken to overlap fully
and overheads to be nothing, so the speed is a ceiling. What a pool misses and what a round gives is
not calculated: it was counted in recordings of a small model (``Counts``), and to carry it over to
another model is an assumption. One text asks for so many times its top-k; of a batch, the distinct
experts grow as those of even use do (``distinct``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache

import numpy as np
import pandas as pd

from ...errors import FastMemoryError, OptionError, check_choice
from ..floor import Floor, Rates, floor
from .hardware import Hardware, is_number, preset
from .real_models import size_of
from .recording import Recording
from .shipped import BATCHES, GAMMAS, SHIPPED, recordings
from .sizes import ModelSize
from .timed import seconds_per_token

LIKE = "tiny-balanced"  # its experts are used as evenly as large models are trained to use theirs
GAMMA = 4
EVEN = "even"  # every expert as likely as any other, whatever came before


@dataclass(frozen=True)
class Counts:
    """At one batch and one share of experts in fast memory; reads and experts per layer are relative
    to the model's top-k, so that they carry over."""

    like: str  # the recorded model
    share: float  # 0 .. 1
    pool_reads: float  # of a plain pass: what a pool misses
    round_tokens: float  # tokens that a round gives
    round_reads: float  # of a round
    round_experts: float  # distinct ones that its verification needs
    gamma: float  # draft steps of a round, on average
    batch: int = 1
    pass_experts: float = 1.0  # distinct ones that a plain pass needs
    like_shape: tuple[int, int] = (1, 1)  # experts of a layer, and how many a token gets


def counts_at(share: float, like: str = LIKE, gamma: int = GAMMA, batch: int = 1) -> Counts:
    """Of the shipped recordings of ``like``, between which we interpolate; with no expert in fast
    memory everything is read, with all of them nothing."""
    check_choice("like", like, [*SHIPPED, EVEN])
    if like == EVEN:
        raise OptionError("like='even' depends on the model's shape: ask expect or even_counts")
    if isinstance(batch, bool) or batch not in BATCHES:
        there = ", ".join(map(str, BATCHES))
        raise OptionError(f"batch={batch!r} was not recorded: one of {there}")
    if gamma not in GAMMAS:
        raise OptionError(f"gamma={gamma!r} was not recorded: one of {', '.join(map(str, GAMMAS))}")
    if not is_number(share) or not 0 <= share <= 1:
        raise OptionError(f"share={share!r} of the experts in fast memory must be 0 to 1")
    known = _counted(like, gamma, batch)
    plain = float(known["pass_experts"].mean())
    ends = {"pool_reads": (plain, 0.0), "token_reads": (plain / batch, 0.0)}

    def at(name: str) -> float:
        left, right = ends.get(name, (known[name].iloc[0], known[name].iloc[-1]))
        shares, values = [0.0, *known["share"], 1.0], [left, *known[name], right]
        return float(np.interp(share, shares, values))

    tokens = at("tokens")
    reads = at("token_reads") * tokens
    shape = tuple(int(known[name].iloc[0]) for name in ("num_experts", "top_k"))
    counted = (at("pool_reads"), tokens, reads, at("experts"), at("gamma"))
    return Counts(like, share, *counted, batch, plain, shape)


def distinct(num_tokens: float, num_experts: int, top_k: int) -> float:
    """Experts of a layer that so many tokens need if use is even, in top-k's."""
    return num_experts * (1 - (1 - top_k / num_experts) ** num_tokens) / top_k


def even_counts(size: ModelSize, share: float, gamma: float = GAMMA, batch: int = 1) -> Counts:
    """Calculated, not recorded: no pool does better than its share of the experts. Half of it
    drafts and stays; over the other half a round reads, unless less than one expert of a layer is
    missing (measured at 12, 25, 50 and 100 %). What a round gives is no matter of routing: it is as
    counted with ``LIKE``."""
    shape = (size.num_experts, size.top_k)
    plain, block = (distinct(tokens, *shape) for tokens in (batch, batch * (gamma + 1)))
    counted = counts_at(share, LIKE, GAMMA, batch)
    stays = share if 1 - share < 1 / size.num_experts else share / 2
    reads = (plain * (1 - share), counted.round_tokens, block * (1 - stays), block)
    return Counts(EVEN, share, *reads, gamma, batch, plain, shape)


def _carried(counts: Counts, size: ModelSize) -> Counts:
    """To a model with another number of experts: one text as it is, a batch by ``distinct``."""
    if counts.batch == 1:
        return counts
    shape = (size.num_experts, size.top_k)
    plain, block = (
        distinct(tokens, *shape) / distinct(tokens, *counts.like_shape)
        for tokens in (counts.batch, counts.batch * (counts.gamma + 1))
    )
    return replace(
        counts,
        pool_reads=counts.pool_reads * plain,
        pass_experts=counts.pass_experts * plain,
        round_reads=counts.round_reads * block,
        round_experts=counts.round_experts * block,
    )


@cache
def _counted(like: str, gamma: int, batch: int) -> pd.DataFrame:
    """One row per recorded size of fast memory, by share."""
    found = []
    for pool in recordings(like, batch=batch, method="cached"):
        draft_experts = pool.info["draft_experts"]
        of = recordings(like, draft_experts, batch, "specmoe")
        fits = [r for r in of if r.settings["gamma"] == gamma and not r.settings["prefetch"]]
        found.append(_row(pool, fits[0]))
    return pd.DataFrame(found).sort_values("share")


def _row(pool: Recording, drafting: Recording) -> dict[str, float]:
    info, layers = pool.info, pool.experts.shape[1]
    top_k, rounds = info["top_k"], len(drafting.rows)
    per_token = [each.num_reads / layers / each.num_new_tokens / top_k for each in (pool, drafting)]
    return {
        "share": info["slots"] / layers / info["experts"],
        "pool_reads": per_token[0] * pool.batch,
        "token_reads": per_token[1],
        "pass_experts": pool.experts.sum() / len(pool.rows) / layers / top_k,
        "num_experts": info["experts"],
        "top_k": top_k,
        "tokens": drafting.num_new_tokens / rounds,
        "experts": drafting.experts.sum() / rounds / layers / top_k,
        "gamma": float(drafting.gammas.mean()),
    }


@dataclass(frozen=True)
class Expectation:
    """Of one method, per token. Calculated, not measured."""

    method: str
    model: str
    machine: str
    share: float  # of the experts, in fast memory
    fast_memory_bytes: float  # what it takes
    fits: bool  # into the budget
    link_bytes: float
    memory_bytes: float  # read from fast memory
    flop: float
    link_s: float
    memory_s: float
    compute_s: float
    batch: int = 1  # texts decoded together
    parts_s: float | None = None  # by the engine's own parts, where they were probed

    @property
    def seconds(self) -> float:
        """By the engine's parts; without them at least: the slowest of the three."""
        return self.parts_s or self._floor.seconds

    @property
    def tokens_per_second(self) -> float:
        """Without the engine's parts: at most."""
        return 1 / self.seconds

    @property
    def limit(self) -> str:
        """What decides: "link", "memory" or "compute"."""
        return self._floor.limit

    @property
    def _floor(self) -> Floor:
        return Floor(self.link_s, self.compute_s, self.memory_s)


def expect(
    model,
    machine: Hardware | str,
    budget_bytes: float | None = None,
    *,
    share: float | None = None,
    like: str = LIKE,
    gamma: int = GAMMA,
    weights: str | None = None,
    batch: int = 1,
) -> dict[str, Expectation]:
    """``on_demand``, ``cached``, ``specmoe`` and ``resident`` (everything in fast memory).

    ``model``: what ``size_of`` takes. ``machine``: a ``Hardware`` or a preset's name.
    ``budget_bytes``: fast memory to use, None: the machine's; what the trunk leaves of it holds
    experts. ``share``: of the experts instead (0 .. 1), whatever memory that takes. ``like``,
    ``gamma`` and ``batch``: which recordings (``counts_at``). ``FastMemoryError`` where not even one layer's
    top-k experts fit.
    """
    size = size_of(model, weights)
    machine = preset(machine) if isinstance(machine, str) else machine
    budget = machine.fast_memory_bytes if budget_bytes is None else budget_bytes
    if share is None:
        share = _share(size, machine, budget)
    if like == EVEN:
        counts = even_counts(size, share, gamma, batch)
    else:
        counts = _carried(counts_at(share, like, gamma, batch), size)
    return {
        method: expectation_of(method, size, machine, counts, budget)
        for method in ("on_demand", "cached", "specmoe", "resident")
    }


def _share(size: ModelSize, machine: Hardware, budget: float) -> float:
    if not is_number(budget) or budget <= 0:
        what = f"budget_bytes={budget!r} must be a number of bytes above zero"
        raise OptionError(f"{what}: say how much fast memory {machine.name!r} may use")
    least = size.held_bytes + size.top_k * size.expert_bytes
    if budget < least:
        what = f"{budget / 1e9:.1f} GB of fast memory cannot hold {size.name!r}"
        why = f"all but its experts, and {size.top_k} of them, take {least / 1e9:.1f} GB"
        raise FastMemoryError(f"{what}: {why}; use a larger budget, or smaller weights")
    return min(1.0, (budget - size.held_bytes) / size.experts_bytes)


def expectation_of(
    method: str, size: ModelSize, machine: Hardware, counts: Counts, budget: float = 0
) -> Expectation:
    """Of one method with ``counts`` as they are; ``budget`` 0: whatever memory that takes."""
    passes, experts, read, tokens = work(method, counts)
    share = {"on_demand": size.top_k / size.num_experts / size.num_layers, "resident": 1.0}
    share = share.get(method, counts.share)
    held = size.held_bytes + share * size.experts_bytes
    # a unified memory is the slow memory too
    needed = size.held_bytes + size.experts_bytes if machine.is_unified else held
    link_bytes = read * size.bytes_per_token / tokens
    # a pass cannot need more experts than there are
    experts = min(experts, passes * size.num_experts / size.top_k)
    touched = passes * size.trunk_bytes + experts * size.bytes_per_token
    # tokens computed in a round
    steps = counts.batch * (passes + (counts.gamma if method == "specmoe" else 0))
    flop = size.trunk_flops_per_token
    flop += size.num_layers * size.top_k * size.expert_flops_per_token
    amounts = (link_bytes, touched / tokens, steps * flop / tokens)
    rates = Rates(machine.link_bytes_per_s, machine.flop_per_s, machine.memory_bytes_per_s)
    least = floor(amounts[0], amounts[2], amounts[1], rates)
    took = (least.link_s, least.memory_s, least.compute_s)
    fits = not budget or needed <= budget
    said = (method, size.name, machine.name, share, held, fits)
    parts = machine.engine
    parts_s = parts and seconds_per_token(method, size, machine.link_bytes_per_s, parts, counts)
    return Expectation(*said, *amounts, *took, counts.batch, parts_s)


def work(method: str, counts: Counts) -> tuple[float, float, float, float]:
    """What a method does to give so many tokens: passes through the trunk, experts multiplied with,
    experts read over the link (both in top-k's of every layer), and the tokens."""
    if method == "specmoe":
        passes = counts.gamma + 1
        # each draft step touches resident experts, as many as a plain pass at most
        touched = counts.gamma * counts.pass_experts + counts.round_experts
        return passes, touched, counts.round_reads, counts.round_tokens
    reads = {"on_demand": counts.pass_experts, "cached": counts.pool_reads, "resident": 0.0}
    return 1.0, counts.pass_experts, reads[method], float(counts.batch)


def expectations(
    models: Iterable, machines: Iterable[Hardware | str], budget_bytes: float | None = None, **given
) -> pd.DataFrame:
    """One row for each model, machine and method: the fields of ``Expectation`` with
    ``tokens_per_second`` and ``limit``. A machine that cannot even hold a model's trunk has no
    rows of it. Options are those of ``expect``."""
    rows = []
    machines = list(machines)
    for model in models:
        for machine in machines:
            try:
                found = expect(model, machine, budget_bytes, **given)
            except FastMemoryError:
                continue
            for each in found.values():
                more = {"tokens_per_second": each.tokens_per_second, "limit": each.limit}
                rows.append(asdict(each) | more)
    return pd.DataFrame(rows)
