"""How far a report is, while it runs: on a terminal one line that is rewritten, elsewhere (a log, a
pipe) one line per step.

Comes in: the cells that papermill starts, and what the notebook's kernel writes into a file (the
kernel's own output would become part of the report). Goes out: lines on stderr. ``run`` opens a
``Told``; the notebook hands ``run_bench`` a ``teller``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

FILE = "SPECMOE_REPORT_PROGRESS"  # in the kernel's environment: where ``tell`` writes
EVERY_S = 0.25
WARM_UP = 0.1  # of a run's time


def teller(batches: Sequence[int], repeats: int) -> Callable[[int, int, str], None]:
    """A ``progress`` of ``run_bench``: told to whoever runs this notebook as a report, if anybody
    does."""
    file = os.environ.get(FILE)

    def tell(done: int, total: int, what: str) -> None:
        if file:
            share = share_of_time(done, total, batches, repeats)
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps([done, total, what, share]) + "\n")

    return tell


def share_of_time(done: int, total: int, batches: Sequence[int], repeats: int) -> float:
    """How much of the time ``done`` of ``total`` runs take. A larger batch decodes more prompts,
    each faster: its runs took about the root of the batch (``tiny-translate``, 1 to 64); warm-ups
    are short."""
    runs = max(1, total // len(batches))
    warm_ups = runs // (repeats + 1)
    weights = [
        math.sqrt(batch) * (WARM_UP if number < warm_ups else 1)
        for batch in batches
        for number in range(runs)
    ]
    return sum(weights[:done]) / sum(weights)


class Told:
    """A context in which kernels started here can ``tell``. ``cell`` says that a cell begins."""

    def __init__(self, name: str, shown: bool = True, out: TextIO | None = None):
        self.name, self.shown = name, shown
        self.out = out or sys.stderr
        self.began_s = time.monotonic()
        self._over, self._read, self._width = threading.Event(), 0, 0

    def __enter__(self) -> Told:
        handle, name = tempfile.mkstemp(prefix="specmoe-progress-")
        os.close(handle)
        self._file = Path(name)
        os.environ[FILE] = name
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure) -> None:
        self._over.set()
        self._thread.join()
        os.environ.pop(FILE, None)
        self._file.unlink(missing_ok=True)
        if failure[0] is None:
            self.say(f"done in {_span(time.monotonic() - self.began_s)}")
        if self.shown and self.out.isatty():
            self.out.write("\n")

    def cell(self, number: int, total: int) -> None:
        self.say(f"cell {number} of {total}")

    def say(self, words: str) -> None:
        if not self.shown:
            return
        line = f"{self.name}: {words}"
        if self.out.isatty():
            # what stood there is longer, perhaps
            line, self._width = f"\r{line:<{self._width}}", len(line)
        else:
            line += "\n"
        self.out.write(line)
        self.out.flush()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            self._pass_on()
        self._pass_on()

    def _pass_on(self) -> None:
        with open(self._file, encoding="utf-8") as lines:
            lines.seek(self._read)
            news = lines.read()
        whole = news[: news.rfind("\n") + 1]
        self._read += len(whole.encode("utf-8"))
        for line in whole.splitlines():
            self.run(*json.loads(line))

    def run(self, done: int, total: int, what: str, share: float) -> None:
        """A run of the bench begins; those before it took what has passed since the first, ``share``
        of the whole."""
        if not done:
            self._first_s = time.monotonic()
        passed_s = time.monotonic() - self._first_s
        left = f"; about {_span(passed_s / share * (1 - share))} left" if share else ""
        self.say(f"run {done + 1} of {total}: {what}{left}")


def _span(seconds: float) -> str:
    """``40 s``, ``2 min 10 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
