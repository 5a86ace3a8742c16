"""Logits processors and stopping criteria of a row, at every position of a drafted block.

Comes in: logits of the draft or of the target, their rows, the tokens drafted so far. Goes out:
logits as the row's processors leave them, each position seen after the row's own tokens and its
drafted prefix, as if the row were decoded alone and one token at a time. ``speculate.loop`` calls
this before it samples; ``rules`` makes the ``RowRules``.

    B rows, T positions of a block, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..errors import OptionError, SpecMoEError

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class RowRules:
    """What holds for one row. ``processors`` and ``criteria`` have transformers' protocol.

    ``picks``: decode this row greedily in a job that samples.
    """

    processors: tuple[Processor, ...]
    criteria: tuple[Callable, ...]
    eos: frozenset[int]
    picks: bool = False

    def scores(self, tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [V], float32 as in transformers, for the token after ``tokens`` -> scores [V]."""
        if self.processors:
            context = torch.tensor([list(tokens)], device=logits.device)
            scores = logits[None].clone()
            for processor in self.processors:
                scores = _checked(processor, processor_answer(processor, context, scores), scores)
            logits = scores[0]
        return _only_the_best(logits) if self.picks else logits

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the row ends with the last of ``tokens``."""
        if tokens[-1] in self.eos:
            return True
        context = torch.tensor([list(tokens)]) if self.criteria else None
        return any(_stops(criterion, context) for criterion in self.criteria)


def process_draft(rows: Sequence, logits: torch.Tensor, block) -> torch.Tensor:
    """The draft's logits [B, V] of ``rows`` after what ``block`` (a ``Drafting``) holds.

    What a processor refuses to judge stays as it is: the model itself need not come to this prefix.
    """
    if all(row.rules is None for row in rows):
        return logits
    scores, drafted = logits.to(torch.float32, copy=True), block.prefixes()
    for index, row in enumerate(rows):
        try:
            scores[index] = row.rules.scores(row.tokens + drafted[index], scores[index])
        except OptionError:
            continue
    return scores


def process_block(
    rows: Sequence, logits: torch.Tensor, drafted: torch.Tensor, num: Sequence[int]
) -> tuple[torch.Tensor, list[int], dict[tuple[int, int], OptionError]]:
    """The target's logits [B, T, V] over drafted tokens [B, T - 1], of which ``num`` [B] count.

    -> logits, how many count now, and what was raised by (row, position): it matters only if the
    row comes there.
    """
    faults: dict[tuple[int, int], OptionError] = {}
    if all(row.rules is None for row in rows):
        return logits, list(num), faults
    scores, num = logits.to(torch.float32, copy=True), list(num)
    for index, (row, tokens) in enumerate(zip(rows, drafted.tolist(), strict=True)):
        for place in range(num[index] + 1):
            try:
                scores[index, place] = row.rules.scores(
                    row.tokens + tokens[:place], scores[index, place]
                )
            except OptionError as fault:
                faults[index, place], num[index] = fault, place
                break
    return scores, num, faults


def processor_answer(processor: Processor, context: torch.Tensor, scores: torch.Tensor):
    """What ``processor`` makes of ``scores`` [1, V]; an ``OptionError`` names one that fails."""
    try:
        return processor(context, scores)
    except SpecMoEError:
        raise
    except Exception as failure:
        raise OptionError(
            f"logits processor {name_of(processor)} raised {type(failure).__name__}: {failure}"
        ) from failure


def name_of(part: object) -> str:
    return getattr(part, "__name__", None) or type(part).__name__


def _checked(processor: Processor, answer, before: torch.Tensor) -> torch.Tensor:
    if not isinstance(answer, torch.Tensor) or answer.shape != before.shape:
        shape = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise OptionError(
            f"logits processor {name_of(processor)} returned {shape}: return {tuple(before.shape)}"
        )
    if torch.isnan(answer).any():
        raise OptionError(
            f"logits processor {name_of(processor)} returned NaN: return -inf for what is forbidden"
        )
    if torch.isneginf(answer).all():
        raise OptionError(
            f"logits processor {name_of(processor)} left no token possible: leave a finite score"
        )
    return answer.to(before.dtype)


def _only_the_best(logits: torch.Tensor) -> torch.Tensor:
    """The greedy choice as a distribution: all weight on the first of the largest."""
    best = torch.full_like(logits, -torch.inf)
    best[logits.argmax()] = 0
    return best


def _stops(criterion: Callable, context: torch.Tensor) -> bool:
    try:
        return bool(torch.as_tensor(criterion(context, None)).all())
    except Exception as failure:
        raise OptionError(
            f"stopping criterion {name_of(criterion)} raised {type(failure).__name__}: {failure}"
        ) from failure
