"""The simulator against the clock: every method run and predicted, probes and runs in turn.

Comes in: an engine (or how to load one). Goes out: a frame of measured and predicted tokens per second, and JSON.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import pandas as pd

from ..engine import Engine
from .machine import fit_machine, probe_machine
from .recording import Recording
from .replay import simulate

METHODS = ("on_demand", "cached", "overlapped", "specmoe", "resident")
RESULTS = Path(__file__).parent / "results" / "clock.json"


def compare_with_clock(engine: Engine, prompts: list, methods=METHODS, batches=(1, 16, 64), new_tokens: int = 24,
                       repeats: int = 2, gamma: int = 4) -> pd.DataFrame:  # fmt: skip
    """One row per method, batch and repeat: measured and predicted tokens_per_second, error = predicted / measured - 1.

    Each run is predicted from probes taken right before its batch's turn; none of them times a method.
    ``load``: the machine's load
    average (above 1 or 2 other work disturbed probes and runs alike, and the comparison proves nothing). ``prompts`` must be
    as many as the largest batch. Runs are warmed up once (a record's checksum is computed at its first read).
    """
    rows, link = [], engine.options.link_bytes_per_s
    for method in methods:
        engine.generate(prompts[:16], method=method, max_new_tokens=8, batch_size=16)
    for batch in batches:
        for repeat in range(repeats):
            hardware = fit_machine(probe_machine(engine))
            for method in methods:
                given = {"gamma": gamma} if method == "specmoe" else {}
                output = engine.generate(
                    prompts[:batch], method=method, max_new_tokens=new_tokens, batch_size=batch, **given
                )
                predicted = simulate(Recording.of(output, engine.info), hardware)
                measured = output.stats.tokens_per_second
                rows.append({
                    "method": method, "batch": batch, "link": "native" if link is None else f"{link / 1e9:g} GB/s",
                    "repeat": repeat, "load": os.getloadavg()[0], "measured": measured,
                    "predicted": predicted.tokens_per_second,
                    "error": predicted.tokens_per_second / measured - 1, "measured_wait_s": output.stats.wait_s,
                    "predicted_wait_s": predicted.wait_s, "seconds": output.stats.seconds,
                    "probed_link_bytes_per_s": hardware.link_bytes_per_s, "probed_latency_s": hardware.link_latency_s,
                })  # fmt: skip
    return pd.DataFrame(rows)


def errors(frame: pd.DataFrame) -> dict[str, dict]:
    """Median and worst absolute error by link, over the medians of repeats."""
    found = {}
    for link, part in frame.groupby("link"):
        size = part.groupby(["method", "batch"])["error"].median().abs()
        found[link] = {
            "median": float(size.median()),
            "worst": float(size.max()),
            "worst_case": list(map(str, size.idxmax())),
        }
    return found


def write_results(frame: pd.DataFrame, info: dict, machine: dict, path=RESULTS) -> Path:
    """JSON with date, machine (of ``doctor.describe()``), versions, model, errors and rows; it names no folder."""
    kept = ("date", "kernel", "python", "cpu", "cores", "specmoe", "torch", "transformers", "threads")
    model = {name: info[name] for name in ("name", "layers", "experts", "top_k", "record_bytes", "slots", "draft_experts")}
    record = {"machine": {name: machine.get(name) for name in kept}, "model": model, "errors": errors(frame),
              "median_error": statistics.median(frame["error"].abs()), "rows": frame.to_dict("records")}  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
