"""What a page names exists: commands with their options, modules that are run, files, Python's names and keywords, and what the
prose of a notebook calls. docs/log.md is a diary, true of its day, and is not looked at; targets of make are in test_environment."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import pkgutil
import re
import shlex
import symtable
from pathlib import Path

import pytest

import specmoe
from specmoe.cli.parser import COMMANDS, build_parser, parse
from specmoe.engine.settings import REFUSED
from specmoe.engine.typed import GenerateArguments, LoadArguments
from specmoe.errors import OptionError
from specmoe.lab import figures

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "tutorials/*.md", "specmoe/lab/**/*.md")
    for page in sorted(ROOT.glob(pattern))
    if page.name != "log.md"
]
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.S | re.M)


def cells_of(notebook: Path, kind: str) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def markdown(page: Path) -> str:
    if page.suffix == ".ipynb":
        return "\n\n".join(cells_of(page, "markdown"))
    return page.read_text(encoding="utf-8")


def inline(text: str) -> list[str]:
    """What stands in single backquotes, on one line each."""
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", FENCED.sub("", text))]


def blocks(text: str, language: str) -> list[str]:
    return [block for named, block in FENCED.findall(text) if named == language]


def typed(text: str) -> list[str]:
    """The lines of a terminal: blocks without a language, and what stands in the prose."""
    return [line for block in blocks(text, "") for line in block.splitlines()] + inline(text)


# ---- specmoe COMMAND ... ----

# What is missing where the prose names a command or an option alone.
INCOMPLETE = re.compile("are required|is required|expected one argument|one of the arguments")


@functools.cache
def options_of(command: str) -> set[str]:
    return set(build_parser()[1][command]._option_string_actions)


def wrong_command(line: str) -> str | None:
    found = re.match(r"(?:\S*/)?specmoe ([a-z-].*)", re.sub(r"\$\(.*\)", "X", line))
    words = shlex.split(found[1], comments=True) if found else ["--help"]
    command = next((word for word in words if not word.startswith("-")), None)
    if command is None:
        return None
    if command not in COMMANDS:
        return f"no command {command}"
    if unknown := {w.split("=")[0] for w in words if re.match("--?[a-z]", w)} - options_of(command):
        return f"{command} has no {unknown}"
    try:
        return wrong_report(parse(words))
    except OptionError as refusal:
        return None if INCOMPLETE.search(str(refusal)) else str(refusal)


def wrong_report(args) -> str | None:
    """The report exists, and has the parameters."""
    if args.command != "report" or args.action not in ("params", "run"):
        return None
    file = ROOT / f"notebooks/{args.name}.ipynb"
    if not file.is_file():
        return f"no report {args.name}"
    given = {pair.split("=")[0] for pair in getattr(args, "parameter", [])}
    known = set(re.findall(r"^(\w+):", cells_of(file, "code")[0], re.M))
    return f"{args.name} has no {given - known}" if given - known else None


# ---- python -m specmoe... ----


def wrong_module(line: str) -> str | None:
    found = re.search(r"\bpython3? -m (specmoe[\w.]*) ?(.*)", line)
    if not found:
        return None
    place = ROOT / found[1].replace(".", "/")
    source = next(
        (p for p in (place.with_suffix(".py"), place / "__main__.py") if p.is_file()), None
    )
    if source is None:
        return f"no module {found[1]} to run"
    text, words = source.read_text(encoding="utf-8"), shlex.split(found[2], comments=True)
    wanted = [word for word in words if word.startswith("--")]
    wanted += [word for word in words[:1] if re.fullmatch("[a-z-]+", word)]
    return next((f"{found[1]} has no {word}" for word in wanted if f'"{word}"' not in text), None)


# ---- files ----

FILE = re.compile(r"[\w.][\w./-]*/[\w.-]+\.(?:md|py|ipynb|jsonl?|c|toml|ya?ml|png|cfg|sh|html)")
MADE = ("reports/", "sweeps/")  # by a command, when it runs


STEMS = {path.stem for path in (*NOTEBOOKS, *ROOT.glob("tutorials/source/*.py"))}


def missing_file(page: Path, word: str) -> bool:
    """Also a notebook by its name alone, ``09_when_does_it_pay``."""
    if re.fullmatch(r"notebooks/\d\w*|\d\d_\w+", word):
        return word.removeprefix("notebooks/") not in STEMS
    if not FILE.fullmatch(word) or word.startswith(MADE):
        return False
    places = (ROOT, ROOT / "specmoe", ROOT / "docs", page.parent)
    return not any((place / word).is_file() for place in places)


# ---- names and keywords of Python ----


def missing_name(word: str) -> bool:
    found = re.fullmatch(r"(specmoe(?:\.\w+)+)(?:\(.*\))?", word)
    if not found or found[1].endswith(".html"):
        return False
    try:
        pkgutil.resolve_name(found[1])
    except (ImportError, AttributeError):
        return True
    return False


@functools.cache
def keywords() -> dict[str, set[str]]:
    """Function -> the keywords that it takes."""
    decodes = {
        *GenerateArguments.__optional_keys__,
        *inspect.signature(specmoe.Engine.generate).parameters,
    }
    decodes |= {"generation_config", *REFUSED}  # those may be given their neutral value
    called = {"plan": specmoe.plan, "sweep": specmoe.sweep, "register": specmoe.register}
    known = {name: set(inspect.signature(call).parameters) for name, call in called.items()}
    loads = set(LoadArguments.__optional_keys__)
    return known | {
        "load": loads,
        "generate": decodes,
        "start": decodes,
        "custom_generate": decodes,
    }


def unknown_keywords(source: str) -> list[str]:
    """Of the calls in ``source``; what is no Python says nothing."""
    try:
        tree = ast.parse(re.sub(r", \.\.\.(?=[])}])", "", source))
    except SyntaxError:
        return []
    known, wrong = keywords(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            given = {one.arg for one in node.keywords if one.arg}
            wrong += [f"{name}({one}=)" for one in given - known.get(name, given)]
    return wrong


# ---- what the prose of a notebook calls ----


def wrong_figures(prose: str, code: str) -> list[str]:
    """``figures.NAME(ARGUMENTS)`` in the prose: a figure that exists, of things that the notebook has."""
    bound = {
        s.get_name()
        for s in symtable.symtable(code, "cells", "exec").get_symbols()
        if s.is_assigned()
    }
    wrong = []
    for call in re.findall(r"`(figures\.\w+\(.*?\))`", prose):
        tree = ast.parse(call)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"figures"}
        drawn = call.split("(")[0].removeprefix("figures.")
        wrong += [call] if used - bound or not hasattr(figures, drawn) else []
    return wrong


# ---- the pages ----


def wrong(page: Path) -> list[str]:
    text = markdown(page)
    lines = typed(text)
    said = [
        f"{line}: {why}" for line in lines if (why := wrong_command(line) or wrong_module(line))
    ]
    said += [word for word in inline(text) if missing_file(page, word) or missing_name(word)]
    return said + [
        one for code in (*blocks(text, "python"), *inline(text)) for one in unknown_keywords(code)
    ]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page):
    assert wrong(page) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_the_figures_that_a_notebooks_prose_calls_are_of_what_it_has(notebook):
    code = [re.sub(r"^\s*[%!].*$", "", cell, flags=re.M) for cell in cells_of(notebook, "code")]
    assert wrong_figures("\n".join(cells_of(notebook, "markdown")), "\n".join(code)) == []


FAULTS = [
    ("`specmoe benhc tiny-skewed`", "specmoe benhc tiny-skewed: no command benhc"),
    ("```\nspecmoe bench tiny-skewed --gama 4\n```", "specmoe bench tiny-skewed --gama 4: bench has no {'--gama'}"),
    ("`specmoe cache empty`", "specmoe cache empty: "),
    ("`specmoe report run report -p batches=1`", "specmoe report run report -p batches=1: report has no {'batches'}"),
    ("`specmoe report run paper_page`", "specmoe report run paper_page: no report paper_page"),
    ("`python -m specmoe.lab.clock`", "python -m specmoe.lab.clock: no module specmoe.lab.clock to run"),
    ("`python -m specmoe.lab.paper measure --hours 2`", "python -m specmoe.lab.paper measure --hours 2: specmoe.lab.paper has no --hours"),
    ("`python -m specmoe.lab.paper write`", "python -m specmoe.lab.paper write: specmoe.lab.paper has no write"),
    ("`offload/eviction.py`", "offload/eviction.py"),
    ("`notebooks/09`", "notebooks/09"),
    ("`09_when_it_pays`", "09_when_it_pays"),
    ("`specmoe.lab.simulate.no_such()`", "specmoe.lab.simulate.no_such()"),
    ('```python\nspecmoe.load("m", fast_mem="2GiB")\n```', "load(fast_mem=)"),
    ("`generate(prompts, gama=4, ...)`", "generate(gama=)"),
]  # fmt: skip
FINE = """`specmoe generate --draft`, `specmoe plan --like even`, `specmoe report run report -p seed=1`, `specmoe --help`, `pool.py`, `05_self_draft`,
`python -m specmoe.lab.bench.run --only tracing`, `offload/pool.py`, `reports/new.html`, `specmoe.load("x.gguf", store="disk")`,
`engine.generate(**tokenizer(texts), num_beams=1)`"""


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_each_kind_of_fault_is_found(text, said, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    (found,) = wrong(page)
    assert found.startswith(said)


def test_what_is_right_or_incomplete_is_let_pass(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(FINE)
    assert wrong(page) == []


def test_a_figure_of_what_a_notebook_has_not_is_found():
    code = "four = 1\nkept = [output for output in range(3)]"
    prose = "`figures.pool_replay(four)`, `figures.pool_replay(output)` and `figures.pool_replays(four)`"
    assert wrong_figures(prose, code) == [
        "figures.pool_replay(output)",
        "figures.pool_replays(four)",
    ]
