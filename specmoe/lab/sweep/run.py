"""Run every setting of a grid that has no row yet.

Comes in: a grid and an executor. Goes out: a row for each setting in the file, as soon as its run is
over. A run that fails is a row with its error; a worker that dies costs one more try.
"""

from __future__ import annotations

import multiprocessing
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

import pandas as pd

import specmoe

from ...errors import OptionError, SpecMoEError, StoreError
from ...errors import one_line as on_one_line
from ...registry import plug_in
from .grid import GENERATE, LOAD, OPTIONS, key_of, settings_of
from .rows import Rows

DIED = "the worker died twice in this run (no memory left, or it was killed)"
Progress = Callable[[int, int, dict], None]  # runs done, runs in all, the row


def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One row of ``run_bench``: the method at one batch (``batch_size``, 1), medians over
    ``repeats`` (1)."""
    from ..bench.methods import run_bench

    given = {name: value for name, value in settings.items() if value is not None}
    plug_in([given["plugin"]] if "plugin" in given else [])
    generate = {name: given[name] for name in (*GENERATE, "num_prompts") if name in given}
    method, batch = generate.pop("method", "auto"), generate.pop("batch_size", 1)
    load = {name: given[name] for name in LOAD if name in given}
    found = run_bench(
        given["model"],
        [method],
        [batch],
        load=load,
        generate=generate,
        repeats=given.get("repeats", 1),
        # the disk is not measured anew for every run
        probe=False,
    )
    return dict(found.rows[0])


def sweep(
    grid: Mapping[str, Any] | str | Path,
    executor: Executor | None = None,
    *,
    out: str | Path | None = None,
    run: Callable[[dict], Mapping[str, Any]] = measure,
    yes: bool = False,
    in_flight: Callable[[], int] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run every combination of ``grid`` (option -> list of values, ``model`` among them, or the
    name of a YAML file) that has no row yet; returns one row per setting.

    ``executor``: any of ``concurrent.futures``, such as a ``ProcessPoolExecutor`` or
    ``client.get_executor(pure=False)`` of dask; None: one after the other in this process. Each row
    goes to ``rows.jsonl`` in ``out`` (default ``sweeps/KEY`` of this grid) as its run ends: its
    ``key``, its ``settings``, and ``result`` or ``error``. Called again, it goes on where it
    stopped; runs with an error are not tried again while their line stands there. ``run`` is what a
    worker does with one setting (default: measure it, as ``run_bench`` does; then every value is
    checked before the first run). ``in_flight``: how many runs are with the executor at a time.
    ``yes``: more than ``MOST`` runs are meant. Raises ``OptionError``.
    """
    from .grid import read_grid

    grid = read_grid(grid) if isinstance(grid, str | Path) else grid
    if not isinstance(executor, Executor | None):
        raise OptionError(
            f"executor={executor!r:.80} is none of concurrent.futures: give a ProcessPoolExecutor, "
            "or of a dask client its get_executor(pure=False)"
        )
    settings = settings_of(grid, yes, OPTIONS if run is measure else None)
    folder = Path("sweeps") / key_of(dict.fromkeys(settings, 0)) if out is None else out
    rows = Rows(folder, settings.keys())
    try:
        todo = {key: one for key, one in settings.items() if key not in rows.done}
        for key, outcome in _outcomes(todo, executor, run, in_flight):
            row = {"key": key, "settings": settings[key], **outcome}
            rows.add(row)
            if progress:
                progress(len(rows.done), len(settings), row)
        return frame_of([rows.done[key] for key in settings])
    finally:
        rows.close()


def frame_of(rows: list[dict]) -> pd.DataFrame:
    """Settings, numbers and error of every row, side by side."""
    return pd.DataFrame(
        [{**row.get("result", {}), **row["settings"], "error": row.get("error")} for row in rows]
    )


def attempt(version: str, run: Callable, settings: dict) -> dict[str, Any]:
    """What a worker does. Its failures come back as text: not every exception can travel."""
    if specmoe.__version__ != version:
        raise OptionError(
            f"the worker on {platform.node()} has specmoe {specmoe.__version__} and this process "
            f"{version}: install the same on both"
        )
    began_s = time.perf_counter()
    try:
        found = {"result": dict(run(settings))}
    except Exception as failure:
        kind = type(failure).__name__
        found = {"error": on_one_line(f"{kind}: {failure}")}
    return found | {"seconds": round(time.perf_counter() - began_s, 3), "host": platform.node()}


def _outcomes(
    todo: dict[str, dict], executor: Executor | None, run: Callable, in_flight
) -> Iterator[tuple[str, dict]]:
    if executor is None:
        for key, settings in todo.items():
            yield key, attempt(specmoe.__version__, run, settings)
        return
    waiting, broken = list(todo), {}
    futures: dict[Future, str] = {}
    try:
        while waiting or futures:
            most = len(todo) if in_flight is None else max(1, in_flight())
            while waiting and len(futures) < most:
                key = waiting.pop(0)
                try:
                    future = executor.submit(attempt, specmoe.__version__, run, todo[key])
                    futures[future] = key
                except BrokenExecutor:
                    broken[key] = 2
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                key = futures.pop(future)
                outcome = _outcome(future)
                if outcome:
                    yield key, outcome
                else:
                    broken[key] = 1
    finally:
        for future in futures:
            future.cancel()
    for key, tries in broken.items():
        yield key, _alone(executor, run, todo[key], tries)


def _outcome(future: Future) -> dict | None:
    """None where the worker died before the run was over."""
    if future.cancelled():
        raise StoreError(
            "the executor gave up a run (its scheduler went away?): start the sweep again, it goes "
            "on where it stopped"
        )
    failure = future.exception()
    if failure is None:
        return future.result()
    if isinstance(failure, SpecMoEError):
        raise failure
    if isinstance(failure, pickle.PicklingError | AttributeError | TypeError | ImportError):
        raise OptionError(
            f"a run cannot be sent to a worker ({on_one_line(failure)}): run must be a function of "
            "a module that workers can import"
        ) from failure
    # what is left is dask's KilledWorker, and the like of other executors
    return None


def _alone(executor: Executor, run: Callable, settings: dict, tries: int) -> dict:
    """A run whose worker died, by its own doing or by that of a run beside it: now nothing runs
    beside it. A pool that broke takes no more runs, so a process of its own is started."""
    for _ in range(tries):
        work = attempt, specmoe.__version__, run, settings
        try:
            future = executor.submit(*work)
        except BrokenExecutor:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                future = pool.submit(*work)
        if outcome := _outcome(future):
            return outcome
    return {"error": DIED}
