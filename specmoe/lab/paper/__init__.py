"""The paper, reproduced: its numbers as data, our runs, and both side by side.

Comes in: results in ``results/`` (or a folder that ``measured`` fills). Goes out: ``Number``s of
kind paper, measured or simulated, tables, sentences, ``metrics.json``. The report ``paper`` and
``docs/reproduction.md`` are made of these.
"""

from __future__ import annotations

from .claims import claims
from .document import conclusions, document, setup
from .facts import FACTS, KINDS, PAPER_MODELS, Number
from .measure import measure
from .numbers import bytes_by_batch, load_results, main_model, rows_of, speed_ratios, timed_rows
from .page import all_numbers, clock_rows, export, lines_at, numbers_frame, open_results
from .prose import NOTE, TITLES, WHY, WHY_MAP
from .sentences import frame_of, say_agreement, say_clock, say_map
from .settings import Run, plan, plan_low_skew
from .tables import compare, markdown, markdown_table, pivots
from .winners import BASE, STAR, machines, map_recordings, measured_points, own_rates, winners
from .winners import TITLES as MAP_TITLES

__all__ = [
    "BASE",
    "FACTS",
    "KINDS",
    "MAP_TITLES",
    "NOTE",
    "PAPER_MODELS",
    "STAR",
    "TITLES",
    "WHY",
    "WHY_MAP",
    "Number",
    "Run",
    "all_numbers",
    "bytes_by_batch",
    "claims",
    "clock_rows",
    "compare",
    "conclusions",
    "document",
    "export",
    "frame_of",
    "lines_at",
    "load_results",
    "machines",
    "main_model",
    "map_recordings",
    "markdown",
    "markdown_table",
    "measure",
    "measured_points",
    "numbers_frame",
    "open_results",
    "own_rates",
    "pivots",
    "plan",
    "plan_low_skew",
    "rows_of",
    "say_agreement",
    "say_clock",
    "say_map",
    "setup",
    "speed_ratios",
    "timed_rows",
    "winners",
]
