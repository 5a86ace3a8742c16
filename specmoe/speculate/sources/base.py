"""What a draft source is: the contract, and a user's own one.

Comes in: the batch of the moment and how many tokens each row may draft. Goes out: ``Drafted``.
``speculate.loop.draft`` calls a run's source once per round; ``sources`` makes it from its name.

    B rows, G drafted tokens, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ...registry import Part
from ..block import Drafted

if TYPE_CHECKING:
    from ...offload.experts import RunExperts
    from ..loop import Batch


class DraftSource:
    """Where drafted tokens come from. Your own: a function, or a class with the method ``draft``.

    ``function(texts, limits)``: ``texts`` are the tokens of every row in flight (lists of ids,
    prompt and what was generated), ``limits`` how many it may draft (0: none). It returns a list of
    token lists, one per row, each at most as long as its limit; an empty list declines.

    ``draft(batch, limits)`` sees all of the round instead: ``batch`` (``loop.Batch``: rows,
    decoder, experts, sampler) and ``limits`` [B]. It returns ``Drafted``: ``tokens`` [B, G],
    ``num`` [B] of them that count, at most ``limits``, and, when sampling, ``q`` [B, G, V], the
    distributions that they were drawn from (None: each token was certain). ``steps`` has one
    (rows, seconds) for each column.

    Whatever a source drafts, the text stays exact, greedy or sampled, because the verification
    decides. When sampling, its tokens must not depend on the noise of the rules "rejection" and
    "block". A source never reads experts through the pool. What it holds of them lies in
    ``num_bytes`` of the fast memory, which the pool then has not. A call of ``generate`` has a
    source of its own, unless an object is given.
    """

    name = ""
    num_bytes = 0
    read_bytes, made_s = 0, 0.0  # to make what it holds, from the store
    key: str | None = None  # where it holds something that a later run with this key may use
    # Does the draft's own probability of a token say how likely the target agrees?
    is_confident = False

    def draft(self, batch: Batch, limits: torch.Tensor) -> Drafted:
        raise NotImplementedError

    @contextmanager
    def running(self, experts: RunExperts, memory: torch.Tensor) -> Iterator[None]:
        """Around a run, before its first round; ``memory``: uint8 [num_bytes] to fill."""
        yield


def nothing(num_rows: int) -> Drafted:
    """Every row declines."""
    return Drafted(torch.zeros(num_rows, 0, dtype=torch.long), [0] * num_rows)


def from_lists(drafts: list[list[int]], began_s: float) -> Drafted:
    """Tokens that were no work of the model: ``drafts`` [B] lists, begun at ``began_s``."""
    width = max(map(len, drafts), default=0)
    tokens = torch.tensor([[*draft, *[0] * (width - len(draft))] for draft in drafts])
    steps = [(len(drafts), (time.perf_counter() - began_s) / max(1, width))] * width
    tokens = tokens.view(len(drafts), width).long()
    return Drafted(tokens, [len(draft) for draft in drafts], steps=tuple(steps))


class Own(DraftSource):
    """A user's function or object; its answer is checked every time."""

    def __init__(self, part: Part):
        self.part = part
        self.name = getattr(part.given, "name", None) or part.name
        self.num_bytes = getattr(part.given, "num_bytes", 0)
        self.is_confident = getattr(part.given, "is_confident", False)

    @contextmanager
    def running(self, experts, memory):
        around = getattr(self.part.given, "running", None)
        with around(experts, memory) if around else super().running(experts, memory):
            yield

    def draft(self, batch, limits):
        began_s, part = time.perf_counter(), self.part
        if part.method:
            answer = part.ask(part.method, batch, limits)
            return part.ask(self._checked, answer, batch, limits)
        texts = [list(row.tokens) for row in batch.rows]
        drafts = self._lists(part.ask(part.given, texts, limits.tolist()), batch, limits)
        return from_lists(drafts, began_s)

    def _lists(self, answer, batch: Batch, limits: torch.Tensor) -> list[list[int]]:
        drafts = self.part.ask(list, answer) if hasattr(answer, "__iter__") else [answer]
        what = "a list of token ids for each row"
        drafts = [self.part.numbers(draft, "for a row", what) for draft in drafts]
        self._check(drafts, batch, limits)
        return drafts

    def _checked(self, answer, batch: Batch, limits: torch.Tensor) -> Drafted:
        if not isinstance(answer, Drafted) or not isinstance(answer.tokens, torch.Tensor):
            raise self.part.refusal(f"{type(answer).__name__}: return block.Drafted")
        tokens, num = answer.tokens, list(answer.num)
        if tokens.dim() != 2 or tokens.dtype != torch.long or len(num) != len(tokens):
            raise self.part.refusal(
                f"tokens {list(tokens.shape)} of {tokens.dtype} for num {len(num)}: return int64 "
                "tokens [B, G] and num [B]"
            )
        if max(num, default=0) > tokens.shape[1] or min(num, default=0) < 0:
            raise self.part.refusal(f"num {num} of {tokens.shape[1]} tokens: count what is there")
        drafts = [row[:count] for row, count in zip(tokens.tolist(), num, strict=True)]
        self._check(drafts, batch, limits)
        if answer.q is not None and answer.q.shape[:2] != tokens.shape:
            raise self.part.refusal(
                f"q {list(answer.q.shape)} for tokens {list(tokens.shape)}: return [B, G, V]"
            )
        return answer

    def _check(self, drafts: list[list[int]], batch: Batch, limits: torch.Tensor) -> None:
        if len(drafts) != len(batch.rows):
            raise self.part.refusal(
                f"drafts for {len(drafts)} of {len(batch.rows)} rows: give one each"
            )
        for row, (draft, limit) in enumerate(zip(drafts, limits.tolist(), strict=True)):
            if len(draft) > limit:
                raise self.part.refusal(
                    f"{len(draft)} tokens for row {row}: at most {limit} may be"
                )
            for token in draft:
                if not 0 <= token < batch.decoder.vocab_size:
                    raise self.part.refusal(
                        f"token {token} for row {row}: ids are 0..{batch.decoder.vocab_size - 1}"
                    )
