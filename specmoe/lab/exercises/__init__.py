"""Exercises of the tutorials: checks that name the likely mistake, hints, scores on real runs, and
the notebooks' generator.

Comes in: a student's function, or a folder of sources. Goes out: ``Passed`` or an
``ExerciseError``; notebooks. Student work is scored by specmoe's own functions on a shipped
checkpoint.
"""

from __future__ import annotations

from . import (
    acceptance,
    ahead,
    capstone,
    coalesce,
    coupling,
    draft_layer,
    drafting,
    evict,
    expectation,
    nearest,
    own,
    planning,
    rejection,
    repair,
    rollback,
)
from .exercise import Exercise
from .verdict import ExerciseError, Passed

score_parts = own.score_parts

check_nearest = Exercise("nearest", nearest.check_nearest)
check_eviction = Exercise("eviction", evict.check_eviction)
check_acceptance = Exercise("acceptance", acceptance.check_acceptance)
check_sampling = Exercise("sampling", rejection.check_sampling)
check_coalescing = Exercise("coalescing", coalesce.check_coalescing)
check_draft_set = Exercise("draft_set", drafting.check_draft_set)
check_planner = Exercise("planner", planning.check_planner)
check_draft_layer = Exercise("draft_layer", draft_layer.check_draft_layer)
check_rollback = Exercise("rollback", rollback.check_rollback)
check_coupling = Exercise("coupling", coupling.check_coupling)
check_expected_tokens = Exercise("expectation", expectation.check_expected_tokens)
check_capstone = Exercise("capstone", capstone.check_capstone)
check_read_ahead = Exercise("read_ahead", ahead.check_read_ahead)
check_repair = Exercise("repair", repair.check_repair)

EXERCISES = (
    check_nearest,
    check_eviction,
    check_acceptance,
    check_sampling,
    check_coalescing,
    check_draft_set,
    check_planner,
    check_draft_layer,
    check_rollback,
    check_coupling,
    check_expected_tokens,
    check_capstone,
    check_read_ahead,
    check_repair,
)
