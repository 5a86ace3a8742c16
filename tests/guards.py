"""Which tests run which lines of a file: whom to ask about a bug that is planted there.

Comes in: a copy of the tree. Goes out: for each test that passed, its seconds and the lines that ran
while it did, fixtures included. ``mutate`` calls next, and asks about a bug those that run its line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

# A bug is asked about for so long at most, by the seconds of the tests without a bug.
ASKED_S = 40
# Too slow to be asked about any bug.
LEFT_OUT = "not ten_thousand and not gigabytes and not interrupts_anywhere"


@dataclass
class Recorder:
    """A plugin of pytest: the lines of ``files`` (absolute names) that each test runs."""

    files: frozenset[str]
    rows: dict[str, dict] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    lines: set[tuple[str, int]] = field(default_factory=set)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.lines, began_s = set(), time.monotonic()
        with self.tracing():
            done = yield
        row = {"seconds": time.monotonic() - began_s, "lines": by_file(self.lines)}
        self.rows[item.nodeid] = row
        return done

    @contextmanager
    def tracing(self) -> Iterator[None]:
        threading.settrace(self.enter)
        sys.settrace(self.enter)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)

    def enter(self, frame, event, arg):
        return self.see if frame.f_code.co_filename in self.files else None

    def see(self, frame, event, arg):
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.see

    def pytest_runtest_logreport(self, report):
        # skipped, too: it would not notice anything
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def passed(self) -> dict[str, dict]:
        return {name: row for name, row in self.rows.items() if name not in self.failed}


def by_file(lines: set[tuple[str, int]]) -> dict[str, list[int]]:
    files = sorted({file for file, _ in lines})
    return {name: sorted(line for file, line in lines if file == name) for name in files}


@dataclass
class Asked:
    """A plugin of pytest: of the tests that are collected only ``names`` run, and ``first`` is the
    first of them that failed."""

    names: frozenset[str]
    heard: Path

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid in self.names]

    def pytest_runtest_logreport(self, report):
        self.hear(report)

    def pytest_collectreport(self, report):
        self.hear(report)

    def hear(self, report) -> None:
        if report.outcome == "failed" and not self.heard.exists():
            self.heard.write_text(report.nodeid, encoding="utf-8")


def choose(known: dict[str, dict], file: str, lines: range, own: list[str]) -> list[str]:
    """The tests that run any of ``lines`` of ``file``: those of the ``own`` test files first, each
    function once before one is asked a second time, the quickest first."""
    running = [
        (name, row["seconds"])
        for name, row in known.items()
        if not set(lines).isdisjoint(row["lines"].get(file, ()))
    ]
    seen, ranked = Counter(), []
    for name, seconds in sorted(running, key=lambda pair: pair[1]):
        function = name.split("[")[0]
        ranked.append((function.split("::")[0] not in own, seen[function], seconds, name))
        seen[function] += 1
    chosen, total_s = [], 0.0
    for _, _, seconds, name in sorted(ranked):
        if not chosen or total_s + seconds <= ASKED_S:
            chosen.append(name)
            total_s += seconds
    return chosen


def in_a_tree(tree: Path) -> None:
    """Make this process (a fork that has imported no specmoe) one of ``tree``, in silence."""
    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    own = {"PYTHONPATH": str(tree), "TMPDIR": str(tree), "XDG_CACHE_HOME": str(tree / "cache")}
    os.environ.update(own)
    tempfile.tempdir = None


def arguments(tree: Path) -> list[str]:
    return ["-q", "-p", "no:cacheprovider", "--timeout=0", f"--basetemp={tree / 'out'}"]


def record(tree: Path, test_file: str, files: list[str], out: Path) -> None:
    """In a process of its own: what ``test_file`` runs of ``files``, into ``out``."""
    in_a_tree(tree)
    recorder = Recorder(frozenset(str(tree / file) for file in files))
    pytest.main([*arguments(tree), "-k", LEFT_OUT, test_file], plugins=[recorder])
    rows = recorder.passed()
    for row in rows.values():
        row["lines"] = {
            str(Path(file).relative_to(tree)): lines for file, lines in row["lines"].items()
        }
    out.write_text(json.dumps(rows), encoding="utf-8")
    os._exit(0)


def ask(tree: Path, names: list[str], heard: Path) -> None:
    """In a process of its own, which ends with pytest's exit status."""
    in_a_tree(tree)
    files = list(dict.fromkeys(name.split("::")[0] for name in names))
    plugins = [Asked(frozenset(names), heard)]
    os._exit(int(pytest.main(["-x", *arguments(tree), *files], plugins=plugins)))
