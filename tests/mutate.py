"""Deliberate bugs in the core: does a test notice? ``make mutate``.

Comes in: the files in ``TARGETS``. Goes out: one row per bug in a JSON file: where it is, what was
changed, "caught" and by which test, or "survived". Bugs are drawn from all places where one
operator, number, condition or call can be changed, the same on every machine. First the tests run
once without a bug, to see which of them run which line (``guards``); then each bug is planted in a
copy of the tree, and judged by tests that run its line, in a fork of a process that has imported
everything and collected the tests before: most bugs cost a second or two.

The tree is copied once, into ``--work``; what is found is written there as it is found, and a run
that was ended goes on where it stopped. ``--renew`` copies the tree again: what was caught stands
while its file is the same, what survived is judged again.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import guards

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("specmoe", "tests", "docs", "pyproject.toml", "README.md")
# A bug that makes a test hang is caught, too: after so many times the seconds that it takes without
# it, and never sooner than this.
PATIENCE, FEWEST_S = 6, 45
IMPORTED = """
    torch pandas hypothesis transformers.generation.utils safetensors.torch pytest_timeout tokenizers
    transformers.models.mixtral.modeling_mixtral transformers.models.qwen2_moe.modeling_qwen2_moe
    transformers.models.gpt_oss.modeling_gpt_oss transformers.models.nllb_moe.modeling_nllb_moe
    transformers.models.deepseek_v3.modeling_deepseek_v3
""".split()
# File -> the test files that are asked about its bugs, those that know most about it first.
TARGETS = {
    "offload/store": "test_store test_faults test_identity",
    "offload/read_queue": "test_store test_life",
    "offload/pool": "test_pool test_engine",
    "offload/request": "test_pool test_engine",
    "offload/tier": "test_pool test_store test_engine",
    "offload/installed": "test_draft_choices test_engine test_life",
    "offload/stand_ins": "test_draft_sets test_draft_choices",
    "offload/votes": "test_draft_choices test_engine",
    "engine/run": "test_life test_engine",
    "offload/experts": "test_draft_choices test_engine",
    "offload/dispatch": "test_draft_choices test_engine",
    "speculate/loop": "test_round test_engine",
    "cli/jobs": "test_jobs test_job_lines test_job_files",
    "cli/job_lines": "test_job_lines test_jobs test_job_files",
    "cli/job_files": "test_job_files test_jobs",
    "model/kv_cache": "test_kv_cache test_life test_engine",
    "speculate/sampling": "test_sampling test_round",
    "speculate/processors": "test_generation_settings",
    "checkpoint/packing": "test_cache test_identity test_checkpoint",
    "checkpoint/blocks": "test_gguf",
    "checkpoint/gguf_header": "test_gguf",
    "checkpoint/gguf_file": "test_gguf",
    "checkpoint/gguf_recipes": "test_gguf",
    "checkpoint/formats": "test_low_bit",
    "checkpoint/low_bit": "test_low_bit",
    "checkpoint/opening": "test_checkpoint_store",
    "checkpoint/sums": "test_checkpoint_store",
    "checkpoint/space": "test_checkpoint",
    "model/recurrent": "test_recurrent",
    "model/native": "test_products",
    "model/stored": "test_kernels test_low_bit",
    "offload/base_store": "test_store",
    "offload/shards": "test_checkpoint_store",
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


# What a reader sees only in an error: nothing has to notice when it is cut elsewhere.
MESSAGES = ("Error", "Warning", "warn")


@dataclass(frozen=True)
class Bug:
    """``old`` at ``[start, end)`` of the text of ``file`` becomes ``new``; ``lines``, the first and
    the last of the statement. ``number`` tells equal changes of one function apart."""

    file: str
    function: str
    number: int
    line: int
    lines: tuple[int, int]
    start: int
    end: int
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.file} {self.function} {self.old} -> {self.new} {self.number}"

    @property
    def lot(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def planted(self, text: str) -> str:
        assert text[self.start : self.end] == self.old
        return text[: self.start] + self.new + text[self.end :]


def bugs_in(file: str, text: str) -> Iterator[Bug]:
    """Every bug that can be planted in the bodies of a file's functions."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(line: int, column: int) -> int:  # columns of ast count UTF-8 bytes
        row = text[starts[line - 1] : starts[line]].encode()
        return starts[line - 1] + len(row[:column].decode())

    seen = Counter()
    for function in functions_of(ast.parse(text)):
        for node, statement in (pair for part in function.body for pair in walk(part)):
            for place, new in changes(node):
                start = at(place.lineno, place.col_offset)
                end = at(place.end_lineno, place.end_col_offset)
                what = (function.name, text[start:end], new)
                yield Bug(
                    file,
                    what[0],
                    seen[what],
                    place.lineno,
                    lines_of(statement),
                    start,
                    end,
                    *what[1:],
                )
                seen[what] += 1


def functions_of(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Those that do not only make a message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "__repr" not in f"_{node.name}":
            if not (node.returns and ast.unparse(node.returns).endswith(MESSAGES)):
                yield node


def walk(
    node: ast.AST, statement: ast.stmt | None = None
) -> Iterator[tuple[ast.AST, ast.stmt | None]]:
    """Like ``ast.walk``, with the statement around each node, but not into messages, annotations
    and other functions."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.FunctionDef) or makes_a_message(node):
        return
    statement = node if isinstance(node, ast.stmt) else statement
    yield node, statement
    for name, value in ast.iter_fields(node):
        inner = value if isinstance(value, list) else [value]
        for child in inner if name not in ("annotation", "returns", "msg") else []:
            if isinstance(child, ast.AST):
                yield from walk(child, statement)


def makes_a_message(node: ast.AST) -> bool:
    node = node.value if isinstance(node, ast.Expr) else node
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith(MESSAGES)


def lines_of(statement: ast.stmt) -> tuple[int, int]:
    """First and last; of a block, of what stands before its body."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno
    return statement.lineno, max(statement.lineno, last)


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


def draw(per_file: int, only: str, root: Path = ROOT) -> list[Bug]:
    """``per_file`` bugs of each target by lot: the same on every machine, and those of more are
    those of fewer and others."""
    drawn = []
    for name in TARGETS:
        file = f"specmoe/{name}.py"
        if only in file:
            text = (root / file).read_text(encoding="utf-8")
            found = sorted(bugs_in(file, text), key=lambda bug: bug.lot)[:per_file]
            drawn += sorted(found, key=lambda bug: (bug.start, bug.end, bug.new))
    return drawn


class Workplace:
    """``--work``: the copy of the tree, what its tests run, and the rows so far."""

    def __init__(self, place: Path, renew: bool):
        self.place = place
        self.tree = place / "tree"
        place.mkdir(parents=True, exist_ok=True)
        self.lock = open(place / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another run works in {place}: give --work another folder")
        if renew or not (place / "copied").exists():
            shutil.rmtree(self.tree, ignore_errors=True)
            copy_tree(ROOT, self.tree)
            shutil.rmtree(place / "targets", ignore_errors=True)
            shutil.copytree(self.tree / "specmoe", place / "targets", ignore=not_python)
            (place / "copied").touch()
            self.keep(lambda row: row["verdict"] == "caught" and row["code"] == self.code(row))

        # A run that was ended may have left a bug.
        shutil.copytree(place / "targets", self.tree / "specmoe", dirs_exist_ok=True)

    def code(self, row: dict) -> str:
        return digest(self.tree / row["file"])

    def rows(self) -> dict[str, dict]:
        """Name of a bug -> its row."""
        path = self.place / "rows.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {row["name"]: row for row in map(json.loads, lines)}

    def keep(self, which: Callable[[dict], bool]) -> None:
        rows = [row for row in self.rows().values() if which(row)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.place / "rows.jsonl").write_text(text, encoding="utf-8")

    def add(self, bug: Bug, verdict: str, by: str) -> None:
        row = {"name": bug.name, **asdict(bug), "verdict": verdict, "by": by}
        row["code"] = self.code(row)
        with open(self.place / "rows.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    @contextmanager
    def planted(self, bug: Bug) -> Iterator[Callable[[], None]]:
        """Within, ``bug`` is in the tree's file, for processes that tests start; what is yielded
        puts it into the process that calls."""
        path = self.tree / bug.file
        text = path.read_text(encoding="utf-8")
        path.write_text(bug.planted(text), encoding="utf-8")
        try:
            yield partial(guards.swap, path, text, bug.planted(text))
        finally:
            path.write_text(text, encoding="utf-8")

    def known(self, tests: str) -> dict[str, dict]:
        """What each test of the files ``tests`` runs; recorded again where such a file or a target
        has changed."""
        known = {}
        (self.place / "known").mkdir(exist_ok=True)
        for name in tests.split():
            file, out = f"tests/{name}.py", self.place / "known" / f"{self.state(name)}.json"
            if not out.exists():
                began_s = time.monotonic()
                guards.in_a_fork(guards.record, self.tree, file, target_files(), out)
                print(f"{file}: {time.monotonic() - began_s:.0f} s", flush=True)
            known |= json.loads(out.read_text(encoding="utf-8"))
        return known

    def state(self, test: str) -> str:
        files = [f"tests/{test}.py", "tests/conftest.py", *sorted(target_files())]
        states = "".join(digest(self.tree / file) for file in files)
        return f"{test}-{hashlib.sha256(states.encode()).hexdigest()[:12]}"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def target_files() -> list[str]:
    return [f"specmoe/{name}.py" for name in TARGETS]


def not_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (Path(folder, name).is_dir() or name.endswith(".py"))]


def copy_tree(source: Path, place: Path) -> None:
    place.mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__", "long", "browser")
    for name in COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, place / name, ignore=ignored)
        else:
            shutil.copy(source / name, place / name)


def judge_all(work: Workplace, bugs: list[Bug]) -> None:
    """Those that have no row yet, target by target: a target's tests are collected once."""
    done = work.rows()
    for name, tests in TARGETS.items():
        left = [bug for bug in bugs if bug.file == f"specmoe/{name}.py" and bug.name not in done]
        if left:
            trials = guards.Trials(
                partial(judge_some, work, left, work.known(tests), os.dup(1)), work.place / "heard"
            )
            guards.in_a_fork(guards.collect, work.tree, tests, trials)


def judge_some(
    work: Workplace, bugs: list[Bug], known: dict[str, dict], shown: int, trials: guards.Trials
) -> None:
    for bug in bugs:
        began_s = time.monotonic()
        verdict, by = judge(trials, bug, partial(work.planted, bug), known)
        if verdict != "not judged":
            work.add(bug, verdict, by)
        what = f"{bug.file}:{bug.line}  {bug.old!r} -> {bug.new!r}  ({by})"
        os.write(shown, f"{verdict:8} {time.monotonic() - began_s:4.0f} s  {what}\n".encode())


def judge(
    trials: guards.Trials, bug: Bug, planted: Callable, known: dict[str, dict]
) -> tuple[str, str]:
    """-> "caught" and by what, "survived" and of how many tests, or "not judged" and why."""
    asked = guards.choose(known, bug.file, range(bug.lines[0], bug.lines[1] + 1))
    limits = {name: max(FEWEST_S, PATIENCE * known[name]["seconds"]) for name in asked}
    while asked:
        with planted() as plant:
            status, first = trials.try_out(plant, {name: limits[name] for name in asked})
        if status == 0:
            return "survived", f"{len(asked)} tests"
        # A test that fails without a bug, too, after those before it, says nothing; and a machine
        # that is busy is no bug.
        same = asked[: asked.index(first) + 1] if first else asked
        without, unsound = trials.try_out(lambda: None, {name: limits[name] / 3 for name in same})
        if without == 0:
            by = first or "the process of its tests ends"
            return "caught", by + (" hangs" if status is None else "")
        if not unsound or without is None:
            return "not judged", "its tests are slow, or end without a failure"
        asked.remove(unsound)
    return "survived", "no test runs it"


SHOWN = ("file", "function", "line", "old", "new", "verdict", "by")


def write(out: Path, found: list[dict]) -> None:
    """The rows of all bugs that are drawn."""
    caught = sum(row["verdict"] == "caught" for row in found)
    rows = [{name: row[name] for name in SHOWN} for row in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"bugs": len(rows), "caught": caught, "rows": rows}, indent=1)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"{caught} of {len(rows)} bugs caught; rows in {out.name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-file", type=int, default=6)
    parser.add_argument("--only", default="", help="part of a file's name; writes no results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/mutation.json")
    parser.add_argument("--work", type=Path, default=ROOT / "build/mutate")
    parser.add_argument("--renew", action="store_true", help="copy the tree again")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    for name in IMPORTED:
        importlib.import_module(name)
    work = Workplace(args.work.resolve(), args.renew)
    bugs = draw(args.per_file, args.only, work.tree)
    judge_all(work, bugs)
    rows = work.rows()
    if missing := [bug.name for bug in bugs if bug.name not in rows]:
        print("not judged, run it again:", *missing, sep="\n  ", file=sys.stderr)
        return 1
    if not args.only:
        write(args.out, [rows[bug.name] for bug in bugs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
