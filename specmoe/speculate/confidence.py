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
from .planner import SHORT, Planner, running_mean
from .ways import Ways

MAX_GAMMA = 32  # tokens drafted per round, at most
RECENT = 0.15  # weight of the newest round in a running mean


class Line:
    """Running least squares of y = base + slope * x, the newest point weighing most. Both are at
    least 0."""

    def __init__(self, keep: float):
        self.keep = keep
        self.weight = self.x = self.y = self.xx = self.xy = 0.0
        self._slope: float | None = None

    def add(self, x: float, y: float) -> None:
        for name, value in (("weight", 1.0), ("x", x), ("y", y), ("xx", x * x), ("xy", x * y)):
            setattr(self, name, self.keep * getattr(self, name) + value)
        mean_x, mean_y = self.x / self.weight, self.y / self.weight
        variance = self.xx / self.weight - mean_x**2
        if variance > (0.03 * mean_x) ** 2:  # else x hardly varied: the slope stays what it was
            steepest = mean_y / mean_x
            self._slope = min(
                max((self.xy / self.weight - mean_x * mean_y) / variance, 0.0), steepest
            )

    @property
    def has_varied(self) -> bool:
        """Does the slope come from points?"""
        return self._slope is not None

    @property
    def slope(self) -> float:
        """While x has hardly varied: half of what there is to share out."""
        return (0.5 * self.y / self.x if self.x else 0.0) if self._slope is None else self._slope

    @property
    def base(self) -> float:
        return max(0.0, (self.y - self.slope * self.x) / self.weight) if self.weight else 0.0


def most_drafted(max_block: int | None) -> int:
    """Where nobody says: gamma, at most, when ``max_block`` tokens of a row can be verified at once
    (None: any number)."""
    return MAX_GAMMA if max_block is None else max(1, min(MAX_GAMMA, max_block - 1))


class ConfidencePlanner(Planner):
    """State: running means of costs. ``may_not_draft``: plain decoding is one of its choices
    (``auto``). ``max_block``: tokens of a row that can be verified at once (None: any number)."""

    def __init__(self, may_not_draft: bool, max_block: int | None = None):
        super().__init__(most_drafted(max_block))
        # the first round warms up; where drafting may not pay, a short draft tells what more costs
        self._probes = [SHORT] if may_not_draft else [6, 2, 12]
        self.may_not_draft = may_not_draft
        # seconds over tokens of a block; over rows of a draft step
        self.verify, self.step = Line(0.9), Line(0.97)
        self.ways = Ways()
        self.calibration = 1.0  # rejections per rejection that the draft expects
        self.agreement = 0.9  # the chance that one more token agrees
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
        return self.agreement * token_s >= costs_s

    def _verify_token_s(self) -> float:
        """What one more token of a block takes. While all blocks were alike: the line's guess, and
        at most what they took beyond plain decoding."""
        ways, plain_s = self.ways, self.ways.seconds_per_token.get(False)
        drafted = (ways.verify_row_tokens or 1.0) - 1
        if self.verify.has_varied or plain_s is None or not drafted:
            return self.verify.slope
        beyond_s = max(0.0, ways.verify_row_s - plain_s) / drafted
        return min(self.verify.slope, beyond_s)

    # ---- during a round ----

    def keep_drafting(self, block, confidence: Callable) -> tuple:
        """A token is verified while its chance to be accepted pays for that; a row drafts on while
        the next one would, too."""
        sure = confidence()
        if sure is None:
            return super().keep_drafting(block, confidence)
        block.prefix_prob[block.computed_rows] *= self.accept_prob(sure)
        worth_one_more = lambda: self._worth_drafting(block.prefix_prob, block.active)  # noqa: E731
        return self._worth_verifying(block.prefix_prob), worth_one_more

    def accept_prob(self, confidence: torch.Tensor) -> torch.Tensor:
        """The chance that a drafted token is accepted, given the draft's own ``confidence`` in
        it."""
        return (1 - self.calibration * (1 - confidence)).clamp(min=0.01)

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
        gain_s = prefix_prob * self.agreement * self._worth_s()
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
        drafted, drafts = sum(done.drafted), bool(done.steps)
        if drafts and self._num_drafts == 1:
            self.verify, self.step = Line(0.9), Line(0.97)
            self.ways.restart()
        self._num_drafts += drafts
        self.ways.add(done)
        # the first token of each row asks for the most experts: it says nothing about what one more
        # costs
        if drafts:
            self.verify.add(len(done.drafted) + drafted, done.verify_s)
        for rows, seconds in done.steps:
            self.step.add(rows, seconds)
        if drafted:
            rejections = sum(a < d for a, d in zip(done.accepted, done.drafted, strict=True))
            if done.expected_rejections > 0:
                ratio = min(max(rejections / done.expected_rejections, 0.5), 2.0)
                learnt = running_mean(self.calibration, self.calibration * ratio, RECENT)
                self.calibration = min(max(learnt, 0.05), 5.0)
            agreed = sum(done.accepted)
            share = agreed / max(1, agreed + rejections)
            self.agreement = running_mean(self.agreement, share, RECENT)
