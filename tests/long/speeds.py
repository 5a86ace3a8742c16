"""Did a change cost speed? The same runs by two commits, in turn, with an A/A control.

    git worktree add ../before 2189921
    python tests/long/speeds.py --before ../before --out docs/results/speeds.json

Three workers hold their engines for the whole time: the package as it was (twice: what these two
differ by is noise) and as it is. They decode one after the other, in an order that turns, and each
time gives one pair: seconds of a token now over seconds before. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
TEXTS = {
    "tiny-skewed": [
        "SELECT name FROM",
        '{"id": 12, "name":',
        "Once upon a time",
        "def read(path):",
    ],
    "tiny-translate": ["The red house costs 40 dollars.", "She sold seven apples on Monday."],
}
LANGUAGES = {"source_lang": "eng_Latn", "target_lang": "fra_Latn"}
CELLS = [
    (model, method, batch)
    for model in TEXTS
    for method in ("on_demand", "cached", "specmoe", "resident")
    for batch in (1, 16)
]
NEW_TOKENS = 32


def work() -> None:
    """A worker: a cell per line comes in, seconds per token go out."""
    import specmoe

    engines = {}
    for line in sys.stdin:
        model, method, batch = json.loads(line)
        if model not in engines:
            engines[model] = specmoe.load(model, dtype="float32", draft_experts=4, trace=False)
        prompts = (TEXTS[model] * batch)[:batch]
        more = LANGUAGES if model == "tiny-translate" else {}
        more = {**more, "gamma": 4} if method == "specmoe" else more
        began_s = time.perf_counter()
        output = engines[model].generate(
            prompts, method=method, max_new_tokens=NEW_TOKENS, eos_token_id=[], **more
        )
        seconds = time.perf_counter() - began_s
        print(json.dumps(seconds / output.stats.num_new_tokens), flush=True)


class Worker:
    def __init__(self, folder: Path, cache: str):
        place = {"PYTHONPATH": str(folder), "SPECMOE_CACHE": cache, "XDG_CACHE_HOME": cache}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--work"],
            cwd=folder,
            env=os.environ | place,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, cell: tuple) -> float:
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def measure(workers: dict[str, Worker], seconds: float) -> list[dict]:
    times = {cell: {name: [] for name in workers} for cell in CELLS}
    for cell in CELLS:
        for worker in workers.values():
            worker.run(cell)  # the first one warms up
    until, turns = time.monotonic() + seconds, random.Random(0)
    while time.monotonic() < until:
        for cell in CELLS:
            order = turns.sample(sorted(workers), len(workers))
            for name in order:
                times[cell][name].append(workers[name].run(cell))
    return [row(cell, found) for cell, found in times.items()]


def row(cell: tuple, found: dict[str, list[float]]) -> dict:
    model, method, batch = cell
    return {
        "model": model,
        "method": method,
        "batch": batch,
        "pairs": len(found["now"]),
        "now_over_before": interval(found["now"], found["before"]),
        "control": interval(found["again"], found["before"]),
    }


def interval(first: list[float], second: list[float]) -> list[float]:
    """Median of the paired quotients, with its 95 % interval (bootstrap)."""
    quotients, draw = [a / b for a, b in zip(first, second, strict=True)], random.Random(1)
    medians = sorted(
        statistics.median(draw.choices(quotients, k=len(quotients))) for _ in range(2000)
    )
    return [round(x, 4) for x in (statistics.median(quotients), medians[50], medians[-51])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="a folder with the earlier commit")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work()
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        folders = {"before": options.before, "again": options.before, "now": HERE}
        workers = {
            name: Worker(folder, new if name == "now" else old) for name, folder in folders.items()
        }
        rows = measure(workers, options.seconds)
        for worker in workers.values():
            worker.process.stdin.close()
            worker.process.wait()
    head = {
        "date": time.strftime("%Y-%m-%d"),
        "before": commit(options.before),
        "now": commit(HERE),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    options.out.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    print(options.out.read_text())


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    return subprocess.check_output(command, text=True).strip()


if __name__ == "__main__":
    main()
