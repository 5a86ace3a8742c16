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
from .planner import Planner, running_mean

MAX_GAMMA = 32  # tokens drafted per round, at most
RECENT = 0.15  # weight of the newest round in a running mean
# of older rounds in the seconds of a token: a round of one row commits few, and a choice must not
# follow noise
KEEP = 0.96
# rounds until the other way, drafting or not, is tried again, times the square of how much slower
# it was
LOOK_AGAIN = 24
TRIAL = 3  # rounds of such a trial: one alone says little


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
        self._probes = [0, 6, 0, 12] if may_not_draft else [6, 2, 12]  # the first round warms up
        self.may_not_draft = may_not_draft
        # seconds over tokens of a block; over rows of a draft step
        self.verify, self.step = Line(0.9), Line(0.97)
        # drafting or not -> seconds and tokens of recent rounds, the newest weighing most
        self.spent: dict[bool, tuple[float, float]] = {}
        self.calibration = 1.0  # rejections per rejection that the draft expects
        self.agreement = 0.9  # the chance that one more token agrees
        self._warmed_up = False
        self._drafts = True
        # rounds until a trial begins; that it still lasts
        self._rounds_to_trial, self._trial_rounds = LOOK_AGAIN, 0
        self._is_planned = False  # no gamma is prescribed in this round

    @property
    def settled(self) -> bool:
        return not self._probes

    @property
    def seconds_per_token(self) -> dict[bool, float]:
        """Drafting or not -> of recent rounds together."""
        return {drafts: seconds / tokens for drafts, (seconds, tokens) in self.spent.items()}

    def next_gamma(self) -> int:
        self._is_planned = not self._probes
        if self._probes:
            return min(self._probes.pop(0), self.max_gamma)
        if not self.may_not_draft:
            return self.max_gamma
        if not self._trial_rounds:
            self._drafts = self._drafting_pays()
            self._rounds_to_trial -= 1
            if self._rounds_to_trial <= 0:
                self._rounds_to_trial = self._patience()
                self._trial_rounds = TRIAL
                self._drafts = not self._drafts
        self._trial_rounds = max(0, self._trial_rounds - 1)
        return self.max_gamma if self._drafts else 0

    def _drafting_pays(self) -> bool:
        costs = self.seconds_per_token
        return costs.get(True, 0.0) <= costs.get(False, float("inf"))

    def _patience(self) -> int:
        costs = self.seconds_per_token.values()
        apart = max(costs) / min(costs) if len(costs) == 2 else 1.0
        return int(LOOK_AGAIN * min(apart**2, 20.0))

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
        return prefix_prob * self._worth_s() >= self.verify.slope

    def _worth_drafting(self, prefix_prob: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Which of the ``active`` rows should draft one token more, bool [B]."""
        if not self._is_planned:
            return active
        gain_s = prefix_prob * self.agreement * self._worth_s()
        gain_s = gain_s - self.verify.slope - self.step.slope
        going = active & (gain_s >= 0)
        return going if float(gain_s[going].sum()) >= self.step.base else torch.zeros_like(going)

    def _worth_s(self) -> float:
        return self.seconds_per_token.get(True, float("inf"))

    # ---- after a round ----

    def observe(self, done: Round) -> None:
        """Learn from a round; the very first one only warmed things up."""
        if not self._warmed_up:
            self._warmed_up = True
            return
        drafted, drafts = sum(done.drafted), bool(done.steps)
        if done.new_tokens:
            seconds, tokens = (x * KEEP for x in self.spent.get(drafts, (0.0, 0.0)))
            self.spent[drafts] = seconds + done.draft_s + done.verify_s, tokens + done.new_tokens
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
