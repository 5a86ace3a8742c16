"""How far to draft, decided token by token: a drafted token must be worth the seconds that it
costs.

Comes in, after every round: what it cost and what was accepted; during a round: how sure the draft
is of each row. Goes out: which tokens to verify, which rows to draft on with, and whether to draft
at all. ``speculate.loop`` asks; ``planner`` chooses one gamma for all rows instead, where there is
no confidence to go by (sampling).

A token that is accepted with chance P saves P * s seconds, where s is the present time per
committed token. Verifying it costs v, the slope of the verification's seconds over its tokens;
drafting one more costs d for its row and f for the step. So

    verify while  P * s >= v;  draft on while  P * c * s >= v + d  and, over all rows,  sum(P * c *
                  s - v - d) >= f

with c the chance that one more token agrees. s, v, d, f and c are measured while decoding, over
recent rounds; and so is how much more or less sure the draft is than it should be. (The marginal
rule of fractional programming: seconds / tokens is least where the next token costs just what
tokens cost now; Dinkelbach 1967.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..trace import Round
from .evidence import SHORT, Line, Verdicts, block_tokens, one_more_s
from .planner import Planner, running_mean
from .ways import Ways

MAX_GAMMA = 32  # tokens drafted per round, at most
RECENT = 0.3  # weight of the newest round in a running mean


def most_drafted(max_block: int | None) -> int:
    """Where nobody says: gamma, at most, when ``max_block`` tokens of a row can be verified at once
    (None: any number)."""
    return MAX_GAMMA if max_block is None else max(1, min(MAX_GAMMA, max_block - 1))


class ConfidencePlanner(Planner):
    """State: running means of costs. ``may_not_draft``: plain decoding is one of its choices
    (``auto``). ``max_block``: tokens of a row that can be verified at once (None: any number).
    ``first``: tokens of the first draft, where it may not pay."""

    def __init__(self, may_not_draft: bool, max_block: int | None = None, first: int = SHORT):
        super().__init__(most_drafted(max_block))
        # the first round warms up; where drafting may not pay, a short draft tells what more costs
        self._probes = [first] if may_not_draft else [6, 2, 12]
        self.may_not_draft = may_not_draft
        # seconds over tokens of a block; over rows of a draft step
        self.verify, self.step = Line(0.9), Line(0.97)
        self.ways = Ways()
        self.verdicts = Verdicts()
        self.guess_s: float | None = None  # of one more token of a block, by single rounds
        self._num_drafts = 0  # rounds that drafted
        self._is_planned = False  # no gamma is prescribed in this round

    @property
    def settled(self) -> bool:
        return not self._probes

    def next_gamma(self) -> int:
        self._is_planned = not self._probes
        if self._probes:
            return min(self._probes.pop(0), self.max_gamma)
        if not self.may_not_draft or self.ways.next_drafts(self._one_more_pays):
            return self.max_gamma
        return 0

    def _one_more_pays(self, token_s: float) -> bool:
        """Would another drafted token, for every row, cost less than ``token_s`` each?"""
        rows = max(1.0, self.step.x / self.step.weight) if self.step.weight else 1.0
        costs_s = self.step.slope + self.step.base / rows + self._verify_token_s()
        return self.verdicts.agreement * token_s >= costs_s

    def _verify_token_s(self) -> float:
        """What one more token of a block takes. Until blocks of other lengths say more: as single
        rounds let us guess, and at most what they took beyond plain decoding."""
        if self.guess_s is None:
            return self.verify.slope
        ways, plain_s = self.ways, self.ways.seconds_per_token.get(False)
        guess_s, drafted = self.guess_s, (ways.verify_row_tokens or 1.0) - 1
        if plain_s is not None and drafted:
            guess_s = min(guess_s, max(0.0, ways.verify_row_s - plain_s) / drafted)
        return self.verify.slope_near(guess_s)

    # ---- during a round ----

    def keep_drafting(self, block, confidence: Callable) -> tuple:
        """A token is verified while its chance to be accepted pays for that; a row drafts on while
        the next one would, too."""
        sure = confidence()
        if sure is None:
            return super().keep_drafting(block, confidence)
        self.verdicts.hear(block, sure)
        block.prefix_prob[block.computed_rows] *= self.accept_prob(sure)
        worth_one_more = lambda: self._worth_drafting(block.prefix_prob, block.active)  # noqa: E731
        return self._worth_verifying(block.prefix_prob), worth_one_more

    def accept_prob(self, confidence: torch.Tensor) -> torch.Tensor:
        """The chance that a drafted token is accepted, given the draft's own ``confidence`` in
        it."""
        return (1 - self.verdicts.calibration * (1 - confidence)).clamp(min=0.01)

    def _worth_verifying(self, prefix_prob: torch.Tensor) -> torch.Tensor:
        """Which tokens should be in the block, bool [B]; ``prefix_prob`` [B] that all tokens of a
        row are accepted."""
        if not self._is_planned:
            return torch.ones_like(prefix_prob, dtype=torch.bool)
        return prefix_prob * self._worth_s() >= self._verify_token_s()

    def _worth_drafting(self, prefix_prob: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Which of the ``active`` rows should draft one token more, bool [B]."""
        if not self._is_planned:
            return active
        gain_s = prefix_prob * self.verdicts.agreement * self._worth_s()
        gain_s = gain_s - self._verify_token_s() - self.step.slope
        going = active & (gain_s >= 0)
        return going if float(gain_s[going].sum()) >= self.step.base else torch.zeros_like(going)

    def _worth_s(self) -> float:
        """Seconds that a token takes now, the better way."""
        drafting_s = self.ways.seconds_per_token.get(True, float("inf"))
        return min(drafting_s, self.ways.plain_s) if self.may_not_draft else drafting_s

    # ---- after a round ----

    def observe(self, done: Round) -> None:
        """Learn from a round. The very first drafts only warm things up: they count until there are
        others."""
        drafts = bool(done.steps)
        if drafts and self._num_drafts == 1:
            self.verify, self.step, self.guess_s = Line(0.9), Line(0.97), None
            self.ways.restart()
        self._num_drafts += drafts
        self.ways.add(done)
        # the first token of each row asks for the most experts: it says nothing about what one more
        # costs
        if drafts:
            self.verify.add(block_tokens(done), done.verify_s)
            # at most the line's own guess: where rows ask for the same few experts, even use would
            # make every token of a block as dear as the first, and no block would grow
            guess_s = min(one_more_s(done), 0.5 * done.verify_s / block_tokens(done))
            self.guess_s = running_mean(self.guess_s, guess_s, RECENT)
        for rows, seconds in done.steps:
            self.step.add(rows, seconds)
        self.verdicts.add(done)
