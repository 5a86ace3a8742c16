"""Recordings that the report needs beside the simulator's: the paper's unequal memory, other draft
sets, sampling.

Comes in: a shipped model, or the one that a report was asked for. Goes out: ``recordings.npz``
beside its results; the committed one by ``python -m specmoe.lab.paper record``. They count; no
clock is in them. ``simulated`` replays them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ...options import DRAFT_SETS
from ...shipped import need_path
from ..bench.runs import Run
from ..simulate import Recording
from ..simulate.recording import load_all, save_all
from .facts import BATCHES
from .measure import QUEUE, generate, load_engine, queue_of
from .numbers import RESULTS
from .settings import FEW, LOW_SKEW, MAIN

FILE = "recordings.npz"
METHODS = ("on_demand", "overlapped", "cached", "specmoe")
LOW_SKEW_BATCHES = (1, 4, 16, 64)


def own_recordings(folder: Path = RESULTS) -> list[Recording]:
    """What was recorded into ``folder``; ours must be there."""
    return load_all(need_path(folder / FILE))


def record(progress: Callable[[str], None] = print) -> None:
    """Run everything for the shipped models and write the committed file; takes minutes."""
    save_all(
        [
            each
            for runs in (*_main_runs(), *_low_skew_runs())
            for each in _recordings(runs, progress)
        ],
        RESULTS / FILE,
    )


def record_model(model: str, draft_experts: int, folder: Path) -> None:
    """Recordings of another model, once: every method in the bytes that N needs."""
    if not (folder / FILE).exists():
        base = Run(model, "specmoe", 1, draft_experts=draft_experts)
        save_all(
            _recordings([replace(base, batch=b, method=name) for b in FEW for name in METHODS]),
            folder / FILE,
        )


def _recordings(
    runs: list[Run], progress: Callable[[str], None] = lambda words: None
) -> list[Recording]:
    """Of runs that share an engine."""
    found = []
    with load_engine(runs[0].model, runs[0]) as loaded:
        for run in runs:
            found.append(_recorded(loaded, run))
            progress(f"{run.key}: {len(found[-1].rows)} full rounds")
    return found


def _main_runs() -> Iterator[list[Run]]:
    base = Run(MAIN, "cached", 1, budget="tenth")
    yield [replace(base, batch=batch) for batch in BATCHES]
    base = Run(MAIN, "specmoe", 256)
    yield [replace(base, draft_set=name) for name in DRAFT_SETS]


def _low_skew_runs() -> Iterator[list[Run]]:
    for model in LOW_SKEW:
        base = Run(model, "specmoe", 1, gamma=5, temperature=1.0)
        yield [
            replace(base, batch=b, method=name)
            for b in LOW_SKEW_BATCHES
            for name in ("on_demand", "cached", "specmoe")
        ]


def _recorded(loaded, run: Run) -> Recording:
    """Special settings are named, so that the run stands only for what asks for it; a comparison of
    draft sets names all."""
    output = generate(loaded, run, queue_of(loaded, run, QUEUE), prefetch=False)
    settings = {"budget": "tenth"} if run.budget == "tenth" else {}
    settings |= {"temperature": run.temperature} if run.temperature else {}
    if run.method == "specmoe":
        settings |= {"gamma": run.gamma, "prefetch": False}
        settings |= {"draft_set": run.draft_set} if (run.model, run.batch) == (MAIN, 256) else {}
    return Recording.of(output, loaded.info, **settings).full()
