"""The simulator against the clock: every method run and predicted, probes and runs in turn.

Comes in: an engine, prompts. Goes out: a frame of measured and predicted tokens per second, and
``results/clock.json``, in which each model and link is replaced when it is compared again (``python
-m specmoe.lab.simulate clock``).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pandas as pd

from ...engine.engine import Engine, load
from ...errors import path_of
from ...shipped import package_path
from ..writing import check_folder, read_object, write_whole
from .hardware import Hardware
from .machine import fit_machine, mean_probes
from .probe import probe_machine
from .quiet import quietly
from .recording import Recording
from .replay import simulate
from .shipped import prompts_for

METHODS = ("on_demand", "cached", "overlapped", "specmoe", "resident")
MODELS = {"tiny-skewed": 4, "tiny-translate": 10}  # with gamma of specmoe
LINKS = (None, 2.5e8)  # bytes per second; None: the disk as it is
RESULTS = package_path("lab/simulate/results/clock.json")
KEYS = ["model", "link", "method", "batch"]
EXPERT_BYTES, NEW_TOKENS = "256KiB", 32
NUM_PROMPTS = {1: 4, 16: 32, 64: 64}


def compare_with_clock(
    engine: Engine,
    prompts: list,
    methods=METHODS,
    batches=(1, 16, 64),
    new_tokens: int = NEW_TOKENS,
    repeats: int = 2,
    gamma: int = 4,
) -> pd.DataFrame:
    """One row per method, batch and repeat: measured and predicted tokens per second, error =
    predicted / measured - 1.

    Each run is predicted from the mean of two probings, right before its turn and right after; none
    of them times a method. ``others``: processors that other programs used meanwhile; what ran
    beside too much of it is probed or run again (``quiet``). Every method is warmed up once.
    """
    # the batch's longest source is what cross-attention looks at
    rows, longest = [], max(prompts, key=len)
    for method in methods:
        engine.generate(prompts[:16], method=method, max_new_tokens=8, batch_size=16)
    before = quietly(lambda: probe_machine(engine, longest))
    for batch in batches:
        for repeat in range(repeats):
            runs = [
                quietly(partial(_run, engine, prompts, method, batch, new_tokens, gamma))
                for method in methods
            ]
            after = quietly(lambda: probe_machine(engine, longest))
            machine = fit_machine(mean_probes([before[0], after[0]]))
            for output, others in runs:
                rows.append(
                    _row(engine, batch, repeat, output, machine)
                    | {"others": max(others, before[1], after[1])}
                )
            before = after
    return pd.DataFrame(rows)


def _run(engine: Engine, prompts: list, method: str, batch: int, new_tokens: int, gamma: int):
    given = {"gamma": gamma} if method == "specmoe" else {}
    some = prompts[: NUM_PROMPTS.get(batch, batch)]
    return engine.generate(
        some, method=method, max_new_tokens=new_tokens, batch_size=batch, **given
    )


def _row(engine: Engine, batch: int, repeat: int, output, machine: Hardware) -> dict:
    recording, stats = Recording.of(output, engine.info), output.stats
    link = engine.options.link_bytes_per_s
    played = simulate(recording, machine)
    spent = ("seconds", "wait_s", "draft_s", "verify_s")
    probed = ("contention", "link_contention", "read_s")
    return {
        "model": engine.info["name"],
        "link": "native" if link is None else f"{link / 1e9:g} GB/s",
        "method": stats.method,
        "batch": batch,
        "repeat": repeat,
        "measured": stats.tokens_per_second,
        "predicted": played.tokens_per_second,
        "error": played.tokens_per_second / stats.tokens_per_second - 1,
        **{f"predicted_{part}": getattr(played, part) for part in spent},
        **{part: getattr(stats, part) for part in spent},
        **{f"probed_{part}": getattr(machine.parts, part) for part in probed},
    }


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per model, link, method and batch: medians over repeats."""
    keys = [key for key in KEYS if key in frame]
    found = (
        frame.groupby(keys, sort=False)[["measured", "predicted", "error"]].median().reset_index()
    )
    return found.sort_values(keys, ignore_index=True)


def errors(frame: pd.DataFrame) -> dict[str, dict]:
    """Median and worst absolute error by link, over ``cells``."""
    found = {}
    for link, part in cells(frame).groupby("link"):
        size = part["error"].abs()
        worst = part.loc[size.idxmax()]
        found[link] = {
            "median": float(size.median()),
            "worst": float(size.max()),
            "worst_case": [str(worst[key]) for key in ("model", "method", "batch") if key in part],
        }
    return found


def compare_shipped(
    model: str, link: float | None, repeats: int = 2, path=RESULTS, machine: dict | None = None
) -> pd.DataFrame:
    """Compare one shipped model on one link of its disk and put the result into ``path``. Takes
    about two minutes."""
    check_folder(path_of(path).parent)
    with load(
        model, draft_experts=4, store="disk", expert_bytes=EXPERT_BYTES, link_bytes_per_s=link
    ) as engine:
        frame = compare_with_clock(
            engine, prompts_for(engine, 64), gamma=MODELS[model], repeats=repeats
        )
        write_results(frame, engine.info, machine or {}, path)
    return frame


def write_results(frame: pd.DataFrame, info: dict, machine: dict, path=RESULTS) -> Path:
    """JSON with ``rows`` (``cells``), the ``runs`` behind them, errors, models, and for each model
    and link the machine (of ``doctor.examine``) with date and versions; it names no folder. Other
    models and links in the file stay."""
    kept = "date kernel python cpu cores specmoe torch transformers threads".split()
    sizes = "layers experts top_k record_bytes slots draft_experts cached_experts".split()
    record = read_object(path)
    frame = frame.assign(model=info["name"])
    new = set(zip(frame["model"], frame["link"]))
    runs = [
        run for run in record.get("runs", []) if (run.get("model"), run["link"]) not in new
    ] + _plain(frame)
    every = pd.DataFrame(runs)
    record = {
        "machine": {name: machine.get(name) for name in kept},
        "models": record.get("models", {})
        | {info["name"]: {name: info.get(name) for name in sizes}},
        "measured": record.get("measured", {})
        | {f"{model}, {link}": machine.get("date") for model, link in new},
        "errors": errors(every),
        "rows": _plain(cells(every)),
        "runs": runs,
    }
    return write_whole(path, json.dumps(record, indent=1) + "\n")


def _plain(frame: pd.DataFrame) -> list[dict]:
    """Rows of plain numbers, five digits of each."""
    rows = frame.to_dict("records")
    return [
        {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in row.items()}
        for row in rows
    ]
