"""What a committed notebook must be. A notebook comes in, the rules it breaks go out, one sentence
each.

Rules: every code cell executed, in order, and one that ends in a value or a print shows it; no
error in an output; no cell over 20 lines; no logic that belongs in the package (a class, a function
over 5 lines, three nested loops); outputs under 300 KB in all, pictures counted as the bytes they
are rather than as base64; nothing fetched from outside by an HTML, SVG or Markdown output; no path
of somebody's machine; widget metadata that GitHub can render (it carries ``state``); the kernel
``python3`` named, or JupyterLab asks for one; a cell tagged ``parameters``.

One notebook builds the method before the reader's eyes (``BUILDS``): its cells define classes and
functions of up to 35 lines, which tests/test_scratch.py compares with the package.

A cell tagged ``by-hand`` may build again what its notebook teaches, however long, where a later cell
sets it beside the package: an ``assert`` names every function and class that it defines.

In ``tutorials/`` the code is what a student writes, without parameters. In ``tutorials/exercises``
it is also still to be run: there only cell length, outputs and metadata count.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINES = 20
BUILDS = ("01_specmoe_from_scratch",)
MAX_BUILT_LINES = 35
MAX_FUNCTION_LINES = 5
MAX_NESTED_LOOPS = 2  # a sweep over two settings is what a notebook is for
MAX_OUTPUT_BYTES = 300_000
WIDGETS = "application/vnd.jupyter.widget-state+json"
# Namespaces (xmlns="http://...") and links to follow (<a href>) fetch nothing: only what a page
# loads by itself counts.
_FETCHED = re.compile(
    r"""(?:\bsrc|\bdata|\bposter)\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)"""
    r"""|<(?:link|image|use)\b[^>]*?href\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)"""
    r"""|(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"'\s)]+)"""
    r"""|!\[[^\]]*\]\(\s*((?:https?:)?//[^\s)]+)""",
    re.IGNORECASE,
)
_HOST_PATH = re.compile(
    r"(?<![\w.:/<])/(?:home|root|work|tmp|Users|private|opt|mnt|usr/lib|usr/local)/[\w.\-/]+|[A-Z]:\\+Users\\+\w+"
)


def broken_rules(
    notebook: dict[str, Any], tutorial: bool = False, exercise: bool = False, builds: bool = False
) -> list[str]:
    """Every rule of this file that ``notebook`` (its JSON) breaks; empty: none. ``builds``: it
    defines what it teaches."""
    code = [
        (number, cell)
        for number, cell in enumerate(notebook["cells"], 1)
        if cell["cell_type"] == "code"
    ]
    most = MAX_BUILT_LINES if builds else MAX_LINES
    found = [*_too_long(code, most), *_outputs(code), *_widgets(notebook), *_no_kernel(notebook)]
    if not exercise:
        found += _not_executed(code)
    if not (tutorial or exercise):
        found += [*([] if builds else _package_logic(code)), *_no_parameters(notebook)]
    return found


def lint_file(path: Path) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return broken_rules(
        notebook,
        tutorial="tutorials" in path.parts,
        exercise="exercises" in path.parts,
        builds=path.stem in BUILDS,
    )


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def _filled(code: list) -> list:
    """Cells that hold more than comments."""
    return [(number, cell) for number, cell in code if ast.parse(_python(cell)).body]


def _python(cell: dict[str, Any]) -> str:
    """The source without IPython's own lines; a cell in another language (%%bash) counts as one
    statement."""
    source = _text(cell["source"])
    if source.lstrip().startswith("%%"):
        return "..."
    return re.sub(r"^(\s*)[%!].*$", r"\1...", source, flags=re.MULTILINE)


def _too_long(code: list, most: int) -> Iterator[str]:
    for number, cell in code:
        lines = len(_text(cell["source"]).strip().splitlines())
        if lines > most:
            yield f"cell {number} has {lines} lines: at most {most}"


def _not_executed(code: list) -> Iterator[str]:
    filled = _filled(code)
    counts = [cell.get("execution_count") for _, cell in filled]
    yield from (
        f"cell {number} was not executed"
        for (number, _), count in zip(filled, counts)
        if count is None
    )
    if None not in counts and counts != sorted(set(counts)):
        yield f"cells were executed out of order: {counts}"
    yield from (
        f"cell {number} shows nothing although it ends in a value"
        for number, cell in filled
        if _mute(cell)
    )


def _mute(cell: dict[str, Any]) -> bool:
    """A cell that calls print or ends in a bare name or attribute must have an output; a call may
    return None."""
    body = ast.parse(_python(cell)).body
    last = body[-1].value if isinstance(body[-1], ast.Expr) else None
    printed = (
        isinstance(last, ast.Call)
        and isinstance(last.func, ast.Name)
        and last.func.id in ("print", "display")
    )
    shown = isinstance(last, ast.Name | ast.Attribute | ast.Subscript | ast.BinOp) or printed
    return shown and not _text(cell["source"]).rstrip().endswith(";") and not cell.get("outputs")


def _package_logic(code: list) -> Iterator[str]:
    proven = set()
    for number, cell in reversed(code):
        proven |= _asserted(cell)
        if "by-hand" in cell["metadata"].get("tags", []):
            yield from (
                f"cell {number} builds {name} by hand, and no assert sets it beside the package"
                for name in _defined(cell) - proven
            )
            continue
        for node in ast.walk(ast.parse(_python(cell))):
            if isinstance(node, ast.ClassDef):
                yield f"cell {number} defines class {node.name}: it belongs in the package"
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    limit = f"over {MAX_FUNCTION_LINES} it belongs in the package"
                    yield f"cell {number} defines {node.name} of {lines} lines: {limit}"
            elif _loops(node) > MAX_NESTED_LOOPS:
                yield f"cell {number} has three loops in each other: they belong in the package"


def _defined(cell: dict[str, Any]) -> set[str]:
    """The functions and classes that a cell defines at its top."""
    return {
        node.name
        for node in ast.parse(_python(cell)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def _asserted(cell: dict[str, Any]) -> set[str]:
    """Names in a cell that asserts something."""
    nodes = list(ast.walk(ast.parse(_python(cell))))
    if not any(isinstance(node, ast.Assert) for node in nodes):
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _loops(node: ast.AST) -> int:
    """How many loops stand in each other, ``node`` itself one of them; 0: it is no loop."""
    if not isinstance(node, ast.For | ast.While):
        return 0
    return 1 + max((_loops(inner) for inner in ast.walk(node) if inner is not node), default=0)


def _outputs(code: list) -> Iterator[str]:
    size = sum(_size(output) for _, cell in code for output in cell.get("outputs", []))
    if size > MAX_OUTPUT_BYTES:
        yield f"outputs take {size // 1000} KB: at most {MAX_OUTPUT_BYTES // 1000}"
    for number, cell in code:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"cell {number} failed: {output['ename']}"
            yield from (f"cell {number} {problem}" for problem in _text_problems(output))


def _size(output: dict[str, Any]) -> int:
    """Bytes of an output; base64 writes a picture's three bytes as four characters."""
    pictures = [
        _text(value)
        for kind, value in output.get("data", {}).items()
        if kind in ("image/png", "image/jpeg")
    ]
    return len(json.dumps(output)) - sum(len(picture) // 4 for picture in pictures)


def _text_problems(output: dict[str, Any]) -> Iterator[str]:
    texts = {"text/plain": output.get("text", ""), **output.get("data", {})}
    for kind, value in texts.items():
        if (
            not isinstance(value, str | list)
            or kind.startswith("image/")
            and kind != "image/svg+xml"
        ):
            continue
        text = _text(value)
        if kind != "text/plain" and (match := _FETCHED.search(text)):
            yield f"fetches {next(filter(None, match.groups()))}"
        if match := _HOST_PATH.search(text):
            yield f"shows a path of this machine: {match[0]}"


def _widgets(notebook: dict[str, Any]) -> Iterator[str]:
    widgets = notebook["metadata"].get("widgets")
    if widgets is not None and "state" not in widgets.get(WIDGETS, {}):
        yield "metadata.widgets lacks `state`: GitHub shows 'Invalid Notebook'"
    if "state" in (widgets or {}).get(WIDGETS, {}):
        size = len(json.dumps(widgets))
        if size > MAX_OUTPUT_BYTES:
            yield f"metadata.widgets takes {size // 1000} KB: at most {MAX_OUTPUT_BYTES // 1000}"


def _no_parameters(notebook: dict[str, Any]) -> Iterator[str]:
    if not any("parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"]):
        yield "no cell is tagged `parameters`"


def _no_kernel(notebook: dict[str, Any]) -> Iterator[str]:
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        yield "metadata names no kernel `python3`: JupyterLab asks for one before it runs"
