"""The two lanes of a replay: one computing device, one serial link, and what each takes from the
other.

Comes in: seconds of work, reads that are asked for or guessed. Goes out: the clock, and how much of
it was waiting. ``replay`` calls next; ``machine`` fits the factors to probes with the same code.
"""

from __future__ import annotations

NOTHING = 1e-12


class Lanes:
    """State: the clock ``now_s``; seconds of reading still to come, for the layer that computes
    (``demand_s``) and for later ones (``ahead``, in order). While both lanes work, computing takes
    ``compute_factor`` and reading ``link_factor`` times as long."""

    def __init__(
        self, read_s: float, latency_s: float, compute_factor: float = 1.0, link_factor: float = 1.0
    ):
        self.read_s = read_s
        self.latency_s = latency_s
        self.compute_factor = compute_factor
        self.link_factor = link_factor
        self.now_s = self.wait_s = self.busy_s = self.demand_s = 0.0
        self.ahead: dict[int, float] = {}

    def compute(self, work_s: float) -> None:
        """Compute for ``work_s``; the link works meanwhile."""
        while work_s > NOTHING:
            left_s = self.demand_s + sum(self.ahead.values()) if self.ahead else self.demand_s
            if left_s <= NOTHING:
                self.now_s += work_s
                return
            taken_s = min(work_s * self.compute_factor, left_s * self.link_factor)
            self._read(taken_s / self.link_factor)
            work_s -= taken_s / self.compute_factor
            self.now_s += taken_s

    def stand(self, seconds: float) -> None:
        """Compute stands still while the link works."""
        self.now_s += seconds
        self.wait_s += seconds
        self._read(seconds)

    def wave(self, seconds: float) -> None:
        """A wave of reads that nothing overlaps."""
        self.now_s += seconds
        self.wait_s += seconds
        self.busy_s += seconds

    def guess(self, layer: int, reads: float) -> None:
        """Queue reads for a later layer."""
        if reads > 0:
            self.ahead[layer] = self.ahead.get(layer, 0.0) + reads * self.read_s

    def ask(self, layer: int, reads: float) -> float:
        """A layer asks for ``reads`` and what was guessed for it, before all other guesses; returns
        what is left of ``demand_s`` once the guesses are here. Latency is paid once per burst."""
        asked_s = reads * self.read_s + (self.latency_s if reads else 0.0)
        self.demand_s += self.ahead.pop(layer, 0.0) + asked_s
        return asked_s

    def take(
        self, hits: int, ahead: int, reads: int, each_s: float, overhead_s: float, asked_s: float
    ) -> None:
        """Compute hits, then what was guessed, then what was asked for, each as it arrives, at
        ``each_s``; taking a record that was read costs ``overhead_s`` more."""
        self.compute(hits * each_s)
        if ahead > 0:
            self._wait_until_left(asked_s)
            self.compute(ahead * each_s)
        if not self.ahead:
            self._take_alone(reads, each_s + overhead_s)
            return
        for read in range(reads):
            self._wait_until_left((reads - read - 1) * self.read_s)
            self.compute(each_s + overhead_s)

    def _take_alone(self, reads: int, work_s: float) -> None:
        """The same where nothing is guessed: the sums of ``stand`` and ``compute`` in their order,
        written out, since a map replays millions of them."""
        now_s, wait_s, busy_s, demand_s = self.now_s, self.wait_s, self.busy_s, self.demand_s
        compute_factor, link_factor, read_s = self.compute_factor, self.link_factor, self.read_s
        for left in range(reads - 1, -1, -1):
            stood_s = demand_s - left * read_s
            if demand_s > left * read_s + NOTHING:
                now_s, wait_s, busy_s = now_s + stood_s, wait_s + stood_s, busy_s + stood_s
                demand_s -= stood_s
            to_do_s = work_s
            while to_do_s > NOTHING:
                if demand_s <= NOTHING:
                    now_s += to_do_s
                    break
                both_s, link_s = to_do_s * compute_factor, demand_s * link_factor
                taken_s = both_s if both_s < link_s else link_s
                done_s = min(demand_s, taken_s / link_factor)
                demand_s, busy_s = demand_s - done_s, busy_s + done_s
                to_do_s -= taken_s / compute_factor
                now_s += taken_s
        self.now_s, self.wait_s, self.busy_s, self.demand_s = now_s, wait_s, busy_s, demand_s

    def _wait_until_left(self, left_s: float) -> None:
        if self.demand_s > left_s + NOTHING:
            self.stand(self.demand_s - left_s)

    def _read(self, seconds: float) -> None:
        """The link works for ``seconds`` of its own."""
        done_s = min(self.demand_s, seconds)
        self.demand_s = self.demand_s - done_s
        self.busy_s = self.busy_s + done_s
        if not self.ahead:
            return
        for layer in list(self.ahead):
            seconds -= done_s
            done_s = min(self.ahead[layer], seconds)
            self.ahead[layer], self.busy_s = self.ahead[layer] - done_s, self.busy_s + done_s
            if self.ahead[layer] > NOTHING:
                return
            del self.ahead[layer]
