"""Drafting or not: which of the two costs less per token, and when the other is worth a try.

Comes in, after every round: what it cost and gave. Goes out, once per round: whether to draft.
``confidence`` asks where plain decoding is a choice (``auto``).

Trials are what a planner gambles with, so they are cheap by construction. A short draft comes
first: its costs say what a longer one would take, and bound what plain decoding can take. A plain
pass asks for a part of what the verification of the same rows asks for, so it takes at most as
long (and what was read ahead), and no less than its tokens' share of the computing and its experts'
of the reads (``evidence``): counts, not the clock, say so. It is tried at once only where it may be
clearly better; later, no trial may make all of them together cost more than ``LOSS`` of the seconds
so far. A round that was stopped by something else counts little.
"""

from __future__ import annotations

from collections.abc import Callable

from ..trace import Round
from .evidence import least_plain_s
from .planner import Trials, running_mean

# of older rounds in the seconds of a token: a round of one row commits few, and a choice must not
# follow noise
KEEP = 0.96
# rounds until the other way, drafting or not, is tried again, times the square of how much slower
# it was
LOOK_AGAIN = 24
TRIAL = 3  # rounds of such a trial, or of the first drafts: one alone says little
# A round of more than so many times what its tokens usually take counts as that many.
STALL = 4.0
# How much more than plain decoding takes at least a drafted token may cost, before that is tried.
DOUBT = 1.25


class Ways:
    """State: for each way seconds and tokens of recent rounds, the newest weighing most
    (``spent``), how many rounds there were, and the tokens of the last; the trial under way."""

    def __init__(self):
        # drafting or not -> seconds, tokens
        self.spent: dict[bool, tuple[float, float]] = {}
        self.num_rounds = {True: 0, False: 0}
        self.last_tokens = {True: 0, False: 0}
        # of rounds that drafted, for each row: seconds of a verification and of what was read for
        # it while drafting, its tokens, and what plain decoding takes at least
        self.verify_row_s: float | None = None
        self.verify_row_tokens: float | None = None
        self.least_plain_s: float | None = None
        self.trials = Trials()
        self.drafts = True
        self.rounds_to_trial, self.trial_rounds = LOOK_AGAIN, 0

    @property
    def seconds_per_token(self) -> dict[bool, float]:
        """Drafting or not -> of recent rounds together."""
        return {drafts: seconds / tokens for drafts, (seconds, tokens) in self.spent.items()}

    @property
    def plain_s(self) -> float:
        """Seconds of a token without drafting: as measured, and at most a verification's."""
        known = [self.seconds_per_token.get(False), self.verify_row_s]
        return min((value for value in known if value is not None), default=float("inf"))

    @property
    def plain_may_pay(self) -> bool:
        """Never tried, could plain decoding be clearly better than drafting?"""
        if False in self.spent or self.verify_row_s is None or True not in self.spent:
            return False
        return self.seconds_per_token[True] > DOUBT * self.least_plain_s

    def restart(self) -> None:
        """Forget what drafts have cost so far: they were of another kind."""
        self.spent.pop(True, None)
        self.num_rounds[True] = 0
        self.verify_row_s = self.verify_row_tokens = self.least_plain_s = None

    def add(self, done: Round) -> None:
        drafts, seconds = bool(done.steps), done.draft_s + done.verify_s
        self.trials.seconds += seconds
        if not done.new_tokens:
            return
        if drafts:
            rows = len(done.drafted)
            # what was read ahead, plain decoding reads after
            all_s = done.verify_s + (done.draft_s if done.num_ahead > 0 else 0.0)
            self.verify_row_s = running_mean(self.verify_row_s, all_s / rows)
            tokens = 1 + sum(done.drafted) / rows
            self.verify_row_tokens = running_mean(self.verify_row_tokens, tokens)
            self.least_plain_s = running_mean(self.least_plain_s, least_plain_s(done) / rows)
        if self.num_rounds[drafts] >= TRIAL:
            usual_s = self.seconds_per_token[drafts]
            seconds = min(seconds, STALL * usual_s * done.new_tokens)
        old = [x * KEEP for x in self.spent.get(drafts, (0.0, 0.0))]
        self.spent[drafts] = old[0] + seconds, old[1] + done.new_tokens
        self.num_rounds[drafts] += 1
        self.last_tokens[drafts] = done.new_tokens

    def next_drafts(self, one_more_pays: Callable[[float], bool]) -> bool:
        """Does the next round draft? ``one_more_pays(s)``: would a drafted token pay where a token
        costs ``s`` seconds? It decides until drafts of that length have been seen."""
        if self.plain_may_pay:
            self.drafts = False
            return False
        best = self._drafting_pays(one_more_pays)
        if self.trial_rounds:
            self.trial_rounds -= 1
        else:
            self.rounds_to_trial -= 1
            if self.rounds_to_trial <= 0:
                self.rounds_to_trial, self.trial_rounds = self.patience(), TRIAL - 1
                self.drafts = not best
            else:
                self.drafts = best
        if self.drafts != best and not self.trials.affords(self._loss_s(not best)):
            self.drafts, self.trial_rounds = best, 0
        return self.drafts

    def _drafting_pays(self, one_more_pays: Callable[[float], bool]) -> bool:
        costs = self.seconds_per_token
        if True not in costs or costs[True] <= self.plain_s:
            return True
        return self.num_rounds[True] < TRIAL and one_more_pays(self.plain_s)

    def _loss_s(self, drafts: bool) -> float:
        """What a round of this way costs beyond the other, as far as is known."""
        costs = self.seconds_per_token | {False: self.plain_s}
        if len(costs) < 2:
            return 0.0
        return self.last_tokens[drafts] * (costs[drafts] - costs[not drafts])

    def patience(self) -> int:
        """Rounds until the next trial."""
        costs = self.seconds_per_token.values()
        apart = max(costs) / min(costs) if len(costs) == 2 else 1.0
        return int(LOOK_AGAIN * min(apart**2, 20.0))
