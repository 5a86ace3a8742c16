"""Which experts of a layer stay in fast memory after a step. No torch.

Comes in, when a layer's router has spoken: how many live tokens went to each expert of the layer,
and which experts are resident. Goes out: the set to keep, at most ``num_kept`` of them. Everything
else may be overwritten as soon as it has been computed. The choice is made once per layer and step,
for the whole coalesced request; so "least recently used" means least recently *requested*, ties
broken by the token count of that request. ``offload.pool`` acts on the choice; ``draft_sets``
makes the same kind of choice for the draft.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .votes import Votes


class KeepPolicy:
    """Base: keep nothing (on-demand). ``keep`` may update the policy's own memory of past
    requests. ``fixed``: the sets of a policy that never changes them.

    Also the contract of your own eviction or draft set (``specmoe.register``): a function, or a
    class with ``keep``. A class is made anew for each run, with these three numbers. It is asked
    once per layer and step of the full model, for the whole coalesced request, and its answer
    counts from that moment on. An eviction chooses among experts that the step asks for or that
    are resident, and may keep fewer than it can; a draft set names at least one, and what is not
    here is fetched, and counted."""

    fixed: list[set[int]] | None = None

    def __init__(self, num_layers: int, num_experts: int, num_kept: int):
        """``num_layers``: MoE layers, an encoder's first; ``num_experts`` of each."""
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.num_kept = num_kept

    def keep(self, layer: int, counts: Sequence[int], resident: set[int]) -> set[int]:
        """``counts`` [E] tokens per expert in this step -> experts of ``layer`` to keep, at most
        ``num_kept``."""
        return set()


def needed_of(counts: Sequence[int]) -> set[int]:
    """The experts that a step asks for, by its tokens per expert [E]."""
    return {expert for expert, count in enumerate(counts) if count}


class _Ranked(KeepPolicy):
    """Keep the ``num_kept`` candidates (needed now or resident) with the highest ``_rank``."""

    def keep(self, layer, counts, resident):
        self.observe(layer, counts)
        candidates = needed_of(counts) | resident
        ranked = sorted(candidates, key=lambda e: (self._rank(layer, e), -e), reverse=True)
        return set(ranked[: self.num_kept])

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        raise NotImplementedError

    def _rank(self, layer: int, expert: int):
        raise NotImplementedError


class LRU(_Ranked):
    """Keep the most recently requested."""

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        self._step = [0] * num_layers
        # (step, tokens) of the last request
        self._last = [[(-1, 0)] * num_experts for _ in range(num_layers)]

    def observe(self, layer, counts):
        self._step[layer] += 1
        for expert, count in enumerate(counts):
            if count:
                self._last[layer][expert] = (self._step[layer], count)

    def _rank(self, layer, expert):
        return self._last[layer][expert]


class LFU(_Ranked):
    """Keep the most frequently requested since the run began (tokens, not steps)."""

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        self._total = [[0] * num_experts for _ in range(num_layers)]

    def observe(self, layer, counts):
        total = self._total[layer]
        for expert, count in enumerate(counts):
            total[expert] += count

    def _rank(self, layer, expert):
        return self._total[layer][expert]


class Temporal(_Ranked):
    """Keep the most used in this step; experts not used now follow in their earlier order."""

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        self._score = [[0.0] * num_experts for _ in range(num_layers)]

    def observe(self, layer, counts):
        # earlier use is squeezed below one token, so that it only breaks ties and orders the unused
        highest = max(self._score[layer], default=0.0) + 1.0
        self._score[layer] = [
            count + 0.5 * score / highest
            for count, score in zip(counts, self._score[layer], strict=True)
        ]

    def _rank(self, layer, expert):
        return self._score[layer][expert]


class Decayed(_Ranked):
    """Keep the most used (tokens), where a use counts less the longer ago it is: each by two clocks
    at once, one of a few steps (what this sentence is about) and one of a hundred (what the whole
    text is about). LFU with decay; two clocks fetch less than any one (``lab.pools``)."""

    # what is left of a use after one step, and how much that counts
    CLOCKS = ((0.8, 0.2), (0.99, 0.03))

    def __init__(self, num_layers, num_experts, num_kept):
        super().__init__(num_layers, num_experts, num_kept)
        self._use = [[[0.0] * num_experts for _ in self.CLOCKS] for _ in range(num_layers)]

    def observe(self, layer, counts):
        self._use[layer] = [
            [left * old + weight * count for old, count in zip(use, counts, strict=True)]
            for (left, weight), use in zip(self.CLOCKS, self._use[layer], strict=True)
        ]

    def _rank(self, layer, expert):
        return sum(use[expert] for use in self._use[layer])


class RecentUse:
    """How much every expert was used lately: ``use`` [layers][E], its tokens, of which each counts
    less the more came after it (by a factor e for every ``HORIZON`` pairs of token and expert). For
    what no policy has chosen to keep."""

    HORIZON = 2048  # long against a round of one row, about one round of 64

    def __init__(self, num_layers: int, num_experts: int):
        self.use = [[0.0] * num_experts for _ in range(num_layers)]

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        keep = math.exp(-sum(counts) / self.HORIZON)
        self.use[layer] = [
            keep * use + count for use, count in zip(self.use[layer], counts, strict=True)
        ]


class Fixed(KeepPolicy):
    """Keep the same set in every step."""

    def keep(self, layer, counts, resident):
        return set(self.fixed[layer])


class Static(Fixed):
    """A fixed set per layer: the hottest of a calibration run (``totals`` [layers][E] tokens)."""

    def __init__(self, num_layers, num_experts, num_kept, totals: Sequence[Sequence[float]]):
        super().__init__(num_layers, num_experts, num_kept)
        self.fixed = [
            set(sorted(range(num_experts), key=lambda expert: (-total[expert], expert))[:num_kept])
            for total in totals
        ]


class Belady(KeepPolicy):
    """The bound: keep those needed again soonest. Sees the future ``requests`` [layer][step] ->
    experts, so only a replay can use it (Belady 1966)."""

    def __init__(self, num_layers, num_experts, num_kept, requests: Sequence[Sequence[set[int]]]):
        super().__init__(num_layers, num_experts, num_kept)
        self._requests = requests
        self._step = [0] * num_layers

    def keep(self, layer, counts, resident):
        self._step[layer] += 1
        future = self._requests[layer][self._step[layer] :]
        candidates = needed_of(counts) | resident

        def next_use(expert: int) -> int:
            uses = (step for step, needed in enumerate(future) if expert in needed)
            return next(uses, len(future))

        ranked = sorted(candidates, key=lambda expert: (next_use(expert), expert))
        return set(ranked[: self.num_kept])


class RunPolicy:
    """What stays and what leaves first in one run: ``rule`` chooses what every layer keeps; of the
    others those that the draft's routers have named stay longest (``votes``), then those used most
    lately. Layers before ``first_kept`` (an encoder's, which run once per prompt) keep nothing, and
    their experts leave first."""

    def __init__(self, rule: KeepPolicy, first_kept: int = 0):
        self.rule = rule
        self.num_kept = rule.num_kept
        self.first_kept = first_kept
        self.votes = Votes(rule.num_layers, rule.num_experts)
        self.recent = RecentUse(rule.num_layers, rule.num_experts)
        self.is_frozen = False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, every layer keeps what it keeps, and nothing is learnt (prompts that come in
        while others decode)."""
        self.is_frozen = True
        try:
            yield
        finally:
            self.is_frozen = False

    def observe(self, layer: int, counts: Sequence[int]) -> None:
        """Tokens per expert [E] of a pass of the full model; the votes for it have been used."""
        self.votes.clear(layer)
        if not self.is_frozen:
            self.recent.observe(layer, counts)

    def keep(
        self, layer: int, counts: Sequence[int], kept: set[int], resident: set[int]
    ) -> set[int]:
        """What ``layer`` keeps from now on, given its ``counts`` [E], what it keeps now and what is
        resident."""
        if layer < self.first_kept:
            return set()
        return kept if self.is_frozen else self.rule.keep(layer, counts, resident)

    def priority(self, key: tuple[int, int]) -> tuple[float, ...]:
        """Among experts that nobody chose to keep the one of least priority leaves first; only
        compared."""
        layer, expert = key
        if layer < self.first_kept:
            return -1, 0.0
        return self.votes.counts[layer][expert], self.recent.use[layer][expert]


def replay(
    requests: Sequence[Sequence[int]], policy: KeepPolicy, layer: int = 0
) -> tuple[int, int]:
    """(hits, misses) of one layer's requests ([step] -> counts [E]) under ``policy``, starting
    empty."""
    resident: set[int] = set()
    hits = misses = 0
    for counts in requests:
        needed = needed_of(counts)
        hits += len(needed & resident)
        misses += len(needed - resident)
        resident = policy.keep(layer, counts, resident) & (needed | resident)
    return hits, misses
