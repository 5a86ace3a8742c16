"""Deliberate bugs in the core: does a test notice? ``make mutate``.

Comes in: the files in ``TARGETS`` and the tests that guard each. Goes out: one row per bug in a JSON file: where it is,
what was changed, "caught" or "survived". Bugs are drawn with a fixed seed from all places where one operator, number,
condition or call can be changed; each runs in a copy of the tree, so a killed run leaves nothing behind.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("specmoe", "tests", "pyproject.toml", "README.md")
SECONDS = 240  # a bug that makes the tests hang is caught, too
TARGETS = {
    "specmoe/expert_store.py": ["test_store.py", "test_faults.py"],
    "specmoe/resident_pool.py": ["test_pool.py"],
    "specmoe/experts.py": ["test_round.py", "test_exactness.py", "test_draft_choices.py"],
    "specmoe/kv_cache.py": ["test_kv_cache.py", "test_exactness.py"],
    "specmoe/sampling.py": ["test_sampling.py"],
    "specmoe/speculate.py": ["test_round.py", "test_engine.py"],
    "specmoe/jobs.py": ["test_jobs.py"],
    "specmoe/checkpoint/packing.py": ["test_checkpoint.py"],
}
COMPARED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
}  # fmt: skip
COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*", ast.BitAnd: "|", ast.BitOr: "&"}


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
        if not isinstance(function, ast.FunctionDef) or function.name.startswith(("__repr", "_repr")):
            continue
        for node in (inner for statement in function.body for inner in ast.walk(statement)):
            for place, new in changes(node):
                start = at(place.lineno, place.col_offset)
                end = at(place.end_lineno, place.end_col_offset)
                yield Bug(file, place.lineno, start, end, text[start:end], new)


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What may be written in place of ``node``: (the node replaced, new source)."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = COMPARED[type(node.ops[0])]
        yield node, f"({ast.unparse(node.left)} {new} {ast.unparse(node.comparators[0])})"
    elif isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        if not any(isinstance(side, ast.JoinedStr) for side in (node.left, node.right)):
            yield node, f"({ast.unparse(node.left)} {COMPUTED[type(node.op)]} {ast.unparse(node.right)})"
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
        if ".trace" not in ast.unparse(node.value.func) and "logger" not in ast.unparse(node.value.func):
            yield node, "pass"
    elif isinstance(node, ast.Name) and node.id in ("min", "max"):
        yield node, "max" if node.id == "min" else "min"
    elif isinstance(node, ast.If) and isinstance(node.test, ast.Call | ast.Name | ast.Attribute):
        yield node.test, f"(not {ast.unparse(node.test)})"


def draw(per_file: int, only: str) -> list[Bug]:
    """``per_file`` bugs of each target, the same on every machine."""
    drawn = []
    for file in TARGETS:
        if only in file:
            text = (ROOT / file).read_text(encoding="utf-8")
            found = sorted(set(bugs_in(file, text)), key=lambda bug: (bug.start, bug.end, bug.new))
            drawn += sorted(random.Random(file).sample(found, min(per_file, len(found))), key=lambda bug: bug.start)
    return drawn


def tests_fail(tree: Path, file: str) -> bool:
    """Whether the tests that guard ``file`` fail, or do not end."""
    tests = [f"tests/{name}" for name in TARGETS[file]]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=120", *tests]
    env = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def copy_tree(place: Path) -> Path:
    for name in COPIED:
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored)
        else:
            shutil.copy(source, place / name)
    return place


def judge(bug: Bug) -> dict:
    with tempfile.TemporaryDirectory() as place:
        tree = copy_tree(Path(place))
        bug.plant(tree)
        verdict = "caught" if tests_fail(tree, bug.file) else "survived"
    row = {name: value for name, value in asdict(bug).items() if name not in ("start", "end")}
    print(f"{verdict:8} {bug.file}:{bug.line}  {bug.old!r} -> {bug.new!r}", flush=True)
    return {**row, "verdict": verdict}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-file", type=int, default=12)
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/mutation.json")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    bugs = draw(args.per_file, args.only)
    with tempfile.TemporaryDirectory() as place:
        tree = copy_tree(Path(place))
        broken = [file for file in dict.fromkeys(bug.file for bug in bugs) if tests_fail(tree, file)]
    if broken:
        print(f"the tests of {', '.join(broken)} fail without any bug: mend them first", file=sys.stderr)
        return 1
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        rows = list(pool.map(judge, bugs))
    caught = sum(row["verdict"] == "caught" for row in rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"bugs": len(rows), "caught": caught, "rows": rows}, indent=1) + "\n")
    print(f"{caught} of {len(rows)} bugs caught; rows in {args.out.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
