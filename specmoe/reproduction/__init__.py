"""The paper, reproduced: its numbers as data, our runs, and both side by side.

Comes in: results in ``results/`` (or a folder that ``measured`` fills). Goes out: ``Number``s of kind paper, measured or
simulated, tables, sentences, ``metrics.json``. The report ``paper`` and ``docs/reproduction.md`` are made of these.
"""

from __future__ import annotations

from .document import TITLES, WHY, conclusions, document, setup, table
from .facts import FACTS, KINDS, PAPER_MODELS, Number
from .measure import measure
from .numbers import all_numbers, bytes_by_batch, load_results, main_model, rows_of, speed_ratios, timed_rows
from .page import export, lines_at, numbers_frame, open_results
from .sentences import frame_of
from .settings import Run, plan

__all__ = [
    "FACTS",
    "KINDS",
    "PAPER_MODELS",
    "TITLES",
    "WHY",
    "Number",
    "Run",
    "all_numbers",
    "bytes_by_batch",
    "conclusions",
    "document",
    "export",
    "frame_of",
    "lines_at",
    "load_results",
    "main_model",
    "measure",
    "numbers_frame",
    "open_results",
    "plan",
    "rows_of",
    "setup",
    "speed_ratios",
    "table",
    "timed_rows",
]
