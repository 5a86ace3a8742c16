"""A recorded run replayed: one serial link, one computing device, round by round and layer by layer.

Comes in: a ``Recording``, a ``Hardware``, perhaps another ``ModelSize``. Goes out: ``Simulated``. A pass costs its trunk,
then per MoE layer max(FLOP / rate, bytes touched / memory rate) and overheads. ``on_demand`` reads a wave, waits, computes
it; the others compute hits while misses arrive; ``overlapped`` reads the next layer's guesses meanwhile; a draft's
prefetches start while it drafts. What a layer asks for goes before guesses. Latency is paid once per
burst. Prefill is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import check_choice
from .hardware import Hardware
from .recording import Recording
from .sizes import ModelSize


@dataclass(frozen=True)
class Simulated:
    """Of decoding. Seconds are simulated; tokens and reads are the recording's."""

    hardware: str
    model: str
    method: str
    batch: int
    num_new_tokens: int
    seconds: float
    fetched_bytes: int
    wait_s: float  # compute stood still for a read
    draft_s: float
    verify_s: float
    link_busy_s: float

    @property
    def tokens_per_second(self) -> float:
        return self.num_new_tokens / self.seconds

    @property
    def migration_share(self) -> float:
        """Share (0 .. 1) of the time in which compute stood still for reads."""
        return self.wait_s / self.seconds


class _Link:
    """A serial queue of reads; guesses give way to what a layer asks for. Clock times in seconds."""

    def __init__(self, read_s: float, latency_s: float):
        self.read_s, self.latency_s = read_s, latency_s
        self.free_s = self.busy_s = 0.0
        self.ahead: dict[int, float] = {}  # layer -> seconds of reading still queued, in order

    def guess(self, layer: int, reads: float, now_s: float) -> None:
        if reads > 0:
            self.advance(now_s)
            self.ahead[layer] = self.ahead.get(layer, 0.0) + reads * self.read_s

    def advance(self, now_s: float) -> None:
        """Work on the guesses until ``now_s``."""
        for layer in list(self.ahead):
            done_s = min(self.ahead[layer], max(0.0, now_s - self.free_s))
            self.free_s, self.busy_s = self.free_s + done_s, self.busy_s + done_s
            self.ahead[layer] -= done_s
            if self.ahead[layer] > 1e-15:
                return
            del self.ahead[layer]
        self.free_s = max(self.free_s, now_s)

    def ask(self, layer: int, now_s: float, reads: float) -> tuple[float, float]:
        """A layer asks: (when the rest of its guesses is here, when the first byte of its ``reads`` can come)."""
        self.advance(now_s)
        rest_s = self.ahead.pop(layer, 0.0)
        guessed_s = max(self.free_s, now_s) + rest_s
        self.free_s, self.busy_s = guessed_s + reads * self.read_s, self.busy_s + rest_s + reads * self.read_s
        return guessed_s + (self.latency_s if rest_s else 0.0), guessed_s + self.latency_s


class _Costs:
    """Seconds of the parts of a pass, on one machine at one size."""

    def __init__(self, hardware: Hardware, size: ModelSize, is_own: bool):
        self.hardware, self.size = hardware, size
        self.points = np.array(hardware.step_points).T if is_own and hardware.step_points else None

    def trunk(self, tokens: int) -> float:
        if self.points is not None:
            tokens_at, seconds_at = self.points
            beyond = max(0.0, tokens - tokens_at[-1]) * seconds_at[-1] / tokens_at[-1]
            return float(np.interp(tokens, tokens_at, seconds_at)) + beyond
        work_s = tokens * self.size.trunk_flops_per_token / self.hardware.flop_per_s
        return self.hardware.step_overhead_s + max(work_s, self.size.trunk_bytes / self.hardware.memory_bytes_per_s)

    def experts(self, experts: float, pairs: float) -> float:
        """One MoE layer that sends ``pairs`` tokens to so many ``experts``."""
        work_s = pairs * self.size.expert_flops_per_token / self.hardware.flop_per_s
        touched_s = experts * self.size.expert_bytes / self.hardware.memory_bytes_per_s
        overhead_s = self.hardware.layer_overhead_s + experts * self.hardware.expert_overhead_s
        return overhead_s + max(work_s, touched_s)


def simulate(recording: Recording, hardware: Hardware, size: ModelSize | None = None, overlap: str = "engine") -> Simulated:
    """Replay ``recording`` on ``hardware``. ``overlap``: "engine" as each method does it, or "oracle": per round the longer
    of reading and computing counts.

    ``size`` None: the recorded model. Another one: its bytes, FLOP and number of MoE layers; counts per layer are the
    recording's (layer l takes those of l * L_recorded // L), so distinct experts per layer stay those of the recorded
    run even where the other model has more or fewer experts.
    """
    check_choice("overlap", overlap, ["engine", "oracle"])
    own = size is None
    size = ModelSize.of(recording.info) if own else size
    run = _Run(recording, hardware, size, own)
    for number in range(len(recording.rows)):
        run.round(number, overlap == "oracle")
    fetched_bytes = int(round(run.num_reads)) * size.expert_bytes
    return Simulated(hardware.name, size.name, recording.method, recording.batch, recording.num_new_tokens, run.now_s,
                     fetched_bytes, run.wait_s, run.draft_s, run.verify_s, run.link.busy_s)  # fmt: skip


class _Run:
    def __init__(self, recording: Recording, hardware: Hardware, size: ModelSize, own: bool):
        self.recording, self.hardware, self.size = recording, hardware, size
        recorded = recording.experts.shape[1]
        num_layers = recorded if own else size.num_layers
        self.layers = np.arange(num_layers) * recorded // num_layers
        self.costs = _Costs(hardware, size, own)
        self.link = _Link(size.expert_bytes / hardware.link_bytes_per_s, hardware.link_latency_s)
        self.now_s = self.wait_s = self.draft_s = self.verify_s = 0.0
        self.num_reads = int((recording.fetches + recording.prefetches)[:, self.layers].sum())

    def round(self, number: int, oracle: bool) -> None:
        began_s, busy_s, waited_s = self.now_s, self.link.busy_s, self.wait_s
        self.draft(number)
        drafted_s = self.now_s
        self.verify(number)
        if oracle:
            compute_s = self.now_s - began_s - (self.wait_s - waited_s)
            reads = (self.recording.fetches + self.recording.prefetches)[number, self.layers].sum()
            self.now_s = began_s + max(compute_s, reads * self.link.read_s)
            self.wait_s = waited_s + self.now_s - began_s - compute_s
            self.link.ahead, self.link.free_s, self.link.busy_s = {}, self.now_s, busy_s + reads * self.link.read_s
            drafted_s = min(drafted_s, self.now_s)
        self.draft_s += drafted_s - began_s
        self.verify_s += self.now_s - drafted_s

    def draft(self, number: int) -> None:
        """Guesses of the round are spread evenly over its draft steps."""
        steps, rows = int(self.recording.gammas[number]), int(self.recording.rows[number])
        for step in range(steps):
            pairs = int(self.recording.drafting[number, step]) * self.size.top_k
            residents = min(self.recording.info["draft_experts"], pairs)
            self.now_s += self.costs.trunk(rows) + len(self.layers) * self.costs.experts(residents, pairs)
            for layer, column in enumerate(self.layers):
                self.link.guess(layer, self.recording.prefetches[number, column] / steps, self.now_s)

    def verify(self, number: int) -> None:
        tokens = int(self.recording.rows[number]) * (1 + int(self.recording.gammas[number]))
        trunk_s = self.costs.trunk(tokens) / max(1, len(self.layers))
        for layer, column in enumerate(self.layers):
            self.now_s += trunk_s
            experts, pairs = self.recording.experts[number, column], self.recording.pairs[number, column]
            compute_s = self.costs.experts(experts, pairs)
            reads = int(self.recording.fetches[number, column])
            if self.recording.method == "on_demand":
                self.waves(layer, experts, reads, compute_s)
            else:
                self.arrivals(number, layer, compute_s, reads)
        self.link.advance(self.now_s)

    def waves(self, layer: int, experts: int, reads: int, compute_s: float) -> None:
        """Read as many as there are readers, wait for all, compute; then the next."""
        while reads > 0:
            wave = min(reads, self.hardware.num_readers)
            _, first_s = self.link.ask(layer, self.now_s, wave)
            self.wait_until(first_s + wave * self.link.read_s)
            self.now_s += compute_s * wave / experts
            compute_s -= compute_s * wave / experts
            experts, reads = experts - wave, reads - wave
        self.now_s += compute_s

    def arrivals(self, number: int, layer: int, compute_s: float, reads: int) -> None:
        """Hits first, then what was guessed, then what is read now, each as it arrives."""
        column = self.layers[layer]
        experts = max(1, int(self.recording.experts[number, column]))
        guessed_s, first_s = self.link.ask(layer, self.now_s, reads)
        if self.recording.gammas[number] == 0 and layer + 1 < len(
            self.layers
        ):  # overlapped: what this layer guesses of the next
            self.link.guess(layer + 1, self.recording.prefetches[number, self.layers[layer + 1]], self.now_s)
        hits, each_s = min(experts, int(self.recording.hits[number, column])), compute_s / experts
        self.now_s += hits * each_s
        reads = min(reads, experts - hits)
        ahead = experts - hits - reads
        if ahead > 0:
            self.wait_until(guessed_s)
            self.now_s += ahead * each_s
        for read in range(reads):
            self.wait_until(first_s + (read + 1) * self.link.read_s)
            self.now_s += each_s
        if experts == 1 and not self.recording.experts[number, column]:
            self.now_s += compute_s - each_s * (hits + reads + ahead)

    def wait_until(self, clock_s: float) -> None:
        self.wait_s += max(0.0, clock_s - self.now_s)
        self.now_s = max(self.now_s, clock_s)
