"""Drafts by the model itself: the paper's, restricted to its resident experts (step 1).

Comes in: a batch. Goes out: its drafted tokens, one pass of the model for each column. Sources
whose draft is another form of the model (``copies``, ``layer_skip``) change only what its layers
compute meanwhile.

    B rows, G drafted tokens, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..block import Drafting
from ..processors import process_draft
from .base import DraftSource, nothing

if TYPE_CHECKING:
    from ..loop import Batch


class Resident(DraftSource):
    """Up to ``limits`` tokens per row from the model with its resident experts."""

    name = "resident"
    is_confident = True

    @contextmanager
    def drafting(self, batch: Batch) -> Iterator[bool]:
        """Within, the decoder's passes are the draft's; False: it cannot draft yet."""
        with batch.experts.drafting() as can_draft:
            yield can_draft

    def draft(self, batch, limits):
        rows = batch.rows
        block = Drafting(limits, torch.tensor(sorted(batch.eos), dtype=torch.long))
        with self.drafting(batch) as can_draft:
            if not can_draft:  # a cold start: some layer has no resident expert yet
                return nothing(len(rows))
            batch.trace.phase, began_s = "draft", time.perf_counter()
            tokens = torch.tensor([[row.tokens[-1]] for row in rows])  # [B, 1]
            starts = torch.tensor([row.start for row in rows])  # [B]
            while block.active.any():
                tokens, starts = draft_step(batch, block, tokens, starts)
            batch.decoder.restore_rows()
        drafted, seconds = block.block(), time.perf_counter() - began_s
        batch.trace.add("draft", count=sum(drafted.num), size=len(rows), seconds=seconds)
        return drafted


def draft_step(
    batch: Batch, block: Drafting, tokens: torch.Tensor, starts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token more for the rows that still draft: ``tokens`` [B, 1] at ``starts`` [B] -> what the
    next step feeds, and where."""
    rows = [batch.rows[row] for row in block.computed_rows.tolist()]
    began_s, prompts = time.perf_counter(), [row.prompt for row in rows]
    batch.experts.set_live(block.active[block.computed_rows])
    logits = process_draft(rows, batch.decoder.forward(tokens, starts)[:, -1], block)  # [B, V]
    starts = starts + 1
    firsts = [row.start + 1 for row in rows]
    places = batch.sampler.places(firsts, starts.tolist())
    picked, q = batch.sampler.draft(logits, prompts, places)
    tokens = picked.cpu()
    block.append(tokens, q)
    block.restrict(*batch.planner.keep_drafting(block, lambda: batch.sampler.confidence(logits)))
    kept = None if q is not None else block.leave_out()
    block.steps.append((len(prompts), time.perf_counter() - began_s))
    if kept is not None and block.active.any():
        batch.decoder.select_rows(kept)
        tokens, starts = tokens[kept], starts[kept]
    return tokens[:, None], starts
