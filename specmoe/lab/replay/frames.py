"""A trace frame or one of its numbers, checked.

Comes in: an output, a trace, a frame; what somebody named. Goes out: the same, or ``OptionError``.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from ...errors import OptionError
from ...trace import COLUMNS


def as_frame(source) -> pd.DataFrame:
    """The trace frame of an output, a trace, or a frame itself; ``OptionError`` for anything else
    or an empty one."""
    trace = getattr(source, "trace", source)
    is_trace = hasattr(trace, "to_frame") and not isinstance(trace, pd.DataFrame)
    frame = trace.to_frame() if is_trace else trace
    check_frame(frame)
    return frame


def check_frame(frame: pd.DataFrame) -> None:
    """``OptionError`` unless ``frame`` is a trace frame with events in it."""
    if not isinstance(frame, pd.DataFrame) or not set(COLUMNS) <= set(frame.columns):
        kind = type(frame).__name__
        raise OptionError(
            f"{kind} holds no trace: give an output of generate, or its output.trace.to_frame()"
        )
    if not len(frame):
        raise OptionError(
            "this output has no trace: load the engine with trace=True and generate again"
        )


def check_number(name: str, value, valid: Iterable[int]) -> int:
    """``value`` as one of the whole numbers ``valid``; ``OptionError`` naming the nearest one
    otherwise."""
    numbers = sorted(int(number) for number in valid)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(
            f"{name}={value!r} must be a whole number from {numbers[0]} to {numbers[-1]}"
        )
    if int(value) not in numbers:
        close = min(numbers, key=lambda number: abs(number - int(value)))
        span = f"from {numbers[0]} to {numbers[-1]}"
        raise OptionError(f"{name}={value!r} is not in this trace: did you mean {close}? ({span})")
    return int(value)
