"""``python -m specmoe.lab.bench.gpu``: the methods with experts in pinned host memory and the rest
on a GPU, in under 8 minutes.

Comes in: nothing but this repository; it needs torch, transformers, numpy (figures only where
seaborn is). Goes out: ``results/gpu.json`` and figures. Without a GPU it runs small on the CPU,
which is how the tests run it.

1. correctness: the CPU's tokens in fp32 against the device's with TF32 off, every method; first
   divergences in bf16
2. copies: the store's rate against the raw pinned rate, records of the size that follows
3. methods at B = 1 ... 256, experts widened to NLLB-MoE's size (tiny-translate) and Mixtral's
   (tiny-balanced)
4. draft steps through ``compile=True`` against plain ones

What there is no time for is left out and listed; the most telling cells come first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[3]
if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(ROOT))

import specmoe  # noqa: E402

from ..entry import leave  # noqa: E402
from ..writing import check_folder, write_whole  # noqa: E402
from . import floors  # noqa: E402
from .gpu_numbers import beside_floors, compare, compute_rates, targets  # noqa: E402
from .prompts import held_out  # noqa: E402
from .window import Window, measure  # noqa: E402

TOKENS, SEED, MIB = 64, 2026, 2**20
METHODS = ("on_demand", "cached", "overlapped", "specmoe", "auto", "resident")


@dataclass(frozen=True)
class Scale:
    """How large and how long. ``experts``: model -> (bytes of an expert, experts per decoding layer
    in fast memory)."""

    batches: tuple[int, ...]
    experts: dict[str, tuple[int | None, int]]
    slice_s: float
    warm_up_s: float
    num_prompts: int
    exact_prompts: int
    exact_tokens: int
    copies: int


LARGE = Scale(
    batches=(256, 1, 64, 16, 128, 4),  # in the order in which they run
    # NLLB-MoE's and Mixtral's, in bf16
    experts={"tiny-translate": (64 * MIB, 20), "tiny-balanced": (336 * MIB, 4)},
    slice_s=2.0,
    warm_up_s=0.5,
    num_prompts=512,
    exact_prompts=16,
    exact_tokens=48,
    copies=64,
)
SMALL = Scale(
    batches=(2, 1),
    experts={"tiny-translate": (None, 20), "tiny-balanced": (None, 4)},
    slice_s=0.05,
    warm_up_s=0.0,
    num_prompts=8,
    exact_prompts=3,
    exact_tokens=8,
    copies=8,
)


@dataclass
class Found:
    """The result: parts by name, what failed, what there was no time for."""

    device: torch.device
    deadline_s: float
    content: dict = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, part, *arguments) -> None:
        """Run ``part`` and keep what it says; a failure is kept as a sentence, and the next part
        runs."""
        began_s = time.monotonic()
        try:
            self.content[name] = part(self, *arguments)
        except Exception as failure:  # one part's failure is a finding about that part
            self.failed.append(f"{name}: {type(failure).__name__}: {failure}")
        print(
            f"{name}: {time.monotonic() - began_s:.0f} s "
            f"{self.failed[-1:] if name not in self.content else ''}",
            flush=True,
        )

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether ``seconds`` are left; if not, ``what`` is noted as left out."""
        if time.monotonic() + seconds < self.deadline_s:
            return True
        self.left_out.append(what)
        return False


def prompts_of(model: str, num: int) -> list[str]:
    return held_out(num, SEED, translates=model == "tiny-translate")


def tokens_of(output) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]


# ---- 1. correctness ----


def correctness(found: Found, scale: Scale) -> list[dict]:
    """For each model and dtype: how many prompts have the CPU's fp32 tokens by each method, and
    where the others part."""
    rows = []
    for model in ("tiny-skewed", "tiny-balanced", "tiny-translate"):
        prompts = prompts_of(model, scale.exact_prompts)
        options = {
            "max_new_tokens": scale.exact_tokens,
            "batch_size": max(1, scale.exact_prompts // 2),
        }
        with specmoe.load(
            model, store="memory", device="cpu", dtype="float32", draft_experts=4
        ) as engine:
            expected = tokens_of(engine.generate(prompts, method="on_demand", **options))
        for dtype in ("float32", "bfloat16"):
            with specmoe.load(
                model, store="memory", device=found.device, dtype=dtype, draft_experts=4
            ) as engine:
                for method in METHODS:
                    got = tokens_of(engine.generate(prompts, method=method, **options))
                    rows.append(
                        {"model": model, "dtype": dtype, "method": method, **compare(expected, got)}
                    )
    return rows


# ---- 2. copies ----


def raw_copy_rate(device: torch.device, num_bytes: int, times: int, pin: bool = True) -> float:
    """Bytes per second from host memory (pinned, if asked) to the device, ``times`` copies one
    after the other."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=pin and device.type == "cuda")
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    synchronize(device)
    target.copy_(source, non_blocking=True)
    synchronize(device)
    began_s = time.perf_counter()
    for _ in range(times):
        target.copy_(source, non_blocking=True)
    synchronize(device)
    return times * num_bytes / (time.perf_counter() - began_s)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def store_rate(engine, times: int) -> float:
    """Bytes per second that the engine's store moves when ``times`` records are asked for at
    once."""
    from ...offload.transfers import ExpertKey

    store, slots = engine.store, engine.slots
    keys = [
        ExpertKey(n % len(engine.packed.layers), n % engine.packed.num_experts)
        for n in range(times)
    ]
    for _ in range(2):  # the first turn compares checksums
        began_s = time.perf_counter()
        for start in range(0, times, len(slots)):
            reads = [
                store.submit(key, slots[place])
                for place, key in enumerate(keys[start : start + len(slots)])
            ]
            for read in reads:
                read.wait()
        seconds = time.perf_counter() - began_s
    return times * store.record_bytes / seconds


# ---- 3. methods ----


def speed(found: Found, scale: Scale, model: str) -> dict:
    """Every method at every batch that there is time for, and the copies of such records."""
    num_bytes, per_layer = scale.experts[model]
    texts = own_texts(found, scale, model)
    began_s = time.monotonic()
    with open_widened(found, model, num_bytes, per_layer) as engine:
        load_s, record_bytes = time.monotonic() - began_s, engine.packed.layout.record_bytes
        raw, pageable = (
            raw_copy_rate(found.device, record_bytes, scale.copies, pin) for pin in (True, False)
        )
        moved, rows = store_rate(engine, scale.copies), []
        for batch in scale.batches:
            rows += _methods(found, scale, engine, model, batch, texts)
        copies = {
            "raw_bytes_per_s": raw,
            "pageable_bytes_per_s": pageable,
            "store_bytes_per_s": moved,
            "share": moved / raw,
        }
        facts, rates = floors.facts(engine), compute_rates(found.device)
        return {
            "load_s": load_s,
            "info": facts,
            "copies": copies,
            "rates": rates,
            "rows": beside_floors(rows, facts, rates, raw),
        }


def open_widened(found: Found, model: str, num_bytes: int | None, per_layer: int):
    """An engine with widened experts in (pinned) host memory and room for ``per_layer`` of them in
    each decoding layer."""
    from ... import checkpoint

    packed = checkpoint.pack(checkpoint.resolve(model), expert_bytes=num_bytes)
    layers = 2 if model == "tiny-translate" else len(packed.layers)
    options = {
        "fast_memory": per_layer * layers * packed.layout.record_bytes,
        "expert_bytes": num_bytes,
    }
    return specmoe.load(model, store="memory", device=found.device, trace=False, **options)


def own_texts(found: Found, scale: Scale, model: str) -> list[list[int]]:
    """The tokens that follow each prompt, so that windows can start in the middle of a job (see
    ``window``)."""
    with specmoe.load(model, store="memory", device=found.device, trace=False) as engine:
        output = engine.generate(
            prompts_of(model, scale.num_prompts),
            method="resident",
            batch_size=128,
            max_new_tokens=TOKENS,
        )
    return [
        tokens[length:].tolist()
        for tokens, length in zip(output.sequences, output.num_prompt_tokens)
    ]


def _methods(found: Found, scale: Scale, engine, model: str, batch: int, texts) -> list[dict]:
    rows = []
    for method in METHODS:
        if method == "resident" and not _fits(found, engine):
            continue
        if not found.has_time(f"{model}, B = {batch}, {method}", 4 * scale.slice_s):
            continue
        window = Window(batch, scale.slice_s, scale.warm_up_s, texts)
        sums = measure(
            engine,
            prompts_of(model, scale.num_prompts),
            window,
            method=method,
            max_new_tokens=TOKENS,
        )
        speed_ = sums["num_new_tokens"] / sums["seconds"]
        rows.append({"batch": batch, "method": method, "tokens_per_second": speed_, **sums})
        print(f"  {model}, B = {batch}, {method}: {speed_:.1f} tokens/s", flush=True)
    return rows


def _fits(found: Found, engine) -> bool:
    """Whether all experts fit on the device beside the engine's own slots."""
    whole = (
        len(engine.packed.layers) * engine.packed.num_experts * engine.packed.layout.record_bytes
    )
    return found.device.type == "cpu" or whole < 0.9 * torch.cuda.mem_get_info(found.device)[0]


# ---- 4. compiled draft steps ----


def compiled(found: Found, scale: Scale, model: str = "tiny-balanced") -> dict:
    """Seconds of a draft step, plain and compiled (gamma 5), and how long compiling took."""
    batch = 16 if scale is LARGE else 2
    texts, steps, rows = own_texts(found, scale, model), {}, {}
    for compile in (False, True):
        if compile and not found.has_time("compiled draft steps", 10 * scale.slice_s):
            continue
        with specmoe.load(
            model, store="memory", device=found.device, trace=False, compile=compile
        ) as engine:
            window = Window(batch, scale.slice_s, scale.warm_up_s, texts)
            options = {"method": "specmoe", "gamma": 5, "max_new_tokens": TOKENS}
            began_s = time.monotonic()
            measure(
                engine,
                prompts_of(model, scale.num_prompts),
                Window(batch, 0.01, 0.0, texts),
                **options,
            )
            name = "compiled" if compile else "plain"
            rows[f"{name}_warm_up_s"] = time.monotonic() - began_s
            sums = measure(engine, prompts_of(model, scale.num_prompts), window, **options)
            rows[f"{name}_really"] = bool(engine.compiled)
            steps[name] = sums["draft_s"] / max(1, sum(window.gammas))
    return {
        "model": model,
        "batch": batch,
        **rows,
        **{f"{name}_step_s": value for name, value in steps.items()},
    }


# ---- targets, files ----


def about(device: torch.device) -> dict:
    """Machine, device, versions, date."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "device": device.type,
        "name": torch.cuda.get_device_name(device)
        if on_gpu
        else platform.processor() or platform.machine(),
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "specmoe": specmoe.__version__,
        "python": platform.python_version(),
    }


def roomy_folder() -> str | None:
    """Where packed experts of tens of GiB go: memory-backed, so that nothing waits for a disk;
    None: the usual place."""
    memory = Path("/dev/shm")
    needed = 48 * 2**30
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > needed else None


def draw(content: dict, folder: Path) -> list[str]:
    """A figure for each model; none where seaborn is missing."""
    try:
        from .pictures import speed_figure
    except ImportError:
        return []
    files = []
    for model in ("tiny-translate", "tiny-balanced"):
        part = content.get(f"speed {model}")
        if part and part["rows"]:
            file = folder / f"gpu_{model}.png"
            write_whole(file, speed_figure(part, model, content["about"]["name"]))
            files.append(file.name)
    return files


def run(scale: Scale, device: torch.device, minutes: float, folder: str | None) -> dict:
    """All parts, in the packed experts' own folder, which is removed at the end."""
    found = Found(device, time.monotonic() + 60 * minutes)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = os.environ.get("SPECMOE_CACHE")
    with tempfile.TemporaryDirectory(prefix="specmoe-gpu-", dir=folder) as packed:
        os.environ["SPECMOE_CACHE"] = packed
        try:
            found.add("correctness", correctness, scale)
            found.add("compiled", compiled, scale)
            for model in scale.experts:
                if found.has_time(f"all of {model}", 4 * scale.slice_s):
                    found.add(f"speed {model}", speed, scale, model)
                for child in Path(packed).iterdir():  # room for the next model's
                    shutil.rmtree(child)
        finally:
            os.environ.pop("SPECMOE_CACHE")
            if before is not None:
                os.environ["SPECMOE_CACHE"] = before
    content = {
        "about": about(device),
        **found.content,
        "failed": found.failed,
        "left_out": found.left_out,
    }
    return content | {"targets": targets(content)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.bench.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="as in the tests; always so on a CPU")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="what does not fit is left out, and listed"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "specmoe" / "lab" / "bench" / "results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "images")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    small = options.small or device.type == "cpu"
    for folder in (options.out, options.figures):
        check_folder(folder)
    content = run(
        SMALL if small else LARGE, device, options.minutes, None if small else roomy_folder()
    )
    content["figures"] = draw(content, options.figures)
    write_whole(options.out / "gpu.json", json.dumps(content, indent=0, default=str) + "\n")
    for row in content["targets"]:
        print(f"{row['name']}: {row['measured']} (target {row['goal']}, met: {row['met']})")
    for sentence in content["failed"]:
        print("failed:", sentence, file=sys.stderr)
    return 1 if content["failed"] else 0


if __name__ == "__main__":
    leave(main)
