"""The block that grows while a round drafts: tokens, how many of them count, which rows go on.

Comes in, after every draft step: what was picked and how sure the draft was of it. Goes out: ``Drafted`` for the
verification. ``speculate.draft`` calls this.

    B rows, G drafted tokens, V vocabulary
"""

from __future__ import annotations

from typing import NamedTuple

import torch

NARROW = 0.7  # once this share of the rows that are computed still drafts, the others are left out
FEWEST = 8  # rows below which leaving some out saves nothing


class Drafted(NamedTuple):
    """What was drafted: tokens [B, G], how many of them count [B], their distributions q [B, G, V] when sampling.
    ``expected_rejections``: rows that the draft expects to be cut short; ``steps``: rows and seconds of each draft step."""

    tokens: torch.Tensor
    num: list[int]
    q: torch.Tensor | None = None
    expected_rejections: float = 0.0
    steps: tuple[tuple[int, float], ...] = ()


class Drafting:
    """State: the tokens so far, the rows still drafting (``alive`` [B]), the rows still computed (``here``, their numbers),
    and each row's chance that all its tokens will be accepted (``chance`` [B]; ``promised``, of those that count)."""

    def __init__(self, limits: torch.Tensor, eos: torch.Tensor):
        self.limits, self.eos = limits, eos  # [B] tokens that a row may draft
        self.tokens, self.num = [], torch.zeros_like(limits)
        self.alive, self.here = limits > 0, torch.arange(len(limits))
        self.chance = torch.ones(len(limits), dtype=torch.float64)
        self.promised = self.chance.clone()
        self.distributions: list = []
        self.steps: list[tuple[int, float]] = []

    def add(self, picked: torch.Tensor, q: torch.Tensor | None, sure: torch.Tensor | None, planner) -> None:
        """One more token of every row that is computed (``picked``, ``sure`` [rows here]); rows end at EOS, at their limit,
        and where the planner finds that the next token is not worth its seconds."""
        tokens = torch.zeros_like(self.num)
        tokens[self.here] = picked
        if sure is not None:
            self.chance[self.here] *= planner.belief(sure)
            self.alive &= planner.worth_verifying(self.chance)
        self.tokens.append(tokens)
        self.distributions.append(q)
        self.num += self.alive
        self.promised = torch.where(self.alive, self.chance, self.promised)
        self.alive &= (len(self.tokens) < self.limits) & ~torch.isin(tokens, self.eos)
        if sure is not None:
            self.alive &= planner.worth_drafting(self.chance, self.alive)

    def prefixes(self) -> list[list[int]]:
        """The tokens drafted so far of every row that is computed."""
        if not self.tokens:
            return [[] for _ in self.here]
        return torch.stack(self.tokens, dim=1)[self.here].tolist()

    def leave_out(self) -> torch.Tensor | None:
        """Which of the rows that are computed go on, when it pays to leave the others out; else None."""
        going = self.alive[self.here]
        if len(going) < FEWEST or going.sum() > NARROW * len(going):
            return None
        kept = going.nonzero().flatten()
        if len(kept) < 2:  # compiled passes know one row as a special case
            kept = torch.arange(len(going))[going.argsort(descending=True, stable=True)[:2]]
        self.here = self.here[kept]
        return kept

    def block(self) -> Drafted:
        """Without the columns that no row uses."""
        width = int(self.num.max())
        q = None if not width or self.distributions[0] is None else torch.stack(self.distributions[:width], dim=1)
        tokens = torch.stack(self.tokens, dim=1)[:, :width]
        return Drafted(tokens, self.num.tolist(), q, float((1 - self.promised).sum()), tuple(self.steps))
