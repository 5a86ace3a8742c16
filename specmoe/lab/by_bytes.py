"""How far to draft, by bytes: a drafted token is verified while the experts that it would newly ask
for cost less than it brings.

Comes in: the experts of a run, what its parts cost. Goes out: a planner (``ByBytes``), which takes
the place of a run's own before its first round. ``by_bytes_counts`` calls it, and compares. After
EVICT (arXiv 2605.00342), which prices by profiles; here the draft's own routers name the experts.

A token's experts are named when it is fed, one draft step after it was picked, so it is judged then:
those that are resident, or that the block has named before, cost nothing. Let P be its chance to be
accepted, s the seconds per committed token now, n the seconds its new experts take to be read, and
m the mean n of the tokens that were verified:

    "price"   keep while  P * s >= n
    "waste"   keep while  P * (s - m) >= (1 - P) * n

The second says that what a right token asks for is read in this round or in the next; only a wrong
one's experts are wasted. A row whose token is not worth it drafts no further. Greedy only: to leave
out a token for what it is would bend the distribution it was drawn from (``planner.OwnPlanner``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..offload.experts import RunExperts
from ..speculate.block import Drafting
from ..speculate.planner import Planner, running_mean
from ..trace import Round

RULES = ("price", "waste")
RECENT = 0.1  # weight of the newest round in a running mean


@dataclass(frozen=True)
class Costs:
    """Seconds: to read an expert, of a draft step, of a verification without reads, and what one
    more token of its block computes."""

    read_s: float
    step_s: float = 0.0
    verify_s: float = 0.0
    token_s: float = 0.0

    def of(self, done: Round, reads: int) -> Round:
        """``done`` with seconds by these costs."""
        tokens = len(done.drafted) + sum(done.drafted)
        verify_s = self.verify_s + tokens * self.token_s + reads * self.read_s
        steps = [(rows, self.step_s) for rows, _ in done.steps]
        return replace(done, draft_s=len(steps) * self.step_s, verify_s=verify_s, steps=steps)


class Told(Planner):
    """Another planner, which is told seconds by ``costs`` and the reads that were counted, not the
    clock's."""

    def __init__(self, planner: Planner, experts: RunExperts, costs: Costs):
        super().__init__(planner.max_gamma)
        self.planner, self.pool, self.costs = planner, experts.pool, costs
        self.keep_drafting = planner.keep_drafting
        self.num_reads = 0

    def next_gamma(self):
        self.num_reads = self.pool.counts.num_fetches
        return self.planner.next_gamma()

    def observe(self, done):
        reads = self.pool.counts.num_fetches - self.num_reads
        self.planner.observe(self.costs.of(done, reads))


class Named:
    """A run's stand-ins that remember what the draft's routers asked for: layer -> [T, K]."""

    def __init__(self, stand_ins):
        self.stand_ins = stand_ins
        self.asked: dict[int, torch.Tensor] = {}

    def of(self, layer: int, index: torch.Tensor) -> torch.Tensor:
        self.asked[layer] = index
        return self.stand_ins.of(layer, index)

    def __getattr__(self, name):
        return getattr(self.stand_ins, name)


class ByBytes(Planner):
    """State: of the block, its tokens' experts and chances (``wants``, ``probs``: an entry per draft
    step); running means of seconds per token (``token_s``) and of new experts per drafted token
    (``usual``), and how often the draft is right."""

    def __init__(self, experts: RunExperts, max_gamma: int, costs: Costs, rule: str = "price"):
        super().__init__(max_gamma)
        self.experts, self.costs, self.rule = experts, costs, rule
        self.heard = experts.stand_ins = Named(experts.stand_ins)
        self.wants: list[torch.Tensor] = []  # [B, L * E] bool
        self.probs: list[torch.Tensor] = []  # [B]; 0: the row did not draft this one
        self.named = torch.zeros(0, dtype=torch.bool)
        self.token_s: float | None = None
        self.usual, self.calibration, self.expected = 0.0, 1.0, 0.0
        self.new, self.num_reads = 0.0, 0

    def next_gamma(self):
        # before a round, a prefill may have read
        self.num_reads = self.experts.pool.counts.num_fetches
        return self.max_gamma

    def keep_drafting(self, block, confidence):
        sure = confidence()
        if sure is None:
            return super().keep_drafting(block, confidence)
        asked = self._asked(block)
        if len(block.tokens) == 1:
            self._begin(asked)
        else:
            self.wants.append(asked)
        chance = (1 - self.calibration * (1 - sure)).clamp(min=0.01)
        block.prefix_prob[block.computed_rows] *= chance
        self.probs.append(block.prefix_prob * block.active)
        # the block counts the tokens of active rows itself, right after this
        block.num = self._lengths() - block.active.long()
        return block.active, lambda: block.active & self._step_pays(block)

    def _asked(self, block: Drafting) -> torch.Tensor:
        """What the tokens just fed ask for, bool [B, L * E]; none of a row that is not computed."""
        num, heard = self.experts.installed.num_experts, self.heard.asked
        wants = torch.zeros(len(block.num), len(heard), num + 1, dtype=torch.bool)
        for place, layer in enumerate(sorted(heard)):
            index = heard[layer].cpu()
            wants[block.computed_rows, place] = wants[block.computed_rows, place].scatter(
                1, index, True
            )
        return wants[..., :num].flatten(1)

    def _begin(self, asked: torch.Tensor) -> None:
        """A new block: its first tokens are verified in any case."""
        self.wants, self.probs = [], []
        held = torch.zeros(len(self.heard.asked), self.experts.installed.num_experts).bool()
        for place, layer in enumerate(sorted(self.heard.asked)):
            held[place, list(self.experts.pool.resident_experts(layer))] = True
        self.named = held.flatten() | asked.any(dim=0)
        if self.token_s is None:
            reads = int((self.named & ~held.flatten()).sum())
            self.token_s = (self.costs.verify_s + reads * self.costs.read_s) / len(asked)

    def _lengths(self) -> torch.Tensor:
        """How many drafted tokens of each row to verify [B]: of all cuts by a chance that a token
        has to have, the one that brings most."""
        probs = torch.stack(self.probs)  # [G, B]
        order = probs.flatten().argsort(descending=True, stable=True)
        prob = probs.flatten()[order]
        order, prob = order[prob > 0], prob[prob > 0]
        new = self._new(order, probs.shape[1])
        worth = self._worth_s(prob, new).cumsum(0)
        best = int(worth.argmax()) + 1 if float(worth.max()) > 0 else 0
        self.new = float(new[:best].mean()) if best else 0.0
        self.expected = 0.0
        lengths = torch.bincount(order[:best] % probs.shape[1], minlength=probs.shape[1])
        rows = (lengths > 0).nonzero().flatten()
        self.expected = float((1 - probs[lengths[rows] - 1, rows]).sum())
        return lengths

    def _new(self, order: torch.Tensor, rows: int) -> torch.Tensor:
        """Experts that each token, in this order, is the first to name; a token that was not fed yet
        counts as a usual one."""
        wants = torch.stack(self.wants).flatten(0, 1) if self.wants else self.named[None][:0]
        fed = order < len(wants)
        mine = wants[order[fed]] | self.named
        seen = mine.int().cummax(dim=0).values.sum(dim=1)
        new = torch.full(order.shape, self.usual, dtype=torch.float64)
        new[fed] = seen.diff(prepend=self.named.sum()[None]).double()
        return new

    def _worth_s(self, prob: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """What each token brings beyond its price, in seconds."""
        price_s = new * self.costs.read_s + self.costs.token_s
        if self.rule == "price":
            return prob * self.token_s - price_s
        usual_s = self.usual * self.costs.read_s + self.costs.token_s
        return prob * max(self.token_s - usual_s, 0.0) - (1 - prob) * price_s

    def _step_pays(self, block: Drafting) -> bool:
        usual_s = self.usual * self.costs.read_s + self.costs.token_s
        gain_s = max(self.token_s - usual_s, 0.0)
        return float(block.prefix_prob[block.active].sum()) * gain_s >= self.costs.step_s

    def observe(self, done):
        reads = self.experts.pool.counts.num_fetches - self.num_reads
        told = self.costs.of(done, reads)
        spent_s = told.draft_s + told.verify_s
        self.token_s = running_mean(self.token_s, spent_s / max(1, done.new_tokens), RECENT)
        if sum(done.drafted):
            self.usual = running_mean(self.usual, self.new, RECENT)
            rejections = sum(a < d for a, d in zip(done.accepted, done.drafted, strict=True))
            ratio = min(max(rejections / max(self.expected, 1e-9), 0.5), 2.0)
            learnt = running_mean(self.calibration, self.calibration * ratio, RECENT)
            self.calibration = min(max(learnt, 0.05), 5.0)
