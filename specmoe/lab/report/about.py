"""What stands under the title of a report: when, with which code, how and where it was made.

Comes in: a report and the values of its parameters. Goes out: facts by name, for ``page``, and the
same for programs, which ``run`` adds to ``metrics.json`` and ``against`` reads there.
"""

from __future__ import annotations

import datetime
import json
import platform
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import specmoe

from ...shipped import package_path
from ..writing import write_whole
from .parameters import AGAINST, OUT_DIR, Report, one_line

ENV = "env.json"  # in the folder of every run: how it was made, and the error it ended in


def facts_of(report: Report, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` are typed values; what was not given has its default."""
    from ..machine.doctor import describe

    found = describe()
    memory = found["memory"]["total_bytes"] / 2**30
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "report": report.name,
        "made": now.strftime("%Y-%m-%d %H:%M UTC"),
        "revision": revision(),
        "command": command(report.name, given),
        "machine": f"{found['cpu']}, {found['cores']} cores, {memory:.3g} GiB of memory",
        "settings": settings_of(report, given),
    }


def settings_of(report: Report, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter but the folders."""
    settings = {name: one.default for name, one in report.parameters.items()} | dict(given)
    return {name: value for name, value in settings.items() if name not in (OUT_DIR, AGAINST)}


@contextmanager
def recorded(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """``env.json`` in ``folder`` while something runs, and with its error when that fails."""
    versions = {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "transformers")
    }
    found = {**facts, **versions, "error": ""}

    def write() -> None:
        write_whole(folder / ENV, json.dumps(found, indent=1) + "\n")

    write()
    try:
        yield
    except BaseException as failure:
        found["error"] = one_line(failure) if str(failure) else type(failure).__name__
        write()
        raise


def shown(facts: Mapping[str, Any]) -> dict[str, str]:
    """The facts for people, model first and seed among them where the report has them."""
    settings = facts["settings"]
    words = {"model": settings.get("model"), "made": facts["made"], "code": facts["revision"]}
    words |= {
        "command": facts["command"],
        "seed": settings.get("seed"),
        "machine": facts["machine"],
    }
    return {name: str(value) for name, value in words.items() if value is not None}


def revision() -> str:
    """``specmoe 0.1.0, commit 1a2b3c4``; "+" when files of it have changed. Installed from a wheel
    it has no commit."""
    version = f"specmoe {specmoe.__version__}"
    # a folder of packages may lie within somebody else's repository
    if not (package_path().parent / ".git").exists():
        return version
    from ..bench.results import commit

    found = commit()
    return version if found == "unknown" else f"{version}, commit {found}"


def command(name: str, given: Mapping[str, Any]) -> str:
    """The command line that makes this report again, wherever it was asked for."""
    words = ["specmoe", "report", "run", name]
    for key, value in given.items():
        if key == AGAINST:
            words += ["--against", str(value)]
        elif key != OUT_DIR:
            words += ["-p", f"{key}={_written(value)}"]
    return shlex.join(words)


def _written(value: Any) -> str:
    """As ``Parameter.read`` reads it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def add_to_metrics(file: Path, facts: Mapping[str, Any]) -> None:
    """``made`` into the metrics that a notebook wrote; without it nothing can be compared with
    them."""
    if not file.is_file():
        return
    numbers = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(numbers, dict):
        write_whole(file, json.dumps({"made": facts, **numbers}, indent=1, allow_nan=False) + "\n")
