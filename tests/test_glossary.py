"""docs/glossary.md lists every term in the order in which the notebooks meet it: no notebook uses a
term before the one that defines it, and that one defines it (``*term*``) where it first uses it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
NOTEBOOKS = {path.name[:2]: path for path in sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))}
ROW = re.compile(r"^\| ([^|]+?) \| ([^|]+?) \| (\d\d) \|$", re.MULTILINE)


def terms() -> list[tuple[str, str]]:
    """(term, number of the notebook that defines it), from top to bottom."""
    rows = ROW.findall(GLOSSARY.read_text(encoding="utf-8"))
    return [(term, number) for names, _, number in rows for term in names.split(", ")]


def cells(path: Path) -> list[str]:
    """The prose of a notebook, cell by cell, without code."""
    markdown = [
        "".join(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    ]
    return [re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL) for text in markdown]


def uses(term: str, prose: str) -> bool:
    return bool(re.search(rf"\b{re.escape(term)}(s|e?d)?\b", prose, re.IGNORECASE))


def defines(term: str, prose: str) -> bool:
    return bool(re.search(rf"\*{re.escape(term)}\w{{0,3}}\*", prose, re.IGNORECASE))


def too_early(term: str, number: str, notebooks: dict[str, list[str]]) -> list[str]:
    """What is wrong with where ``term`` is met first, in words."""
    early = [
        f"{other} uses '{term}', which {number} defines"
        for other, prose in notebooks.items()
        if other < number and any(uses(term, cell) for cell in prose)
    ]
    first = next((cell for cell in notebooks.get(number, []) if uses(term, cell)), "")
    if number in notebooks and not defines(term, first):
        early.append(f"{number} does not say what '{term}' is where it first uses it")
    return early


@pytest.mark.parametrize(("term", "number"), terms())
def test_no_notebook_uses_a_term_before_it_is_defined(term, number):
    notebooks = {name: cells(path) for name, path in NOTEBOOKS.items()}
    assert too_early(term, number, notebooks) == []


def test_the_order_of_the_glossary_is_that_of_the_notebooks():
    numbers = [number for _, number in terms()]
    assert len(numbers) > 40 and numbers == sorted(numbers)
    assert len({term for term, _ in terms()}) == len(numbers)


def test_a_term_that_is_used_too_early_or_never_defined_is_noticed():
    early = {"00": ["Some slots."], "01": ["A *slot* is a place."]}
    assert too_early("slot", "01", early) == ["00 uses 'slot', which 01 defines"]
    late = {"00": ["Some slots.", "A *slot* is a place."]}
    assert len(too_early("slot", "00", late)) == 1
    assert too_early("slot", "00", {"00": ["A *slot* is a place.", "Slots."]}) == []


def test_the_start_and_the_readme_lead_to_it():
    start = "".join(cells(NOTEBOOKS["00"]))
    assert "](../docs/glossary.md)" in start
    assert "](docs/glossary.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
