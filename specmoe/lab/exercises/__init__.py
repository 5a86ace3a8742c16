"""Exercises of the tutorials: checks that name the likely mistake, scores on real runs, and the
notebooks' generator.

Comes in: a student's function, or a folder of sources. Goes out: ``Passed`` or an
``ExerciseError``; notebooks. Student work is scored by specmoe's own functions on a shipped
checkpoint.
"""

from __future__ import annotations

from .acceptance import check_acceptance
from .coalesce import check_coalescing
from .drafting import check_draft_set
from .evict import check_eviction
from .nearest import check_nearest
from .planning import check_planner
from .rejection import check_sampling
from .verdict import ExerciseError, Passed

__all__ = [
    "ExerciseError",
    "Passed",
    "check_acceptance",
    "check_coalescing",
    "check_draft_set",
    "check_eviction",
    "check_nearest",
    "check_planner",
    "check_sampling",
]
