"""The round: draft, verify, accept, replace. The paper's decode cycle over ragged rows, and nothing
else.

Comes in: a ``Batch`` (decoder, experts, sampler, planner, the queue of prompts). Goes out: one
``Round`` after the other, its finished rows still in flight. ``engine.run`` iterates ``decode``.
Plain decoding is the same loop with gamma = 0.

Every row always has exactly one token that is not in the KV cache yet: its last. A round feeds that
token and the drafted ones; the KV of rejected tokens is simply overwritten by the next round.

    B rows, G drafted tokens, V vocabulary
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import torch

from ..model.decoder import Decoder, check_finite
from ..offload.experts import RunExperts
from ..trace import PoolCounts, Round, Trace
from .block import Drafted
from .planner import Planner
from .processors import RowRules, process_block
from .sampling import Sampler
from .sources.base import DraftSource, nothing
from .sources.resident import Resident

# padded tokens of one prefill chunk, at most (one long prompt may exceed it)
PREFILL_TOKENS = 16384


@dataclass
class Sequence:
    """One prompt being continued. ``limit`` is its longest total length. ``source``: what an
    encoder reads; the tokens are then the decoder's. ``rules``: its processors and where it ends,
    if it has any of its own."""

    prompt: int  # index in the job
    tokens: list[int]
    limit: int
    num_prompt: int = 0
    finished: bool = False
    source: list[int] | None = None
    rules: RowRules | None = None
    # rows with the same number differ only in noise, and share one prefill
    twin: int | None = None

    def __post_init__(self):
        self.num_prompt = len(self.tokens)

    @property
    def num_prefill(self) -> int:
        """Tokens that run before the first round."""
        return self.num_prompt - 1 + len(self.source or [])

    @property
    def start(self) -> int:
        """Where its last token, which the next block begins with, will stand in the KV cache."""
        return len(self.tokens) - 1

    @property
    def room(self) -> int:
        """New tokens it may still get."""
        return self.limit - len(self.tokens)

    def add(self, token: int, eos: frozenset[int]) -> None:
        """One token more; the row ends at an end token, where its rules say so, or at its limit."""
        self.tokens.append(token)
        ends = token in eos if self.rules is None else self.rules.end(self.tokens)
        self.finished = ends or self.room == 0


@dataclass
class Batch:
    """What is decoded together and all that this takes, passed in: nothing is global. ``rows`` are
    in flight, ``waiting`` are prefilled and not yet. A part may be replaced before the first
    round."""

    decoder: Decoder
    experts: RunExperts
    sampler: Sampler
    planner: Planner
    queue: deque[Sequence]
    batch_size: int
    eos: frozenset[int]
    trace: Trace
    rows: list[Sequence] = field(default_factory=list)
    waiting: deque[tuple[Sequence, object]] = field(default_factory=deque)
    rounds: list[Round] = field(default_factory=list)
    prefill: PoolCounts = field(default_factory=PoolCounts)
    prefill_s: float = 0.0
    during_prefill: Callable = nullcontext  # a context that prefills run in
    source: DraftSource = field(default_factory=Resident)


def decode(batch: Batch) -> Iterator[Round]:
    """Draft, verify, accept, replace until no row is left; finished rows are still in flight when
    their round is given. gamma = 0 is plain decoding."""
    refill(batch)
    while batch.rows:
        batch.trace.round, began_s = len(batch.rounds), time.perf_counter()
        before = batch.experts.pool.counts.copy()
        drafted = draft(batch)  # computes resident experts only
        ahead, drafted_s = batch.experts.pool.counts.copy(), time.perf_counter() - began_s
        logits = verify(batch, drafted)  # each missing expert is asked for once
        accepted, num_new = accept(batch, drafted, logits)
        verify_s = time.perf_counter() - began_s - drafted_s
        told = pool_told(batch, before, ahead) | {"draft_s": drafted_s, "verify_s": verify_s}
        yield observe(batch, drafted, accepted, num_new, told)
        retire(batch)
        refill(batch)  # waiting prompts take the free places


def draft(batch: Batch) -> Drafted:
    """Up to the planner's gamma tokens per row from the run's draft source (``sources``; the
    paper's, step 1, is the model restricted to its resident experts)."""
    rows, gamma = batch.rows, batch.planner.next_gamma()
    # the last token is the target's own
    limits = torch.tensor([max(0, min(gamma, row.room - 1)) for row in rows])
    return batch.source.draft(batch, limits) if int(limits.max()) else nothing(len(rows))


def verify(batch: Batch, drafted: Drafted) -> torch.Tensor:
    """The full model, once, over every row's last token and drafted tokens (paper, step 2) ->
    logits [B, G + 1, V].

    While it runs, the pool keeps each layer's next draft set from the moment the layer's router has
    spoken (step 3).
    """
    batch.trace.phase, began_s = "verify", time.perf_counter()
    block = torch.cat([_last_tokens(batch.rows), drafted.tokens], dim=1)  # [B, G + 1]
    # padding fetches nothing
    live = torch.arange(block.shape[1]) <= torch.tensor(drafted.num)[:, None]
    with batch.experts.verifying(live):
        logits = batch.decoder.forward(block, _starts(batch.rows))
    check_finite(logits)
    num, seconds = int(live.sum()), time.perf_counter() - began_s
    batch.trace.add("verify", count=num, size=len(batch.rows), seconds=seconds)
    return logits


def accept(batch: Batch, drafted: Drafted, logits: torch.Tensor) -> tuple[list[int], int]:
    """Commit each row's accepted tokens and one of the target's own; a row ends at its first EOS or
    at its limit. -> tokens accepted per row [B], new tokens of all rows."""
    batch.trace.phase, rows = "accept", batch.rows
    positions, tokens = (_starts(rows) + 1).tolist(), drafted.tokens.to(logits.device)
    logits, counting, faults = process_block(rows, logits, drafted.tokens, drafted.num)
    verdicts = batch.sampler.verify(logits, tokens, counting, drafted.q, _prompts(rows), positions)
    num_new = 0
    for index, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
        drafts, num, before = drafted.tokens[index].tolist(), drafted.num[index], len(row.tokens)
        for place, token in enumerate([*drafts[: verdict.accepted], verdict.token]):
            if (index, place) in faults:
                raise faults[index, place]
            row.add(token, batch.eos)
            if row.finished:
                break
        new, accepted = row.tokens[before:], verdict.accepted
        num_new += len(new)
        batch.trace.add_block(row.prompt, before, drafts[:num], accepted, new)
    batch.decoder.settle(_starts(rows))
    return [verdict.accepted for verdict in verdicts], num_new


def pool_told(batch: Batch, before: PoolCounts, ahead: PoolCounts) -> dict:
    """What the pool did in a round, by fields of ``Round``; its counts ``before`` it, and when all
    was drafted (``ahead``)."""
    done, installed = batch.experts.pool.counts.minus(before), batch.experts.installed
    return {
        "num_reads": done.num_fetches,
        "num_ahead": ahead.num_fetches - before.num_fetches,
        "named": (done.num_hits + done.num_misses)
        / (len(installed.draft_layers) * installed.num_experts),
        "wait_s": done.wait_s,
    }


def observe(batch: Batch, drafted: Drafted, accepted: list[int], num_new: int, told: dict) -> Round:
    """The round as one record, which trace, stats and planner read; ``told``: more of its fields,
    as they were measured."""
    done = Round(
        gamma=len(drafted.steps),
        **told,
        drafted=drafted.num,
        accepted=accepted,
        steps=drafted.steps,
        expected_rejections=drafted.expected_rejections,
        new_tokens=num_new,
        index=len(batch.rounds),
        prompts=_prompts(batch.rows),
    )
    batch.trace.add(
        "round", count=num_new, size=len(batch.rows), seconds=done.draft_s + done.verify_s
    )
    batch.rounds.append(done)
    batch.planner.observe(done)
    return done


def retire(batch: Batch) -> None:
    """Finished rows leave: they neither fetch nor count as hot from now on."""
    rows = batch.rows
    for index in reversed(range(len(rows))):
        if rows[index].finished:
            batch.decoder.remove_row(index, len(rows) - 1)
            rows[index] = rows[-1]
            rows.pop()


def refill(batch: Batch) -> None:
    """Prompts from the queue take the free places, prefilled a chunk at a time."""
    while len(batch.rows) < batch.batch_size and (batch.waiting or batch.queue):
        if not batch.waiting:
            prefill(batch)
        row, state = batch.waiting.popleft()
        batch.decoder.add_row(len(batch.rows), state)
        batch.rows.append(row)


def prefill(batch: Batch) -> None:
    """Run the next chunk of prompts, each distinct expert fetched once per layer, twins once."""
    twins = next_chunk(batch)
    firsts = [group[0] for group in twins]
    began_s, before = time.perf_counter(), batch.experts.pool.counts.copy()
    phase, batch.trace.phase = batch.trace.phase, "prefill"
    with batch.experts.prefilling(), batch.during_prefill():
        states = batch.decoder.prefill(firsts, batch.experts.set_live)
    for group, state in zip(twins, states, strict=True):
        batch.waiting.extend((row, state) for row in group)
    num, seconds = sum(row.num_prefill for row in firsts), time.perf_counter() - began_s
    batch.prefill_s += seconds
    batch.prefill = batch.prefill.plus(batch.experts.pool.counts.minus(before))
    batch.trace.add("prefill", count=num, size=len(firsts), seconds=seconds)
    batch.trace.phase = phase


def next_chunk(batch: Batch) -> list[list[Sequence]]:
    """As many prompts of the queue as a batch holds: groups of twins, most of them of one row."""
    chunk = [batch.queue.popleft()]
    longest = chunk[0].num_prefill
    while batch.queue and len(chunk) < batch.batch_size:
        longest = max(longest, batch.queue[0].num_prefill)
        if longest * (len(chunk) + 1) > PREFILL_TOKENS:
            break
        chunk.append(batch.queue.popleft())
    while chunk[-1].twin is not None and batch.queue and batch.queue[0].twin == chunk[-1].twin:
        chunk.append(batch.queue.popleft())
    groups = groupby(chunk, key=lambda row: id(row) if row.twin is None else ~row.twin)
    return [list(rows) for _, rows in groups]


def _prompts(rows: list[Sequence]) -> list[int]:
    return [row.prompt for row in rows]


def _starts(rows: list[Sequence]) -> torch.Tensor:
    return torch.tensor([row.start for row in rows])  # [B]


def _last_tokens(rows: list[Sequence]) -> torch.Tensor:
    return torch.tensor([[row.tokens[-1]] for row in rows])  # [B, 1]
