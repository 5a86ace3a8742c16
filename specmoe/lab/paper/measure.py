"""Measure runs and keep their rows: one JSON file, rewritten after each row, so that an interrupted
rerun goes on.

Comes in: a list of ``Run`` and a folder. Goes out: rows in ``<folder>/<model>.json`` with date,
machine and versions. Counts and seconds are taken over rounds with all rows in flight (the batch
kept full); seconds are the median of alternating repeats.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pandas as pd

from ...checkpoint import resolve
from ...engine import engine
from .. import metrics
from ..bench.prompts import prompts_for
from ..machine import doctor
from ..writing import check_folder, plain, read_object, write_whole
from .settings import LINK, WIDENED, Run

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
    runs, began_s = list(runs), time.monotonic()
    files = {
        name: ResultFile(folder, name, (paths or {}).get(name, name))
        for name in dict.fromkeys(r.model for r in runs)
    }
    missing = [run for run in runs if run.key not in files[run.model].rows]
    if missing:
        check_folder(folder)
    for (model, _), group in groupby(sorted(missing, key=_order(missing)), key=_machine_key):
        with ExitStack() as stack:
            engines: dict[tuple, engine.Engine] = {}
            for unit in _units(list(group)):
                if seconds is not None and time.monotonic() - began_s > seconds:
                    return sum(run.key not in files[run.model].rows for run in runs)
                if progress is not None:
                    progress(
                        sum(run.key in files[run.model].rows for run in runs),
                        len(runs),
                        unit[0].key,
                    )
                for run in unit:
                    if _engine_key(run) not in engines:
                        engines[_engine_key(run)] = stack.enter_context(
                            load_engine(files[model].path, run)
                        )
                loaded = [engines[_engine_key(run)] for run in unit]
                files[model].add(unit, _measure_unit(loaded, unit), loaded[0])
    return 0


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
    size = max(slots * memory.record_bytes + memory.scratch_bytes, memory.used_bytes)
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
    options = {"gamma": run.gamma} if run.method == "specmoe" else {}
    output = loaded.generate(
        prompts,
        method=run.method,
        batch_size=run.batch,
        max_new_tokens=TOKENS,
        prefetch=False,
        seed=run.prompt_set,
        draft_set=run.draft_set,
        substitute=run.substitute,
        eviction=run.eviction,
        **options,
    )
    frame = output.trace.to_frame()
    counts = full_rounds(frame, run.batch) | {"tokens_digest": _digest(output)}
    return counts | (
        {"skewness": _skewness(frame, loaded.info["experts"])} if run.method == "on_demand" else {}
    )


def _skewness(frame: pd.DataFrame, num_experts: int) -> float:
    """Mean Gini of expert use over the layers that decode (an encoder's have no rounds)."""
    use = metrics.expert_use(frame, num_experts=num_experts)
    return metrics.skewness(use[use.sum(axis=1) > 0])


def _digest(output) -> str:
    """Eight digits of the tokens: equal digits, equal texts."""
    return hashlib.sha256(
        str([list(map(int, row)) for row in output.sequences]).encode()
    ).hexdigest()[:8]


def full_rounds(frame: pd.DataFrame, batch: int) -> dict:
    """Counts over the rounds with ``batch`` rows in flight; the tail, in which the queue is empty,
    is left out."""
    rounds = frame[frame["kind"] == "round"]
    full = rounds[rounds["size"] == batch]
    read = (
        frame["kind"].isin(metrics.READS)
        & (frame["phase"] != "prefill")
        & frame["round"].isin(full["round"])
    )
    tokens, moved = int(full["count"].sum()), int(frame.loc[read, "size"].sum())
    return {
        "tokens_per_round": tokens / max(1, int(full["size"].sum())),
        "fetched_bytes_per_token": moved / max(1, tokens),
        "full_rounds": len(full),
        "tokens": tokens,
    }


# ---- timing ----


def _time(loaded: list, unit: list[Run]) -> list[dict]:
    """Runs that are compared, in turn: one short warm-up each, then ``REPEATS`` times all of
    them."""
    prompts = queue_of(loaded[0], unit[0])
    pairs = list(zip(loaded, unit, strict=True))
    for each, run in pairs:
        generate(each, run, prompts[: min(run.batch, 16)], WARM_UP_TOKENS)
    windows: dict[str, list[dict]] = {run.key: [] for run in unit}
    for _ in range(REPEATS):
        for each, run in pairs:
            windows[run.key].append(full_window(generate(each, run, prompts), run.batch))
    return [_median_row(windows[run.key]) | _about(each, prompts) for each, run in pairs]


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
    options: dict = {"gamma": run.gamma} if run.method == "specmoe" else {}
    if run.temperature:
        options |= {"do_sample": True, "temperature": run.temperature}
    return loaded.generate(
        prompts,
        method=run.method,
        batch_size=run.batch,
        max_new_tokens=tokens or most,
        seed=100 + run.prompt_set,
        draft_set=run.draft_set,
        substitute=run.substitute,
        eviction=run.eviction,
        prefetch=prefetch,
        **options,
    )


def full_window(output, batch: int) -> dict:
    """Speed and shares of time over the rounds with ``batch`` rows in flight."""
    frame = output.trace.to_frame()
    full = frame.loc[(frame["kind"] == "round") & (frame["size"] == batch), "round"]
    found = metrics.summary(frame[frame["round"].isin(full)])
    tokens, perfect_s = found["new_tokens"], found["oracle_overlap_seconds"]
    kept = {
        name: found[name]
        for name in ("tokens_per_round", "wait_share", "draft_share", "verify_share")
    }
    return kept | {
        "fetched_bytes_per_token": found["bytes_per_token"],
        "tokens": tokens,
        "full_rounds": len(full),
        "tokens_per_second": tokens / found["decode_seconds"],
        "oracle_tokens_per_second": tokens / perfect_s if perfect_s else None,
        "tokens_digest": _digest(output),
    }


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


class ResultFile:
    """Rows of one model by key. ``add`` rewrites the file at once; a row of other weights is never
    mixed in."""

    def __init__(self, folder: Path, model: str, path: str):
        self.file = Path(folder) / f"{Path(model).name}.json"
        self.path = path
        self.weights = weights_digest(path)
        found = read_object(self.file)
        kept = found if found.get("weights_sha256") == self.weights else {}
        self.rows: dict[str, dict] = kept.get("rows", {})
        self.models: dict = kept.get("model", {})
        self._machine: dict = kept.get("machine", {})

    @cached_property
    def machine(self) -> dict:
        """What this machine is and can do, asked once."""
        return _machine()

    def add(self, runs: list[Run], rows: list[dict], loaded) -> None:
        today = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
        for run, row in zip(runs, rows, strict=True):
            self.rows[run.key] = (
                row | asdict(run) | {"model": Path(run.model).name, "measured": today}
            )
        self.models = self.models or dict(loaded.info) | {"name": Path(runs[0].model).name}
        # counts are of any machine; its rates belong to what was timed
        if not self._machine or runs[0].regime != "count":
            self._machine = self.machine
        content = {
            "model": self.models,
            "weights_sha256": self.weights,
            "machine": self._machine,
            "rows": self.rows,
        }
        write_whole(self.file, json.dumps(plain(content), indent=0) + "\n")


def weights_digest(path: str) -> str:
    """SHA-256 over the checkpoint's safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(Path(resolve(path)).glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _machine() -> dict:
    found = doctor.examine(quick=True)
    names = (
        "cpu",
        "cores",
        "memory",
        "threads",
        "specmoe",
        "torch",
        "transformers",
        "python",
        "balance",
    )
    return {name: found[name] for name in names if name in found}
