"""Result files: one JSON for each part, rewritten after every cell, so that an interrupted run goes
on where it stopped.

Comes in: a row. Goes out: ``results/<part>.json`` with date, machine, versions and the settings of
the run. A row that was measured with other code of the engine, or at another length, is measured
again.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import specmoe

from ..machine import doctor
from ..writing import plain, read_object, write_whole
from .settings import Cell, Length

FOLDER = Path(__file__).parent / "results"
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
)


# Of specmoe/, what decides neither tokens nor seconds of a run.
BESIDE_THE_ENGINE = {
    "bench",
    "cli",
    "commands",
    "doctor",
    "exactness",
    "exercises",
    "figures",
    "job_files",
    "job_lines",
    "jobs",
    "lessons",
    "metrics",
    "probes",
    "replay",
    "report",
    "reproduction",
    "routing",
    "simulate",
    "tiny",
    "widgets",
    "__init__",
    "__main__",
}


def code_digest() -> str:
    """Eight digits of the code that a run of the engine goes through: equal digits, equal code."""
    package, digest = Path(specmoe.__file__).parent, hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        if file.relative_to(package).with_suffix("").parts[0] not in BESIDE_THE_ENGINE:
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


class ResultFile:
    """Rows of one part by key. ``add`` writes the file at once."""

    def __init__(
        self,
        part: str,
        length: Length,
        folder: Path = FOLDER,
        keep: bool = False,
        code: str | None = None,
    ):
        self.part = part
        self.length = length
        self.file = Path(folder) / f"{part}.json"
        self.code = code or code_digest()
        found = read_object(self.file)
        rows = found.get("rows", {})
        self.rows = {key: row for key, row in rows.items() if keep or self._fits(row)}
        self.models: dict[str, dict] = found.get("models", {}) if self.rows else {}

    def _fits(self, row: dict) -> bool:
        return row.get("code") == self.code and row.get("slice_s") == self.length.slice_s

    def has(self, cell: Cell) -> bool:
        return cell.key in self.rows

    def add(self, cell: Cell, row: dict) -> None:
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
        stamp = {
            "measured": now,
            "code": self.code,
            "commit": commit(),
            "slice_s": self.length.slice_s,
        }
        self.rows[cell.key] = plain({**asdict(cell), **row, **stamp})
        self.write()

    def add_model(self, name: str, facts: dict) -> None:
        self.models[name] = plain(facts)

    def write(self) -> None:
        content = {
            "part": self.part,
            "length": asdict(self.length),
            "machine": plain(_machine()),
            "models": self.models,
            "rows": self.rows,
        }
        write_whole(self.file, json.dumps(content, indent=0) + "\n")


def read_all(folder: Path = FOLDER) -> dict[str, dict]:
    """Part -> content of its file, for the parts that have one."""
    return {file.stem: read_object(file) for file in sorted(Path(folder).glob("*.json"))}


def read_elsewhere(folder: Path = FOLDER / "elsewhere") -> list[dict[str, dict]]:
    """What ``read_all`` gives, for each machine that has a folder of its own: kept as they were,
    with the code they had."""
    return [read_all(machine) for machine in sorted(folder.glob("*/"))]


def _machine() -> dict:
    found = doctor.describe()
    return {name: found[name] for name in MACHINE if name in found}
