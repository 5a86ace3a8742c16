"""The wall: what decides a token or a second of a run knows nothing of what looks at it. Importing
does nothing else."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specmoe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "specmoe"

# Above the wall a room imports only from rooms before it; inside a room imports are free.
ORDER = "errors shipped registry options trace checkpoint model offload speculate engine __init__".split()
BELOW = ("lab", "cli", "tiny")  # tiny/checkpoints are files, which anybody may read
WITHOUT_TORCH = ["errors", "trace", "registry", "offload/policies", "lab/replay"]


def files_of(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room_of(package: Path, path: Path) -> str:
    """``offload`` for ``offload/pool.py``, ``errors`` for ``errors.py``."""
    return path.relative_to(package).with_suffix("").parts[0]


def imported_modules(package: Path, path: Path) -> list[str]:
    """Dotted names of all that a file imports, wherever in the file; `from a import b` gives
    `a.b`."""
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


def imported_rooms(package: Path, path: Path) -> set[str]:
    rooms = set()
    for name in imported_modules(package, path):
        top, *rest = name.split(".")
        if top == package.name and rest != ["__version__"]:
            is_room = rest and (
                (package / rest[0]).is_dir() or (package / f"{rest[0]}.py").exists()
            )
            rooms.add(rest[0] if is_room else "__init__")
    return rooms


def wrong_imports(package: Path) -> list[str]:
    """One sentence for each import through the wall, and each that points down the order of
    rooms."""
    rank = {name: i for i, name in enumerate(ORDER)}
    wrong = []
    for path in files_of(package):
        room = room_of(package, path)
        if room in (*BELOW, "__main__"):
            continue
        for other in sorted(imported_rooms(package, path) - {room}):
            if other in BELOW:
                wrong.append(
                    f"{path.relative_to(package)} imports {other}, which is below the wall"
                )
            elif rank.get(other, len(rank)) >= rank.get(room, -1):
                wrong.append(
                    f"{path.relative_to(package)} imports {other}, which is not before {room}"
                )
    return wrong


def test_nothing_above_the_wall_imports_what_is_below():
    wrong = wrong_imports(PACKAGE)
    assert not wrong, "\n".join(wrong)


def test_every_file_is_in_a_room():
    rooms = {room_of(PACKAGE, path) for path in files_of(PACKAGE)}
    assert rooms == {*ORDER, *BELOW, "__main__"}


def test_the_map_has_a_row_for_each_room():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, re.MULTILINE)
    assert rows == [*ORDER[:-1], "lab", "tiny", "cli"]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_bookkeeping_needs_no_torch(name):
    """Neither the file nor anything of ours that it imports names torch or transformers."""
    waiting, seen = files_behind(name.split("/")), set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for module in imported_modules(PACKAGE, path):
            top, *rest = module.split(".")
            assert top not in ("torch", "transformers"), (
                f"{name} reaches {path.name}, which imports {top}"
            )
            if top == PACKAGE.name:
                waiting += set(files_behind(rest)) - seen


def files_behind(parts: list[str]) -> list[Path]:
    """The files that importing ``specmoe.<parts>`` runs; the last part may be a name inside a
    file."""
    files, place = [], PACKAGE
    for part in parts:
        place = place / part
        files += [
            file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()
        ]
    return files


def test_importing_the_package_writes_no_file_and_starts_no_thread(tmp_path):
    program = "import threading, specmoe; print([thread.name for thread in threading.enumerate()])"
    places = ["HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {name: str(tmp_path) for name in places}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['MainThread']"
    assert done.stderr == ""
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == []


# The walk itself must be able to fail.


@pytest.mark.parametrize(
    "line",
    [
        "from .lab import bench",
        "from . import lab",
        "import specmoe.lab.bench",
        "from specmoe.cli import main",
        "def late():\n    from specmoe.lab import bench",
        "from .engine.engine import load",
        "from specmoe import load",
    ],
)
def test_the_walk_sees_an_import_that_points_down(tmp_path, line):
    package = small_package(
        tmp_path, {"trace.py": line, "lab/bench.py": "from ..trace import Trace"}
    )
    assert [sentence.split(" imports ")[0] for sentence in wrong_imports(package)] == ["trace.py"]


def test_the_walk_allows_imports_that_point_up_and_within_a_room(tmp_path):
    inside = {
        "model/kernels.py": "from ..trace import Trace\nfrom . import decoder",
        "model/decoder.py": "",
    }
    package = small_package(tmp_path, {"trace.py": "from . import __version__", **inside})
    assert wrong_imports(package) == []
    (package / "model" / "decoder.py").write_text("from ..engine import load\n")
    assert len(wrong_imports(package)) == 1


def small_package(folder: Path, files: dict[str, str]) -> Path:
    package = folder / "specmoe"
    for name, text in {"__init__.py": "", "engine/engine.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text + "\n")
    return package


MODULES = sorted(found.name for found in pkgutil.walk_packages(specmoe.__path__, "specmoe."))


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_can_be_imported(name):
    """A name that another file no longer has shows here, whoever else imports the module."""
    importlib.import_module(name)
