"""The training and held-out texts of the shipped models: generated, or taken from Python's own
library.

Comes in: a domain, a seed, which side of the split. Goes out: documents (text with a prompt and the
expected completion). Two things keep the sides apart: their generators' seeds differ, and every
document carries keys (the number, the date, the pair, the source file ...) of which one tenth,
fixed by CRC-32, is held out: a training document has no held-out key, a held-out one has at least
one.
"""

from __future__ import annotations

import ast
import functools
import random
import sysconfig
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import check_choice
from .counting import arithmetic_document, dates_document, numbers_document
from .templates import Document, csv_document, json_document, sql_document, story_document

HELD_OUT_OF = 10  # one key in ten
_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "pydoc_data",
}
_MIN_CHARS, _MAX_CHARS = 80, 1000


@dataclass(frozen=True)
class Prompt:
    """A held-out (or training) prompt; ``expected`` is None where no single completion is right."""

    text: str
    expected: str | None
    domain: str


def is_held_out(key: str) -> bool:
    """The fixed split rule: the same on every machine and for every seed."""
    return zlib.crc32(key.encode()) % HELD_OUT_OF == 0


def stdlib_files() -> list[str]:
    """Python's own library sources, as sorted paths relative to it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted(p.as_posix() for p in paths if not _SKIPPED.intersection(p.parts))


@functools.lru_cache(maxsize=2)
def _files_of(held_out: bool) -> tuple[str, ...]:
    return tuple(name for name in stdlib_files() if is_held_out(f"python {name}") == held_out)


@functools.lru_cache(maxsize=4096)
def functions_of(name: str) -> tuple[str, ...]:
    """The functions and methods of one library file that are neither tiny nor long, unindented."""
    source = (Path(sysconfig.get_paths()["stdlib"]) / name).read_text(
        encoding="utf-8", errors="replace"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()
    lines = source.splitlines()
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    texts = (textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) for node in nodes)
    return tuple(
        text for text in texts if _MIN_CHARS <= len(text) <= _MAX_CHARS and text.count("\n") >= 2
    )


def python_document(rng: random.Random, held_out: bool) -> Document:
    """One function of the standard library; the prompt is its first two lines."""
    while True:
        name = rng.choice(_files_of(held_out))
        functions = functions_of(name)
        if functions:
            text = rng.choice(functions)
            cut = text.index("\n", text.index("\n") + 1)
            return Document(text[:cut], text[cut:], (f"python {name}",), exact=False)


GENERATORS: dict[str, Callable[[random.Random], Document]] = {
    "json": json_document,
    "sql": sql_document,
    "csv": csv_document,
    "stories": story_document,
    "numbers": numbers_document,
    "dates": dates_document,
    "arithmetic": arithmetic_document,
}
DOMAINS = (*GENERATORS, "python")


def documents(domain: str, seed: int, held_out: bool = False) -> Iterator[Document]:
    """An endless, deterministic stream of one domain's documents from one side of the split."""
    check_choice("domain", domain, DOMAINS)
    rng = random.Random(f"{'held-out' if held_out else 'train'} {domain} {seed}")
    while True:
        if domain == "python":
            yield python_document(rng, held_out)
            continue
        document = GENERATORS[domain](rng)
        if any(map(is_held_out, document.keys)) == held_out:
            yield document


def mixture(
    weights: dict[str, float], seed: int, held_out: bool = False
) -> Iterator[tuple[str, Document]]:
    """(domain, document) drawn by weight, for training and validation."""
    streams = {domain: documents(domain, seed, held_out) for domain in weights}
    rng = random.Random(f"mixture {seed} {held_out}")
    while True:
        domain = rng.choices(list(weights), weights=list(weights.values()))[0]
        yield domain, next(streams[domain])


def prompts(domain: str, n: int, seed: int = 0, held_out: bool = True) -> list[Prompt]:
    """``n`` different prompts of one domain, with the expected completion where exact match makes
    sense."""
    found: dict[str, Prompt] = {}
    for document in documents(domain, seed, held_out):
        if len(found) == n:
            break
        expected = document.completion if document.exact else None
        found.setdefault(document.prompt, Prompt(document.prompt, expected, domain))
    return list(found.values())


def held_out_prompts(n: int, seed: int = 0) -> list[str]:
    """``n`` held-out prompts, the domains taking turns: what benches and reports run on."""
    per_domain = -(-n // len(DOMAINS))
    columns = [prompts(domain, per_domain, seed) for domain in DOMAINS]
    return [prompt.text for turn in zip(*columns, strict=True) for prompt in turn][:n]
