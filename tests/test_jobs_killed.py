"""A job on a real engine with lines of random lengths and options: killed, resumed, steady.

The long form writes what it measured to ``$SPECMOE_RESULTS/jobs.json``; docs/testing-jobs.md has
the last one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest
import torch

from specmoe.cli import parser as cli
from specmoe.cli import printing

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


def wait_for_lines(out: Path, num: int, job: subprocess.Popen) -> None:
    """Until ``out`` has ``num`` lines. Only what is new is read: looking must cost no more at line
    5,000 than at the first."""
    while not out.exists():
        assert job.poll() is None, "it ended by itself"
        time.sleep(0.02)
    with out.open("rb") as file:
        there = 0
        while (there := there + file.read().count(b"\n")) < num:
            assert job.poll() is None, "it ended by itself"
            time.sleep(0.02)


def kill_in_the_middle(words: list[str], lines: list[str], out: Path, num_before: int) -> None:
    """A job that is given all lines but the last over a pipe that stays open, so that it cannot
    end, is killed when it has written ``num_before`` lines."""
    command = [sys.executable, "-m", "specmoe", *words, "--prompts", "-", "--out", str(out)]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    # The pipe holds less than the lines, and a job that died would not take them.
    feeder = threading.Thread(target=feed, args=(job.stdin, lines[:-1]))
    feeder.start()
    try:
        wait_for_lines(out, num_before, job)
    finally:
        job.kill()
        job.wait()
        feeder.join()
        job.stdin.close()


def feed(stream: BinaryIO, lines: list[str]) -> None:
    try:
        stream.write("".join(lines).encode())
        stream.flush()
    except BrokenPipeError:
        # It was killed before it had read them all.
        pass


def seed_of(out: Path) -> int:
    """What a killed job drew: it stands in each sampled line that has no seed of its own."""
    drawn = [
        record["seed"]
        for record in map(json.loads, out.read_text().splitlines())
        if record.get("seed", 0) > 9
    ]
    return drawn[0]


def check_killed_and_resumed(model: object, num_lines: int, batch: int, folder: Path) -> dict:
    """How many lines were there when it was killed, and how many at the end."""
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
    num_lines = whole.read_bytes().count(b"\n")
    assert num_there < num_lines
    return {"killed_after": num_there, "lines": num_lines}


def test_a_killed_job_with_a_drawn_seed_ends_as_if_nobody_had_killed_it(tiny, tmp_path):
    check_killed_and_resumed(tiny("mixtral", torch.float32), 300, 16, tmp_path)


def memory_bytes() -> tuple[int, int]:
    """Resident, and of that what belongs to no file. The system takes pages of files back when it
    needs them, so only the latter cannot hide that a process grows."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, own = (int(status[name].split()[0]) * 2**10 for name in ("VmRSS", "RssAnon"))
    return resident, own


class Look(NamedTuple):
    """What is seen at a line of the output, in the process that runs the job."""

    lines: int
    wall_s: float
    cpu_s: float
    resident: int
    own: int


def steadiness(seen: list[Look]) -> dict:
    """From line 1,024 on, when all that is allocated once has been: memory at the beginning, at the
    most and at the end, and lines per second of this process's own time and of the clock's. The
    machine is shared with other work, so only the former can say whether the job gets slower."""
    settled = [one for one in seen if one.lines >= 1024]
    middle = settled[len(settled) // 2]
    halves = [(settled[0], middle), (middle, settled[-1])]
    return {
        **growth("rss", [one.resident for one in settled]),
        **growth("own", [one.own for one in settled]),
        "lines_per_cpu_s": [round((b.lines - a.lines) / (b.cpu_s - a.cpu_s), 1) for a, b in halves],
        "lines_per_s": [round((b.lines - a.lines) / (b.wall_s - a.wall_s), 1) for a, b in halves],
        "minutes_from_1024_to_end": round((settled[-1].wall_s - settled[0].wall_s) / 60, 1),
    }


def growth(what: str, memory: list[int]) -> dict:
    return {
        f"{what}_mib_at_1024": round(memory[0] / 2**20, 1),
        f"{what}_mib_at_most": round(max(memory) / 2**20, 1),
        f"{what}_mib_at_end": round(memory[-1] / 2**20, 1),
        f"{what}_drift_percent": round(100 * (max(memory) / memory[0] - 1), 2),
    }


def test_a_job_that_grows_or_gets_slower_is_seen():
    steady = [Look(n, n / 10, n / 20, 2**27, 2**26) for n in range(256, 10_241, 256)]
    assert steadiness(steady)["rss_drift_percent"] == steadiness(steady)["own_drift_percent"] == 0
    assert steadiness(steady)["lines_per_cpu_s"] == [20, 20]
    for name in ("resident", "own"):
        leaking = [one._replace(**{name: getattr(one, name) + 400 * one.lines}) for one in steady]
        found = steadiness(leaking)
        assert max(found["rss_drift_percent"], found["own_drift_percent"]) > 2
    assert all(b > 0 for b in memory_bytes()) and memory_bytes()[1] < memory_bytes()[0]
    slower = [one._replace(cpu_s=one.cpu_s + one.lines**2 / 1e5) for one in steady]
    first, second = steadiness(slower)["lines_per_cpu_s"]
    assert second < 0.8 * first


def test_the_page_has_the_numbers_of_the_last_run():
    page = (ROOT / "docs/testing-jobs.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs/results/jobs.json").read_text(encoding="utf-8"))
    assert found["rows"] == 10_000 and found["rss_drift_percent"] < 2
    three = [found[f"rss_mib_at_{when}"] for when in ("1024", "most", "end")]
    halves = [", ".join(map(str, found[f"lines_per_{what}"])) for what in ("cpu_s", "s")]
    for said in (
        f"({found['model']}, batch {found['batch']};",
        f"{found['date']}), by",
        f"in {found['minutes_in_all']} minutes",
        f"{found['killed_after']} of {found['lines']} lines",
        f"| {', '.join(map(str, three))} MiB: drift {found['rss_drift_percent']} % |",
        *(f"half | {numbers} |" for numbers in halves),
    ):
        assert said in " ".join(page.split()), said


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_rows_take_steady_time_and_memory_and_survive_a_kill(tmp_path, monkeypatch):
    seen: list[Look] = []  # of the latest run: the one from end to end

    def look(done: int, *_) -> None:
        if seen and done < seen[-1].lines:
            seen.clear()
        if done % 256 == 0:
            seen.append(Look(done, time.perf_counter(), time.process_time(), *memory_bytes()))

    monkeypatch.setattr(printing, "progress", lambda unit: look)
    began_s = time.perf_counter()
    found = {"model": "tiny-balanced", "rows": 10_000, "batch": 64}
    found |= check_killed_and_resumed(found["model"], found["rows"], found["batch"], tmp_path)
    found |= steadiness(seen)
    found["minutes_in_all"] = round((time.perf_counter() - began_s) / 60, 1)
    found["date"] = time.strftime("%Y-%m-%d")
    print(json.dumps(found))
    if folder := os.environ.get("SPECMOE_RESULTS"):
        Path(folder, "jobs.json").write_text(json.dumps(found, indent=1) + "\n")
    assert found["rss_drift_percent"] < 2
    first, second = found["lines_per_cpu_s"]
    assert second > 0.8 * first
