"""Recordings, hardware and a size made by hand, in which every second can be counted."""

from __future__ import annotations

import numpy as np

from specmoe.lab.simulate import Hardware, ModelSize, Recording

# A record takes 1 s on the link, a routed token 1 s of arithmetic, the trunk nothing; reading
# memory costs nothing.
SECONDS = Hardware("by hand", 100, 0.0, 10, 1e18)
SIZE = ModelSize("by hand", 100, 2, 8, 1, 10, 0, 0)
INFO = {
    "name": "m",
    "architecture": "mixtral",
    "layers": 2,
    "experts": 8,
    "top_k": 1,
    "record_bytes": 100,
    "slots": 8,
    "draft_experts": 2,
    "expert_bytes": 20,
    "expert_dtype": "float32",
    "dtype": "float32",
    "trunk_bytes": 0,
}


def recording(
    method: str, experts, hits, fetches, prefetches=None, drafting=None, committed=None, batch=4
) -> Recording:
    """One token per expert; arrays [S][L], ``drafting`` [S][G]."""
    experts, hits, fetches = np.array(experts), np.array(hits), np.array(fetches)
    rounds = len(experts)
    drafting = np.zeros((rounds, 0), dtype=int) if drafting is None else np.array(drafting)
    prefetches = np.zeros_like(experts) if prefetches is None else np.array(prefetches)
    rows, committed = (
        np.full(rounds, batch),
        np.full(rounds, batch) if committed is None else np.array(committed),
    )
    gammas = (drafting > 0).sum(axis=1)
    arrays = (experts, experts, hits, fetches, prefetches, rows, rows, committed, gammas, drafting)
    return Recording(INFO, method, batch, *arrays, positions=1 + gammas)
