"""Many runs of one report, and one page that compares what is in a folder.

Comes in: values to vary, or a folder of runs. Goes out: a folder for each run, and ``index.html``
(sortable) with ``index.csv``; a run that failed stands there with its error. ``cli`` calls this.
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import OptionError, SpecMoEError, path_of
from ...shipped import need_path, package_path
from ..sweep.grid import MOST
from ..writing import write_whole
from .about import ENV
from .parameters import Report

BEST = "tokens_per_second"  # of the rows of a report's numbers, the largest is shown
LEAST = "fetched_bytes_per_token"  # and the smallest


def run_many(
    name: str,
    varied: Mapping[str, list],
    parameters: Mapping[str, Any] | None = None,
    out_dir: str | Path | None = None,
    overwrite: bool = False,
    yes: bool = False,
) -> Path:
    """Run the report ``name`` once for every combination of ``varied`` (parameter -> values) into
    ``out_dir/01`` ... (default ``reports/NAME-sweep``), and return the path of the index.

    Every value is checked before the first run. A run that fails does not end the others. Called
    again, runs that are there with the same settings are not repeated. ``yes``: more than ``MOST``
    runs are meant.
    """
    from .run import run_report

    report = Report.find(name)
    empty = [key for key, values in varied.items() if not values]
    if empty or not varied:
        raise OptionError(f"--sweep {empty[0] if empty else ''} has no value: write --sweep k=a,b")
    count = math.prod(map(len, varied.values()))
    if count > MOST and not yes:
        raise OptionError(
            f"--sweep asks for {count} runs, more than {MOST}: give fewer values, or say yes (--yes)"
        )
    sets = [
        {**(parameters or {}), **dict(zip(varied, chosen))}
        for chosen in itertools.product(*varied.values())
    ]
    typed = [report.typed(one) for one in sets]
    folder = path_of(out_dir or Path("reports") / f"{name}-sweep", "a folder")
    for number, values in enumerate(typed, 1):
        place = folder / f"{number:02d}"
        there = read_run(place)
        if there and not there["error"] and _same(there["settings"], values):
            continue
        again = overwrite or bool(there and there["error"])
        try:
            run_report(name, values, place, overwrite=again)
        except SpecMoEError:
            # the index has it, where the run began at all
            if read_run(place) is None or not read_run(place)["error"]:
                raise
    return index(folder)


def _same(settings: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(settings.get(key) == value for key, value in values.items())


def read_run(folder: Path) -> dict[str, Any] | None:
    """What a run's ``env.json`` and ``metrics.json`` say; None where there is no run."""
    try:
        env = json.loads((folder / ENV).read_text(encoding="utf-8"))
        env = {"error": "", "settings": {}, **env}
    except (OSError, ValueError, TypeError):
        return None
    try:
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        numbers = {}
    return {**env, "numbers": numbers if isinstance(numbers, dict) else {}}


def index(folder: str | Path = "reports") -> Path:
    """Write ``index.html`` and ``index.csv`` of all runs below ``folder``; the path of the page."""
    folder = path_of(folder, "a folder")
    runs = runs_in(folder)
    if not runs:
        raise OptionError(f"there is no run of a report in {folder}: name the folder of some")
    rows = [_row(place.relative_to(folder), found) for place, found in runs.items()]
    frame = pd.DataFrame(rows)
    write_whole(folder / "index.csv", frame.to_csv(index=False))
    return write_whole(folder / "index.html", _page(frame, list(runs.values())))


def runs_in(folder: Path) -> dict[Path, dict[str, Any]]:
    """Every run below ``folder``, by its own folder."""
    places = sorted(file.parent for file in folder.rglob(ENV))
    return {place: found for place in places if (found := read_run(place))}


def _row(place: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        key: ",".join(map(str, value)) if isinstance(value, list) else value
        for key, value in found["settings"].items()
    }
    numbers = {
        key: value
        for key, value in found["numbers"].items()
        if isinstance(value, int | float | str) and key not in plain
    }
    rows = found["numbers"].get("rows")
    for name, choose in ((BEST, max), (LEAST, min)):
        known = [
            row[name]
            for row in (rows if isinstance(rows, list) else [])
            if isinstance(row, dict) and isinstance(row.get(name), int | float)
        ]
        numbers |= {name: choose(known)} if known else {}
    about = {"run": place.as_posix(), "report": found.get("report"), "made": found.get("made")}
    return {**about, **plain, **numbers, "error": found["error"]}


def _page(frame: pd.DataFrame, runs: list[dict]) -> str:
    """Columns that never change are left to the CSV."""
    kept = ("run", "report", "made", "error")
    changing = [name for name in frame if name in kept or frame[name].astype(str).nunique() > 1]
    pages = {
        row["run"]: f"{row['run']}/{row['report']}{'.failed.ipynb' if row['error'] else '.html'}"
        for row in frame.to_dict("records")
    }
    shown = frame[changing].fillna("")
    body = shown.to_html(index=False, float_format=lambda value: f"{value:.4g}", escape=True)
    for run, page in pages.items():
        cell = pd.DataFrame([[run]]).to_html(index=False, header=False, escape=True)
        cell = cell[cell.index("<td>") : cell.index("</td>") + 5]
        link = cell.replace("<td>", f'<td><a href="{page}">').replace("</td>", "</a></td>")
        body = body.replace(cell, link, 1)
    failed = sum(bool(run["error"]) for run in runs)
    style, script = (
        need_path(package_path("lab/report") / file).read_text(encoding="utf-8")
        for file in ("page.css", "page.js")
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Reports</title>'
        f"<style>{style}</style></head><body><h1>Reports</h1><p>{len(runs)} runs, {failed} failed; "
        "a click on a head sorts; all columns are in <a href='index.csv'>index.csv</a>.</p>"
        f"{body}<script>{script}</script></body></html>\n"
    )


def swept(given: list[str]) -> dict[str, list[str]]:
    """``k=a,b,c`` words as values by parameter; a value with commas in it stands in brackets."""
    found = {}
    for pair in given:
        key, is_pair, values = pair.partition("=")
        if not is_pair or not key.strip() or not values.strip():
            raise OptionError(f"--sweep {shlex.quote(pair)} is not k=a,b, e.g. --sweep gamma=2,4,8")
        if key.strip() in found:
            raise OptionError(f"--sweep {key.strip()} stands twice: write it once, k=a,b")
        found[key.strip()] = [value for value in _split(values) if value]
    return found


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
