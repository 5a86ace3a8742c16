"""Drafts from text that is there already: they cost no pass of the model and no byte of an expert.

Comes in: the tokens of every row. Goes out: what may follow. ``Ngram`` looks in the row's own text
(prompt lookup: Saxena 2023), ``NgramOrModel`` asks the model for rows without a find, ``Oracle``
knows what the target will say.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import torch

from ...errors import OptionError
from ..block import Drafted
from .base import DraftSource, from_lists

LONGEST, SHORTEST = 4, 2  # tokens that must have come before


class Ngram(DraftSource):
    """What followed the last tokens of a row when they came before, the longest match first, the
    latest place of it; a row without one declines. An encoder-decoder's source counts as text."""

    def __init__(self, longest: int = LONGEST):
        self.name = "ngram" if longest == LONGEST else f"ngram:{longest}"
        self.sizes = range(longest, min(SHORTEST, longest) - 1, -1)
        # prompt -> how far its text is indexed; n-gram -> where what follows it begins
        self.indexed: dict[int, tuple[int, dict[tuple[int, ...], int]]] = {}

    @contextmanager
    def running(self, experts, memory):
        self.indexed.clear()
        yield

    def draft(self, batch, limits):
        began_s = time.perf_counter()
        batch.trace.phase = "draft"
        found = [self.find(row, limit) for row, limit in zip(batch.rows, limits.tolist())]
        drafted = from_lists([_until(draft, batch.eos) for draft in found], began_s)
        seconds = time.perf_counter() - began_s
        batch.trace.add("draft", count=sum(drafted.num), size=len(batch.rows), seconds=seconds)
        return drafted

    def find(self, row, limit: int) -> list[int]:
        """At most ``limit`` tokens that may follow ``row``'s."""
        text = [*(row.source or []), *row.tokens]
        done, places = self.indexed.get(row.prompt, (0, {}))
        for end in range(max(1, done), len(text)):  # the last tokens themselves are no find
            for size in self.sizes:
                if size <= end:
                    places[tuple(text[end - size : end])] = end
        self.indexed[row.prompt] = len(text), places
        begin = next(
            (places[key] for size in self.sizes if (key := tuple(text[-size:])) in places), None
        )
        if begin is None:
            return []
        for place in range(begin, begin + limit):  # a copy may run into what it has copied
            text.append(text[place])
        return text[len(text) - limit :] if limit else []


class NgramOrModel(DraftSource):
    """The n-gram where a row's own text has one, else ``model``'s draft."""

    def __init__(self, ngram: Ngram, model: DraftSource):
        self.ngram, self.model = ngram, model
        self.name = f"{self.ngram.name}+{model.name}"
        self.num_bytes, self.key = model.num_bytes, model.key
        self.is_confident = model.is_confident

    @property
    def read_bytes(self) -> int:
        return self.model.read_bytes

    @property
    def made_s(self) -> float:
        return self.model.made_s

    @contextmanager
    def running(self, experts, memory):
        with self.ngram.running(experts, memory), self.model.running(experts, memory):
            yield

    def draft(self, batch, limits):
        found = self.ngram.draft(batch, limits)
        finds = torch.tensor(found.num) > 0
        rest = limits.masked_fill(finds, 0)
        if not int(rest.max()):
            return found
        return joined(found, self.model.draft(batch, rest))


def joined(found: Drafted, made: Drafted) -> Drafted:
    """Of each row the tokens of ``found`` where it has any, else those of ``made``."""
    num = [a or b for a, b in zip(found.num, made.num, strict=True)]
    width = max(num, default=0)
    takes = torch.tensor(found.num) > 0
    tokens = torch.where(
        takes[:, None], _widened(found.tokens, width), _widened(made.tokens, width)
    )
    q = made.q
    if q is not None:
        wide = q.new_zeros(*tokens.shape, q.shape[-1])
        wide[:, : q.shape[1]] = q
        certain = torch.zeros_like(wide).scatter(2, tokens.to(q.device)[..., None], 1.0)
        q = torch.where(takes.to(q.device)[:, None, None], certain, wide)
    steps = made.steps + found.steps[len(made.steps) :]
    return Drafted(tokens, num, q, made.expected_rejections, steps)


def _widened(tokens: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(tokens, (0, max(0, width - tokens.shape[1])))[:, :width]


class Oracle(DraftSource):
    """The target's own text: what no draft can beat, so a bound and no method. ``texts``: prompt ->
    the tokens that follow it."""

    name = "oracle"

    def __init__(self, texts: Mapping[int, Sequence[int]] | Sequence[Sequence[int]]):
        self.texts = dict(texts if isinstance(texts, Mapping) else enumerate(texts))

    def draft(self, batch, limits):
        began_s = time.perf_counter()
        batch.trace.phase = "draft"
        drafts = []
        for row, limit in zip(batch.rows, limits.tolist(), strict=True):
            if row.prompt not in self.texts:
                raise OptionError(
                    f"draft='oracle' has no text of prompt {row.prompt}: give one for each"
                )
            done = len(row.tokens) - row.num_prompt
            drafts.append(list(self.texts[row.prompt])[done : done + limit])
        drafted = from_lists(drafts, began_s)
        batch.trace.add("draft", count=sum(drafted.num), size=len(drafts))
        return drafted


def _until(draft: list[int], eos: frozenset[int]) -> list[int]:
    """Nothing follows an end token."""
    for place, token in enumerate(draft):
        if token in eos:
            return draft[: place + 1]
    return draft
