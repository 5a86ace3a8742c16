"""What ``torch.compile`` does here: one expert, eager and compiled, and whole draft steps with
their warm-up.

Comes in: an engine, or the name of a model. Goes out: frames of measured times. ``python -m
specmoe.lab.compiling`` measures draft steps (a minute or more) and writes
``results/compiling.json``, which ``shipped`` reads for notebook 12.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from ..engine.engine import Engine, load
from ..model.kernels import bucket, compiler_works, expert_forward
from ..shipped import need_path, package_path
from ..tiny.texts.data import held_out_prompts
from .entry import leave
from .machine.doctor import describe
from .writing import write_whole

RESULTS = package_path("lab/results/compiling.json")
# of the machine's description
KEPT = ("date", "cpu", "cores", "torch", "transformers", "threads")


def compare_expert(
    engine: Engine, tokens=(1, 16, 64), repeats: int = 50, seed: int = 0
) -> pd.DataFrame:
    """One expert of ``engine``'s size, eager and through ``torch.compile``: a row per number of
    tokens, padded_to, seconds of the first compiled call of that shape (it compiles), median
    microseconds of later calls, and the largest relative difference of the results. The compiled
    columns are empty where no compiler works. Measured here; weights are noise."""
    layout, module = engine.packed.layout, engine.experts.modules[0]
    made = torch.Generator().manual_seed(seed)
    weights = {
        name: (torch.randn(shape, generator=made) / 16).to(layout.dtype)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
    works, hidden = compiler_works(), engine.decoder.config.hidden_size
    compiled = torch.compile(expert_forward, dynamic=False) if works else expert_forward
    rows = []
    with torch.inference_mode():
        for num in tokens:
            x = torch.randn(num, hidden, generator=made).to(layout.dtype)
            padded = torch.nn.functional.pad(x, (0, 0, 0, bucket(num) - num))
            eager_s, plain = _timed(lambda x=x: expert_forward(module, weights, x), repeats)
            first_s, _ = _timed(lambda x=padded: compiled(module, weights, x), 1)
            later_s, fast = _timed(lambda x=padded: compiled(module, weights, x), repeats)
            apart = float((fast[:num] - plain).abs().max() / plain.abs().max())
            rows.append((num, bucket(num), eager_s * 1e6, later_s * 1e6, first_s, apart))
    names = [
        "tokens",
        "padded_to",
        "eager_us",
        "compiled_us",
        "first_call_s",
        "relative_difference",
    ]
    table = pd.DataFrame(rows, columns=names).set_index("tokens")
    return table if works else table.assign(compiled_us=float("nan"), first_call_s=float("nan"))


def _timed(call, repeats: int):
    """(median seconds, the last result) of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        began_s = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds), result


def measure_draft(
    model: str = "tiny-skewed",
    rows: int = 4,
    gamma: int = 5,
    new_tokens: int = 24,
    repeats: int = 5,
) -> pd.DataFrame:
    """The same job on an eager and on a compiled engine: a row per engine with first_run_s (the
    compiled one compiles in it), and medians of the later runs: draft_ms_per_step,
    verify_ms_per_round; same_tokens, acceptance_rate."""
    texts, found, tokens = held_out_prompts(rows), [], []
    job = {
        "method": "specmoe",
        "gamma": gamma,
        "max_new_tokens": new_tokens,
        "batch_size": rows,
        "eos_token_id": [],
    }
    for compiled in (False, True):
        with load(model, store="memory", draft_experts=4, compile=compiled) as engine:
            began_s = time.perf_counter()
            engine.generate(texts, **job)
            first_run_s = time.perf_counter() - began_s
            runs = [engine.generate(texts, **job) for _ in range(repeats)]
        steps = [sum(run.trace.to_frame()["kind"] == "round") * gamma for run in runs]
        draft_ms = statistics.median(
            1e3 * run.stats.draft_s / num for run, num in zip(runs, steps, strict=True)
        )
        verify_ms = statistics.median(
            1e3 * run.stats.verify_s / run.stats.num_rounds for run in runs
        )
        tokens.append([row.tolist() for row in runs[-1].sequences])
        same, rate = tokens[-1] == tokens[0], runs[-1].stats.acceptance_rate
        found.append(
            ("compiled" if compiled else "eager", first_run_s, draft_ms, verify_ms, same, rate)
        )
    names = [
        "engine",
        "first_run_s",
        "draft_ms_per_step",
        "verify_ms_per_round",
        "same_tokens",
        "acceptance_rate",
    ]
    return pd.DataFrame(found, columns=names).set_index("engine")


def shipped(path: str | Path = RESULTS) -> tuple[pd.DataFrame, dict]:
    """What ``main`` measured, and on which machine and day."""
    record = json.loads(need_path(Path(path)).read_text(encoding="utf-8"))
    return pd.DataFrame(record["rows"]).set_index("engine"), record["machine"]


def main() -> None:
    machine = describe()
    with tempfile.TemporaryDirectory() as empty:  # nothing compiled earlier may be found again
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
        table = measure_draft()
    record = {
        "machine": {name: machine.get(name) for name in KEPT},
        "rows": table.reset_index().to_dict("records"),
    }
    write_whole(RESULTS, json.dumps(record, indent=1) + "\n")
    print(table.to_string())


if __name__ == "__main__":
    leave(main)
