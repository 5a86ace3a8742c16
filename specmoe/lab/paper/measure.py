"""Measure runs and keep their rows: one JSON file, rewritten after each row, so that an interrupted
rerun goes on.

Comes in: a list of ``Run`` and a folder. Goes out: rows in ``<folder>/<model>.json`` with date,
machine and versions. Counts and seconds are taken over rounds with all rows in flight (the batch
kept full); seconds are the median of alternating repeats.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from itertools import groupby
from pathlib import Path

import pandas as pd

from ...checkpoint import resolve
from ...engine import engine
from .. import metrics
from ..bench.prompts import prompts_for
from ..bench.results import ResultFile, machine
from ..bench.runs import Run, in_turn
from ..bench.window import full_window
from ..writing import check_folder
from .settings import LINK, WIDENED

# What a run that only counts says of its full rounds.
COUNTED = (
    "tokens_per_round",
    "fetched_bytes_per_token",
    "full_rounds",
    "tokens",
    "tokens_digest",
)
QUEUE, TOKENS, REPEATS, WARM_UP_TOKENS = 2, 64, 2, 8
Progress = Callable[[int, int, str], None]


def measure(
    runs: Iterable[Run],
    folder: Path,
    seconds: float | None = None,
    progress: Progress | None = None,
    paths: dict[str, str] | None = None,
) -> int:
    """Measure what is missing in ``folder``; stops after ``seconds``; returns the number of runs
    still missing.

    ``paths``: where a model of another name lies. Options are those of ``Run``; errors are those of
    ``specmoe.load``.
    """
    runs, where, began_s = list(runs), paths or {}, time.monotonic()
    files = {
        name: result_file(folder, name, where.get(name, name))
        for name in dict.fromkeys(run.model for run in runs)
    }
    missing = [run for run in runs if not files[run.model].has(run)]
    if missing:
        check_folder(folder)
    with closing(_loaded_units(missing, where)) as units:
        for unit, loaded in units:
            if seconds is not None and time.monotonic() - began_s > seconds:
                return sum(not files[run.model].has(run) for run in runs)
            if progress is not None:
                num_done = sum(files[run.model].has(run) for run in runs)
                progress(num_done, len(runs), unit[0].key)
            engines = [loaded(run) for run in unit]
            rows = _measure_unit(engines, unit)
            keep(files[unit[0].model], unit, rows, dict(engines[0].info))
    return 0


def _loaded_units(
    runs: list[Run], where: dict[str, str]
) -> Iterator[tuple[list[Run], Callable[[Run], engine.Engine]]]:
    """What is measured together, one after the other, and what opens the engine of a run: it stays
    open as long as model and regime do."""
    for (model, _), group in groupby(sorted(runs, key=_order(runs)), key=_machine_key):
        with ExitStack() as stack:
            engines: dict[tuple, engine.Engine] = {}

            def loaded(run: Run, engines=engines, model=model, stack=stack) -> engine.Engine:
                if _engine_key(run) not in engines:
                    opened = load_engine(where.get(model, model), run)
                    engines[_engine_key(run)] = stack.enter_context(opened)
                return engines[_engine_key(run)]

            for unit in _units(list(group)):
                yield unit, loaded


def _machine_key(run: Run) -> tuple:
    return (run.model, run.regime)


def _engine_key(run: Run) -> tuple:
    return (run.budget, run.draft_experts)


def _order(runs: list[Run]) -> Callable:
    """Runs of one model and regime together, in the order in which they first come."""
    first = {}
    for place, run in enumerate(runs):
        first.setdefault(_machine_key(run), place)
    return lambda run: first[_machine_key(run)]


def _units(runs: list[Run]) -> list[list[Run]]:
    """Counted runs one by one; all timed ones of a batch together, whatever their memory, N or
    draft set: what is compared alternates."""
    units: dict[object, list[Run]] = {}
    for run in runs:
        units.setdefault(
            run.key if run.regime == "count" else (run.batch, run.temperature), []
        ).append(run)
    return list(units.values())


def load_engine(path: str, run: Run):
    options: dict = {"draft_experts": run.draft_experts, "store": "memory"}
    if run.regime != "count":
        rate = LINK if run.regime == "throttled" else None
        options |= {"store": "disk", "expert_bytes": WIDENED[run.regime], "link_bytes_per_s": rate}
    loaded = engine.load(path, **options)
    if run.budget == "draft":
        return loaded
    memory, num_experts = loaded.memory, loaded.info["experts"]
    slots = tenth(num_experts) * memory.num_layers + memory.num_readers
    size = max(slots * memory.slot_bytes + memory.scratch_bytes, memory.used_bytes)
    loaded.close()
    return engine.load(
        path, **options | {"draft_experts": memory.draft_experts, "fast_memory": size}
    )


def tenth(num_experts: int) -> int:
    """The experts per layer that the paper's MoE-Caching keeps: 13 of 128."""
    return max(1, round(0.1 * num_experts))


def _measure_unit(loaded: list, unit: list[Run]) -> list[dict]:
    """Rows of ``unit``, run ``i`` by engine ``loaded[i]``."""
    return [_count(loaded[0], unit[0])] if unit[0].regime == "count" else _time(loaded, unit)


# ---- counting ----


def _count(loaded, run: Run) -> dict:
    """Tokens per round and bytes per token over the full rounds of one run."""
    prompts = prompts_for(loaded, max(QUEUE * run.batch, 12), 100 + run.prompt_set)
    options = {"max_new_tokens": TOKENS, "prefetch": False, "seed": run.prompt_set}
    output = loaded.generate(prompts, **run.options(), **options)
    frame = output.trace.to_frame()
    found = full_window(output, run.batch)
    counts = {name: found[name] for name in COUNTED}
    return counts | (
        {"skewness": _skewness(frame, loaded.info["experts"])} if run.method == "on_demand" else {}
    )


def _skewness(frame: pd.DataFrame, num_experts: int) -> float:
    """Mean Gini of expert use over the layers that decode (an encoder's have no rounds)."""
    use = metrics.expert_use(frame, num_experts=num_experts)
    return metrics.skewness(use[use.sum(axis=1) > 0])


# ---- timing ----


def _time(loaded: list, unit: list[Run]) -> list[dict]:
    """Runs that are compared, in turn: one short warm-up each, then ``REPEATS`` times all of
    them."""
    prompts = queue_of(loaded[0], unit[0])

    def warm_up(pair: tuple) -> None:
        generate(*pair, prompts[: min(pair[1].batch, 16)], WARM_UP_TOKENS)

    def once(pair: tuple, turn: int) -> dict:
        return full_window(generate(*pair, prompts), pair[1].batch)

    windows = in_turn(zip(loaded, unit, strict=True), REPEATS, warm_up, once)
    return [_median_row(each) | _about(one, prompts) for one, each in zip(loaded, windows)]


def _about(loaded, prompts: list) -> dict:
    about = {
        "repeats": REPEATS,
        "num_prompts": len(prompts),
        "link_bytes_per_s": loaded.store_info.get("link_bytes_per_s"),
    }
    return about | {name: loaded.info[name] for name in ("slots", "expert_bytes")}


def queue_of(loaded, run: Run, longer: float | None = None) -> list:
    """A queue that keeps the batch full for a while: seconds are read only as long as it is."""
    longer = longer or (2.0 if run.batch < 64 else 1.5)
    queue = max(int(longer * run.batch), 8)
    return prompts_for(loaded, queue, 100 + run.prompt_set)


def generate(loaded, run: Run, prompts: list, tokens: int | None = None, prefetch: bool = True):
    """One run with the settings of ``run``; without prefetching it reads as the paper's."""
    most = TOKENS if getattr(loaded, "is_translation", False) else TOKENS // 2
    options = {"max_new_tokens": tokens or most, "seed": 100 + run.prompt_set, "prefetch": prefetch}
    return loaded.generate(prompts, **run.options(), **options)


def _median_row(windows: list[dict]) -> dict:
    """Medians over the repeats, and the slowest and fastest of them."""
    frame = pd.DataFrame(windows)
    speeds = frame["tokens_per_second"]
    numbers = frame.drop(columns="tokens_digest").astype(float).median().to_dict()
    reach = {"tokens_per_second_min": speeds.min(), "tokens_per_second_max": speeds.max()}
    # a run that is not repeatable is no run of this text
    same = len(set(frame["tokens_digest"])) == 1
    return numbers | reach | {"tokens_digest": frame["tokens_digest"][0] if same else "differs"}


# ---- the file ----


def result_file(folder: Path, model: str, path: str) -> ResultFile:
    """Rows of one model; those of other weights are never mixed in."""
    file = Path(folder) / f"{Path(model).name}.json"
    return ResultFile(file, {"weights_sha256": weights_digest(path)})


def keep(file: ResultFile, runs: list[Run], rows: list[dict], info: dict) -> None:
    """``rows`` of ``runs``, which ``info``'s model was measured by."""
    name = Path(runs[0].model).name
    found = {
        run.key: row | run.row() | {"model": name} for run, row in zip(runs, rows, strict=True)
    }
    head = {} if "model" in file.head else {"model": info | {"name": name}}
    # counts are of any machine; its rates belong to what was timed
    if runs[0].regime != "count" or "machine" not in file.head:
        head["machine"] = this_machine()
    file.add(found, **head)


@cache
def this_machine() -> dict:
    """Measured once: seconds."""
    return machine(measured=True)


def weights_digest(path: str) -> str:
    """SHA-256 over the checkpoint's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(Path(resolve(path)).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
