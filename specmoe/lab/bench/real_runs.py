"""One cell at real size, in a process of its own: specmoe, llama.cpp, or transformers + accelerate.

Comes in: a job file. Goes out: one row as JSON, the last line of the output. specmoe says how much
memory it needs once warm; its peers are held to that by a memory control group, page cache included.
``real_grid`` starts it.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .offload import Group, drop_page_cache, placements

PROMPT_TOKENS, NEW_TOKENS, NUM_PROMPTS = 8, 64, 32
LEAST_STEPS = 1  # of llama.cpp, before and within the window; ours does two of each
ACCELERATE_LAYERS = 8  # it writes a copy of its own first; with fewer layers it is only faster
HELD_BY = "memory cgroup"


def prompts(vocab_size: int) -> list[list[int]]:
    """Random tokens: the checkpoint's words mean nothing."""
    random = np.random.default_rng(0)
    return random.integers(2, vocab_size - 64, (NUM_PROMPTS, PROMPT_TOKENS)).tolist()


def specmoe_run(job: dict, group: Group) -> dict:
    """A steady-state window of one of our methods."""
    import specmoe

    from .window import Window, measure

    texts: list[list[int]] = [[] for _ in range(NUM_PROMPTS)]
    window = Window(job["batch"], job["seconds"], job["warm_up_s"], texts)
    load = {"fast_memory": job["fast_memory"], "store": "checkpoint", "trace": False}
    began_s = time.perf_counter()
    with specmoe.load(job["folder"], **load) as engine:
        load_s = time.perf_counter() - began_s
        # "specmoe_4" drafts four tokens in every round
        method = job["what"].removesuffix("_4")
        gamma = 4 if method != job["what"] else None
        given = {"method": method, "max_new_tokens": NEW_TOKENS, "eos_token_id": []}
        given["gamma"] = gamma
        found = measure(engine, prompts(job["vocab_size"]), window, **given)
        resident = group.resident_bytes() if group.there else None
        return found | {
            "load_s": load_s,
            "info": engine.info,
            "resident_bytes": resident,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def accelerate_run(job: dict, group: Group) -> dict:
    """transformers' ``generate``, every layer's experts on disk by accelerate, in bf16; of the first
    ``ACCELERATE_LAYERS`` layers."""
    import torch

    from .peers import Transformers

    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="accelerate-", dir=job["room"]) as offloaded:
        model = _first_layers(Path(job["folder"]), Path(offloaded) / "model")
        places = placements(model)
        load = {"dtype": torch.bfloat16, "device_map": places, "offload_folder": offloaded}
        peer = Transformers(model, **load)
        load_s = time.perf_counter() - began_s
        held = _hold(group, job)
        some = prompts(job["vocab_size"])[: job["batch"]]
        drop = (lambda: None) if held else (lambda: drop_page_cache(Path(offloaded)))
        drop_page_cache(Path(offloaded))
        read = []

        def each_step() -> None:
            read.append(disk_bytes())
            drop()

        # the first step, a prefill, warms up; its seconds and bytes are left out
        tokens, seconds = peer(some, NEW_TOKENS, each_step, most_s=job["seconds"])
    how = HELD_BY if held else "its files dropped from the page cache after every step"
    return {
        "num_new_tokens": tokens,
        "seconds": seconds,
        "load_s": load_s,
        "held_by": how,
        "layers": ACCELERATE_LAYERS,
        **fetched(read[0], read[-1]),
    }


def disk_bytes() -> int | None:
    """What this process has had read from a disk so far: of a mapped file only the pages that it
    touched and that were not in memory; None where no system says."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return None
    lines = counters.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def fetched(before: int | None, after: int | None) -> dict:
    return {} if before is None else {"fetched_bytes": after - before}


def _first_layers(folder: Path, short: Path) -> Path:
    """The checkpoint as one of fewer layers: the same files, another config."""
    short.mkdir()
    for file in folder.iterdir():
        (short / file.name).symlink_to(file.resolve())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers = min(ACCELERATE_LAYERS, config["num_hidden_layers"])
    (short / "config.json").unlink()
    content = json.dumps(config | {"num_hidden_layers": layers})
    (short / "config.json").write_text(content, encoding="utf-8")
    return short


def llama_run(job: dict, group: Group) -> dict:
    """llama.cpp with its file mapped, fed random tokens: what they are does not matter to it."""
    drop_page_cache(Path(job["gguf"]).parent)
    held = _hold(group, job)
    began_s = time.perf_counter()
    llama = Llama(job["gguf"], job["batch"], job["threads"])
    load_s = time.perf_counter() - began_s
    random = np.random.default_rng(0)
    draw = lambda number: random.integers(2, job["vocab_size"] - 64, number).tolist()  # noqa: E731
    began_s = time.perf_counter()
    rows = list(range(job["batch"]))
    llama.decode(rows * PROMPT_TOKENS, draw(job["batch"] * PROMPT_TOKENS))
    prefill_s = time.perf_counter() - began_s
    steps, read, most = [], [disk_bytes()], NEW_TOKENS * 8
    while len(steps) < most and (
        sum(_warm(steps, job)) < job["seconds"] or len(_warm(steps, job)) < LEAST_STEPS
    ):
        step_s = time.perf_counter()
        llama.decode(rows, draw(job["batch"]))
        steps.append(time.perf_counter() - step_s)
        read.append(disk_bytes())
    counted = _warm(steps, job)
    return {
        "num_new_tokens": len(counted) * job["batch"],
        "seconds": sum(counted),
        "steps_s": steps,
        **fetched(read[-1 - len(counted)], read[-1]),
        "load_s": load_s,
        "prefill_s": prefill_s,
        "held_by": HELD_BY if held else "nothing",
        "resident_bytes": group.resident_bytes() if group.there else None,
        "peer": llama.version,
    }


def _warm(steps: list[float], job: dict) -> list[float]:
    """Those after the warm-up: at least one step and ``warm_up_s``."""
    passed = 0.0
    for number, step_s in enumerate(steps):
        if passed >= job["warm_up_s"] and number >= LEAST_STEPS:
            return steps[number:]
        passed += step_s
    return []


def _hold(group: Group, job: dict) -> bool:
    """From now on no more than the job's limit; False where there is none, or no control group."""
    if not group.there or not job["limit_bytes"]:
        return False
    group.limit(job["limit_bytes"])
    return True


class Llama:
    """llama.cpp through ``llama_cpp``'s own calls: rows of a batch, one token each."""

    def __init__(self, file: str, batch: int, threads: int):
        import llama_cpp

        self.api, self.version = llama_cpp, f"llama-cpp-python {llama_cpp.__version__}"
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers, settings.load_mode = 0, llama_cpp.LLAMA_LOAD_MODE_MMAP
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), settings)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {file}")
        own = llama_cpp.llama_context_default_params()
        own.n_ctx = batch * (PROMPT_TOKENS + 8 * NEW_TOKENS)
        own.n_batch = own.n_ubatch = batch * PROMPT_TOKENS
        own.n_seq_max, own.n_threads, own.n_threads_batch = batch, threads, threads
        self.context = llama_cpp.llama_init_from_model(self.model, own)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.batch = llama_cpp.llama_batch_init(batch * PROMPT_TOKENS, 0, 1)
        self.lengths = [0] * batch

    def decode(self, rows: list[int], tokens: list[int]) -> None:
        """``tokens[i]`` goes to the end of row ``rows[i]``; logits of all are computed."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            batch.token[place], batch.pos[place] = token, self.lengths[row]
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
            batch.logits[place] = True
            self.lengths[row] += 1
        failed = self.api.llama_decode(self.context, batch)
        if failed:
            raise RuntimeError(f"llama.cpp refused a batch ({failed})")
        self.api.llama_synchronize(self.context)


RUNS = {"llama": llama_run, "accelerate": accelerate_run}


def main(file: str) -> int:
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    group = Group(job["group"])
    group.enter()
    found = RUNS.get(job["what"], specmoe_run)(job, group)
    speed = {"tokens_per_second": found["num_new_tokens"] / found["seconds"]}
    print(json.dumps(found | speed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
