"""The paper, reproduced: its numbers as data, our runs, and both side by side.

Comes in: results in ``results/`` (or a folder that ``measured`` fills). Goes out: ``Number``s of kind paper, measured or
simulated, tables, sentences, ``metrics.json``. The report ``paper`` and ``docs/reproduction.md`` are made of these.
"""

from __future__ import annotations

from .document import TITLES, WHY, WHY_MAP, conclusions, document, setup, table
from .facts import FACTS, KINDS, PAPER_MODELS, Number
from .measure import measure
from .numbers import bytes_by_batch, load_results, main_model, rows_of, speed_ratios, timed_rows
from .page import all_numbers, clock_rows, export, lines_at, numbers_frame, open_results
from .sentences import frame_of, say_clock, say_map
from .settings import Run, plan, plan_low_skew
from .winners import MACHINES, PAPER_BALANCE, measured_points, winners

__all__ = [
    "FACTS",
    "KINDS",
    "MACHINES",
    "PAPER_BALANCE",
    "PAPER_MODELS",
    "TITLES",
    "WHY",
    "WHY_MAP",
    "Number",
    "Run",
    "all_numbers",
    "bytes_by_batch",
    "clock_rows",
    "conclusions",
    "document",
    "export",
    "frame_of",
    "lines_at",
    "load_results",
    "main_model",
    "measure",
    "measured_points",
    "numbers_frame",
    "open_results",
    "plan",
    "plan_low_skew",
    "rows_of",
    "say_clock",
    "say_map",
    "setup",
    "speed_ratios",
    "table",
    "timed_rows",
    "winners",
]
