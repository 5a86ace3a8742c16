"""Seconds of a method by the engine's own parts: what a ceiling leaves out.

Comes in: a ``ModelSize``, a ``Hardware`` with ``parts`` of a cut (``EngineParts``), ``Counts``. Goes
out: seconds per token. Bytes over the memory's rate is not what a pass takes: few rows stream
weights at the kernel's rate, not the bus's; the trunk is held in the engine's dtype; every layer and
step has its overhead; and plain offloading waits for its reads before it computes.
"""

from __future__ import annotations

from .engine_parts import EngineParts
from .sizes import ModelSize


def seconds_per_token(
    method: str, size: ModelSize, link_bytes_per_s: float, parts: EngineParts, counts
) -> float:
    """``on_demand`` reads, then computes; ``cached`` and ``specmoe`` compute while they read,
    ``resident`` has nothing to read."""
    times = _Times(size, link_bytes_per_s, parts, counts)
    if method == "specmoe":
        return times.round_s() / counts.round_tokens
    return times.plain_s(method) / counts.batch


class _Times:
    def __init__(self, size: ModelSize, link_bytes_per_s: float, parts: EngineParts, counts):
        self.size = size
        self.parts = parts
        self.counts = counts
        self.read_s = size.expert_bytes / link_bytes_per_s

    def plain_s(self, method: str) -> float:
        """One token for every row."""
        counts, top_k = self.counts, self.size.top_k
        asked = {"on_demand": counts.pass_experts, "cached": counts.pool_reads}
        reads, experts = asked.get(method, 0.0) * top_k, counts.pass_experts * top_k
        layer_s = self._layer_s(experts, counts.batch * top_k, reads, method != "on_demand")
        return self.parts.pass_s(self.size, counts.batch) + self.size.num_layers * layer_s

    def round_s(self) -> float:
        """Draft steps, then one verification of their tokens. What it needs is read ahead while it
        is drafted, into the slots that keep no draft expert."""
        counts, top_k, layers = self.counts, self.size.top_k, self.size.num_layers
        step_s = self.parts.step_s(self.size, counts.batch)
        residents = max(1.0, counts.share * self.size.num_experts / 2)
        draft_s = self.parts.draft_s(self.size, counts.batch, residents)
        drafted_s = counts.gamma * (step_s + layers * draft_s)
        pairs = counts.batch * (counts.gamma + 1) * top_k
        reads = counts.round_reads * top_k
        ahead = min(drafted_s / self.read_s / layers, reads, residents)
        asked = counts.round_experts * top_k, pairs, reads - ahead
        passed_s = self.parts.pass_s(self.size, counts.batch, counts.gamma + 1)
        return drafted_s + passed_s + layers * self._layer_s(*asked, True)

    def _layer_s(self, experts: float, pairs: float, reads: float, overlapped: bool) -> float:
        """A MoE layer with so many experts, of which ``reads`` come over the link; the last to come
        is computed when nothing else is left."""
        experts = min(experts, self.size.num_experts)
        fixed_s = self.parts.layer(0, 0)
        work_s, reading_s = self.parts.layer(experts, pairs) - fixed_s, reads * self.read_s
        if not overlapped or not reads:
            return fixed_s + work_s + reading_s
        return fixed_s + max(work_s, reading_s + work_s / experts)
