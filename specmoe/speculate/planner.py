"""How many tokens to draft in the next round, one number for all rows; gamma = 0 is plain decoding.
(``confidence`` decides token by token instead, where the draft's own confidence says something:
greedy decoding with no gamma given.)

Comes in, after every round: what it cost and what was accepted. Goes out: gamma for the next one,
the value with the fewest expected seconds per committed token. ``speculate.loop`` asks once per
round.

    seconds(gamma) = gamma * draft_step + verify(gamma)          tokens(gamma) = 1 + sum_i
                                                                 prod_{j<=i} acceptance_j

A draft step, a verification at each gamma tried, and the acceptance at each position are measured
while decoding and averaged over recent rounds; verifications at other gammas are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..registry import Part
from ..trace import Round
from .evidence import SHORT, least_plain_s, one_more_s

CANDIDATES = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12)
# Tried first where plain decoding is no choice, twice each: the first time of anything is slow.
PROBES = (5, 5, 2, 10, 2, 10)
RECENT = 0.25  # weight of the newest round in a running mean
LOOK_AGAIN = 24  # rounds between two trials of a gamma that is not the best
LOSS = 0.05  # of all seconds, what trials may cost together
# How much more than plain decoding takes at least a drafted token may cost, before that is tried.
DOUBT = 1.25
JUMP = 2.0  # times its mean, the most that one round's clock counts: a stall is no evidence


class Planner:
    """How far to draft. The round asks ``next_gamma`` once, ``keep_drafting`` after every draft
    step, and tells it what the round cost by ``observe``. ``max_gamma``: it never asks for more.

    Also the contract of your own (``specmoe.register``): a function of the rounds so far (a list of
    ``trace.Round``, each with what it cost and what was accepted), or a class with ``next_gamma``,
    made anew for each run with ``max_gamma`` (what ``gamma`` says, else 32, or what a model can
    take back); it may have the other methods. The answer, 0 to ``max_gamma``, is for every row."""

    def __init__(self, max_gamma: int):
        self.max_gamma = max_gamma

    @property
    def settled(self) -> bool:
        """Does it no longer only try things out?"""
        return True

    def next_gamma(self) -> int:
        """Tokens to draft in this round, at most."""
        raise NotImplementedError

    def keep_drafting(self, block, confidence: Callable) -> tuple:
        """After a draft step: (rows whose new token is worth verifying, function that gives the
        rows worth one more), masks [B]. ``confidence()``: the draft's probability of each picked
        token, float64 [rows computed], or None; who does not call it does not pay for it."""
        return block.active, lambda: block.active

    def observe(self, done: Round) -> None:
        """Learn from a round."""


class FixedGamma(Planner):
    """Always the same gamma."""

    def next_gamma(self) -> int:
        return self.max_gamma


class OwnPlanner(Planner):
    """A user's own; its answer is checked every time."""

    def __init__(self, part: Part, max_gamma: int):
        super().__init__(max_gamma)
        self.part = part
        self.rounds: list[Round] = []

    @property
    def settled(self) -> bool:
        return bool(getattr(self.part.given, "settled", True))

    def next_gamma(self) -> int:
        part = self.part
        answer = part.ask(part.method) if part.method else part.ask(part.given, list(self.rounds))
        (gamma,) = part.numbers([answer], "for a round", "a whole number of tokens to draft")
        if not 0 <= gamma <= self.max_gamma:
            raise part.refusal(f"{gamma} tokens to draft: 0 to {self.max_gamma} may be")
        return gamma

    def keep_drafting(self, block, confidence):
        function = getattr(self.part.given, "keep_drafting", None)
        # to leave out a token for what it is would bend the distribution it was drawn from
        if function is None or block.distributions[-1] is not None:
            return super().keep_drafting(block, confidence)
        answer = self.part.ask(function, block, confidence)
        if not isinstance(answer, tuple) or len(answer) != 2 or not callable(answer[1]):
            raise self.part.refusal(f"{answer!r:.60}: return a mask [B] and a function of none")
        verify, go_on = answer
        return self._mask(verify, block), lambda: self._mask(self.part.ask(go_on), block)

    def _mask(self, answer, block):
        like = block.active
        same = [getattr(answer, name, None) == getattr(like, name) for name in ("dtype", "shape")]
        if not all(same):
            raise self.part.refusal(f"{answer!r:.60} for rows: return bool [{len(like)}]")
        return answer

    def observe(self, done: Round) -> None:
        self.rounds.append(done)
        if function := getattr(self.part.given, "observe", None):
            self.part.ask(function, done)


class Trials:
    """What trying the other way has cost beyond the best one, in seconds as they were expected, and
    whether one more is affordable."""

    def __init__(self):
        self.seconds = self.lost_s = 0.0

    def affords(self, loss_s: float) -> bool:
        """Does a trial stay within ``LOSS`` of all seconds? If so, it counts as made."""
        if self.lost_s + max(loss_s, 0.0) > LOSS * self.seconds:
            return False
        self.lost_s += max(loss_s, 0.0)
        return True


class CostPlanner(Planner):
    """Chooses among ``candidates`` by measured costs; ``first``: tokens of the first draft, where 0
    is among them. State: running means; nothing else is remembered."""

    def __init__(self, candidates: tuple[int, ...] = CANDIDATES, first: int = SHORT):
        super().__init__(max(candidates))
        self.candidates = candidates
        self._probes = [gamma for gamma in PROBES if gamma in candidates]
        if 0 in candidates:
            drafting = (g for g in candidates if g)
            self._probes = [min(drafting, key=lambda g: abs(g - first), default=0)]
        self.trials = Trials()
        self.draft_step_s: float | None = None
        self.verify_s: dict[int, float] = {}
        # what a round without drafts takes at least, and of one more token of each row
        self.least_plain_s, self.one_more_s = float("inf"), 0.0
        self.reached = np.zeros(max(candidates))  # rows whose draft came as far as this position
        self.agreed = np.zeros(max(candidates))  # of them, rows whose token there was accepted
        self._seen: set[int] = set()
        self._num_rounds = 0

    @property
    def settled(self) -> bool:
        return not self._probes

    def next_gamma(self) -> int:
        self._num_rounds += 1
        if self._probes:
            return self._probes.pop(0)
        ranked = sorted(self.candidates, key=self.seconds_per_token)
        best_s = self.seconds_per_token(ranked[0])
        if 0 in self.candidates and 0 not in self.verify_s and best_s > DOUBT * self.least_plain_s:
            return 0
        if self._num_rounds % LOOK_AGAIN == 0 and len(ranked) > 1:
            other = ranked[1] if ranked[0] else next((g for g in ranked[1:] if g), 0)
            if self.trials.affords(self.seconds(other) - self.tokens(other) * best_s):
                return other
        return ranked[0]

    def observe(self, done: Round) -> None:
        self.trials.seconds += done.draft_s + done.verify_s
        if done.gamma not in self._seen:  # the first round of a kind warms caches up
            self._seen.add(done.gamma)
            if done.gamma in self._probes:
                return
        self.verify_s[done.gamma] = calm_mean(self.verify_s.get(done.gamma), done.verify_s)
        if done.gamma:
            self.least_plain_s = min(self.least_plain_s, least_plain_s(done))
            self.one_more_s = one_more_s(done) * len(done.drafted)
            self.draft_step_s = calm_mean(self.draft_step_s, done.draft_s / done.gamma)
            self._count(done)

    def _count(self, done: Round) -> None:
        self.reached *= 0.9
        self.agreed *= 0.9
        for drafted, accepted in zip(done.drafted, done.accepted, strict=True):
            self.agreed[:accepted] += 1
            self.reached[: min(drafted, accepted + 1)] += 1

    def acceptance(self) -> np.ndarray:
        """[G] chance that the token at a drafted position is accepted, given that all before it
        were."""
        # of all positions; two imagined rows, one accepted: nothing seen counts as even odds
        usual = (self.agreed.sum() + 1) / (self.reached.sum() + 2)
        # two imagined rows more at each: an empty position counts as the others do
        return (self.agreed + 2 * usual) / (self.reached + 2)

    def tokens(self, gamma: int) -> float:
        """Expected tokens per row of a round that drafts ``gamma``."""
        return 1.0 + float(np.cumprod(self.acceptance()[:gamma]).sum())

    def seconds(self, gamma: int) -> float:
        """Expected seconds of such a round."""
        if not self.verify_s:
            return 1.0 + gamma
        known = sorted(self.verify_s)
        verify_s = float(np.interp(gamma, known, [self.verify_s[g] for g in known]))
        last, beyond = known[-1], gamma - known[-1]
        if beyond > 0 and len(known) > 1:  # beyond what was tried: go on at the last slope
            slope = (self.verify_s[last] - self.verify_s[known[-2]]) / (last - known[-2])
            verify_s = self.verify_s[last] + max(slope, 0.0) * beyond
        elif len(known) == 1:
            verify_s += self.one_more_s * beyond
        return verify_s + gamma * (self.draft_step_s or 0.0)

    def seconds_per_token(self, gamma: int) -> float:
        """What is minimised."""
        return self.seconds(gamma) / self.tokens(gamma)


def running_mean(old: float | None, new: float, recent: float = RECENT) -> float:
    """``recent``: weight of the newest value."""
    return new if old is None else (1 - recent) * old + recent * new


def calm_mean(old: float | None, new: float) -> float:
    """The same of a clock that now and then stands still."""
    return running_mean(old, new if old is None else min(new, JUMP * old))
