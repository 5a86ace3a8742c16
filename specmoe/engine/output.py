"""What a run gives back: tokens, texts, stats, trace. Both an ``Output`` and its ``Stats`` show
themselves in a notebook.

Comes in: finished rows, the rounds of a ``Batch``, the pool's counts. Goes out: an ``Output``; its
``Stats`` are of decoding, prefill stands apart in ``prefill_s`` and ``prefill_bytes``.
"""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model.texts import new_texts, to_texts
from ..speculate.loop import Batch, Sequence
from ..trace import PoolCounts, Round, Trace
from .prepare import Plan
from .shown import Shown

SETTLED = 8  # rounds after which a planner has tried out what it wants to try first


@dataclass(frozen=True, repr=False)
class Stats(Shown):
    """Numbers of one run. Seconds are wall clock; bytes are whole expert records moved from slow to
    fast memory."""

    method: str
    gamma: float  # mean drafted tokens asked for per round
    batch_size: int
    num_new_tokens: int
    seconds: float  # decoding, without prefill
    tokens_per_second: float
    num_rounds: int
    num_plain_rounds: int  # of them, rounds without a draft
    tokens_per_round: float  # new tokens per row and round
    acceptance_rate: float  # accepted / drafted
    fetched_bytes: int
    num_fetches: int
    num_hits: int
    num_misses: int
    prefetch_recall: float  # misses whose read was already under way / misses
    prefetch_precision: float  # prefetches that were used / prefetches
    wait_s: float  # compute stood still for a read
    draft_s: float
    verify_s: float
    prefill_s: float
    prefill_bytes: int
    peak_fast_expert_bytes: int
    kept_full: bool  # were finished rows replaced from a queue of prompts
    draft: str | None = None  # where drafts came from; "oracle" is a bound, no method
    draft_bytes: int = 0  # of fast memory that this source held
    draft_read_bytes: int = 0  # read once to make it, before the run
    draft_made_s: float = 0.0
    seed: int | None = None  # what sampling drew from, given or not; None: greedy

    @property
    def fetched_bytes_per_token(self) -> float:
        return self.fetched_bytes / max(1, self.num_new_tokens)

    @property
    def num_turns(self) -> float:
        """Passes of the model that rows took part in; plain decoding takes one per token."""
        return self.num_new_tokens / self.tokens_per_round if self.tokens_per_round else 0.0

    @property
    def remark(self) -> str:
        """What ``auto`` decided, where it was not to draft; else empty."""
        is_settled = self.method == "auto" and self.num_rounds >= SETTLED
        if not is_settled or 2 * self.num_plain_rounds <= self.num_rounds:
            return ""
        return (
            f"drafting did not pay here: auto decoded {self.num_plain_rounds} of "
            f"{self.num_rounds} rounds plainly"
        )

    @property
    def info(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        remark = f"<p>{html.escape(self.remark)}</p>" if self.remark else ""
        return super()._repr_html_() + remark


@dataclass(frozen=True, repr=False)
class Output(Shown):
    """Result of ``Engine.generate``, in the order of the prompts."""

    # prompt + new tokens (encoder-decoder: the decoder's tokens, start included)
    sequences: list[torch.Tensor]
    texts: list[str]  # decoded sequences; empty without a tokenizer
    new_texts: list[str]  # only what was generated
    num_prompt_tokens: list[int]
    stats: Stats
    trace: Trace = field(repr=False)
    # encoder-decoder: what the encoder read
    sources: list[list[int] | None] = field(default_factory=list, repr=False)
    # turns single tokens into text, where there is one
    tokenizer: object = field(default=None, repr=False, compare=False)

    @property
    def info(self) -> dict[str, Any]:
        return {"sequences": len(self.sequences), **self.stats.info}

    def _repr_html_(self) -> str:
        shown: list = [*self.texts[:8]] or [tokens.tolist() for tokens in self.sequences[:8]]
        rows = "".join(
            f"<tr><td>{i}</td><td "
            f"style='text-align:left'><pre>{html.escape(str(text)[:400])}</pre></td></tr>"
            for i, text in enumerate(shown)
        )
        num_more = len(self.sequences) - len(shown)
        more = f"<p>... and {num_more} more</p>" if num_more else ""
        head = "<table><thead><tr><th>prompt</th><th>text</th></tr></thead>"
        return f"{head}<tbody>{rows}</tbody></table>{more}{self.stats._repr_html_()}"


def make_output(plan: Plan, batch: Batch, rows: list[Sequence], run: tuple, tokenizer) -> Output:
    """``rows``: finished, in the order of the prompts. ``run``: its seconds and its bytes of fast
    memory."""
    with torch.inference_mode(False):  # tensors that a user may change or train on
        sequences = [torch.tensor(row.tokens) for row in rows]
    tokens, lengths = [row.tokens for row in rows], [row.num_prompt for row in rows]
    texts = to_texts(tokenizer, tokens)
    new = new_texts(tokenizer, tokens, lengths, texts)
    sources = [row.source for row in rows]
    stats = make_stats(plan, batch, *run)
    return Output(sequences, texts, new, lengths, stats, batch.trace, sources, tokenizer)


def make_stats(plan: Plan, batch: Batch, seconds: float, peak_bytes: int) -> Stats:
    """``seconds`` of all rounds and prefills, ``peak_bytes`` of expert memory."""
    options = plan.options
    return Stats(
        method=options.method,
        batch_size=plan.batch_size,
        prefill_s=batch.prefill_s,
        prefill_bytes=batch.prefill.fetched_bytes,
        peak_fast_expert_bytes=peak_bytes,
        kept_full=len(plan.rows) > plan.batch_size,
        draft=plan.method.source.name if options.method in ("specmoe", "auto") else None,
        draft_bytes=plan.method.source.num_bytes,
        draft_read_bytes=plan.method.source.read_bytes,
        draft_made_s=plan.method.source.made_s,
        seed=plan.sampler.seed if options.do_sample else None,
        **_of_rounds(batch.rounds, seconds - batch.prefill_s),
        **_of_reads(batch.experts.pool.counts.minus(batch.prefill)),
    )


def _of_rounds(rounds: list[Round], seconds: float) -> dict:
    num_new = sum(each.new_tokens for each in rounds)
    num_drafted = sum(sum(each.drafted) for each in rounds)
    num_accepted = sum(sum(each.accepted) for each in rounds)
    return {
        "gamma": sum(each.gamma for each in rounds) / max(1, len(rounds)),
        "num_new_tokens": num_new,
        "seconds": seconds,
        "tokens_per_second": num_new / seconds if seconds > 0 else float("nan"),
        "num_rounds": len(rounds),
        "num_plain_rounds": sum(not each.gamma for each in rounds),
        "tokens_per_round": num_new / max(1, sum(len(each.prompts) for each in rounds)),
        "acceptance_rate": num_accepted / num_drafted if num_drafted else 0.0,
        "draft_s": sum(each.draft_s for each in rounds),
        "verify_s": sum(each.verify_s for each in rounds),
    }


def _of_reads(moved: PoolCounts) -> dict:
    used, missed, guessed = moved.prefetch_used, moved.num_misses, moved.num_prefetches
    return {
        "fetched_bytes": moved.fetched_bytes,
        "num_fetches": moved.num_fetches,
        "num_hits": moved.num_hits,
        "num_misses": missed,
        "prefetch_recall": used / missed if missed else 0.0,
        "prefetch_precision": used / guessed if guessed else 0.0,
        "wait_s": moved.wait_s,
    }
