"""``docs/exercises.md``: every wrong answer of the table and the sentence that answers it.

``python tests/mistakes_page.py`` writes it, in some minutes; ``test_tutorials`` holds every sentence
to the words of the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import wrong_answers
import wrong_engines
import wrong_rounds

from specmoe.lab import exercises
from specmoe.lab.exercises import ExerciseError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "exercises.md"
CHECKS = {
    "check_nearest": wrong_answers.NEAREST,
    "check_eviction": wrong_answers.EVICTION,
    "check_acceptance": wrong_answers.ACCEPTANCE,
    "check_sampling": wrong_answers.SAMPLING,
    "check_coalescing": wrong_answers.COALESCING,
    "check_draft_set": wrong_answers.DRAFT_SET,
    "check_planner": wrong_answers.PLANNER,
    "check_draft_layer": wrong_rounds.DRAFT_LAYER,
    "check_rollback": wrong_rounds.ROLLBACK,
    "check_coupling": wrong_rounds.COUPLING,
    "check_expected_tokens": wrong_rounds.EXPECTATION,
    "check_capstone": wrong_rounds.CAPSTONE,
    "check_read_ahead": wrong_engines.READ_AHEAD,
    "check_repair": wrong_engines.REPAIR,
}
HEAD = """# Exercises: wrong answers and what the checks say

Each exercise of [tutorials/](../tutorials/README.md) is tested with the wrong answers below, {count} in all; each has to fail with its
sentence. A check also prints the call that failed, what was answered and what is right. Before any of this it tells a class, a generator,
a print, an exception, a changed argument, random numbers of one's own, a wrong number of arguments and a loop without end.

Written by `python tests/mistakes_page.py`; `tests/test_tutorials.py` holds every sentence to words of its own.
"""


def diagnosis(check: str, name: str) -> str:
    """What the check says to one wrong answer."""
    try:
        getattr(exercises, check)(CHECKS[check][name][0])
    except ExerciseError as failure:
        return failure.sentence
    raise AssertionError(f"{check} lets {name!r} pass")


def row(name: str, sentence: str) -> str:
    """One line of the table."""
    return f"| {name} | {sentence.replace('|', chr(92) + '|')} |"


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(count=sum(map(len, CHECKS.values())))]
    for number, (check, answers) in enumerate(CHECKS.items(), 1):
        rows = "\n".join(row(name, diagnosis(check, name)) for name in answers)
        parts.append(
            f"## {number}: `{check}`\n\n| wrong answer | the check says |\n|---|---|\n{rows}\n"
        )
        print(check, file=sys.stderr, flush=True)
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
