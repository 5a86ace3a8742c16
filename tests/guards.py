"""Which tests run which lines of a file: whom to ask about a bug that is planted there.

Comes in: a copy of the tree. Goes out: for each test that passed, its seconds and the lines that ran
while it did, fixtures included. ``mutate`` calls next, and asks about a bug those that run its line.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from _pytest.main import pytest_runtestloop as run_all

# A bug is asked about for so long at most, by the seconds of the tests without a bug.
ASKED_S = 30
# Too slow to be asked about any bug.
LEFT_OUT = "not ten_thousand and not gigabytes and not interrupts_anywhere"
LEFT_OUT += " and not weights_and_tokens and not gives_the_tokens and not other_architectures"


@dataclass(eq=False)
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


@dataclass(eq=False)
class Trials:
    """A plugin of pytest: the tests are collected once, and not run. Instead ``task(trials)`` is
    called, and may try them out, each time in a fork."""

    task: Callable[[Trials], None]
    heard: Path
    session: pytest.Session | None = None
    limits: dict[str, float] = field(default_factory=dict)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        self.session = session
        if not session.testsfailed:
            self.task(self)
        return True

    def try_out(
        self, plant: Callable[[], None], limits: dict[str, float]
    ) -> tuple[int | None, str]:
        """What becomes of the tests after ``plant``, each of which may take so many seconds: exit
        status (None: one took longer), and which failed first, or ran when all ended."""
        for path in (self.heard, self.running):
            path.unlink(missing_ok=True)
        status = in_a_fork(self._run, plant, limits)
        for path in (self.heard, self.running):
            if status and path.exists():
                return None if status == -signal.SIGALRM else status, path.read_text("utf-8")
        return status, ""

    @property
    def running(self) -> Path:
        return self.heard.with_suffix(".running")

    def _run(self, plant: Callable[[], None], limits: dict[str, float]) -> None:
        os.setsid()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        plant()
        self.limits = limits
        wanted = {item.nodeid: item for item in self.session.items}
        self.session.items = [wanted[name] for name in limits]
        try:
            run_all(self.session)
        except self.session.Failed:  # -x
            pass
        os._exit(min(1, self.session.testsfailed))

    def pytest_runtest_logstart(self, nodeid):
        self.running.write_text(nodeid, encoding="utf-8")
        signal.setitimer(signal.ITIMER_REAL, self.limits[nodeid])

    def pytest_runtest_logreport(self, report):
        if report.outcome == "failed" and not self.heard.exists():
            self.heard.write_text(report.nodeid, encoding="utf-8")


def choose(known: dict[str, dict], file: str, lines: range) -> list[str]:
    """The tests that run any of ``lines`` of ``file``, for ``ASKED_S`` seconds: each function once
    before one is asked a second time, the quickest first."""
    running = [
        (name, row["seconds"])
        for name, row in known.items()
        if not set(lines).isdisjoint(row["lines"].get(file, ()))
    ]
    seen, ranked = Counter(), []
    for name, seconds in sorted(running, key=lambda pair: pair[1]):
        function = name.split("[")[0]
        ranked.append((seen[function], seconds, name))
        seen[function] += 1
    chosen, total_s = [], 0.0
    for _, seconds, name in sorted(ranked):
        if not chosen or total_s + seconds <= ASKED_S:
            chosen.append(name)
            total_s += seconds
    # modules together, as each has fixtures of its own
    modules = list(dict.fromkeys(name.split("::")[0] for name in chosen))
    return sorted(chosen, key=lambda name: modules.index(name.split("::")[0]))


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
    # nbval imports a JSON schema library for seconds
    left_out = ["-p", "no:cacheprovider", "-p", "no:nbval"]
    return ["-q", *left_out, "--timeout=0", f"--basetemp={tree / 'out'}"]


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


def collect(tree: Path, tests: str, trials: Trials) -> None:
    """In a process of its own: collect the test files ``tests``, and hand them to ``trials``."""
    in_a_tree(tree)
    files = [f"tests/{name}.py" for name in tests.split()]
    os._exit(int(pytest.main(["-x", *arguments(tree), "-k", LEFT_OUT, *files], plugins=[trials])))


def in_a_fork(task: Callable, *args) -> int:
    """Exit status of ``task``; one that was killed leaves no process that it started."""
    process = multiprocessing.get_context("fork").Process(target=task, args=args)
    process.start()
    process.join()
    if process.exitcode < 0:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.exitcode


def swap(file: Path, old: str, new: str) -> None:
    """Every function of ``file``, whose text was ``old``, does from now on what it does in ``new``.
    Objects, classes and decorators stay as they are."""
    before, after = (codes_by_name(compile(text, str(file), "exec")) for text in (old, new))
    for function in [one for one in gc.get_objects() if type(one) is types.FunctionType]:
        code = function.__code__
        if code.co_filename == str(file):
            same = before[code.co_qualname]
            place = [one.co_firstlineno for one in same].index(code.co_firstlineno)
            function.__code__ = after[code.co_qualname][place]


def codes_by_name(code: types.CodeType) -> dict[str, list[types.CodeType]]:
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            found.setdefault(inner.co_qualname, []).append(inner)
            for name, codes in codes_by_name(inner).items():
                found.setdefault(name, []).extend(codes)
    return found
