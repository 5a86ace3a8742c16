"""The paper, reproduced: its numbers as data, our runs, and both side by side.

Comes in: results in ``results/`` (or a folder that ``measured`` fills). Goes out: ``Number``s of
kind paper, measured or simulated, tables, claims, ``metrics.json``. The notebook ``paper`` shows
them, and ``docs/reproduction.md`` is that notebook, exported.
"""

from __future__ import annotations

from ..bench.runs import Run
from ..markdown import markdown_table
from .claims import Claim, claims, claims_frame, verdicts
from .facts import FACTS, KINDS, Number, frame_of, value_of
from .measure import measure
from .numbers import load_results, rows_of
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
from .settings import plan, plan_low_skew
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
