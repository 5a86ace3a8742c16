"""A leaderboard for the room: one file, a line per passed check.

Comes in: the file that the environment variable ``SPECMOE_LEADERBOARD`` names (or ``board=`` of a
check), a name (``SPECMOE_NAME``, else who is logged in). Goes out: lines of JSON with name,
exercise, tier and score, and a table of everybody's best. ``python -m specmoe.lab.exercises
leaderboard FILE`` prints it.
"""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path

import pandas as pd

from ...errors import OptionError, path_of
from .verdict import TIERS, Passed

FILE, NAME = "SPECMOE_LEADERBOARD", "SPECMOE_NAME"
FIELDS = ("name", "exercise", "tier", "score")
LONGEST_NAME = 40


def add(exercise: str, passed: Passed, board: str | Path | None = None) -> str:
    """Append a line for ``passed``; a sentence where that failed, and "" otherwise. A board that
    cannot be written spoils no answer; what is no file name raises ``OptionError``."""
    named = board or os.environ.get(FILE)
    if not named:
        return ""
    path = path_of(named, "a leaderboard file")
    line = dict(zip(FIELDS, (who(), exercise, passed.tier, passed.score)))
    try:
        # one short write at the end of the file: lines of a whole room do not mix
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as failure:
        return f"(not on the leaderboard: {path} cannot be written, {failure.strerror})"
    return ""


def who() -> str:
    """The name on the board."""
    try:
        name = os.environ.get(NAME) or getpass.getuser()
    except (OSError, KeyError):
        name = ""
    return name.strip()[:LONGEST_NAME] or "anonymous"


def read(path: Path) -> pd.DataFrame:
    """The lines of a leaderboard file; ``OptionError`` naming the first that is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise OptionError(
            f"{path} cannot be read as a leaderboard ({type(failure).__name__}): name the file "
            f"that {FILE} named"
        ) from None
    rows = [_line(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line]
    return pd.DataFrame(rows, columns=list(FIELDS))


def _line(path: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if (
        not isinstance(row, dict)
        or set(row) != set(FIELDS)
        or not all(isinstance(value, str) for value in row.values())
        or row["tier"] not in TIERS
    ):
        raise OptionError(
            f"{path}, line {number} is not of a leaderboard: expected {', '.join(FIELDS)}"
        )
    return row


def standings(path: Path) -> pd.DataFrame:
    """Everybody's best tier per exercise, and their points (pass 1, good 2, excellent 3)."""
    lines = read(path)
    if lines.empty:
        raise OptionError(f"{path} is empty: nobody has passed a check yet")
    lines["points"] = lines["tier"].map(TIERS.index) + 1
    best = lines.groupby(["name", "exercise"])["points"].max().unstack()
    best = best.reindex(columns=list(dict.fromkeys(lines["exercise"])))
    table = best.map(lambda points: "-" if points != points else TIERS[int(points) - 1])
    table.insert(0, "points", best.sum(axis=1).astype(int))
    return table.sort_values("points", ascending=False, kind="stable").reset_index()
