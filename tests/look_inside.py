"""What the notebooks print of the package's own source, without running them.

``python tests/look_inside.py`` writes the source of today into the cells that show some;
``tests/test_notebooks.py`` says when that is due.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def shown(notebook: dict) -> Iterator[tuple[dict, str]]:
    """(output of the committed cell, what it would print now) of every cell that shows source."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    exec("\n".join(_imports(cell) for cell in cells), names)
    for cell in cells:
        text = "".join(cell["source"])
        if "inspect.getsource" in text:
            printed: list = []
            exec(text, names | {"display": printed.append})
            yield cell["outputs"][0], printed[0].data


def _imports(cell: dict) -> str:
    text = "".join(cell["source"])
    if text.startswith("%"):
        return ""
    nodes = ast.parse("\n".join(line for line in text.split("\n") if not line.startswith("%"))).body
    return "\n".join(
        ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
    )


def refresh(path: Path) -> bool:
    """Whether anything was old."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    found = [(output, now) for output, now in shown(notebook) if committed(output) != now]
    for output, now in found:
        output["data"]["text/markdown"] = now.splitlines(keepends=True)
    if found:
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    return bool(found)


def committed(output: dict) -> str:
    return "".join(output["data"]["text/markdown"])


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path.name, "written again" if refresh(path) else "is up to date")
