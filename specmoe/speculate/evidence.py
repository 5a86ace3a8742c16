"""What rounds say about drafts: how often they are right, and what one more token of a block costs.

Comes in: the draft's own confidence while a round drafts, then what became of it; seconds, and
counts that no clock disturbs. Goes out: chances and slopes. ``confidence`` decides by them.

At real size a text is a few rounds, of seconds each, so everything a round tells counts at once:
sixteen rows that drafted two tokens have given up to thirty-two verdicts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..trace import Round
from .block import Drafting

# Verdicts that the draft's own word counts as: so many tokens later, it is what was seen.
PRIOR = 2.0
FORGET = 0.95  # a round later, how much a verdict still counts
# Squared spread of x, relative to its mean, from which points say as much about the slope as what
# was guessed: that of one round whose block is a third longer.
TRUST = 0.1
AGREEMENT = 0.9  # the chance that one more token agrees, before any has
# The least share of experts that counts as not named: of one of a thousand one half.
MOST_NAMED = 1 - 1 / 2048
# A very first draft: the chance of a token, and of a plain round's seconds what a draft step takes
USUAL, STEP = 0.75, 0.04
SHORT, LONGEST_FIRST = 2, 8


class Line:
    """Running least squares of y = base + slope * x, the newest point weighing most. Both are at
    least 0, and the slope is drawn to a guess while x has hardly varied."""

    def __init__(self, keep: float):
        self.keep = keep
        self.weight = self.x = self.y = self.xx = self.xy = 0.0

    def add(self, x: float, y: float) -> None:
        for name, value in (("weight", 1.0), ("x", x), ("y", y), ("xx", x * x), ("xy", x * y)):
            setattr(self, name, self.keep * getattr(self, name) + value)

    def slope_near(self, guess: float) -> float:
        """``guess``: what it is taken for before points say more."""
        if not self.x:
            return 0.0
        mean_x = self.x / self.weight
        spread = self.xx - mean_x * self.x
        slope = self.xy - mean_x * self.y + TRUST * mean_x**2 * guess
        return min(max(slope / (spread + TRUST * mean_x**2), 0.0), self.y / self.x)

    @property
    def slope(self) -> float:
        """By default half of what there is to share out."""
        return self.slope_near(0.5 * self.y / self.x if self.x else 0.0)

    @property
    def base(self) -> float:
        return max(0.0, (self.y - self.slope * self.x) / self.weight) if self.weight else 0.0


class Verdicts:
    """State: of the block that grows, how little sure the draft was of each token (``doubts``, [B]
    for each step); tokens that were judged, rejected, and that should have been by those doubts."""

    def __init__(self):
        self.doubts: list[torch.Tensor] = []
        self.judged = self.rejected = self.expected = 0.0

    @property
    def calibration(self) -> float:
        """Rejections per rejection that the draft expects, by sums over tokens."""
        return min(max((self.rejected + PRIOR) / (self.expected + PRIOR), 0.01), 5.0)

    @property
    def agreement(self) -> float:
        """The chance that one more token agrees."""
        agreed = self.judged - self.rejected
        return (agreed + PRIOR * AGREEMENT) / (self.judged + PRIOR)

    def hear(self, block: Drafting, sure: torch.Tensor) -> None:
        """``sure`` [rows computed], of the tokens just drafted; only those of active rows may
        count."""
        doubts = torch.full((len(block.num),), math.nan, dtype=torch.float64)
        doubts[block.computed_rows] = 1 - sure.double()
        self.doubts.append(doubts.masked_fill(~block.active, math.nan))

    def add(self, done: Round) -> None:
        """Of every row the tokens up to its first rejection were judged."""
        heard = torch.stack(self.doubts, dim=1).tolist() if self.doubts else []
        self.doubts = []
        judged = rejected = expected = 0.0
        for doubts, drafted, accepted in zip(heard, done.drafted, done.accepted):
            tested = [d for d in doubts[: min(drafted, accepted + 1)] if not math.isnan(d)]
            judged, expected = judged + len(tested), expected + sum(tested)
            rejected += bool(tested) and accepted < drafted
        if judged:
            self.judged = FORGET * self.judged + judged
            self.rejected = FORGET * self.rejected + rejected
            self.expected = FORGET * self.expected + expected


class Reads(NamedTuple):
    """Of a verification: seconds that reads took, those that were not, and by how many experts its
    tokens name each more of the chance that one names none (ln q; None: nothing known)."""

    read_s: float
    computed_s: float
    log_miss: float | None

    @classmethod
    def of(cls, done: Round) -> Reads:
        """What was read ahead took at most as long as the draft. If use is even, a block of n
        tokens names 1 - q ** n of all experts; uneven use names more of them with fewer tokens."""
        read_s = done.wait_s + (done.draft_s if done.num_ahead > 0 else 0.0)
        computed_s = max(0.0, done.verify_s - done.wait_s)
        named = min(done.named, MOST_NAMED)
        return cls(read_s, computed_s, math.log(1 - named) / block_tokens(done) if named else None)


def block_tokens(done: Round) -> int:
    """Tokens of all rows that were verified."""
    return len(done.drafted) + sum(done.drafted)


def one_more_s(done: Round) -> float:
    """What one more token of this block would have taken, as far as a single round tells: reads as
    many more experts as it would name, and half of what was computed."""
    reads, tokens = Reads.of(done), block_tokens(done)
    if reads.log_miss is None:
        return 0.5 * done.verify_s / tokens
    more = -reads.log_miss * (1 - done.named) / done.named
    return 0.5 * reads.computed_s / tokens + more * reads.read_s


def least_plain_s(done: Round) -> float:
    """What a round of the same rows that drafts nothing takes at least: of what was computed its
    tokens' share, of the reads that of the experts that it names."""
    reads, share = Reads.of(done), len(done.drafted) / block_tokens(done)
    if reads.log_miss is None:
        return share * done.verify_s
    named = 1 - math.exp(len(done.drafted) * reads.log_miss)
    return share * reads.computed_s + reads.read_s * min(1.0, named / done.named)


def first_draft(rows: int, top_k: int | None, num_experts: int) -> int:
    """Tokens of the very first draft. Few, unless ``rows`` of even use name nearly every expert in
    any case: then the reads of a long block are those of a short one, and a text may have only a
    few rounds."""
    miss = 1 - min(1.0, (top_k or 0) / num_experts)
    best, tokens = SHORT, 1.0

    def seconds(gamma: int) -> float:
        """Of a round, as shares of a plain one's."""
        named = (1 - miss ** (rows * (1 + gamma))) / (1 - miss**rows) if miss < 1 else 1 + gamma
        return named + STEP * gamma

    for gamma in range(1, LONGEST_FIRST + 1):
        gain = USUAL**gamma
        if gain * seconds(gamma - 1) < tokens * (seconds(gamma) - seconds(gamma - 1)):
            break
        best, tokens = max(SHORT, gamma), tokens + gain
    return best
