"""specmoe against transformers + accelerate with its experts on disk, both held to the same total
memory.

Comes in: a run of the part "offload". Goes out: tokens and seconds of decoding alone. Each runs in
a process of its own, in a memory control group (cgroup v1, as root): specmoe first, whose resident
memory after its warm-up, plus 10 %, becomes the limit of both (page cache counts in it). Where no
control group can be made, and once more beside it, the peer's files are dropped from the page cache
after every step; ``held_by`` says which it was. The peer keeps bf16, the checkpoint's own dtype, so
that it reads as many bytes as we do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ...offload.transfers import give_back_memory
from ...shipped import package_path
from .runs import Run
from .settings import AGAIN, EXPERT_BYTES, TOKENS, Length

GROUPS = Path("/sys/fs/cgroup/memory")
SPARE = 1.1
MORE = 1.25  # the limit grows by this much when one of the two does not get through
TRIES = 4


def measure_offload(place, run: Run, length: Length, rows: dict[str, dict]) -> dict:
    """One of the two in a process of its own; specmoe's run of a batch (in ``rows``) sets the limit
    for the peer's."""
    with tempfile.TemporaryDirectory(prefix="specmoe-offload-") as folder:
        job = {
            "model": run.model,
            "batch": run.batch,
            "seconds": length.slice_s,
            "warm_up_s": length.warm_up_s,
            "prompts": place.prompts(run.model),
            "folder": folder,
            "group": f"specmoe-bench-{os.getpid()}",
        }
        if run.method.removesuffix(AGAIN) == "specmoe":
            return _until_it_lives(
                {**job, "what": "specmoe", "texts": place.texts(run.model), "spare": SPARE},
                "spare",
            )
        # whatever its memory, no page of its files is there in the next step
        uncached = run.method == "accelerate_uncached"
        ours = rows.get(replace(run, method="specmoe").key, {})
        limit = None if uncached else ours.get("limit_bytes")
        widened_checkpoint(run.model, Path(folder) / "widened", EXPERT_BYTES)
        # pages are charged to whoever touches them first: that must be the peer
        drop_page_cache(Path(folder))
        return _until_it_lives({**job, "what": "accelerate", "limit_bytes": limit}, "limit_bytes")


def _until_it_lives(job: dict, limit: str) -> dict:
    """A run under its limit; where that kills it, what ``batch[limit]`` says is raised, and the row
    holds the limit it had."""
    for _ in range(TRIES):
        try:
            return _in_a_process(job)
        except subprocess.CalledProcessError as failure:
            if failure.returncode >= 0 or not job[limit]:
                raise
            job = {**job, limit: job[limit] * MORE}
    raise RuntimeError(f"{job['what']} does not get through with {limit} = {job[limit]:.4g}")


def _in_a_process(job: dict) -> dict:
    """``python -m specmoe.lab.bench.offload job.json``: its last line is the row."""
    file = Path(job["folder"]) / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "specmoe.lab.bench.offload", str(file)],
            capture_output=True,
            text=True,
            cwd=package_path().parent,
        )
    finally:
        Group(job["group"]).remove()
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:])
        raise subprocess.CalledProcessError(done.returncode, "specmoe.lab.bench.offload")
    return json.loads(done.stdout.splitlines()[-1])


def widened_checkpoint(model: str, folder: Path, expert_bytes: int) -> Path:
    """``model`` (Mixtral class) as a Hugging Face checkpoint whose experts have zero columns up to
    ``expert_bytes``."""
    import torch
    from safetensors.torch import load_file, save_file

    from ... import checkpoint

    source = Path(checkpoint.resolve(model))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    # gate, up and down in two bytes each
    columns = -(-expert_bytes // (3 * config["hidden_size"] * 2))
    width = -(-columns // 16) * 16  # transformers' grouped product wants aligned rows
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            dim = {"w1": 0, "w3": 0, "w2": 1}.get(name.split(".")[-2])
            if ".experts." in name and dim is not None:
                more = list(tensor.shape)
                more[dim] = width - more[dim]
                tensor = torch.cat([tensor, tensor.new_zeros(more)], dim=dim).contiguous()
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(config | {"intermediate_size": width}), encoding="utf-8"
    )
    for file in source.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


# ---- in the process that is measured ----


class Group:
    """A memory control group by name; without root or cgroup v1 it does nothing (``there`` is
    False)."""

    def __init__(self, name: str):
        self.path = GROUPS / name
        self.there = False

    def enter(self) -> None:
        """This process from now on belongs to it."""
        try:
            self.path.mkdir()
            (self.path / "cgroup.procs").write_text(str(os.getpid()))
            self.there = True
        except OSError:
            self.there = False

    def resident_bytes(self) -> int:
        """What this process needs to be in memory: its own pages and the files it has mapped; what
        its heap holds free is given back first."""
        give_back_memory()
        stat = dict(line.split() for line in (self.path / "memory.stat").read_text().splitlines())
        return int(stat["total_rss"]) + int(stat["total_mapped_file"])

    def limit(self, num_bytes: float) -> None:
        (self.path / "memory.limit_in_bytes").write_text(str(int(num_bytes)))

    def remove(self) -> None:
        """Its process has ended; the kernel may need a moment to notice."""
        for _ in range(20):
            try:
                return self.path.rmdir() if self.path.is_dir() else None
            except OSError:
                time.sleep(0.1)


def specmoe_run(job: dict, group: Group) -> dict:
    """A steady-state window of specmoe; the limit is what it has in memory once warm."""
    import specmoe

    from .window import Window, measure
    from .workplace import fast_memory, model_named

    memory = fast_memory(model_named(job["model"]))
    window = Window(job["batch"], job["seconds"], job["warm_up_s"], job["texts"])
    with specmoe.load(
        job["model"], expert_bytes=EXPERT_BYTES, fast_memory=memory, trace=False
    ) as engine:
        warm = Window(job["batch"], job["warm_up_s"], 0.1, job["texts"])
        measure(engine, job["prompts"], warm, max_new_tokens=TOKENS, method="specmoe")
        limit = int(job["spare"] * group.resident_bytes()) if group.there else None
        if limit:
            group.limit(limit)
        found = measure(engine, job["prompts"], window, max_new_tokens=TOKENS, method="specmoe")
    return found | {
        "limit_bytes": limit,
        "held_by": "memory cgroup" if group.there else "nothing (direct I/O)",
    }


def accelerate_run(job: dict, group: Group) -> dict:
    """transformers' ``generate`` with every layer's experts offloaded to disk by accelerate."""
    import torch

    from .peers import Transformers

    folder = Path(job["folder"])
    places = placements(folder / "widened")
    peer = Transformers(
        folder / "widened",
        dtype=torch.bfloat16,
        device_map=places,
        offload_folder=str(folder / "offload"),
    )
    held = group.there and job["limit_bytes"]
    if held:
        group.limit(job["limit_bytes"])
    prompts = job["prompts"][: job["batch"]]
    drop = (lambda: None) if held else (lambda: drop_page_cache(folder))
    peer(prompts, 2, drop)
    tokens, seconds = peer(prompts, TOKENS, drop, most_s=job["seconds"])
    how = "memory cgroup" if held else "its files dropped from the page cache after every step"
    return {
        "num_new_tokens": tokens,
        "seconds": seconds,
        "limit_bytes": job["limit_bytes"],
        "held_by": how,
    }


def placements(folder: Path) -> dict[str, str]:
    """accelerate's device map: experts on disk, the largest modules without any in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    experts = {name for name, _ in model.named_modules() if name.endswith(".experts")}
    places = dict.fromkeys(experts, "disk")

    def place(module, prefix: str) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if any(expert.startswith(f"{path}.") for expert in experts):
                place(child, f"{path}.")
            else:
                places.setdefault(path, "cpu")

    place(model, "")
    return places


def drop_page_cache(folder: Path) -> None:
    """Forget the pages of every file in ``folder``."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)  # a page that is not on the disk yet stays
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def main(file: str) -> int:
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    group = Group(job["group"])
    group.enter()
    found = (specmoe_run if job["what"] == "specmoe" else accelerate_run)(job, group)
    print(json.dumps(found | {"tokens_per_second": found["num_new_tokens"] / found["seconds"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
