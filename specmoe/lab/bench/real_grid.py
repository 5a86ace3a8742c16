"""Speed at real size: our methods, llama.cpp, and transformers + accelerate on the same weights in
the same memory.

Comes in: a folder with room. Goes out: ``results/real.json``, a row for each cell as it is measured,
so that an interrupted run goes on. Ours of a share and batch go first: the most that any of them
needs, and a tenth more, is what the peers get. ``real`` is its command line, ``real_runs`` a cell.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ...errors import OptionError
from ...shipped import package_path
from ..machine import probes
from ..simulate import engine_parts
from ..simulate.sizes import ModelSize
from . import results
from .offload import SPARE, Group
from .real_checkpoint import make_checkpoint
from .real_gguf import write_gguf
from .real_runs import ACCELERATE_LAYERS
from .runs import Run, turns

PART = results.REAL
OURS = ("on_demand", "cached", "specmoe", "auto")
PEERS = ("llama", "accelerate")
# Every round drafts four tokens. Drafts of random weights are right, so it says what a round costs
# and is nobody's best.
FIXED = "specmoe_4"
BATCHES, SHARES, REPEATS = (1, 16, 4), (50, 12, 25, 100), 2
SECONDS, WARM_UP_S = 10.0, 3.0
MOST_S = 420.0  # of one cell
SPARE_DISK = 2**31
PROBED_BYTES, READERS = 2**31, 4  # of the raw link


@dataclass(frozen=True)
class Place:
    """Where the weights lie, and what they are."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def gguf(self) -> Path:
        return self.folder / "gguf" / "model.gguf"

    @property
    def config(self) -> dict:
        return json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))

    @property
    def size(self) -> ModelSize:
        return ModelSize.of(self.config)


def cells(
    batches=BATCHES, shares=SHARES, what=(*OURS, FIXED, *PEERS), repeats=REPEATS
) -> list[Run]:
    """In the order in which they are measured: the most telling first; methods in turn."""
    return [
        Run("olmoe-1b-7b", name, batch, f"{share}%", prompt_set=turn, part=PART)
        for turn, (share, batch, name) in turns(list(product(shares, batches, what)), repeats)
    ]


def share_of(cell: Run) -> float:
    """Of the experts' bytes, in fast memory."""
    return int(cell.regime.rstrip("%")) / 100


def has(peer: str) -> bool:
    return peer != "llama" or importlib.util.find_spec("llama_cpp") is not None


def open_file(out: Path, keep: bool) -> results.ResultFile:
    """Rows of ours with other code are dropped, unless ``keep``; what a peer did stays true."""
    file = results.ResultFile(out / f"{PART}.json", {"part": PART})
    code = results.code_digest()
    file.rows = {
        key: row
        for key, row in file.rows.items()
        if keep or row["what"] in PEERS or row.get("code") == code
    }
    return file


def run(
    place: Place,
    chosen: list[Run],
    out: Path,
    keep: bool = False,
    estimate: bool = False,
    most_s: float = 1e9,
) -> None:
    """Make what is missing of the weights, then of the rows; says first what that needs. No cell
    begins that may not be done when ``most_s`` have passed."""
    until_s = time.monotonic() + most_s
    file = open_file(out, keep)
    missing = [cell for cell in chosen if not file.has(cell) and has(cell.method)]
    print(needs(place, missing, len(chosen)), flush=True)
    if estimate or not missing:
        return
    check_room(place, missing)
    if not (place.checkpoint / "config.json").is_file():
        make_checkpoint(place.checkpoint)
    if any(cell.method == "llama" for cell in missing) and not place.gguf.is_file():
        place.gguf.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(place.checkpoint, place.gguf)
    code = results.code_digest()
    ours = any(cell.method not in PEERS for cell in missing)
    if ours and file.head.get("parts_code") != code:
        file.head |= {"parts": _parts(place), "parts_code": code}
    for number, cell in enumerate(missing, 1):
        if time.monotonic() + expected_s(file.rows, cell) > until_s:
            break
        row = measure(place, cell, file)
        file.add({cell.key: row}, machine=results.machine(), model=_facts(place))
        speed = f"{row['tokens_per_second']:.2f} tokens/s" if "seconds" in row else row["failed"]
        print(f"[{number}/{len(missing)}] {cell.key}: {speed}", flush=True)


def _parts(place: Place) -> dict | None:
    """What the engine's parts take here, for the plan; in a process of its own, as a cell is."""
    config = str(place.checkpoint / "config.json")
    command = [sys.executable, "-W", "ignore", "-m", engine_parts.__name__, config]
    done = subprocess.run(command, capture_output=True, text=True, cwd=package_path().parent)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _facts(place: Place) -> dict:
    size = place.size
    names = ("num_layers", "num_experts", "top_k", "expert_bytes", "experts_bytes", "held_bytes")
    return {name: getattr(size, name) for name in names}


def needs(place: Place, missing: list[Run], of: int) -> str:
    """Disk, minutes, and which peers are not here, in words."""
    absent = [peer for peer in PEERS if not has(peer)]
    lines = [
        f"{len(missing)} of {of} cells to measure, about {minutes(place, missing):.0f} minutes",
        f"disk: {disk_bytes(place, missing) / 1e9:.0f} GB more in {place.folder}, "
        f"{_free(place.folder) / 1e9:.0f} GB free",
        *(f"{peer} is not importable: its rows stay missing" for peer in absent),
    ]
    return "\n".join(lines)


def minutes(place: Place, missing: list[Run]) -> float:
    """Loading, prefill and window of each cell; writing the weights."""
    seconds = sum(expected_s({}, cell) for cell in missing)
    return (seconds + disk_bytes(place, missing) / 1.5e8) / 60


def expected_s(rows: dict[str, dict], cell: Run) -> float:
    """Of one cell: what it took before at this batch, a tenth more."""
    known = [
        SPARE * row["wall_s"]
        for row in rows.values()
        if (row["what"], row["batch"]) == (cell.method, cell.batch) and "wall_s" in row
    ]
    guess = {"accelerate": 150.0, "llama": 90.0}.get(cell.method, 60.0)
    return max(known, default=guess if cell.batch == 1 else guess * 1.5)


def disk_bytes(place: Place, missing: list[Run]) -> int:
    """What is not there yet: checkpoint, GGUF, accelerate's own copy (for a while)."""
    whole = 13_838_000_000
    named = {cell.method for cell in missing}
    wanted = {place.checkpoint / "config.json": bool(named), place.gguf: "llama" in named}
    there = sum(whole for path, asked in wanted.items() if asked and not path.is_file())
    return there + (whole // 2 if "accelerate" in named else 0)  # of half of the layers


def _free(folder: Path) -> int:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def check_room(place: Place, missing: list[Run]) -> None:
    """Refused before minutes of writing."""
    wanted, free = disk_bytes(place, missing), _free(place.folder)
    if free < wanted + SPARE_DISK:
        raise OptionError(
            f"{place.folder} has {free / 1e9:.0f} GB free and {wanted / 1e9:.0f} GB are needed: "
            "name another folder, or leave out a peer with --what"
        )


def measure(place: Place, cell: Run, file: results.ResultFile) -> dict:
    """One cell in its process, beside what the machine could do right before and after it."""
    ours, size = cell.method not in PEERS, place.size
    limit = None if ours else limit_bytes(file.rows, cell, size)
    rates, memory = machine_rates(place, size.expert_bytes), fast_memory(size, share_of(cell))
    with tempfile.TemporaryDirectory(prefix="specmoe-real-") as folder:
        job = {
            "what": cell.method,
            "batch": cell.batch,
            "folder": str(place.checkpoint),
            "gguf": str(place.gguf),
            "room": str(place.folder),
            "vocab_size": place.config["vocab_size"],
            "fast_memory": memory,
            "seconds": SECONDS,
            # until a pool is as full as it gets
            "warm_up_s": WARM_UP_S + memory / rates["link_bytes_per_s"],
            "threads": rates["threads"],
            "limit_bytes": limit,
            "group": f"specmoe-real-{os.getpid()}",
        }
        found = _in_a_process(job, Path(folder))
    after = machine_rates(place, size.expert_bytes)
    rates = {name: (rate + after[name]) / 2 for name, rate in rates.items()}
    row = cell.row() | found | {"rates": rates, "limit_bytes": limit}
    return row | ({"code": results.code_digest()} if ours else {})


def fast_memory(size: ModelSize, share: float) -> int:
    """Of the experts' bytes, with the scratch that widens one."""
    return int(share * size.experts_bytes) + 2 * size.expert_bytes


def limit_bytes(rows: dict[str, dict], cell: Run, size: ModelSize) -> int | None:
    """What the hungriest of ours needed at this share and batch, and a tenth more; where none ran,
    what they needed elsewhere beside their fast memory. Who gets some of the layers gets as much
    of that: else all of them would lie in the page cache."""
    part = 1.0 if cell.method != "accelerate" else min(ACCELERATE_LAYERS / size.num_layers, 1.0)
    ours = [row for row in rows.values() if row["what"] not in PEERS and row.get("resident_bytes")]
    same = [row for row in ours if (row["link"], row["batch"]) == (cell.regime, cell.batch)]
    if same:
        return int(part * SPARE * max(row["resident_bytes"] for row in same))
    beside = [row["resident_bytes"] - row["info"]["fast_memory_bytes"] for row in ours]
    if not beside:
        return None
    return int(part * SPARE * (max(beside) + fast_memory(size, share_of(cell))))


def machine_rates(place: Place, record_bytes: int, seconds: float = 0.4) -> dict:
    """Link, memory, arithmetic, right now: a second or two. The link by raw reads of as many
    readers as the engine has, long enough that their beginning and end count for little."""
    import torch

    shards = sorted(place.checkpoint.glob("*.safetensors"))
    return {
        "link_bytes_per_s": probes.raw_reads_rate(shards, record_bytes, PROBED_BYTES, READERS),
        "probed_bytes": PROBED_BYTES,
        "memory_bytes_per_s": 2 * probes.memory_copy_rate(seconds)["bytes_per_s"],
        "flop_per_s": probes.compute_rates(seconds)["fp32_flop_per_s"],
        "threads": torch.get_num_threads(),
    }


def _in_a_process(job: dict, folder: Path) -> dict:
    """The row that the process prints, or why there is none."""
    file, began_s = folder / "job.json", time.monotonic()
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.real_runs", str(file)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MOST_S, cwd=package_path().parent
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MOST_S:.0f} s"}
    finally:
        Group(job["group"]).remove()
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failed": f"ended with {done.returncode}: {last[:300]}"}
    return json.loads(done.stdout.splitlines()[-1]) | {"wall_s": time.monotonic() - began_s}
