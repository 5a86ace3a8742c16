"""Which tokens go to which expert: sorting, merging and thinning out a router's choices. Pure
functions of tensors.

Comes in: ``index`` [T, K] the experts that a router chose, ``weights`` [T, K], ``live`` which
tokens count (None: all). Goes out: the same choices grouped by expert, or fewer of them.
``experts`` calls this.

    T tokens of the block, K top_k, E experts, P pairs of token and expert that count
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Groups(NamedTuple):
    """Pairs sorted by expert: ``counts`` [E] tokens of each; ``slices`` expert -> where its pairs
    stand in ``order`` [P]; pair p is token p // K's choice p % K."""

    counts: list[int]
    slices: dict[int, slice]
    order: torch.Tensor


def living_pairs(index: torch.Tensor, num_experts: int, live: torch.Tensor | None) -> torch.Tensor:
    """The expert of every pair [T * K]; ``num_experts`` ("none") where the token is dead. A model
    may hand in its pairs one by one (T * K, 1): each live flag then counts for K of them."""
    pairs = index.reshape(-1)
    if live is None:
        return pairs
    return pairs.masked_fill(~live.repeat_interleave(len(pairs) // len(live)), num_experts)


def tokens_per_expert(pairs: torch.Tensor, num_experts: int) -> list[int]:
    return torch.bincount(pairs, minlength=num_experts + 1)[:num_experts].tolist()


def group_by_expert(index: torch.Tensor, num_experts: int, live: torch.Tensor | None) -> Groups:
    """``index`` [T, K] -> ``Groups``; pairs of dead tokens and of expert E ("none") are in none."""
    pairs = living_pairs(index, num_experts, live)
    counts = tokens_per_expert(pairs, num_experts)
    slices, begin = {}, 0
    for expert, count in enumerate(counts):
        if count:
            slices[expert] = slice(begin, begin + count)
            begin += count
    return Groups(counts, slices, torch.argsort(pairs, stable=True)[:begin])


def keep_top_k(
    index: torch.Tensor, weights: torch.Tensor, top_k
) -> tuple[torch.Tensor, torch.Tensor]:
    """Only each token's ``top_k`` heaviest choices ("half" of them; None: all), which share the
    weight of all: [T, K] -> [T, top_k] twice."""
    top_k = -(-index.shape[1] // 2) if top_k == "half" else top_k
    if top_k is None or top_k >= index.shape[1]:
        return index, weights
    kept = weights.topk(top_k, dim=1)
    share = weights.sum(dim=1, keepdim=True) / kept.values.sum(dim=1, keepdim=True).clamp(min=1e-20)
    return index.gather(1, kept.indices), kept.values * share


def merge_duplicates(
    index: torch.Tensor, weights: torch.Tensor, none: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token whose choices have the same stand-in needs it once: ``index``, ``weights`` [T, K] ->
    the same sum from fewer pairs (the later choice becomes ``none``, its weight goes to the
    earlier)."""
    if index.shape[1] == 1:
        return index, weights
    index, weights = index.clone(), weights.clone()
    for later in range(1, index.shape[1]):
        for earlier in range(later):
            same = (index[:, later] == index[:, earlier]) & (index[:, later] != none)
            weights[:, earlier] += weights[:, later] * same
            weights[:, later] *= ~same
            index[:, later] = torch.where(same, none, index[:, later])
    return index, weights
