"""What the parts of a pass cost: computed from a described machine and sizes, or interpolated from
probes of this one.

Comes in: a ``Hardware`` and a ``ModelSize``, or the probes of an engine. Goes out: ``Described`` or
``Probed``, with the same verbs, all in seconds. ``replay`` calls next.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .sizes import ModelSize


class Described:
    """One machine at one size. A pass: its trunk; then per MoE layer max(FLOP / rate, bytes touched
    / memory rate) and overheads. Reading costs the computing device nothing."""

    read_overhead_s = wave_overhead_s = keep_s = prepare_s = 0.0
    contention = link_contention = 1.0

    def __init__(self, hardware, size: ModelSize):
        self.hardware = hardware
        self.size = size
        self.read_s = size.expert_bytes / hardware.link_bytes_per_s
        self.latency_s = hardware.link_latency_s

    def verify_trunk(self, rows: int, block: float, positions: int) -> float:
        """All but the experts, for ``block`` tokens of each row."""
        work_s = rows * block * self.size.trunk_flops_per_token / self.hardware.flop_per_s
        return self.hardware.step_overhead_s + max(
            work_s, self.size.trunk_bytes / self.hardware.memory_bytes_per_s
        )

    def draft_trunk(self, rows: int, positions: int) -> float:
        return self.verify_trunk(rows, 1, positions)

    def layer(self, experts: float, pairs: float) -> float:
        """One MoE layer that sends ``pairs`` tokens to so many ``experts``, all of them
        resident."""
        work_s = pairs * self.size.expert_flops_per_token / self.hardware.flop_per_s
        touched_s = experts * self.size.expert_bytes / self.hardware.memory_bytes_per_s
        return (
            self.hardware.layer_overhead_s
            + experts * self.hardware.expert_overhead_s
            + max(work_s, touched_s)
        )

    def draft_layer(self, tokens: int, draft_experts: int) -> float:
        """The same of a draft step with so many rows drafting."""
        pairs = tokens * self.size.top_k
        return self.layer(min(draft_experts, pairs), pairs)

    def guess(self, tokens: int) -> float:
        return 0.0

    def wave(self, reads: int) -> float:
        """A wave of reads, from asking to the last byte."""
        return self.latency_s + reads * self.read_s


@dataclass(frozen=True)
class Probed:
    """One engine's parts on this machine, interpolated from ``probe_machine``'s timings. Made by
    ``machine.fit_machine``."""

    model: str
    link_bytes_per_s: float  # as it was while probing
    passes: list = field(repr=False)  # [rows, block, positions, seconds]
    steps: list = field(repr=False)  # [rows, positions, seconds]
    layer: Layer  # in target mode
    drafts: list = field(repr=False)  # a MoE layer in draft mode: [tokens, seconds]
    guesses: list = field(repr=False)  # [tokens, seconds]
    latency_s: float  # of a burst of reads
    read_s: float  # of a record when reads follow each other
    read_overhead_s: float  # what asking for a record and taking it costs the computing thread
    wave_overhead_s: float  # the same in a synchronous pool
    contention: float  # how much longer computing takes while records are read
    link_contention: float  # how much longer reading takes meanwhile
    keep_s: float
    prepare_s: float

    def on_link(self, share: float) -> Probed:
        """The same machine when a record crosses in ``share`` of the seconds."""
        return replace(self, read_s=self.read_s * share)

    def verify_trunk(self, rows: int, block: float, positions: int) -> float:
        at = sorted({p for _, _, p, _ in self.passes})
        seconds = [
            bilinear([(r, b, s) for r, b, p, s in self.passes if p == here], rows, block)
            for here in at
        ]
        return max(1e-9, linear(positions, at, seconds))

    def draft_trunk(self, rows: int, positions: int) -> float:
        return max(1e-9, bilinear(self.steps, rows, positions))

    def draft_layer(self, tokens: int, draft_experts: int) -> float:
        return linear(tokens, *zip(*self.drafts))

    def guess(self, tokens: int) -> float:
        return linear(tokens, *zip(*self.guesses))

    def wave(self, reads: int) -> float:
        return self.latency_s + reads * self.read_s


@dataclass(frozen=True)
class Layer:
    """Seconds of a MoE layer: ``layer_s`` whatever it does, and for each expert what its number of
    tokens costs, linear between ``knots``."""

    layer_s: float
    knots: tuple[float, ...]  # tokens of one expert
    expert_s: tuple[float, ...]  # at each knot

    def __call__(self, experts: float, pairs: float) -> float:
        return self.layer_s + (
            experts * linear(pairs / experts, self.knots, self.expert_s) if experts else 0.0
        )


def linear(x: float, at, values) -> float:
    """Interpolated, and extrapolated with the slope of the last two."""
    if len(at) == 1 or x <= at[-1]:
        return float(np.interp(x, at, values))
    slope = (values[-1] - values[-2]) / (at[-1] - at[-2])
    return float(values[-1] + max(0.0, slope) * (x - at[-1]))


def bilinear(points: list, x: float, y: float) -> float:
    """On a grid of [x, y, value]: linear in y at every x, then linear in x."""
    columns = sorted({point[0] for point in points})
    inner = []
    for column in columns:
        at = sorted((point[1], point[2]) for point in points if point[0] == column)
        inner.append(linear(y, [a for a, _ in at], [v for _, v in at]))
    return linear(x, columns, inner)
