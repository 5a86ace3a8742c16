"""Speed at real size against the floor of the machine: what a token has to read from memory or
from the disk, at the rates that both have in the same run.

Comes in: a checkpoint of ``real_checkpoint``. Goes out: one part after the other, each a dict of
plain numbers, in ``results/real_speed.json``. ``real`` calls this.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean, median

import torch

import specmoe

from ...checkpoint import open_experts, resolve
from ...checkpoint.formats import WIDEN
from ...checkpoint.rest import packed_plan
from ...errors import OptionError
from ...model import native
from ..machine.probes import memory_read_rate, raw_reads_rate
from . import results

FAST_MEMORY = 3 * 2**30
PROMPT = list(range(100, 132))
SPARE = 8  # records beyond all: what a run needs besides
READERS = 4  # of the engine, and of the raw link beside it
REPEATS = 3
ROWS = (1, 2, 4, 8, 16, 32, 64)


def measure(folder: Path, parts: list[str], tokens: int = 24, out: Path | None = None) -> dict:
    """Measure ``parts`` of the checkpoint in ``folder``; each is on disk before the next begins."""
    file = results.ResultFile(out or results.FOLDER / "real_speed.json", {"part": "real_speed"})
    for part in parts:
        began_s = time.perf_counter()
        row = PARTS[part](Path(folder), tokens) | {"took_s": time.perf_counter() - began_s}
        file.add({part: row}, machine=results.machine())
        print(part, results.plain(row), flush=True)
    return file.rows


# ---- the floors ----


def products(folder: Path, tokens: int) -> dict:
    """Bytes of bf16 weights per second through one product of an expert's size, for some numbers
    of rows: as they are stored, and widened whole first."""
    sides, number = (3072, 2048), 48
    weights = torch.randn(number, *sides).bfloat16()
    wide, stored = torch.empty(sides), native.native("plain", sides, [weights[0]], ())
    rows = {}
    for num in ROWS:
        x, y = torch.randn(num, sides[1]), torch.empty(num, sides[0])

        def as_stored(weight, x=x, y=y):
            stored.product(x, [weight.data_ptr()], y)

        def widened(weight, x=x):
            wide.copy_(weight) @ x.T

        ways = {"stored": as_stored, "widened": widened}
        rows[num] = {name: _rate(way, weights) for name, way in ways.items()}
    return {
        "memory_bytes_per_s": memory_read_rate(),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }


def formats(folder: Path, tokens: int) -> dict:
    """Weights per second through one product of one row, by format: as they are stored, and
    widened whole first."""
    rows, columns, number = 3072, 2048, 24
    bits = torch.randint(0, 256, (number, rows, columns), dtype=torch.uint8)
    exponents = torch.randint(120, 130, (rows, columns // 32), dtype=torch.uint8)
    halves, grid = bits[..., : columns // 2], torch.rand(rows // 128, columns // 128)
    e4m3 = (bits & 0x7E).view(torch.float8_e4m3fn)
    kinds = {
        "mxfp4": ("mxfp4", halves.reshape(number, rows, columns // 32, 16), exponents, ()),
        "fp8": ("fp8", e4m3, grid, (128, 128)),
        "int4": (
            "int4",
            halves.contiguous().view(torch.int32),
            torch.rand(rows, columns // 128).bfloat16(),
            (1, 128, 4, columns),
        ),
    }
    x, y, found = torch.randn(1, columns), torch.empty(1, rows), {}
    for name, (kind, values, scales, numbers) in kinds.items():
        made = native.native(kind, (rows, columns), [values[0], scales], numbers)

        def as_stored(one, made=made, scales=scales):
            made.product(x, [one.data_ptr(), scales.data_ptr()], y)

        def widened(one, kind=kind, scales=scales, numbers=numbers):
            x @ WIDEN[kind](one, scales, *numbers).float().T

        ways = {"stored": as_stored, "widened": widened}
        per_byte = rows * columns / values[0].nbytes
        found[name] = {way: per_byte * _rate(work, values) for way, work in ways.items()}
    return {"threads": torch.get_num_threads(), "weights_per_s": found}


def _rate(way: Callable, weights: torch.Tensor) -> float:
    seconds = [_seconds(lambda weight=weight: way(weight)) for weight in weights]
    return weights[0].nbytes / median(seconds)


def _seconds(work: Callable) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def touched_bytes(engine) -> int:
    """Of weights, for one token through the whole model: all but the input embeddings (when they
    are not tied) and the experts that its routers leave out."""
    info, model = engine.info, engine.model
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    # as they lie in memory
    embeddings, head = (getattr(layer, "stored", layer.weight) for layer in layers)
    unread = 0 if embeddings.data_ptr() == head.data_ptr() else embeddings.nbytes
    experts = info["layers"] * info["top_k"] * info["expert_bytes"]
    return info["trunk_bytes"] - unread + experts


# ---- the engine ----


@contextmanager
def opened(folder: Path, fast_memory: int = FAST_MEMORY) -> Iterator:
    with specmoe.load(
        str(folder), fast_memory=fast_memory, store="checkpoint", trace=False, num_readers=READERS
    ) as engine:
        yield engine


def decode(engine, method: str, tokens: int, prompt=PROMPT[:4]) -> dict:
    """Seconds of the prompt, and of each new token after it; the bytes read for both."""
    options = {"method": method, "max_new_tokens": tokens, "eos_token_id": []}
    stats = engine.generate([prompt], **options).stats
    return {
        "token_s": stats.seconds / stats.num_new_tokens,
        "wait_s": stats.wait_s / stats.num_new_tokens,
        "tokens": stats.num_new_tokens,
        "fetched_bytes": stats.fetched_bytes,
        "prefill_s": stats.prefill_s,
        "prefill_bytes": stats.prefill_bytes,
    }


def methods(folder: Path, tokens: int) -> dict:
    """``cached`` and ``on_demand`` in turn, beside the rates of memory and disk."""
    with opened(folder) as engine:
        rows = {name: [] for name in ("cached", "on_demand")}
        floors = {"memory": [], "disk": []}
        for _ in range(REPEATS):
            floors["memory"].append(memory_read_rate())
            rows["cached"].append(decode(engine, "cached", tokens))
            run, rate = beside_raw_reads(folder, engine, "on_demand", 6)
            rows["on_demand"].append(run)
            floors["disk"].append(rate)
        return _against_floors(engine, rows, floors)


def resident(folder: Path, tokens: int) -> dict:
    with opened(folder) as engine:
        rows, floors = {"resident": []}, {"memory": []}
        for _ in range(REPEATS):
            floors["memory"].append(memory_read_rate())
            rows["resident"].append(decode(engine, "resident", tokens))
        return _against_floors(engine, rows, floors)


def all_here(folder: Path, tokens: int) -> dict:
    """``cached`` with memory for every expert: the tokens for which it reads nothing. Those before
    read what they need, and are as many as it takes."""
    experts = open_experts(resolve(folder), "checkpoint")
    number = len(experts.layers) * experts.num_experts + SPARE
    with opened(folder, number * (experts.layout.record_bytes + experts.slack_bytes)) as engine:
        rows, floors = {"cached": []}, {"memory": []}
        for _ in range(REPEATS):
            floors["memory"].append(memory_read_rate())
            options = {"method": "cached", "max_new_tokens": 20 * tokens, "eos_token_id": []}
            with engine.start([PROMPT[:4]], **options) as run:
                still = itertools.islice((one for one in run if not one.num_reads), tokens)
                seconds = [one.verify_s for one in still]
            rows["cached"].append({"token_s": mean(seconds), "wait_s": 0.0, "tokens": len(seconds)})
        return _against_floors(engine, rows, floors)


def _against_floors(engine, rows: dict[str, list[dict]], floors: dict[str, list[float]]) -> dict:
    rates = {f"{name}_bytes_per_s": median(found) for name, found in floors.items()}
    info, found = engine.info, {"touched_bytes": touched_bytes(engine), **rates}
    moved = info["layers"] * info["top_k"] * info["expert_bytes"]
    for name, runs in rows.items():
        token_s = median(run["token_s"] for run in runs)
        floor_s = least_s = found["touched_bytes"] / rates["memory_bytes_per_s"]
        # a token waits for what it reads; ``on_demand`` computes nothing meanwhile
        if name == "on_demand":
            floor_s = moved / rates["disk_bytes_per_s"]
            least_s += floor_s
        elif "disk" in floors:
            each = median(run["fetched_bytes"] / run["tokens"] for run in runs)
            least_s = max(least_s, each / rates["disk_bytes_per_s"])
        computed_s = token_s - median(run["wait_s"] for run in runs)
        shares = {"share_of_floor": floor_s / token_s, "share_without_waits": floor_s / computed_s}
        found[name] = {"token_s": token_s, **shares, "most": floor_s / least_s, "runs": runs}
    return found


def beside_raw_reads(
    folder: Path, engine, method: str, tokens: int, prompt=PROMPT[:4]
) -> tuple[dict, float]:
    """A run, and the rate of raw reads of as many bytes right before and right after it: a disk's
    rate changes by half within seconds."""
    record_bytes = engine.info["expert_bytes"]
    run = decode(engine, method, tokens, prompt)  # says how many bytes; its seconds do not count
    num_bytes = run["prefill_bytes"] + run["fetched_bytes"]
    shards = sorted(folder.glob("*.safetensors"))
    before = raw_reads_rate(shards, record_bytes, num_bytes, READERS)
    run = decode(engine, method, tokens, prompt)
    after = raw_reads_rate(shards, record_bytes, num_bytes, READERS)
    return run | {"raw_bytes_per_s": [before, after]}, 2 / (1 / before + 1 / after)


def first_token(folder: Path, tokens: int) -> dict:
    """A process of its own, distances between experts forgotten: seconds until ``load`` is done,
    until the first token of a prompt of 32 tokens, and the most memory that it ever held."""
    open_experts(resolve(folder), "checkpoint").affinity_file.unlink(missing_ok=True)
    code = "from specmoe.lab.bench import real_speed; real_speed.in_process()"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found = json.loads(done.stdout)
    over = found["peak_bytes"] - found["trunk_bytes"] - FAST_MEMORY
    return found | {"since_load_s": found["load_s"] + found["first_s"], "over_bytes": over}


def first_token_packed(folder: Path, tokens: int) -> dict:
    """The same of a folder that ``specmoe pack`` wrote."""
    if packed_plan(resolve(folder)) is None:
        raise OptionError(f"{folder} is not packed: specmoe pack {folder} DIR, then measure DIR")
    return first_token(folder, tokens)


def in_process() -> None:
    """What ``first_token`` runs: prints its numbers."""
    began_s = time.perf_counter()
    with opened(Path(sys.argv[1])) as engine:
        load_s = time.perf_counter() - began_s
        first_s = _seconds(lambda: decode(engine, "specmoe", 1, PROMPT))
        # not getrusage, which a child of a large process begins with that one's
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        trunk_bytes = engine.info["trunk_bytes"]
    found = {"load_s": load_s, "first_s": first_s, "trunk_bytes": trunk_bytes, "peak_bytes": peak}
    print(json.dumps(found))


def prefill(folder: Path, tokens: int) -> dict:
    """32 tokens of a prompt against the time that the records it reads take by themselves, right
    before and right after."""
    with opened(folder) as engine:
        found = [beside_raw_reads(folder, engine, "cached", 1, PROMPT) for _ in range(REPEATS)]
    runs = [run for run, _ in found]
    reads_s = [run["prefill_bytes"] / rate for run, rate in found]
    return {
        "seconds": median(run["prefill_s"] for run in runs),
        "reads_s": median(reads_s),
        "over": median(run["prefill_s"] / raw_s for run, raw_s in zip(runs, reads_s, strict=True)),
        # of a pass of raw reads over the one before: what the disk does by itself
        "raw_over_raw": [before / after for before, after in (r["raw_bytes_per_s"] for r in runs)],
        "runs": runs,
    }


def beside(folder: Path, tokens: int) -> dict:
    """Each method alone and with another process that holds one core, in turn."""
    found = {}
    with opened(folder) as engine:
        for name in ("cached", "specmoe", "on_demand"):
            runs = {True: [], False: []}
            for hogged in (False, True, False, True):
                with _hog() if hogged else nullcontext():
                    runs[hogged].append(decode(engine, name, 8 if name != "on_demand" else 4))
            alone, hogged = (median(r["token_s"] for r in runs[key]) for key in (False, True))
            found[name] = {"alone_s": alone, "beside_s": hogged, "times": hogged / alone}
    return found


@contextmanager
def _hog() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


PARTS = {
    "products": products,
    "formats": formats,
    "methods": methods,
    "first_token": first_token,
    "first_token_packed": first_token_packed,
    "prefill": prefill,
    "beside": beside,
    "resident": resident,
    "all_here": all_here,
}
