"""The paper, reproduced: its numbers as data, our runs, and both side by side.

Comes in: results in ``results/`` (or a folder that ``measured`` fills). Goes out: ``Number``s of
kind paper, measured or simulated, tables, claims, ``metrics.json``. The notebook ``paper`` shows
them, and ``docs/reproduction.md`` is that notebook, exported.
"""

from __future__ import annotations

from ..markdown import markdown_table
from .claims import Claim, claims, claims_frame, verdicts
from .facts import FACTS, KINDS, PAPER_MODELS, Number, frame_of, labelled, value_of
from .measure import measure
from .numbers import bytes_by_batch, load_results, main_model, rows_of, speed_ratios, timed_rows
from .page import (
    all_numbers,
    clock_errors,
    clock_rows,
    export,
    lines_at,
    numbers_frame,
    open_results,
    setup,
)
from .settings import Run, plan, plan_low_skew
from .tables import compare, markdown, pivots
from .winners import (
    BASE,
    STAR,
    agreement,
    leads,
    machines,
    map_recordings,
    measured_points,
    own_rates,
    winners,
)
from .winners import TITLES as MAP_TITLES

__all__ = [
    "BASE",
    "Claim",
    "FACTS",
    "KINDS",
    "MAP_TITLES",
    "Number",
    "PAPER_MODELS",
    "Run",
    "STAR",
    "agreement",
    "all_numbers",
    "bytes_by_batch",
    "claims",
    "claims_frame",
    "clock_errors",
    "clock_rows",
    "compare",
    "export",
    "frame_of",
    "labelled",
    "leads",
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
    "setup",
    "speed_ratios",
    "timed_rows",
    "value_of",
    "verdicts",
    "winners",
]
