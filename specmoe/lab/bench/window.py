"""A steady-state window: decode from an endless queue of prompts with the batch full, and stop
after some seconds.

Comes in: an engine, a method, a batch. Goes out: sums over the measured rounds as a plain dict
(seconds, tokens, bytes, waits), prefill and warm-up left out. ``parts`` calls this.

The first rows start at a random place of their own text (their tokens so far are the model's own,
known from an earlier run), so the batch looks as it does in the middle of a long job from the first
round on."""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ...speculate.loop import Sequence
from ...trace import Round
from .. import metrics

COUNTED = (
    "num_hits",
    "num_misses",
    "num_fetches",
    "fetched_bytes",
    "num_prefetches",
    "prefetch_used",
    "wait_s",
    "read_s",
)
LEAST_ROUNDS = 2
CALIBRATED = 32  # prompts that tell the static eviction what is hot
# in lengths of the window: how long a planner may try things out before it is measured all the same
MOST_WARM_UP = 1.0


class EndlessQueue(deque):
    """Prompts that come back: a row taken from the front is queued again at the end. ``first`` rows
    are taken once."""

    def __init__(self, first: list[Sequence], rows: list[Sequence]):
        super().__init__([*first, *rows])
        self.num_first = len(first)

    def popleft(self) -> Sequence:
        row = super().popleft()
        if self.num_first:
            self.num_first -= 1
            return row
        self.append(row)
        return fresh(row)


def fresh(row: Sequence, more: tuple[int, ...] | list[int] = ()) -> Sequence:
    """A copy of a row that nobody has decoded yet; ``more``: tokens that it already has beyond its
    prompt."""
    return replace(row, tokens=[*row.tokens, *more])


def staggered(
    rows: list[Sequence], texts: list[list[int]], batch: int, seed: int
) -> list[Sequence]:
    """The first ``batch`` rows, each somewhere in its own text; the places are spread evenly and
    dealt at random."""
    places = [(number + 0.5) / batch for number in range(batch)]
    random.Random(seed).shuffle(places)
    return [_inside(rows[number % len(rows)], texts, place) for number, place in enumerate(places)]


def _inside(row: Sequence, texts: list[list[int]], place: float) -> Sequence:
    """``row`` as far into its own text as ``place`` (0 .. 1) says, at least one token before its
    end."""
    text = texts[row.prompt]
    return fresh(row, text[: int(place * (min(len(text), row.room) - 1))] if text else ())


@dataclass
class Window:
    """Slices of ``seconds`` of one run: ``begin`` fills the batch and warms it up, then each call of
    ``slice`` decodes on where the one before stopped. Between slices other runs may be measured.
    ``warm_up``: what the rounds before the first slice did."""

    batch: int
    seconds: float
    warm_up_s: float
    texts: list[list[int]]  # per prompt: the tokens that follow it
    start: int = 0  # the prompt to begin with
    trace: bool = False
    clock: Any = None  # ``parts.DraftClock``: its seconds are one counter more
    warm_up: dict = field(default_factory=dict)
    began: Any = None  # the run

    def begin(self, run) -> None:
        """Fill the batch of ``run`` and keep it full; decode until it is warm and its planner no
        longer only tries things out."""
        self._prepare(run)
        self.began = run
        while not self._has_settled(run.batch):
            self._round(self.warm_up)

    def slice(self, paused: bool = True) -> dict:
        """Sums over the rounds of the next ``seconds``. The round that comes first after a pause is
        not counted: reads may have gone on meanwhile, and caches gone cold."""
        sums: dict = {}
        if paused:
            self._round({})
        while sums.get("seconds", 0.0) < self.seconds or sums.get("num_rounds", 0) < LEAST_ROUNDS:
            done = self._round(sums)
            assert len(done.prompts) == self.batch, "the batch was not full"
        gamma = sums.pop("gammas") / sums["num_rounds"]
        tokens = max(1, sums["num_new_tokens"])
        return sums | {
            "gamma": gamma,
            "batch": self.batch,
            "warm_up_s": self.warm_up.get("seconds", 0.0),
            "tokens_per_second": tokens / sums["seconds"],
            "bytes_per_token": sums["fetched_bytes"] / tokens,
        }

    def _round(self, sums: dict) -> Round:
        """One round, added to ``sums``."""
        before = self._reading(self.began.batch)
        done = next(self.began)
        now = self._reading(self.began.batch)
        _add(sums, {name: now[name] - before[name] for name in now} | _sums_of(done))
        return done

    def _prepare(self, run) -> None:
        batch, rows = run.batch, list(run.batch.queue)
        turned = rows[self.start % len(rows) :] + rows[: self.start % len(rows)]
        first = staggered(turned, self.texts, self.batch, self.start)
        used = self.batch % len(turned)
        batch.queue = EndlessQueue(first, turned[used:] + turned[:used])
        batch.trace.enabled = self.trace
        if self.clock:
            self.clock.wind(run)
        # A prefill is not measured, and a slow link would only make it long.
        batch.during_prefill = batch.experts.pool.tier.store.link.unthrottled

    def _reading(self, batch) -> dict:
        """All counters now, prefill's share taken off."""
        counts = batch.experts.pool.counts.minus(batch.prefill)
        reading = {name: getattr(counts, name) for name in COUNTED}
        reading |= {"draft_expert_s": self.clock.seconds} if self.clock else {}
        return reading | {"seconds": time.perf_counter() - batch.prefill_s}

    def _has_settled(self, batch) -> bool:
        """Warm enough to measure: time and rounds have passed, and the planner no longer only tries
        things out."""
        passed = self.warm_up
        if not passed or passed["seconds"] < self.warm_up_s or passed["num_rounds"] < LEAST_ROUNDS:
            return False
        return batch.planner.settled or passed["seconds"] >= MOST_WARM_UP * max(
            self.seconds, self.warm_up_s
        )


def _sums_of(done: Round) -> dict:
    return {
        "num_rounds": 1,
        "row_rounds": len(done.prompts),
        "num_new_tokens": done.new_tokens,
        "num_drafted": sum(done.drafted),
        "num_accepted": sum(done.accepted),
        "gammas": done.gamma,
        "draft_s": done.draft_s,
        "verify_s": done.verify_s,
    }


def _add(sums: dict, change: dict) -> None:
    for name, value in change.items():
        sums[name] = sums.get(name, 0) + value


def measure(engine, prompts: list, window: Window, **options) -> dict:
    """One slice of ``engine.generate(prompts, **options)``: its sums, and where it spent its
    time."""
    with begun(engine, prompts, window, **options):
        return window.slice(paused=False)


@contextmanager
def begun(engine, prompts: list, window: Window, **options) -> Iterator[Window]:
    """``window`` over a run of its own, warm; the engine is held until the end."""
    if options.get("eviction") == "static" and engine.hotness is None:
        engine.calibrate(prompts[:CALIBRATED])  # else ``generate`` would do it, inside the window
    with engine.start(prompts, batch_size=window.batch, **options) as run:
        window.begin(run)
        yield window


# ---- the full rounds of a whole run ----


def full_window(output, batch: int) -> dict:
    """Counts, speed and shares of time over a run's rounds with ``batch`` rows in flight; the tail,
    in which the queue is empty, is left out."""
    frame = output.trace.to_frame()
    full = frame.loc[(frame["kind"] == "round") & (frame["size"] == batch), "round"]
    found = metrics.summary(frame[frame["round"].isin(full)])
    tokens, perfect_s = found["new_tokens"], found["oracle_overlap_seconds"]
    names = ("tokens_per_round", "wait_share", "draft_share", "verify_share")
    return {name: found[name] for name in names} | {
        "fetched_bytes_per_token": found["bytes_per_token"],
        "tokens": tokens,
        "full_rounds": len(full),
        "tokens_per_second": tokens / found["decode_seconds"] if len(full) else None,
        "oracle_tokens_per_second": tokens / perfect_s if perfect_s else None,
        "tokens_digest": digest_of(output),
    }


COLD = 3  # of a run's full rounds the first third: an empty pool, a planner that tries things out


def steady_speed(frame, batch: int) -> float | None:
    """Tokens per second over a run's rounds with ``batch`` rows in flight, without the first third
    of them; None where there is no such round."""
    rounds = frame[(frame["kind"] == "round") & (frame["size"] == batch)]
    warm = rounds.iloc[len(rounds) // COLD :]
    seconds = float(warm["seconds"].sum())
    return float(warm["count"].sum()) / seconds if seconds > 0 else None


def digest_of(output) -> str:
    """Eight digits of the tokens: equal digits, equal texts."""
    rows = str([list(map(int, row)) for row in output.sequences])
    return hashlib.sha256(rows.encode()).hexdigest()[:8]
