"""This machine as a ``Hardware``, from probes of an engine's parts: never from the speed of a
method.

Comes in: ``probe_machine``'s dict of timings. Goes out: a ``Hardware`` whose ``parts`` a replay of
the probed model uses; its plain rates serve other sizes.
"""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np

from ...errors import OptionError
from .costs import Layer, Probed
from .hardware import Hardware
from .lanes import Lanes
from .probe import PARTS

KNOTS = (1.0, 4.0, 16.0, 64.0, 256.0)  # tokens of one expert
# how much longer one lane takes while the other works
FACTORS = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5)
NEEDED = (*PARTS, "record_bytes", "num_readers", "expert_flops_per_token", "model")


def fit_machine(probes: dict, name: str = "this machine") -> Hardware:
    """Least squares over ``probe_machine``'s timings. A burst = latency + records * bytes / rate; a
    MoE layer = a + b * experts + c * pairs: these give the plain rates (reading weights is in b: no
    memory rate). ``parts`` keeps more. ``OptionError`` when a probe is missing."""
    for part in NEEDED:
        if not probes.get(part):
            raise OptionError(f"the probes lack {part!r}: make them with probe_machine(engine)")
    latency_s, read_s = least_squares(
        [[1, n] for n, _ in probes["reads"]], [s for _, s in probes["reads"]]
    )
    terms = [[1, e, p] for e, p, _ in probes["resident"]]
    seconds = [s for *_, s in probes["resident"]]
    layer_s, expert_s, pair_s = least_squares(terms, seconds)
    rate = probes["record_bytes"] / max(read_s, 1e-12)
    return Hardware(
        name,
        rate,
        latency_s,
        probes["expert_flops_per_token"] / max(pair_s, 1e-12),
        1e18,
        probes["passes"][0][-1],
        layer_s,
        expert_s,
        probes["num_readers"],
        fit_parts(probes, rate),
        "probes of this machine",
    )


def fit_parts(probes: dict, rate: float) -> Probed:
    """The parts of the probed model: tables as they are, and the few constants that stand between
    them. ``rate``: bytes per second of the link while probing."""
    layer = fit_layer(probes["resident"])
    latency_s, read_s = _fit_waves(probes["waves"], probes["num_readers"])
    wave_overhead_s = _fit_wave_overhead(probes["waves"], layer)
    compute, link, overhead_s = _fit_overlap(
        probes["stream"], layer, latency_s, read_s, wave_overhead_s
    )
    keep_s, prepare_s = (statistics.median(probes[part]) for part in ("keep", "prepare"))
    return Probed(
        probes["model"],
        rate,
        probes["passes"],
        probes["steps"],
        layer,
        probes["draft"],
        probes["guess"],
        latency_s,
        read_s,
        overhead_s,
        wave_overhead_s,
        compute,
        link,
        keep_s,
        prepare_s,
    )


def mean_probes(probes: list[dict]) -> dict:
    """Several probings as one: the mean of every timing."""
    first, merged = probes[0], dict(probes[0])
    for part in PARTS:
        merged[part] = np.mean([each[part] for each in probes], axis=0).tolist()
    return first | merged


def fit_layer(timings: list) -> Layer:
    """[experts, pairs, seconds] -> ``Layer``; only knots near which something was timed."""
    each = [pairs / experts for experts, pairs, _ in timings]
    knots = [knot for knot in KNOTS if any(knot / 2 <= n <= 2 * knot for n in each)]
    rows = [
        [1.0, *(experts * np.array(_weights(n, knots)))] for (experts, *_), n in zip(timings, each)
    ]
    layer_s, *expert_s = least_squares(rows, [seconds for *_, seconds in timings])
    return Layer(layer_s, tuple(knots), tuple(np.maximum.accumulate(expert_s).tolist()))


def _weights(n: float, knots: list[float]) -> list[float]:
    """Shares of the knots in the seconds of an expert with ``n`` tokens; beyond the last one with
    the slope before it."""
    if n > knots[-1] and len(knots) > 1:
        beyond = (n - knots[-1]) / (knots[-1] - knots[-2])
        return [0.0] * (len(knots) - 2) + [-beyond, 1 + beyond]
    return [float(np.interp(n, knots, np.eye(len(knots))[place])) for place in range(len(knots))]


def _fit_waves(timings: list, num_readers: int) -> tuple[float, float]:
    """(latency, seconds per record) of waves: what a synchronous pool waited, wave by wave."""
    rows = [[-(-experts // num_readers), experts] for experts, *_ in timings]
    return tuple(least_squares(rows, [max(wait, 1e-9) for *_, wait in timings]))


def _fit_wave_overhead(timings: list, layer: Layer) -> float:
    """Seconds per record that a synchronous pool costs the computing thread, beside what the
    experts cost resident."""
    return max(0.0, statistics.median((s - wait - layer(e, p)) / e for e, p, _, s, wait in timings))


def _fit_overlap(
    timings: list, layer: Layer, latency_s: float, read_s: float, overhead_s: float
) -> tuple:
    """(compute factor, link factor, overhead per record): those under which ``Lanes`` come nearest
    to what layers took that computed while records were read."""
    cases = [(*_hits_and_reads(case), layer(case[0], case[1]), case[3]) for case in timings]

    def distance(factors) -> float:
        total = 0.0
        for hits, reads, layer_s, seconds in cases:
            lanes = Lanes(read_s, latency_s, *factors[:2])
            lanes.compute(layer.layer_s)
            asked_s = lanes.ask(0, reads)
            lanes.take(
                hits, 0, reads, (layer_s - layer.layer_s) / (hits + reads), factors[2], asked_s
            )
            total += math.log(lanes.now_s / seconds) ** 2
        return total

    return min(
        itertools.product(FACTORS, FACTORS, [share * overhead_s for share in (0, 0.5, 1, 2, 3)]),
        key=distance,
    )


def _hits_and_reads(case) -> tuple[int, int]:
    reads = min(round(case[0]), round(case[2]))
    return round(case[0]) - reads, reads


def least_squares(terms: list, seconds: list[float]) -> list[float]:
    """Least squares of relative errors; what comes out below zero is left out and the rest fitted
    again."""
    weights = 1 / np.array(seconds)
    matrix, used = np.array(terms, dtype=float) * weights[:, None], list(range(len(terms[0])))
    while True:
        found = np.linalg.lstsq(matrix[:, used], np.ones(len(weights)), rcond=None)[0]
        if found.min() >= 0 or len(used) == 1:
            break
        used.pop(int(found.argmin()))
    result = [0.0] * len(terms[0])
    for place, value in zip(used, found):
        result[place] = float(max(0.0, value))
    return result
