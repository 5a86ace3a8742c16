"""Imports point one way, up the list below, and importing the package does nothing but define names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "specmoe"

# A file imports only from files before it. A folder counts as one file: inside it, imports are free.
ORDER = """
    errors config trace adapters checkpoint transfers expert_store eviction resident_pool affinity draft_sets kernels opaque
    experts kv_cache decoder seq2seq sampling planner processors confidence drafting
    speculate metrics replay tiny memory prompts translation output methods
    settings rules progress
    exactness engine routing probes doctor simulate figures compiling lessons widgets report bench exercises reproduction
    sweep job_lines job_files jobs commands cli
""".split()
# The package's front door may name every file; only `python -m specmoe` stands behind it.
RANK = {name: rank for rank, name in enumerate([*ORDER, "__init__", "__main__"])}
WITHOUT_TORCH = ["errors", "trace", "eviction", "replay"]


def files_of(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def unit_of(package: Path, path: Path) -> str:
    """The name in ORDER that a file belongs to: itself, or the folder it is in."""
    return path.relative_to(package).with_suffix("").parts[0]


def imported_modules(package: Path, path: Path) -> list[str]:
    """Dotted names of all that a file imports, wherever in the file; `from a import b` gives `a.b`."""
    parents = [package.name, *path.relative_to(package).parent.parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def imported_units(package: Path, path: Path) -> set[str]:
    """The names in ORDER that a file imports from."""
    units = set()
    for name in imported_modules(package, path):
        top, *rest = name.split(".")
        if top != package.name or rest == ["__version__"]:
            continue
        is_file = rest and (len(rest) > 1 or rest[0] in RANK or (package / f"{rest[0]}.py").exists())
        units.add(rest[0] if is_file else "__init__")
    return units


def wrong_imports(package: Path) -> list[str]:
    """One sentence for each import that does not point up the list."""
    wrong = []
    for path in files_of(package):
        unit = unit_of(package, path)
        for other in sorted(imported_units(package, path) - {unit}):
            if RANK.get(other, len(RANK)) >= RANK.get(unit, -1):
                wrong.append(f"{path.relative_to(package)} imports {other}, which is not above {unit} in ORDER")
    return wrong


def unlisted(package: Path) -> list[str]:
    return sorted({unit_of(package, path) for path in files_of(package)} - set(RANK))


def test_every_file_has_a_place_in_the_order():
    names = unlisted(PACKAGE)
    assert not names, f"give {names} a place in ORDER in {Path(__file__).name}, and a line in the README's map"


def test_the_readme_map_names_every_file_and_in_this_order():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)(\.py|/)` \|", readme, re.MULTILINE))
    assert list(rows) == [name for name in ORDER if name in rows], "the map's rows follow ORDER, nothing else"
    found = {unit_of(PACKAGE, path) for path in files_of(PACKAGE)} - {"__init__", "__main__"}
    assert found <= set(rows), f"the README's map lacks {sorted(found - set(rows))}"
    wrong = [name for name in sorted(found) if (rows[name] == "/") != (PACKAGE / name).is_dir()]
    assert not wrong, f"the README's map takes a folder for a file, or a file for a folder: {wrong}"


def test_imports_only_point_up_the_order():
    wrong = wrong_imports(PACKAGE)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("unit", WITHOUT_TORCH)
def test_bookkeeping_needs_no_torch(unit):
    """Neither the file nor anything of ours that it imports names torch or transformers."""
    waiting, seen = [unit], set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        for path in (path for path in files_of(PACKAGE) if unit_of(PACKAGE, path) == current):
            outside = {name.split(".")[0] for name in imported_modules(PACKAGE, path)}
            heavy = outside & {"torch", "transformers"}
            assert not heavy, f"{unit} reaches {path.name}, which imports {sorted(heavy)}"
            waiting += imported_units(PACKAGE, path) - seen


def test_importing_the_package_writes_no_file_and_starts_no_thread(tmp_path):
    program = "import threading, specmoe; print([thread.name for thread in threading.enumerate()])"
    places = ["HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {name: str(tmp_path) for name in places}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['MainThread']"
    assert done.stderr == ""
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []


# The walk itself must be able to fail.


@pytest.mark.parametrize(
    "line",
    [
        "from .engine import load",
        "from . import engine",
        "import specmoe.engine",
        "from specmoe import engine",
        "from specmoe import load",
        "def late():\n    from specmoe.engine import load",
    ],
)
def test_the_walk_sees_an_import_that_points_down(tmp_path, line):
    package = small_package(tmp_path, trace=line, engine="from .trace import Trace")
    assert [sentence.split(" imports ")[0] for sentence in wrong_imports(package)] == ["trace.py"]


def test_the_walk_allows_imports_that_point_up_and_within_a_folder(tmp_path):
    package = small_package(tmp_path, trace="from . import __version__", engine="from .trace import Trace")
    (package / "adapters").mkdir()
    (package / "adapters" / "__init__.py").write_text("from .nllb import adapt\n")
    (package / "adapters" / "nllb.py").write_text("from ..trace import Trace\nfrom . import adapt\n")
    assert wrong_imports(package) == []
    (package / "adapters" / "nllb.py").write_text("from ..engine import load\n")
    assert len(wrong_imports(package)) == 1


def test_the_walk_names_a_file_without_a_place(tmp_path):
    assert unlisted(small_package(tmp_path, trace="", helpers="")) == ["helpers"]


def small_package(folder: Path, **files: str) -> Path:
    package = folder / "specmoe"
    package.mkdir()
    (package / "__init__.py").write_text("from .engine import load\n" if "engine" in files else "")
    for name, text in files.items():
        (package / f"{name}.py").write_text(text + "\n")
    return package
