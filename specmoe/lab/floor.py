"""The least time that any code needs for given work on a machine: the one floor of bench, plan and
figures.

Comes in: bytes over the link, FLOPs, bytes of weights touched; the machine's rates. Goes out: a
``Floor``, the seconds of each and which of them decides. What has to be counted is the caller's:
``bench.floors`` counts a window, ``simulate.expectation`` a described method, ``oracle`` what no
lossless method can do without.
"""

from __future__ import annotations

from typing import NamedTuple


class Rates(NamedTuple):
    """Per second. ``memory_bytes`` None: not known, and then weights touched say nothing.
    ``cache_bytes``: of the last-level cache, which a pass need not read from memory again."""

    link_bytes: float
    flop: float
    memory_bytes: float | None = None
    cache_bytes: float = 0.0


class Floor(NamedTuple):
    """Seconds of each resource, as if it worked alone."""

    link_s: float
    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        """What decides: "link", "memory" or "compute"."""
        took = {"link": self.link_s, "memory": self.memory_s, "compute": self.compute_s}
        return max(took, key=took.get)


def floor(
    link_bytes: float, flop: float, touched_bytes: float, rates: Rates, passes: float = 1.0
) -> Floor:
    """max(bytes / link, FLOPs / rate, weights touched / memory rate), each at its full rate and all
    of them overlapping for ever: no implementation that does this work is faster.

    ``touched_bytes`` are the distinct weights of every pass through the model, added up over
    ``passes``. What a pass touches may lie in the cache since the pass before, but no more of it
    than the cache holds: that much of every pass is not counted."""
    touched = max(0.0, touched_bytes - passes * rates.cache_bytes)
    memory_s = touched / rates.memory_bytes if rates.memory_bytes else 0.0
    return Floor(link_bytes / rates.link_bytes, flop / rates.flop, memory_s)
