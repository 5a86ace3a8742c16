"""``python -m specmoe.lab.bench.gpu``: the methods with experts in pinned host memory and the rest
on a GPU, in two calls of under 10 minutes (``--parts``).

Comes in: nothing but this repository; it needs torch, transformers, numpy. Goes out:
``results/gpu.json``, which the notebook ``performance`` shows. Without a GPU it runs small on the
CPU, which is how the tests run it.

1. correctness: the CPU's tokens in fp32 against the device's with TF32 off, every method; first
   divergences in bf16
2. low bits (``gpu_low_bit``), beside bf16: records moved as they are stored, widened there
3. speed: the store's rate against the raw pinned rate; methods at B = 1 ... 256, experts widened to
   NLLB-MoE's size (tiny-translate) and Mixtral's (tiny-balanced)
4. compiled: draft steps through ``compile=True`` and ``"reduce-overhead"`` against plain ones

What there is no time for is left out and listed. Parts that are not asked for stay in the file, if
the same code found them on the same device.
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
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import specmoe

from ..entry import leave
from ..writing import check_folder, read_object, write_whole
from .gpu_low_bit import low_bit
from .gpu_numbers import targets
from .gpu_parts import Found, Scale, compiled, correctness, speed
from .results import FOLDER, code_digest
from .workplace import Workplace

MIB = 2**20
PART_S = 30  # a part that has less is not begun
LARGE = Scale(
    batches=(256, 1, 64, 16),  # in the order in which they run
    # NLLB-MoE's and Mixtral's, in bf16
    experts={"tiny-translate": (64 * MIB, 20), "tiny-balanced": (336 * MIB, 4)},
    slice_s=2.0,
    warm_up_s=0.5,
    num_prompts=512,
    exact_prompts=16,
    exact_tokens=48,
    copies=64,
    compiled_batch=16,
    # experts of 18.9 M weights, as in Qwen3-235B-A22B
    low_bit={"hidden": 4096, "width": 1536, "layers": 2, "experts": 32, "top_k": 4},
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
    compiled_batch=2,
    low_bit={"hidden": 256, "width": 128, "layers": 1, "experts": 4, "top_k": 2},
)


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
        "code": code_digest(),
        "python": platform.python_version(),
    }


def roomy_folder() -> str | None:
    """Where packed experts of tens of GiB go: memory-backed, so that nothing waits for a disk;
    None: the usual place."""
    memory = Path("/dev/shm")
    needed = 48 * 2**30
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > needed else None


def parts_of(scale: Scale) -> dict[str, tuple]:
    """Name of a part -> its function, its arguments; the most telling first."""
    speeds = {f"speed {model}": (speed, scale, model) for model in scale.experts}
    return {
        "correctness": (correctness, scale),
        "low bits": (low_bit, scale),
        **speeds,
        "compiled": (compiled, scale),
    }


def run(found: Found, parts: dict[str, tuple], folder: str | None, save: Callable) -> None:
    """One part after the other, in the packed experts' own folder, which is removed at the end;
    ``save`` is called after each, so that nothing found is lost."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    before = os.environ.get("SPECMOE_CACHE")
    with tempfile.TemporaryDirectory(prefix="specmoe-gpu-", dir=folder) as packed:
        os.environ["SPECMOE_CACHE"] = packed
        try:
            for name, (part, *arguments) in parts.items():
                if found.has_time(name, PART_S):
                    found.add(name, part, *arguments)
                    save()
                for made in filter(Path.is_dir, Path(packed).iterdir()):  # room for the next part
                    shutil.rmtree(made)
        finally:
            os.environ.pop("SPECMOE_CACHE")
            if before is not None:
                os.environ["SPECMOE_CACHE"] = before


def kept(file: Path, here: dict, parts: dict[str, tuple]) -> dict:
    """What ``file`` has of other parts, if the same code found it on the same device."""
    content = read_object(file)
    same = all(content.get("about", {}).get(name) == here[name] for name in ("name", "code"))
    return {name: value for name, value in content.items() if same and name not in parts}


def main(arguments: list[str] | None = None) -> int:
    names = list(parts_of(LARGE))
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.bench.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="as in the tests; always so on a CPU")
    parser.add_argument(
        "--minutes", type=float, default=9.5, help="what does not fit is left out, and listed"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, help="the others stay as they are"
    )
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    device, file = torch.device(options.device), options.out / "gpu.json"
    small = options.small or device.type == "cpu"
    scale, here = SMALL if small else LARGE, about(device)
    check_folder(options.out)
    parts = {name: part for name, part in parts_of(scale).items() if name in options.parts}
    before = kept(file, here, parts)
    place = Workplace(scale.num_prompts, device)
    found = Found(device, time.monotonic() + 60 * options.minutes, place)

    def save() -> dict:
        whole = before | found.content
        whole |= {"about": here, "failed": found.failed, "left_out": found.left_out}
        whole |= {"targets": targets(whole)}
        write_whole(file, json.dumps(whole, indent=0, default=str) + "\n")
        return whole

    run(found, parts, None if small else roomy_folder(), save)
    for row in save()["targets"]:
        print(f"{row['name']}: {row['measured']} (target {row['goal']}, met: {row['met']})")
    for sentence in found.failed:
        print("failed:", sentence, file=sys.stderr)
    return 1 if found.failed else 0


if __name__ == "__main__":
    leave(main)
