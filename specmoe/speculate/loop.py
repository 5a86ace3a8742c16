"""The round: draft, verify, accept, replace. The paper's decode cycle over ragged rows, and nothing
else.

Comes in: a ``Job`` (decoder, experts, sampler, planner, the queue of prompts). Goes out: finished
rows, one after the other. ``engine`` calls ``decode``. Plain decoding is the same loop with gamma =
0.

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

from ..model.decoder import CausalDecoder, check_finite
from ..model.seq2seq import Seq2SeqDecoder
from ..offload.experts import RunExperts
from ..trace import PoolCounts, Round, Trace
from .block import Drafted, Drafting
from .planner import Planner
from .processors import RowRules, process_block, process_draft
from .sampling import Sampler

# padded tokens of one prefill chunk, at most (one long prompt may exceed it)
PREFILL_TOKENS = 16384


@dataclass
class Row:
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
class Job:
    """Everything a run needs, passed in: nothing is global. ``rows`` are in flight, ``waiting`` are
    prefilled and not yet."""

    decoder: CausalDecoder | Seq2SeqDecoder
    experts: RunExperts
    sampler: Sampler
    planner: Planner
    queue: deque[Row]
    batch_size: int
    eos: frozenset[int]
    trace: Trace
    rows: list[Row] = field(default_factory=list)
    waiting: deque[tuple[Row, object]] = field(default_factory=deque)
    rounds: list[Round] = field(default_factory=list)
    prefill: PoolCounts = field(default_factory=PoolCounts)
    prefill_s: float = 0.0
    during_prefill: Callable = nullcontext  # a context that prefills run in


def decode(job: Job) -> Iterator[Round]:
    """Draft, verify, accept, replace until no row is left; finished rows are still in flight when
    their round is given. gamma = 0 is plain decoding."""
    rows = job.rows
    refill(job, rows)
    while rows:
        job.trace.round = len(job.rounds)
        began_s = time.perf_counter()
        drafted = draft(job, rows, job.planner.next_gamma())  # resident experts only: no fetch
        drafted_s = time.perf_counter()
        # each distinct expert fetched once; the next draft set stays
        logits = verify(job, rows, drafted)
        # agreeing prefix + one token of the target's own
        accepted, num_new = accept(job, rows, drafted, logits)
        done = Round(
            len(drafted.steps),
            drafted_s - began_s,
            time.perf_counter() - drafted_s,
            drafted.num,
            accepted,
            drafted.steps,
            drafted.expected_rejections,
            num_new,
            len(job.rounds),
            _prompts(rows),
        )
        job.trace.add("round", count=num_new, size=len(rows), seconds=done.draft_s + done.verify_s)
        job.rounds.append(done)
        job.planner.observe(done)
        yield done
        retire(job, rows)
        refill(job, rows)  # waiting prompts enter


def draft(job: Job, rows: list[Row], gamma: int) -> Drafted:
    """Up to ``gamma`` tokens per row from the model restricted to its resident experts (paper, step
    1)."""
    # the last token is the target's own
    limits = torch.tensor([max(0, min(gamma, row.room - 1)) for row in rows])
    nothing = Drafted(torch.zeros(len(rows), 0, dtype=torch.long), [0] * len(rows))
    if not int(limits.max()):
        return nothing
    block = Drafting(limits, torch.tensor(sorted(job.eos), dtype=torch.long))
    with job.experts.drafting() as can_draft:
        if not can_draft:  # a cold start: some layer has no resident expert yet
            return nothing
        job.trace.phase, began_s = "draft", time.perf_counter()
        tokens, starts = _last_tokens(rows), _starts(rows)
        while block.active.any():
            tokens, starts = draft_step(job, rows, block, tokens, starts)
        job.decoder.widen()
    drafted = block.block()
    job.trace.add(
        "draft", count=sum(drafted.num), size=len(rows), seconds=time.perf_counter() - began_s
    )
    return drafted


def draft_step(
    job: Job, rows: list[Row], block: Drafting, tokens, starts
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token more for the rows that still draft; -> what the next step feeds [B, 1] and where
    [B]."""
    here = [rows[row] for row in block.computed_rows.tolist()]
    began_s, prompts = time.perf_counter(), _prompts(here)
    job.experts.set_live(block.active[block.computed_rows])
    logits = process_draft(here, job.decoder.draft_step(tokens, starts)[:, -1], block)  # [B, V]
    starts = starts + 1
    picked, q = job.sampler.draft(logits, prompts, starts.tolist())
    tokens = picked.cpu()
    block.append(tokens, q)
    block.restrict(*job.planner.keep_drafting(block, lambda: job.sampler.confidence(logits)))
    kept = None if q is not None else block.leave_out()
    block.steps.append((len(prompts), time.perf_counter() - began_s))
    if kept is not None and block.active.any():
        job.decoder.narrow(kept)
        tokens, starts = tokens[kept], starts[kept]
    return tokens[:, None], starts


def verify(job: Job, rows: list[Row], drafted: Drafted) -> torch.Tensor:
    """The full model, once, over every row's last token and drafted tokens (paper, step 2) ->
    logits [B, G + 1, V].

    While it runs, the pool keeps each layer's next draft set from the moment the layer's router has
    spoken (step 3).
    """
    job.trace.phase = "verify"
    block = torch.cat([_last_tokens(rows), drafted.tokens], dim=1)  # [B, G + 1]
    # nobody fetches for what will not count
    live = torch.arange(block.shape[1]) <= torch.tensor(drafted.num)[:, None]
    began_s = time.perf_counter()
    with job.experts.verifying(live):
        logits = job.decoder.step(block, _starts(rows))
    check_finite(logits)
    job.trace.add(
        "verify", count=int(live.sum()), size=len(rows), seconds=time.perf_counter() - began_s
    )
    return logits


def accept(
    job: Job, rows: list[Row], drafted: Drafted, logits: torch.Tensor
) -> tuple[list[int], int]:
    """Commit each row's accepted tokens and one of the target's own; a row ends at its first EOS or
    at its limit. -> tokens accepted per row [B], new tokens of all rows."""
    job.trace.phase = "accept"
    positions = (_starts(rows) + 1).tolist()
    tokens = drafted.tokens.to(logits.device)
    logits, counting, faults = process_block(rows, logits, drafted.tokens, drafted.num)
    num_new, verdicts = (
        0,
        job.sampler.verify(logits, tokens, counting, drafted.q, _prompts(rows), positions),
    )
    for index, row in enumerate(rows):
        verdict, drafts, num = verdicts[index], drafted.tokens[index].tolist(), drafted.num[index]
        before = len(row.tokens)
        for place, token in enumerate([*drafts[: verdict.accepted], verdict.token]):
            if (index, place) in faults:
                raise faults[index, place]
            row.add(token, job.eos)
            if row.finished:
                break
        num_new += len(row.tokens) - before
        job.trace.add("accept", row=row.prompt, count=verdict.accepted, size=num)
        job.trace.add_block(row.prompt, before, drafts[:num], verdict.accepted, row.tokens[before:])
    return [verdict.accepted for verdict in verdicts], num_new


def retire(job: Job, rows: list[Row]) -> None:
    """Finished rows leave: they neither fetch nor count as hot from now on."""
    for index in reversed(range(len(rows))):
        if rows[index].finished:
            job.decoder.leave(index, len(rows) - 1)
            rows[index] = rows[-1]
            rows.pop()


def refill(job: Job, rows: list[Row]) -> None:
    """Prompts from the queue take the free places, prefilled a chunk at a time."""
    while len(rows) < job.batch_size and (job.waiting or job.queue):
        if not job.waiting:
            prefill(job)
        row, state = job.waiting.popleft()
        job.decoder.enter(len(rows), state)
        rows.append(row)


def prefill(job: Job) -> None:
    """Run the next chunk of prompts, each distinct expert fetched once per layer, twins once."""
    twins = next_chunk(job)
    firsts = [group[0] for group in twins]
    began_s, before = time.perf_counter(), job.experts.pool.counts.copy()
    phase, job.trace.phase = job.trace.phase, "prefill"
    with job.experts.prefilling(), job.during_prefill():
        states = job.decoder.prefill(firsts, job.experts.set_live)
    for group, state in zip(twins, states, strict=True):
        job.waiting.extend((row, state) for row in group)
    seconds = time.perf_counter() - began_s
    job.prefill_s += seconds
    job.prefill = job.prefill.plus(job.experts.pool.counts.minus(before))
    num = sum(row.num_prefill for row in firsts)
    job.trace.add("prefill", count=num, size=len(firsts), seconds=seconds)
    job.trace.phase = phase


def next_chunk(job: Job) -> list[list[Row]]:
    """As many prompts of the queue as a batch holds: groups of twins, most of them of one row."""
    chunk = [job.queue.popleft()]
    longest = chunk[0].num_prefill
    while job.queue and len(chunk) < job.batch_size:
        longest = max(longest, job.queue[0].num_prefill)
        if longest * (len(chunk) + 1) > PREFILL_TOKENS:
            break
        chunk.append(job.queue.popleft())
    while chunk[-1].twin is not None and job.queue and job.queue[0].twin == chunk[-1].twin:
        chunk.append(job.queue.popleft())
    groups = groupby(chunk, key=lambda row: id(row) if row.twin is None else ~row.twin)
    return [list(rows) for _, rows in groups]


def _prompts(rows: list[Row]) -> list[int]:
    return [row.prompt for row in rows]


def _starts(rows: list[Row]) -> torch.Tensor:
    return torch.tensor([row.start for row in rows])  # [B]


def _last_tokens(rows: list[Row]) -> torch.Tensor:
    return torch.tensor([[row.tokens[-1]] for row in rows])  # [B, 1]
