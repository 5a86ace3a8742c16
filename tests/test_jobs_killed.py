"""A job on a real engine with lines of random lengths and options: killed, resumed, steady.

The long form writes what it measured to ``$SPECMOE_RESULTS/jobs.json``; docs/testing-jobs.md has
the last one.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specmoe.cli import commands
from specmoe.cli import parser as cli

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
WORDS = "--draft-experts 4 --max-new-tokens 4 --store memory --batch-size".split()


def random_lines(num: int, seed: int = 0) -> list[str]:
    """Ids of random length, with options on many lines; here and there a blank, a broken or a
    refused line."""
    draw, lines = random.Random(seed), []
    for number in range(num):
        row: dict = {"prompt": [draw.randrange(3, 60) for _ in range(draw.randint(1, 40))]}
        row |= {"id": number} if draw.random() < 0.5 else {}
        row |= {"max_new_tokens": draw.randint(1, 6)} if draw.random() < 0.5 else {}
        row |= {"temperature": draw.choice([0, 0.7, 1.3])} if draw.random() < 0.3 else {}
        row |= {"top_k": draw.randint(2, 9)} if draw.random() < 0.1 else {}
        row |= {"seed": draw.randrange(9)} if draw.random() < 0.05 else {}
        row |= {"prompt": [10**6]} if draw.random() < 0.005 else {}
        lines.append(json.dumps(row))
        lines += draw.choices(["", "{broken"], k=draw.random() < 0.02)
    return [line + "\n" for line in lines]


def kill_in_the_middle(words: list[str], lines: list[str], out: Path, num_before: int) -> None:
    """A job that is given all lines but the last over a pipe that stays open, so that it cannot
    end, is killed when it has written ``num_before`` lines."""
    command = [sys.executable, "-m", "specmoe", *words, "--prompts", "-", "--out", str(out)]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    try:
        for line in lines[:-1]:
            job.stdin.write(line.encode())
        job.stdin.flush()
        while not out.exists() or out.read_bytes().count(b"\n") < num_before:
            assert job.poll() is None, "it ended by itself"
            time.sleep(0.02)
    finally:
        job.kill()
        job.stdin.close()
        job.wait()


def seed_of(out: Path) -> int:
    """What a killed job drew: it stands in each sampled line that has no seed of its own."""
    drawn = [
        record["seed"]
        for record in map(json.loads, out.read_text().splitlines())
        if record.get("seed", 0) > 9
    ]
    return drawn[0]


def check_killed_and_resumed(model: Path, num_lines: int, batch: int, folder: Path) -> int:
    """Returns how many lines were there when it was killed."""
    lines = random_lines(num_lines)
    prompts, out, whole = folder / "in.jsonl", folder / "out.jsonl", folder / "whole.jsonl"
    prompts.write_text("".join(lines))
    words = ["generate", str(model), *WORDS, str(batch)]
    kill_in_the_middle(words, lines, out, num_lines // 2)
    num_there, seed = out.read_bytes().count(b"\n"), seed_of(out)
    words += ["--prompts", str(prompts), "--out"]
    assert cli.main([*words, str(out), "--resume"]) == 1
    assert cli.main([*words, str(whole), "--seed", str(seed)]) == 1
    assert out.read_bytes() == whole.read_bytes()
    assert num_there < whole.read_bytes().count(b"\n")
    return num_there


def test_a_killed_job_with_a_drawn_seed_ends_as_if_nobody_had_killed_it(tiny, tmp_path):
    check_killed_and_resumed(tiny("mixtral", torch.float32), 300, 16, tmp_path)


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_rows_take_steady_time_and_memory_and_survive_a_kill(
    tiny, tmp_path, monkeypatch
):
    seen: list[tuple[int, float, int]] = []  # (lines, seconds, bytes) of the run from end to end

    def look(done: int) -> None:
        if seen and done < seen[-1][0]:
            seen.clear()
        if done % 256 == 0:
            seen.append((done, time.perf_counter(), memory_bytes()))

    monkeypatch.setattr(commands, "_lines_done", lambda: look)
    model = tiny("mixtral", torch.float32)
    num_there = check_killed_and_resumed(model, 10_000, 64, tmp_path)
    settled = [one for one in seen if one[0] >= 1024]
    memory = [one[2] for one in settled]
    rates = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(settled, settled[1:])]
    half = len(rates) // 2
    found = {
        "rows": 10_000,
        "killed_after": num_there,
        "seconds_of_the_last_9000": settled[-1][1] - settled[0][1],
        "rss_mib_at_1024": memory[0] / 2**20,
        "rss_mib_at_end": memory[-1] / 2**20,
        "rss_drift_percent": 100 * (max(memory) / memory[0] - 1),
        "rows_per_s_first_half": statistics.median(rates[:half]),
        "rows_per_s_second_half": statistics.median(rates[half:]),
    }
    print(json.dumps(found))
    if folder := os.environ.get("SPECMOE_RESULTS"):
        Path(folder, "jobs.json").write_text(json.dumps(found, indent=1) + "\n")
    assert found["rss_drift_percent"] < 2
