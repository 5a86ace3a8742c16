"""How large everything is, against its budget: ``make sizes``. Lines are of files formatted at 100 columns.

Comes in: the package. Goes out: a table of rooms and what is larger than the house allows. ``tests/test_sizes.py`` holds the
package to ``CEILINGS``, which may only be lowered.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "specmoe"
CORE = [
    "errors.py",
    "shipped.py",
    "registry.py",
    "options.py",
    "trace.py",
    "__init__.py",
    "checkpoint",
    "model",
    "offload",
    "speculate",
    "engine",
]
NOT_AN_EVENING = (
    "model/seq2seq.py",
    "model/inputs.py",
    "model/translation.py",
    "engine/exactness.py",
    "engine/progress.py",
)
EVENING = ["trace.py", "model", "offload", "speculate", "engine"]
METHOD = [
    "speculate/loop.py", "speculate/block.py", "speculate/sampling.py", "speculate/planner.py",
    "speculate/confidence.py", "speculate/draft_sets.py", "offload/experts.py", "offload/dispatch.py",
    "offload/pool.py", "offload/request.py", "offload/tier.py", "offload/stand_ins.py", "offload/slots.py", "offload/policies.py", "offload/votes.py", "offload/affinity.py",
]  # fmt: skip
# What issue 2/6 asks for, in lines.
BUDGETS = {"core": 6500, "an evening": 3500, "the method": 1600}
LARGEST = {
    "lines of a file": 300,
    "lines of a function": 30,
    "methods of a class": 15,
    "attributes": 12,
    "arguments": 6,
}


def files(names: list[str], without: tuple[str, ...] = ()) -> list[Path]:
    found = []
    for name in names:
        path = PACKAGE / name
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.relative_to(PACKAGE).as_posix() not in without]


def num_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def totals() -> dict[str, int]:
    """Lines of what the budgets are about, and of all."""
    return {
        "core": num_lines(files(CORE)),
        "an evening": num_lines(files(EVENING, NOT_AN_EVENING)),
        "the method": num_lines(files(METHOD)),
        "the package": num_lines(sorted(PACKAGE.rglob("*.py"))),
    }


def too_large(paths: list[Path]) -> Iterator[tuple[str, str, int]]:
    """(what, where, how many) of everything above ``LARGEST``."""
    for path in paths:
        text, name = path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).as_posix()
        found = [("lines of a file", name, len(text.splitlines()))]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                where = f"{name}:{node.name}"
                found.append(("lines of a function", where, node.end_lineno - node.lineno + 1))
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found.append(
                    (
                        "arguments",
                        where,
                        len([arg for arg in given if arg.arg not in ("self", "cls")]),
                    )
                )
            elif isinstance(node, ast.ClassDef):
                found += _of_class(node, f"{name}:{node.name}")
        yield from ((what, where, count) for what, where, count in found if count > LARGEST[what])


def _of_class(node: ast.ClassDef, where: str) -> list[tuple[str, str, int]]:
    methods = [child for child in node.body if isinstance(child, ast.FunctionDef)]
    stored = {
        target.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
        for target in [child]
        if isinstance(child.value, ast.Name) and child.value.id == "self"
    }
    return [("methods of a class", where, len(methods)), ("attributes", where, len(stored))]


def late_attributes(paths: list[Path]) -> Iterator[str]:
    """``file:class.attribute`` of attributes that a method other than ``__init__`` sets first."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                early, late = set(), set()
                for method in (child for child in node.body if isinstance(child, ast.FunctionDef)):
                    for child in ast.walk(method):
                        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                            if isinstance(child.value, ast.Name) and child.value.id == "self":
                                (early if method.name == "__init__" else late).add(child.attr)
                fields = {
                    child.target.id for child in node.body if isinstance(child, ast.AnnAssign)
                }
                name = path.relative_to(PACKAGE).as_posix()
                yield from (
                    f"{name}:{node.name}.{attribute}" for attribute in sorted(late - early - fields)
                )


def main() -> int:
    for name, lines in totals().items():
        budget = BUDGETS.get(name)
        print(f"{name:14} {lines:6}" + (f"  of {budget}" if budget else ""))
    for room in CORE:
        print(f"  {room:12} {num_lines(files([room])):6}")
    for what, where, count in sorted(too_large(files(CORE))):
        print(f"{what}: {where} has {count}, at most {LARGEST[what]}")
    for name in late_attributes(files(CORE)):
        print(f"set outside __init__: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
