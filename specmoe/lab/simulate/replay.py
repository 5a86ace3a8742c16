"""A recorded run replayed: one serial link, one computing device, round by round and layer by
layer.

Comes in: a ``Recording``, a ``Hardware``, perhaps another ``ModelSize``. Goes out: ``Simulated``.
What parts cost is in ``costs``, how they overlap in ``lanes``. ``on_demand`` reads a wave, waits,
computes it; the others compute hits while misses arrive; ``overlapped`` reads the next layer's
guesses meanwhile; a draft's prefetches start while it drafts. What a layer asks for goes before
guesses. Latency is paid once per burst. Prefill is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import OptionError, check_choice
from .costs import Described, Probed
from .hardware import Hardware
from .lanes import Lanes
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


def simulate(
    recording: Recording, hardware: Hardware, size: ModelSize | None = None, overlap: str = "engine"
) -> Simulated:
    """Replay ``recording`` on ``hardware``. ``overlap``: "engine" as each method does it, or
    "oracle": per round the longer of reading and computing counts.

    ``size`` None: the recorded model. Another one: its bytes, FLOP and number of MoE layers; counts
    per layer are the recording's (layer l takes those of l * L_recorded // L), so distinct experts
    per layer stay those of the recorded run even where the other model has more or fewer experts.
    """
    check_choice("overlap", overlap, ["engine", "oracle"])
    run = Replay.of(recording, hardware, size)
    size = run.size
    for number in range(len(recording.rows)):
        run.round(number, overlap == "oracle")
    fetched_bytes = int(round(run.num_reads)) * size.expert_bytes
    lanes = run.lanes
    return Simulated(
        hardware.name,
        size.name,
        recording.method,
        recording.batch,
        recording.num_new_tokens,
        lanes.now_s,
        fetched_bytes,
        lanes.wait_s,
        run.draft_s,
        run.verify_s,
        lanes.busy_s,
    )


def _costs(
    recording: Recording, hardware: Hardware, size: ModelSize, own: bool
) -> Described | Probed:
    """Probed parts for the model they were probed with, at its own size; rates for all else."""
    if not own or hardware.parts is None:
        return Described(hardware, size)
    probed, name = hardware.parts.model, recording.info["name"]
    if probed != name:
        raise OptionError(
            f"{hardware.name!r} was probed with {probed!r}, the recording is of "
            f"{name!r}: probe with that "
            "model, or give a ModelSize"
        )
    return hardware.parts.on_link(hardware.parts.link_bytes_per_s / hardware.link_bytes_per_s)


class Replay:
    """One recording on one machine, round by round. State: the lanes, sums of seconds."""

    @classmethod
    def of(cls, recording: Recording, hardware: Hardware, size: ModelSize | None = None) -> Replay:
        """``size`` None: the recorded model's own."""
        own = size is None
        size = ModelSize.of(recording.info) if own else size
        return cls(recording, hardware, size, _costs(recording, hardware, size, own), own)

    def __init__(
        self,
        recording: Recording,
        hardware: Hardware,
        size: ModelSize,
        costs: Described | Probed,
        own: bool,
    ):
        self.recording = recording
        self.hardware = hardware
        self.size = size
        self.costs = costs
        recorded = recording.experts.shape[1]
        num_layers = recorded if own else size.num_layers
        self.layers = np.arange(num_layers) * recorded // num_layers
        self.lanes = Lanes(costs.read_s, costs.latency_s, costs.contention, costs.link_contention)
        self.keep_s = costs.keep_s if recording.method in ("cached", "specmoe", "auto") else 0.0
        self.draft_s = self.verify_s = 0.0
        self.num_reads = int((recording.fetches + recording.prefetches)[:, self.layers].sum())

    def round(self, number: int, oracle: bool) -> None:
        lanes = self.lanes
        began_s, busy_s, waited_s = lanes.now_s, lanes.busy_s, lanes.wait_s
        self.draft(number)
        drafted_s = lanes.now_s
        self.verify(number)
        if oracle:
            compute_s = lanes.now_s - began_s - (lanes.wait_s - waited_s)
            reads = (self.recording.fetches + self.recording.prefetches)[number, self.layers].sum()
            lanes.now_s = began_s + max(compute_s, reads * lanes.read_s)
            lanes.wait_s = waited_s + lanes.now_s - began_s - compute_s
            lanes.ahead = {}
            lanes.busy_s = busy_s + reads * lanes.read_s
            drafted_s = min(drafted_s, lanes.now_s)
        self.draft_s += drafted_s - began_s
        self.verify_s += lanes.now_s - drafted_s

    def draft(self, number: int) -> None:
        """Guesses of the round are spread evenly over its draft steps."""
        record, steps = self.recording, int(self.recording.gammas[number])
        if steps:
            self.lanes.compute(self.costs.prepare_s)
        start = int(record.positions[number]) - steps
        for step in range(steps):
            layer_s = self.costs.draft_layer(
                int(record.drafting[number, step]), record.info["draft_experts"]
            )
            trunk_s = self.costs.draft_trunk(int(record.rows[number]), start + step)
            self.lanes.compute(trunk_s + len(self.layers) * layer_s)
            for layer, column in enumerate(self.layers):
                guesses = record.prefetches[number, column] / steps
                self.lanes.compute(guesses * self.costs.read_overhead_s)
                self.lanes.guess(layer, guesses)

    def verify(self, number: int) -> None:
        record, block = self.recording, 1 + int(self.recording.gammas[number])
        trunk_s = self.costs.verify_trunk(
            int(record.rows[number]), block, int(record.positions[number])
        )
        fixed_s = self.costs.layer(0, 0)
        for layer, column in enumerate(self.layers):
            experts, pairs = int(record.experts[number, column]), int(record.pairs[number, column])
            self.lanes.compute(trunk_s / max(1, len(self.layers)) + fixed_s + self.keep_s)
            each_s = (self.costs.layer(experts, pairs) - fixed_s) / max(1, experts)
            reads = min(experts, int(record.fetches[number, column]))
            if record.method == "on_demand":
                self.waves(experts, reads, each_s)
            else:
                self.arrivals(number, layer, experts, reads, each_s)

    def waves(self, experts: int, reads: int, each_s: float) -> None:
        """Read as many as there are readers, wait for all, compute; then the next."""
        self.lanes.compute((experts - reads) * each_s)
        while reads > 0:
            wave = min(reads, self.hardware.num_readers)
            self.lanes.wave(self.costs.wave(wave))
            self.lanes.compute(wave * (each_s + self.costs.wave_overhead_s))
            reads -= wave

    def arrivals(self, number: int, layer: int, experts: int, reads: int, each_s: float) -> None:
        """Hits first, then what was guessed, then what is read now."""
        asked_s = self.lanes.ask(layer, reads)
        self.guess_next(number, layer)
        hits = min(experts - reads, int(self.recording.hits[number, self.layers[layer]]))
        self.lanes.take(
            hits, experts - hits - reads, reads, each_s, self.costs.read_overhead_s, asked_s
        )

    def guess_next(self, number: int, layer: int) -> None:
        """overlapped: this layer's input names experts of the next."""
        if self.recording.method == "overlapped" and layer + 1 < len(self.layers):
            guesses = int(self.recording.prefetches[number, self.layers[layer + 1]])
            asking_s = self.costs.guess(int(self.recording.live[number]))
            self.lanes.compute(asking_s + guesses * self.costs.read_overhead_s)
            self.lanes.guess(layer + 1, guesses)
