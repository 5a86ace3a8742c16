"""How much of the processors others took while something was timed, and doing it again when it was
too much.

Comes in: work to be timed. Goes out: its result and the others' share. ``clock`` calls this:
timings beside other work say nothing about the simulator. Nothing is judged by its outcome.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

STAT = Path("/proc/stat")  # where there is none, shares are nan and nothing is done again
BUSY = (0, 1, 2)  # its columns: user, nice, system
MOST = 0.2  # processors that others may use
TRIES, PATIENCE_S, LOOK_S = 3, 20.0, 0.3


def quietly(
    work: Callable, tries: int = TRIES, patience_s: float = PATIENCE_S
) -> tuple[object, float]:
    """``work()`` and how many processors others used meanwhile; of up to ``tries`` the quietest,
    done once it is quiet, or after ``patience_s``."""
    found = []
    for _ in range(tries):
        _wait_for_quiet(patience_s)
        found.append(_watched(work))
        if not found[-1][1] > MOST:
            break
    return min(found, key=lambda each: each[1])


def _wait_for_quiet(patience_s: float) -> None:
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s and _watched(lambda: time.sleep(LOOK_S))[1] > MOST:
        pass


def _watched(work: Callable) -> tuple[object, float]:
    others_s, began_s = _others_s(), time.monotonic()
    result = work()
    return result, (_others_s() - others_s) / (time.monotonic() - began_s)


def _others_s() -> float:
    """Processor seconds of all processes but this one, since the machine started."""
    if not STAT.exists():
        return math.nan
    columns = STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    own = os.times()
    return (
        sum(int(columns[place]) for place in BUSY) / os.sysconf("SC_CLK_TCK")
        - own.user
        - own.system
    )
