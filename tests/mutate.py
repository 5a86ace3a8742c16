"""Deliberate bugs in the core: does a test notice? ``make mutate``.

Comes in: the files in ``TARGETS`` and the tests that guard each. Goes out: one row per bug in a
JSON file: where it is, what was changed, "caught" or "survived". Bugs are drawn with a fixed seed
from all places where one operator, number, condition or call can be changed. Each is planted in a
copy of the tree, and judged in a fork of this process, which has imported torch and transformers
before: most bugs cost a few seconds.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("specmoe", "tests", "pyproject.toml", "README.md")
# A bug that makes the tests hang is caught, too: after so long a test, or all of a bug's tests.
TEST_S, BUG_S = 40, 200
IMPORTED = """
    torch pandas hypothesis transformers.generation.utils safetensors.torch pytest_timeout tokenizers
    transformers.models.mixtral.modeling_mixtral transformers.models.qwen2_moe.modeling_qwen2_moe
    transformers.models.gpt_oss.modeling_gpt_oss transformers.models.nllb_moe.modeling_nllb_moe
    transformers.models.deepseek_v3.modeling_deepseek_v3
""".split()
BOOKS = (
    "bytes_of_the_trace or hits_and_misses or accept_and_round or routed_tokens or "
    "prefetches_are_used"
)
EXACT = "mixtral and (every_method or no_option) or every_length or eos_at"
ENDS = (
    "left_behind or streamer or ending or calls_back or second_thread or forked or dropped or "
    "left_early or rounds"
)
PACKS = (
    "test_cache or altered_byte or changes_while or killed or second_pack or interrupted or "
    "copy_that or verify"
)
# File -> its tests, the quickest first, and what of them runs (-k).
TARGETS = {
    "offload/store": ("test_store test_faults test_identity", "test_store or in_time or record"),
    "offload/read_queue": ("test_store test_life", f"test_store or {ENDS}"),
    "offload/pool": ("test_pool test_engine", f"test_pool or {BOOKS}"),
    "offload/experts": (
        "test_draft_choices test_exactness test_engine",
        f"draft_choices or {EXACT} or {BOOKS}",
    ),
    "offload/dispatch": ("test_draft_choices test_exactness", f"draft_choices or {EXACT}"),
    "offload/votes": (
        "test_draft_choices test_engine",
        f"draft_choices or while_a_layer or {BOOKS}",
    ),
    "model/kv_cache": (
        "test_kv_cache test_life test_exactness",
        f"kv_cache or test_a_cache or memory or {EXACT}",
    ),
    "speculate/processors": (
        "test_generation_settings",
        "processor or own_settings or greedy_among or criteria or stop",
    ),
    "speculate/sampling": (
        "test_sampling",
        "not model and not end_to_end and not broken and not independently",
    ),
    "speculate/loop": ("test_round test_engine", f"test_round or {BOOKS}"),
    "engine/run": ("test_life test_engine", f"{ENDS} or {BOOKS} or second_run or stats"),
    "cli/jobs": ("test_jobs test_job_lines test_job_files", "not ten_thousand"),
    "cli/job_lines": ("test_job_lines test_jobs", ""),
    "cli/job_files": ("test_job_files test_jobs", "not ten_thousand"),
    "checkpoint/packing": ("test_cache test_checkpoint test_identity", PACKS),
}
COMPARED = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
}
COMPUTED = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "//",
    ast.FloorDiv: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
# What only raises a TypeError when one computes with it.
SEQUENCES = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp, ast.Dict)


@dataclass(frozen=True)
class Bug:
    """``old`` at ``[start, end)`` of the text of ``file`` becomes ``new``."""

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def plant(self, tree: Path) -> None:
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        assert text[self.start : self.end] == self.old
        path.write_text(text[: self.start] + self.new + text[self.end :], encoding="utf-8")


def bugs_in(file: str, text: str) -> Iterator[Bug]:
    """Every bug that can be planted in the bodies of a file's functions."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(line: int, column: int) -> int:  # columns of ast count UTF-8 bytes
        row = text[starts[line - 1] : starts[line]].encode()
        return starts[line - 1] + len(row[:column].decode())

    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef) or function.name.startswith(
            ("__repr", "_repr")
        ):
            continue
        for node in (inner for statement in function.body for inner in walk(statement)):
            for place, new in changes(node):
                start = at(place.lineno, place.col_offset)
                end = at(place.end_lineno, place.end_col_offset)
                yield Bug(file, place.lineno, start, end, text[start:end], new)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Like ``ast.walk``, but not into messages, annotations and other functions."""
    yield node
    for name, value in ast.iter_fields(node):
        inner = value if isinstance(value, list) else [value]
        for child in inner if name not in ("annotation", "returns", "msg") else []:
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.Raise | ast.JoinedStr | ast.FunctionDef
            ):
                yield from walk(child)


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What may be written in place of ``node``: (the node replaced, new source)."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = COMPARED[type(node.ops[0])]
        yield node, f"({ast.unparse(node.left)} {new} {ast.unparse(node.comparators[0])})"
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        if not any(is_sequence(side) for side in (node.left, node.right)):
            yield (
                node,
                (f"({ast.unparse(node.left)} {COMPUTED[type(node.op)]} {ast.unparse(node.right)})"),
            )
    elif isinstance(node, ast.BoolOp):
        joined = " or " if isinstance(node.op, ast.And) else " and "
        yield node, "(" + joined.join(ast.unparse(value) for value in node.values) + ")"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield node, str(node.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield node, str(not node.value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if ".trace" not in ast.unparse(node.value.func) and "logger" not in ast.unparse(
            node.value.func
        ):
            yield node, "pass"
    elif isinstance(node, ast.Name) and node.id in ("min", "max"):
        yield node, "max" if node.id == "min" else "min"
    elif isinstance(node, ast.If) and isinstance(node.test, ast.Call | ast.Name | ast.Attribute):
        yield node.test, f"(not {ast.unparse(node.test)})"


def is_sequence(node: ast.AST) -> bool:
    return (
        isinstance(node, SEQUENCES)
        or isinstance(node, ast.Constant)
        and isinstance(node.value, str)
    )


def draw(per_file: int, only: str) -> list[Bug]:
    """``per_file`` bugs of each target, the same on every machine."""
    drawn = []
    for name in TARGETS:
        file = f"specmoe/{name}.py"
        if only in file:
            text = (ROOT / file).read_text(encoding="utf-8")
            found = sorted(set(bugs_in(file, text)), key=lambda bug: (bug.start, bug.end, bug.new))
            drawn += sorted(
                random.Random(file).sample(found, min(per_file, len(found))),
                key=lambda bug: bug.start,
            )
    return drawn


def copy_tree(place: Path) -> Path:
    for name in COPIED:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__", "long", "browser")
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        else:
            shutil.copy(source, place / name)
    return place


def run_tests(tree: Path, file: str) -> None:
    """In a process of its own, which ends with pytest's exit status."""
    import pytest

    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    os.environ.update(PYTHONPATH=str(tree), TMPDIR=str(tree))
    tempfile.tempdir = None
    tests, chosen = TARGETS[file.removeprefix("specmoe/").removesuffix(".py")]
    named = [f"tests/{name}.py" for name in tests.split()]
    quiet = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--timeout={TEST_S}",
        f"--basetemp={tree / 'out'}",
    ]
    os._exit(int(pytest.main([*quiet, "-k", chosen, *named])))


class Trial:
    """A bug (or None) in a copy of the tree, and the process that runs the tests of ``file``."""

    def __init__(self, file: str, bug: Bug | None):
        self.bug = bug
        self.file = file
        self.place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        tree = copy_tree(Path(self.place.name))
        if bug is not None:
            bug.plant(tree)
        self.process = multiprocessing.get_context("fork").Process(
            target=run_tests, args=(tree, file)
        )
        self.began_s = time.monotonic()
        self.process.start()

    def is_over(self) -> bool:
        if not self.process.is_alive():
            return True
        if self.seconds() < BUG_S:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        return True

    def seconds(self) -> float:
        return time.monotonic() - self.began_s

    def verdict(self) -> str:
        self.process.join()
        self.place.cleanup()
        return "survived" if self.process.exitcode == 0 else "caught"


def judge(trials: list[tuple[str, Bug | None]], workers: int) -> list[str]:
    """-> "caught" or "survived" of each (file, bug)."""
    waiting, under_way, verdicts = list(enumerate(trials)), {}, {}
    while waiting or under_way:
        while waiting and len(under_way) < workers:
            index, trial = waiting.pop(0)
            under_way[index] = Trial(*trial)
        wait([trial.process.sentinel for trial in under_way.values()], timeout=1)
        for index, trial in list(under_way.items()):
            if trial.is_over():
                verdicts[index] = under_way.pop(index).verdict()
                say(trial, verdicts[index])
    return [verdicts[index] for index in range(len(trials))]


def say(trial: Trial, verdict: str) -> None:
    bug = trial.bug
    what = f":{bug.line}  {bug.old!r} -> {bug.new!r}" if bug else " without a bug"
    print(f"{verdict:8} {trial.seconds():4.0f} s  {trial.file}{what}", flush=True)


def row(bug: Bug, verdict: str) -> dict:
    shown = {name: value for name, value in asdict(bug).items() if name not in ("start", "end")}
    return {**shown, "verdict": verdict}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-file", type=int, default=6)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/mutation.json")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    for name in IMPORTED:
        importlib.import_module(name)
    bugs = draw(args.per_file, args.only)
    files = list(dict.fromkeys(bug.file for bug in bugs))
    broken = [
        file
        for file, verdict in zip(
            files, judge([(file, None) for file in files], args.workers), strict=True
        )
        if verdict == "caught"
    ]
    if broken:
        print(
            f"the tests of {', '.join(broken)} fail without any bug: mend them first",
            file=sys.stderr,
        )
        return 1
    verdicts = judge([(bug.file, bug) for bug in bugs], args.workers)
    rows = [row(*pair) for pair in zip(bugs, verdicts, strict=True)]
    caught = verdicts.count("caught")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"bugs": len(rows), "caught": caught, "rows": rows}, indent=1) + "\n"
    )
    print(f"{caught} of {len(rows)} bugs caught; rows in {args.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
