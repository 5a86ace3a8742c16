"""The link of a replay: a serial queue of reads.

Comes in: seconds per read. Goes out: when reads arrive. ``replay`` calls next.
"""

from __future__ import annotations


class Link:
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
