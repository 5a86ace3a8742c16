"""One measured run, as data, and the one loop in which runs take turns.

Comes in: a model, a method, a batch, and what differs from the paper's settings. Goes out: the name
of its row in a result file, what that row says of it, the options it decodes with. The bench, the
benchmarks and the paper measure in these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# What a run leaves to the engine where nobody says it.
UNSAID = dict.fromkeys(("draft_experts", "gamma", "draft_set", "substitute", "eviction"))


@dataclass(frozen=True)
class Run:
    """One measured run; defaults are the paper's. ``part``: of the benchmarks, which settles all
    but model, regime, batch, method and prompts."""

    model: str
    method: str  # in a part of the benchmarks also a probe, a peer or "cached:<eviction>"
    batch: int
    regime: str = "count"  # without a clock; else the link: "throttled", "disk" or "native"
    # fast memory: what N draft experts need, or "tenth": what caching a tenth of the experts needs
    budget: str = "draft"
    draft_experts: int | None = 4
    gamma: int | None = 10
    draft_set: str | None = "hot_temporal"
    substitute: str | None = "affinity"
    eviction: str | None = "static"
    temperature: float = 0.0
    prompt_set: int = 0  # of repeats that begin with other prompts: which
    part: str = ""

    def row(self) -> dict:
        """What the row of a result file says of its run."""
        if not self.part:
            return {name: value for name, value in asdict(self).items() if name != "part"}
        return {
            "part": self.part,
            "model": self.model,
            "link": self.regime,
            "batch": self.batch,
            "what": self.method,
            "slice": self.prompt_set,
        }

    @property
    def key(self) -> str:
        """The name of its row."""
        return "/".join(str(value) for name, value in self.row().items() if name != "part")

    def options(self) -> dict:
        """Keyword arguments of ``generate`` that make it this run: those that are said."""
        said = {
            "method": self.method,
            "batch_size": self.batch,
            "gamma": self.gamma if self.method == "specmoe" else None,
            "draft_set": self.draft_set,
            "substitute": self.substitute,
            "eviction": self.eviction,
            "do_sample": True if self.temperature else None,
            "temperature": self.temperature or None,
        }
        return {name: value for name, value in said.items() if value is not None}


def turns(runs: Sequence, repeats: int) -> Iterator[tuple[int, Any]]:
    """(turn, run): all ``runs``, ``repeats`` times over, so that what is compared meets the same
    machine."""
    return ((turn, run) for turn in range(repeats) for run in runs)


def in_turn(runs: Iterable, repeats: int, warm_up: Callable, once: Callable) -> list[list]:
    """One ``warm_up(run)`` each, then ``once(run, turn)`` in ``turns``: by run, what its turns
    gave."""
    runs = list(runs)
    for run in runs:
        warm_up(run)
    found: list[list] = [[] for _ in runs]
    for turn, (place, run) in turns(list(enumerate(runs)), repeats):
        found[place].append(once(run, turn))
    return found
