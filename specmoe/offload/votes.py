"""What the draft's routers have named, before substitution, for the verification to come. No torch.

Comes in, at every draft step and layer: tokens per expert. Goes out: the experts that are worth
reading ahead, and how much keeping one is worth. ``experts`` casts the votes, the pool's policy
counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Votes:
    """State: ``counts`` [L][E] tokens of draft steps since the layer's last verification."""

    def __init__(self, num_layers: int, num_experts: int):
        self.num_layers = num_layers
        self.num_experts = num_experts
        self.counts = [[0] * num_experts for _ in range(num_layers)]
        # Votes that an expert needs: two where there is more than one token, as one alone is often
        # wrong.
        self.quorum = 1

    def add(self, layer: int, counts: Sequence[int], num_tokens: int) -> list[int]:
        """Tokens per expert [E] of one draft step -> the experts among them that now have votes
        enough."""
        self.quorum = 1 if num_tokens == 1 else 2
        votes = self.counts[layer]
        named = [expert for expert, count in enumerate(counts) if count]
        for expert in named:
            votes[expert] += counts[expert]
        return [expert for expert in named if votes[expert] >= self.quorum]

    def after(self, layer: int) -> Iterator[tuple[int, int]]:
        """(layer, expert) named for the layers after this one, the next layer's first, the most
        voted first."""
        for later in range(layer + 1, self.num_layers):
            votes = self.counts[later]
            named = [expert for expert in range(self.num_experts) if votes[expert] >= self.quorum]
            for expert in sorted(named, key=lambda expert: -votes[expert]):
                yield later, expert

    def clear(self, layer: int) -> None:
        """They were for the pass that now computes ``layer``."""
        self.counts[layer] = [0] * self.num_experts
