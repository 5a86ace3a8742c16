"""What is declared is what is imported, extra by extra, and what needs no torch runs without it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from test_environment import PROJECT, core, extra

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "specmoe"
# Names to import that are not those to install.
INSTALLED_AS = {
    "IPython": "ipython",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "llama_cpp": "llama-cpp-python",
}
# Where an extra may be imported; everywhere else the core has to do.
MAY = {
    "report": (
        "lab/report/",
        "lab/markdown.py",
        "lab/widgets/",
        "lab/figures/base.py",
        "lab/exercises/",
    ),
    "notebooks": ("lab/workshop/", "lab/machine/"),
    "dask": ("lab/sweep/cluster.py",),
    "gguf": ("checkpoint/blocks.py", "lab/bench/real_"),
    "llama": ("lab/bench/real_",),
}
# What nothing imports: who needs it all the same, and the words in the tree that show it.
USED_BY = {
    "ipykernel": ("specmoe/lab/machine/rooms.py", "python3"),
    "ipywidgets": ("specmoe/lab/machine/workshop.py", '"ipywidgets"'),
    "jupyterlab": ("specmoe/lab/machine/rooms.py", '"jupyterlab"'),
    "accelerate": ("specmoe/lab/bench/offload.py", "accelerate"),
    "pytest-xdist": ("Makefile", "-n $(TEST_WORKERS)"),
    "pytest-timeout": ("pyproject.toml", "timeout = 600"),
    "build": ("tests/wheel_check.py", '"-m", "build"'),
    "twine": ("tests/wheel_check.py", '"-m", "twine"'),
    "setuptools": ("tests/wheel_check.py", "--no-isolation"),
    "coverage": ("Makefile", "-m coverage run"),
    "ruff": ("Makefile", "/ruff check"),
    "mypy": ("Makefile", "/mypy"),
    "pyright": ("Makefile", "/pyright"),
    "pre-commit": ("CONTRIBUTING.md", "pre-commit install"),
    "nbval": ("Makefile", "--nbval"),
    "gguf": ("specmoe/checkpoint/gguf_file.py", 'find_spec("gguf")'),
    "sphinx": ("Makefile", "-m sphinx"),
    "myst-nb": ("docs/conf.py", '"myst_nb"'),
    "furo": ("docs/conf.py", 'html_theme = "furo"'),
    "playwright": ("tests/browser/page.py", "playwright"),
}


@cache
def imported(file: Path) -> set[str]:
    """Top names of other packages that ``file`` imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need":
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"specmoe"}


def names_of(requirements: list[Requirement]) -> set[str]:
    """Names to import, of requirements and of the extras of ours that they name."""
    installed = {install: name for name, install in INSTALLED_AS.items()}
    names = {installed.get(one.name, one.name.replace("-", "_")) for one in requirements}
    for one in requirements:
        if one.name == PROJECT["name"]:
            names |= {name for more in one.extras for name in names_of(extra(more))}
    return names - {PROJECT["name"]}


def undeclared(package: Path) -> Iterator[str]:
    """One sentence for each import that no declared dependency stands for, where it stands."""
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package).as_posix()
        allowed = names_of(core())
        for name, places in MAY.items():
            # the rooms of ``notebooks`` may use what ``report`` brings
            if where.startswith(places):
                allowed |= names_of(extra(name))
        for name in sorted(imported(file) - allowed):
            yield f"{where} imports {name}"


def test_the_package_imports_only_what_it_declares_room_by_room():
    assert list(undeclared(PACKAGE)) == []


def test_tests_import_only_what_dev_notebooks_and_browser_bring():
    allowed = names_of(core() + extra("notebooks") + extra("dev") + extra("browser")) | {"_pytest"}
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for file in sorted((ROOT / "tests").rglob("*.py")):
        assert imported(file) - own <= allowed, file.name


def test_the_walk_sees_an_import_that_is_not_declared(tmp_path):
    (tmp_path / "trace.py").write_text("def late():\n    import papermill.engines, pandas\n")
    (tmp_path / "lab" / "report").mkdir(parents=True)
    (tmp_path / "lab" / "report" / "run.py").write_text(
        "need('papermill')\nfrom playwright import driver\n"
    )
    assert list(undeclared(tmp_path)) == [
        "lab/report/run.py imports playwright",
        "trace.py imports papermill",
    ]


@pytest.mark.parametrize("name", [None, *PROJECT["optional-dependencies"]])
def test_nothing_is_declared_that_nothing_uses(name):
    """No extra is empty, and each of its packages is imported, or started by whom ``USED_BY`` names."""
    declared = core() if name is None else extra(name)
    folders = (ROOT / "tests",) if name in ("dev", "browser") else (PACKAGE,)
    seen = {
        found for folder in folders for file in folder.rglob("*.py") for found in imported(file)
    }
    unused = {
        one.name
        for one in declared
        if one.name != PROJECT["name"] and not names_of([one]) & seen and one.name not in USED_BY
    }
    assert declared and unused == set()


@pytest.mark.parametrize("name", USED_BY)
def test_who_needs_what_nothing_imports_is_in_the_tree(name):
    file, words = USED_BY[name]
    assert words in (ROOT / file).read_text(encoding="utf-8")


# Without torch

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
"""
HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "IPython", "papermill")
RUNS_WITHOUT_TORCH = """
import matplotlib
matplotlib.use("Agg")
from specmoe.lab import figures, metrics, replay, simulate, widgets
from specmoe.trace import Trace

trace = Trace()
trace.round, trace.phase = 0, "verify"
for expert in (0, 1, 0, 2):
    trace.add("route", 0, expert, count=1)
    trace.add("fetch", 0, expert, size=100, seconds=0.5)
    trace.add("verify", count=1, size=1, seconds=1.0)
    trace.add("round", count=1, size=1, seconds=1.0)
    trace.round += 1
frame = trace.to_frame()
assert metrics.fetched_bytes(frame) == 400
held = replay.replay_pool(replay.layer_requests(frame, 0), 2, "lru")
assert len(held) == 4
drawn = [figures.pool_replay(frame), figures.timeline(frame)]

size, machine = simulate.size_of("mixtral-8x7b"), simulate.preset("h100")
runs = simulate.recordings("tiny-skewed", 4, batch=1)
assert simulate.simulate(runs[0], machine, size).tokens_per_second > 0
cells = simulate.winners(runs, machine, size)
drawn += [figures.winners_map(cells)]
for shown in (widgets.winners_map(cells), widgets.pool_replay(frame), widgets.timeline(frame)):
    assert shown.png.startswith(b"\\x89PNG")
assert set(simulate.expect(size, machine, 2**33)) >= {"on_demand", "specmoe"}
"""


def run(program: str, blocked=()) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(names=tuple(blocked)) + program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_specmoe_brings_nothing_heavy():
    """A count of modules, not of seconds, which the machine decides."""
    said = run(
        f"import specmoe; print([name for name in {HEAVY} if name in sys.modules], len(sys.modules))"
    )
    heavy, num = re.match(r"(\[.*\]) (\d+)", said).groups()
    assert heavy == "[]" and int(num) < 250


def test_trace_metrics_replay_figures_widgets_and_simulator_run_with_torch_blocked():
    run(RUNS_WITHOUT_TORCH, blocked=("torch", "transformers"))


def test_without_the_report_extra_a_report_says_what_to_install():
    program = "from specmoe.cli.parser import main; sys.exit(main(['report', 'list']) != 2)"
    run(program, blocked=("nbformat", "papermill", "nbconvert"))
