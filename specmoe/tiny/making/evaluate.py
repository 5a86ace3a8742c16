"""How unevenly a model uses its experts: picks counted by hooks, Gini, dead experts.

Comes in: routers by name, whose output ends with the picks. Goes out: what ``training.json`` and
the model card say of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

HELD_OUT_SEED = 7
DEAD_SHARE = 0.001  # an expert with less of its layer's picks is called dead


def gini(counts: list[int]) -> float:
    """Gini coefficient of expert use: 0 is even, (E - 1) / E is one expert for everything."""
    ordered, n = sorted(counts), len(counts)
    total = sum(ordered)
    if not total:
        return 0.0
    return 2 * sum(i * x for i, x in enumerate(ordered, 1)) / (n * total) - (n + 1) / n


@contextmanager
def counted_picks(routers: dict[str, nn.Module], num_experts: int) -> Iterator[dict]:
    """Per router a counter [E] that grows with every forward pass inside the ``with``."""
    counts = {name: torch.zeros(num_experts, dtype=torch.long) for name in routers}

    def counter(count: torch.Tensor):
        # must return None, or it would replace the router's output
        def hook(_module, _inputs, output):
            count.add_(torch.bincount(output[2].reshape(-1), minlength=len(count)))

        return hook

    hooks = [
        router.register_forward_hook(counter(counts[name])) for name, router in routers.items()
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def expert_use(counts: dict[str, torch.Tensor]) -> dict:
    """Gini and dead experts of each sparse layer; a dead expert has under 0.1 % of its layer's
    picks."""
    ginis = {name: round(gini(count.tolist()), 4) for name, count in counts.items()}
    return {
        "gini_per_layer": ginis,
        "mean_gini": round(sum(ginis.values()) / len(ginis), 4),
        "dead_per_layer": {
            name: int((c < DEAD_SHARE * c.sum()).sum()) for name, c in counts.items()
        },
        "never_used_per_layer": {name: int((c == 0).sum()) for name, c in counts.items()},
        "counts": {name: count.tolist() for name, count in counts.items()},
    }
