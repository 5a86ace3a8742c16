"""The docs site without Sphinx: each page is in a table of contents, once, and links between pages lead
somewhere. ``make docs`` builds it, with warnings as errors and nothing that a page would load from a network."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from test_environment import PROJECT, ROOT

DOCS = ROOT / "docs"
CONF = (DOCS / "conf.py").read_text(encoding="utf-8")
PATTERNS = re.findall(r'"([^"]+)"', re.search(r"include_patterns = \[(.*?)\]", CONF, re.S)[1])
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


def listed(index: str) -> list[Path]:
    """What stands in the tables of contents of docs/index.md."""
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", index, re.S)
    names = [line for block in blocks for line in block.splitlines() if line[:1] not in (":", "")]
    found = []
    for name in names:
        endings = [name] if Path(name).suffix else [f"{name}.md", f"{name}.ipynb"]
        there = [path.resolve() for one in endings for path in DOCS.glob(one)]
        assert there, f"docs/index.md lists {name}, which is not there"
        found += there
    return found


def source(path: Path) -> str:
    """Of a notebook its Markdown."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def prose(path: Path) -> str:
    """Markdown without its blocks of code."""
    return re.sub(r"^```.*?^```", "", source(path), flags=re.S | re.M)


def anchors(path: Path) -> set[str]:
    """As GitHub and myst make them: small letters, no marks, a hyphen for each blank."""
    heads = re.findall(r"^#{1,4} (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def dead_links(path: Path) -> list[str]:
    dead = []
    for link in re.findall(
        r"\]\(([^()\s]+)\)|(?:href|src)=\"([^\"]+)\"", re.sub("`[^`]*`", "", prose(path))
    ):
        file, _, anchor = "".join(link).partition("#")
        if re.match(r"\w+:", file):
            continue
        target = (path.parent / file).resolve() if file else path
        is_page = target.suffix in (".md", ".ipynb") and target.is_file()
        if not target.exists() or (anchor and is_page and anchor not in anchors(target)):
            dead.append(f"{path.relative_to(ROOT)}: {''.join(link)}")
    return dead


def test_every_page_is_in_the_contents_once():
    found = listed((DOCS / "index.md").read_text(encoding="utf-8"))
    assert len(found) == len(set(found))
    assert sorted([*found, DOCS / "index.md"]) == PAGES


@pytest.mark.parametrize(
    "path", [*PAGES, ROOT / "README.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(path):
    assert dead_links(path) == []


def test_a_dead_link_and_a_page_that_is_nowhere_are_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page.write_text('# A head, here\n[a](#a-head-here) [b](#b) [c](c.md) <a href="d.html">d</a>')
    assert dead_links(page) == ["page.md: #b", "page.md: c.md", "page.md: d.html"]
    with pytest.raises(AssertionError, match="nowhere, which is not there"):
        listed("```{toctree}\n:hidden:\nmethod\nnowhere\n```")


# All that leads out of the repository, so that a new one is looked at once: no test has a network.
OUTSIDE = {
    "https://arxiv.org/abs/2604.10152",
    "https://download.pytorch.org/whl/cpu",
    "https://github.com/OWNER/specmoe",
    "https://helm.dask.org",
    "https://semver.org",
}


def outside(text: str) -> set[str]:
    return set(re.findall(r"https?://[^\s()\[\]<>\"'`}]+", text))


def test_links_that_lead_out_are_the_ones_that_were_looked_at():
    pages = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("binder/*")]
    pages += ROOT.glob(".github/**/*.yml")
    found = set().union(*(outside(source(path)) for path in pages))
    assert found == OUTSIDE
    assert not [
        link for link in found if not re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./-]*\w)?", link)
    ]
    assert outside("[a](http://b.org/c.) `https://d.e`") == {"http://b.org/c.", "https://d.e"}


def test_notebooks_are_not_executed_and_make_docs_installs_what_conf_imports():
    assert 'nb_execution_mode = "off"' in CONF and "intersphinx" not in CONF
    extra = {re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"]["docs"]}
    named = {"sphinx", re.search(r'extensions = \["(\w+)"', CONF)[1].replace("_", "-")}
    assert extra == named | {re.search(r'html_theme = "(\w+)"', CONF)[1]}
