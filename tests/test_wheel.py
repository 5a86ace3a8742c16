"""What is installed from a wheel is all that runs; what is missing raises a sentence."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import built
import pytest
import wheel_check

import specmoe
from specmoe import shipped
from specmoe.cli import parser
from specmoe.errors import OptionError, StoreError
from specmoe.lab import compiling, live, markdown, paper
from specmoe.lab.bench import results
from specmoe.lab.live import page as live_page
from specmoe.lab.paper import numbers, record
from specmoe.lab.simulate import real_models
from specmoe.lab.simulate import shipped as recorded
from specmoe.tiny import list_models

ROOT = built.ROOT
PACKAGE = ROOT / "specmoe"
if not (ROOT / ".git").exists():
    pytest.skip("only a checkout knows which files are its own", allow_module_level=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder / "lib", *built.build_tree(folder)


def test_the_wheel_holds_every_file_of_the_package_and_the_notebooks_and_no_other(made):
    _, wheel, _ = made
    assert wheel == built.belongs_in_the_wheel()


def test_the_sdist_holds_every_file_of_the_repository(made):
    _, _, sdist = made
    assert sdist == built.tracked()


def places(package: Path) -> set[str]:
    """What the code names with ``package_path``."""
    calls = [
        node
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "package_path"
    ]
    return {arg.value for call in calls for arg in call.args if isinstance(arg, ast.Constant)}


def test_every_place_that_the_code_names_is_in_the_wheel(made):
    lib, _, _ = made
    named = places(PACKAGE)
    assert {"notebooks", "tiny/checkpoints", "lab/paper/results"} <= named
    assert {name for name in named if not (lib / "specmoe" / name).exists()} == set()


def test_files_of_the_package_are_found_through_importlib_resources_alone():
    """``__file__`` says nothing of a package that is not a folder; only a comparison of two Pythons
    asks for it."""
    naming = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if getattr(node, "id", getattr(node, "attr", "")) == "__file__"
    }
    assert naming <= {"lab/machine/workshop.py"}
    assert shipped.package_path("trace.py").is_file()


def test_an_installed_package_finds_its_own_notebooks_and_shows_the_papers_own_numbers(
    made, tmp_path
):
    """The page of the paper once showed other numbers where a file was missing."""
    program = (
        "from specmoe import shipped; from specmoe.lab.simulate import recording, recordings\n"
        "own = shipped.package_path('lab/paper/results/recordings.npz')\n"
        "found = len(recordings()) + len(recording.load_all(own))\n"
        "print(shipped.checkout(), shipped.notebooks_dir(), found, sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(made[0]), "HOME": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    root, notebooks, num = done.stdout.strip().split("|")
    assert root == "None" and Path(notebooks) == made[0] / "specmoe" / "notebooks"
    assert int(num) == len(recorded.recordings()) + len(record.own_recordings())


# A file that is missing

READERS = {
    "recordings": (recorded, "FOLDER", recorded.recordings),
    "budgets": (recorded, "FOLDER", recorded.budgets),
    "the paper's results": (numbers, "RESULTS", paper.load_results),
    "the table of models": (real_models, "TABLE", real_models.known_models.__wrapped__),
    "benchmarks": (results, "FOLDER", results.read_all),
    "compiled steps": (compiling, "RESULTS", lambda: compiling.shipped(compiling.RESULTS)),
    "the page's clock": (live_page, "CLOCK", live_page.read_clock),
}


@pytest.mark.parametrize("what", READERS)
def test_a_missing_file_is_a_sentence_that_names_it(what, tmp_path, monkeypatch):
    module, name, read = READERS[what]
    monkeypatch.setattr(module, name, tmp_path / "gone")
    with pytest.raises(StoreError, match=r"gone.* is missing, which comes with specmoe.*install"):
        read()


@pytest.mark.parametrize(
    "read",
    [
        lambda gone: record.own_recordings(gone),
        lambda gone: results.read_elsewhere(gone),
        lambda gone: paper.page.clock_rows(gone / "clock.json"),
    ],
    ids=["the paper's recordings", "other machines", "the simulator's clock"],
)
def test_a_missing_file_is_not_an_empty_one(read, tmp_path):
    with pytest.raises(StoreError, match="is missing"):
        read(tmp_path / "gone")


def test_a_missing_module_or_checkpoint_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="nothing.js is missing"):
        live.read("nothing.js")
    monkeypatch.setattr("specmoe.tiny._CHECKPOINTS", tmp_path)
    with pytest.raises(StoreError, match="tiny-skewed.config.json is missing"):
        list_models()


def test_one_recording_of_several_that_is_missing_is_noticed(tmp_path, monkeypatch):
    for file in recorded.FOLDER.glob("*.npz"):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    assert len(recorded.recordings()) > 0
    (tmp_path / "tiny-translate-n8.npz").unlink()
    with pytest.raises(StoreError, match="tiny-translate-n8.npz is missing"):
        recorded.recordings()


def test_pages_of_the_repository_are_written_in_a_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "package_path", lambda name="": tmp_path / "specmoe" / name)
    with pytest.raises(OptionError, match="in a checkout"):
        markdown.write_page("paper", "reproduction.md")
    with pytest.raises(StoreError, match="notebooks is missing"):
        shipped.notebooks_dir()
    assert specmoe.__version__ in (ROOT / "specmoe" / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_wheel_installs_and_does_elsewhere_what_the_readme_says():
    for tool in ("build", "twine"):
        pytest.importorskip(tool, reason="make wheel-check installs it")
    words = [sys.executable, str(ROOT / "tests" / "wheel_check.py")]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=3000, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_are_read_for_commands_and_examples():
    """What the wheel check runs, so that pages without them are noticed on every run."""
    commands, examples = (find(wheel_check.pages()) for find in CHECKED)
    assert "specmoe report run paper" in commands and "specmoe report index" in commands
    assert wheel_check.ELSEWHERE < set(commands)
    for command in {*wheel_check.OURS, *commands} - wheel_check.ELSEWHERE:
        filled = wheel_check.typed(command).replace("remove NAME", "remove one")
        assert not re.search("[A-Z]{3}", filled), f"what a reader fills in: {filled}"
        if not {"--help", "--version"} & set(words := shlex.split(filled)[1:]):
            parser.parse(words)
    assert len(examples) == 3 and all("specmoe.load" in one for one in examples)
    for example in examples:
        compile(example, "a page", "exec")


CHECKED = (wheel_check.commands_in, wheel_check.examples_in)
MADE = importlib.util.spec_from_file_location("made_setup", ROOT / "setup.py")


def test_links_of_the_readme_work_on_a_package_index():
    """Those of the repository become addresses; others, and places on the page, stay."""
    made_setup = importlib.util.module_from_spec(MADE)
    MADE.loader.exec_module(made_setup)
    home = "https://github.com/ada/specmoe"
    given = "![p](docs/p.png) [d](docs/d.md#x) [web](https://a.org) [here](#there) [m](mailto:a@b)"
    assert made_setup.absolute(given, "ada/specmoe") == (
        f"![p]({home}/raw/main/docs/p.png) [d]({home}/blob/main/docs/d.md#x) "
        "[web](https://a.org) [here](#there) [m](mailto:a@b)"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", made_setup.absolute(readme, "ada/specmoe"))
    assert len(links) > 15 and not [link for link in links if not link.startswith("https://")]
    prose = [line for line in readme.splitlines() if not line.startswith("![")]
    assert len(prose) <= 120
