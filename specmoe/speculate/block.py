"""The block that grows while a round drafts: tokens, how many of them count, which rows go on.

Comes in, after every draft step: what was picked and how sure the draft was of it. Goes out:
``Drafted`` for the verification. ``sources`` call this.

    B rows, G drafted tokens, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# once this share of the rows that are computed still drafts, the others are left out
NARROW = 0.7
FEWEST = 8  # rows below which leaving some out saves nothing


class Drafted(NamedTuple):
    """What was drafted: tokens [B, G], how many of them count [B], their distributions q [B, G, V]
    when sampling (None: each token was certain). ``expected_rejections``: rows that the draft
    expects to be cut short; ``steps``: rows and seconds of each draft step."""

    tokens: torch.Tensor
    num: list[int]
    q: torch.Tensor | None = None
    expected_rejections: float = 0.0
    steps: tuple[tuple[int, float], ...] = ()


class Drafting:
    """State: the tokens so far, the rows still drafting (``active`` [B]), the rows still computed
    (``computed_rows``, their numbers), and each row's chance that all its tokens will be accepted
    (``prefix_prob`` [B]; ``block_prob``, of those that count)."""

    def __init__(self, limits: torch.Tensor, eos: torch.Tensor):
        self.limits, self.eos = limits, eos  # [B] tokens that a row may draft
        self.tokens = []
        self.num = torch.zeros_like(limits)
        self.active = limits > 0
        self.computed_rows = torch.arange(len(limits))
        self.prefix_prob = torch.ones(len(limits), dtype=torch.float64)
        self.block_prob = self.prefix_prob.clone()
        self.distributions: list = []
        self.steps: list[tuple[int, float]] = []

    def append(self, picked: torch.Tensor, q: torch.Tensor | None) -> None:
        """One more token of every row that is computed: ``picked`` [rows computed], ``q`` its
        distribution when sampling."""
        tokens = torch.zeros_like(self.num)
        tokens[self.computed_rows] = picked
        self.tokens.append(tokens)
        self.distributions.append(q)

    def restrict(self, verify: torch.Tensor, go_on: Callable[[], torch.Tensor]) -> None:
        """Of the token just appended only the rows in ``verify`` [B] count; a row drafts on that is
        in ``go_on()`` [B], at neither EOS nor its limit."""
        self.active = self.active & verify
        self.num += self.active
        self.block_prob = torch.where(self.active, self.prefix_prob, self.block_prob)
        self.active = self.active & (len(self.tokens) < self.limits)
        self.active = self.active & ~torch.isin(self.tokens[-1], self.eos)
        self.active = self.active & go_on()

    def prefixes(self) -> list[list[int]]:
        """The tokens drafted so far of every row that is computed."""
        if not self.tokens:
            return [[] for _ in self.computed_rows]
        return torch.stack(self.tokens, dim=1)[self.computed_rows].tolist()

    def leave_out(self) -> torch.Tensor | None:
        """Which of the rows that are computed go on, when it pays to leave the others out; else
        None."""
        going = self.active[self.computed_rows]
        if len(going) < FEWEST or going.sum() > NARROW * len(going):
            return None
        kept = going.nonzero().flatten()
        if len(kept) < 2:  # compiled passes know one row as a special case
            kept = torch.arange(len(going))[going.argsort(descending=True, stable=True)[:2]]
        self.computed_rows = self.computed_rows[kept]
        return kept

    def block(self) -> Drafted:
        """Without the columns that no row uses."""
        width = int(self.num.max())
        sampled = width and self.distributions[0] is not None
        q = torch.stack(self.distributions[:width], dim=1) if sampled else None
        tokens, rejections = torch.stack(self.tokens, dim=1)[:, :width], 1 - self.block_prob
        return Drafted(tokens, self.num.tolist(), q, float(rejections.sum()), tuple(self.steps))
