"""The last line of each notebook of the course: back, next, and where else it opens.

``python tests/notebook_links.py`` writes the lines again, after a notebook came or went; with the repository's name,
``python tests/notebook_links.py OWNER/specmoe``, also links that open the notebook in Colab and in Binder. A repository
without a public address has none: they would lead nowhere.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LINE = re.compile(r"^\*\*(?:Back|Next|Open in):\*\* .*$")
COLAB = "https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"
BINDER = "https://mybinder.org/v2/gh/{repository}/main?labpath=notebooks%2F{name}"


def course(folder: Path = FOLDER) -> list[Path]:
    return sorted(folder.glob("[0-9]*.ipynb"))


def title(path: Path) -> str:
    """``02 Why offloading hurts``: number and heading."""
    first = nbformat.read(path, as_version=4).cells[0].source
    return f"{path.name[:2]} {re.search(r'^# (?:Appendix: )?(.+)$', first, re.M)[1]}"


def lines(paths: list[Path], repository: str | None = None) -> list[str]:
    """The line of each notebook, in the course's order."""
    found = []
    for place, path in enumerate(paths):
        around = {"Back": place - 1, "Next": place + 1}
        parts = [
            f"**{word}:** [{title(paths[at])}]({paths[at].name})"
            for word, at in around.items()
            if 0 <= at < len(paths)
        ]
        if repository:
            where = {"repository": repository, "name": path.name}
            there = f"[Colab]({COLAB.format(**where)}), [Binder]({BINDER.format(**where)})"
            parts.append(f"**Open in:** {there}")
        found.append(" · ".join(parts))
    return found


def written(source: str, line: str) -> str:
    """A cell's text that ends in ``line``; one that stood there before is replaced."""
    kept = source.splitlines()
    if kept and LINE.match(kept[-1]):
        kept = kept[:-1]
    return "\n".join(kept).rstrip() + f"\n\n{line}"


def main(repository: str | None = None) -> None:
    paths = course()
    for path, line in zip(paths, lines(paths, repository)):
        notebook = nbformat.read(path, as_version=4)
        last = notebook.cells[-1]
        if last.cell_type != "markdown":
            raise SystemExit(f"{path.name} ends in no text: give it a last cell of Markdown")
        changed = written(last.source, line)
        if changed != last.source:
            last.source = changed
            path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2])
