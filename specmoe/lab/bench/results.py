"""Result files: rows by key in one JSON file, rewritten after every measurement, so that an
interrupted run goes on where it stopped.

Comes in: rows. Goes out: a file with its date, machine, versions and settings. What was measured
with other code of the engine, other weights or at another length is measured again. ``bench`` and
``paper`` keep their rows in these.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from dataclasses import asdict
from pathlib import Path

from ...shipped import need_path, package_path
from ..machine import doctor
from ..writing import plain, read_object, write_whole
from .settings import PARTS, Length

FOLDER = package_path("lab/bench/results")
GPU = "gpu"  # the part that an H100 gave
REAL = "real"  # the part that `make bench-real` measures
# What a result file keeps of the doctor's findings; "balance" where it was measured.
MACHINE = (
    "cpu",
    "cores",
    "memory",
    "threads",
    "kernel",
    "specmoe",
    "torch",
    "transformers",
    "python",
    "balance",
)
# Rooms of specmoe/ that decide neither tokens nor seconds of a run.
BELOW_THE_WALL = ("lab", "tiny", "cli")
# Digits of a code -> those of a later one that differs, beside comments, only in what the named parts
# run. So the rows of all other parts are the later code's, too. Read line by line, not measured.
SAME = {
    "dc40ed37": ("410a1636", ("low_bit",)),
    "410a1636": ("c329e10e", ("low_bit",)),
    "c329e10e": ("21da9b5b", ("low_bit", REAL)),
    "21da9b5b": ("90829a70", ()),
    # Beside them, bookkeeping that all parts do became shorter. In turns, native, B = 16: the same
    # bytes, 1.04 to 1.14 times as fast, within their intervals (docs/log.md).
    "90829a70": ("3b6c8f03", ("low_bit", REAL)),
    "3b6c8f03": ("1ba24d65", ()),
    "1ba24d65": ("c8268574", ()),
    # A GPU widens in other pieces; recurrent layers name their state; who asks a kept layer for its
    # weight sees float32; ties of float32 are judged. OLMoE and the shipped models ask nothing.
    "c8268574": ("ae1c1c5f", ()),
}


class ResultFile:
    """Rows by key, and ``head``: what is true of all of them. ``add`` writes the file at once.

    ``of`` says whose rows they are: a file that says otherwise is begun anew. ``stamp`` is what
    every new row carries. A row that carries another stays until ``drop_old`` takes it away, but ``has`` does not count it, unless ``keep``.
    """

    def __init__(
        self, file: Path, of: dict | None = None, stamp: dict | None = None, keep: bool = False
    ):
        self.file = Path(file)
        self.stamp = {} if keep else stamp or {}
        self.new = stamp or {}
        found = read_object(self.file)
        found = found if _agrees(found, of or {}) else {}
        self.rows = found.pop("rows", {})
        self.head = (found if self.rows else {}) | (of or {})

    def has(self, run) -> bool:
        return run.key in self.rows and _agrees(self.rows[run.key], self.stamp)

    def drop_old(self, **of) -> None:
        """Forget the rows of another stamp that ``of`` describes."""
        self.rows = {
            key: row
            for key, row in self.rows.items()
            if not _agrees(row, of) or _agrees(row, self.new)
        }

    def add(self, rows: dict[str, dict], **head) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
        for key, row in rows.items():
            self.rows[key] = plain({**row, "measured": now, "commit": commit(), **self.new})
        self.head |= plain(head)
        write_whole(self.file, json.dumps({**self.head, "rows": self.rows}, indent=0) + "\n")


def _agrees(found: dict, wanted: dict) -> bool:
    return all(found.get(name) == value for name, value in wanted.items())


def part_file(
    part: str, length: Length, folder: Path = FOLDER, keep: bool = False, code: str | None = None
) -> ResultFile:
    """Of one part of the benchmarks: new rows are of this code of the engine, at this length; for
    old ones the head keeps the machine and the length that they had."""
    stamp = {"code": code or code_digest(), "slice_s": length.slice_s}
    file = ResultFile(Path(folder) / f"{part}.json", {"part": part}, stamp, keep)
    before = {name: file.head[name] for name in ("machine", "length") if name in file.head}
    if "before" not in file.head and not all(_agrees(row, stamp) for row in file.rows.values()):
        file.head["before"] = before
    file.head |= {"length": plain(asdict(length)), "models": file.head.get("models", {})}
    return file


def read_all(folder: Path | None = None) -> dict[str, dict]:
    """Part -> content of its file, for the parts that have one; without ``folder`` ours, all of
    them."""
    if folder is None:
        files = [need_path(FOLDER / f"{part}.json") for part in sorted((*PARTS, GPU, REAL))]
    else:
        files = sorted(Path(folder).glob("*.json"))
    return {file.stem: _renamed(read_object(file)) for file in files}


def _renamed(part: dict) -> dict:
    """With the digits of the last code that is the ``SAME`` for this part."""
    coded = [(row, "code") for row in part.get("rows", {}).values()] + [(part, "parts_code")]
    for one, name in coded:
        while (later := SAME.get(one.get(name))) and part.get("part") not in later[1]:
            one[name] = later[0]
    return part


def read_elsewhere(folder: Path = FOLDER / "elsewhere") -> list[dict[str, dict]]:
    """What ``read_all`` gives, for each machine that has a folder of its own: kept as they were,
    with the code they had."""
    return [read_all(machine) for machine in sorted(need_path(folder).glob("*/"))]


def machine(measured: bool = False) -> dict:
    """This machine in the words of a result file; ``measured``: with its rates, a few seconds."""
    found = doctor.examine(quick=True) if measured else doctor.describe()
    return {name: found[name] for name in MACHINE if name in found}


def code_digest() -> str:
    """Eight digits of the code that a run of the engine goes through: equal digits, equal code."""
    package, digest = package_path(), hashlib.sha256()
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.c")]):
        if file.relative_to(package).parts[0] not in BELOW_THE_WALL:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def commit() -> str:
    """The commit that is checked out, "+" when files differ from it; "unknown" outside a
    repository."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=FOLDER.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--", "specmoe") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
