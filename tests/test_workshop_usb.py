"""A kit for a room without a network: right packages for every system, and scripts that set a room
up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from specmoe.errors import OptionError, SpecMoEError
from specmoe.lab.workshop import __main__ as command
from specmoe.lab.workshop import places, times, usb, wheels

ROOT = Path(__file__).resolve().parents[1]
REQUIRES = [
    "torch>=2.6",
    "numpy>=1.26",
    'jupyterlab>=4.2; extra == "notebooks"',
    'pytest>=8; extra == "dev"',
]


def fake_wheel(folder: Path, requires=REQUIRES) -> Path:
    path = folder / "specmoe-0.1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", "Name: specmoe", "Version: 0.1.0"]
    lines += [f"Requires-Dist: {one}" for one in requires]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("specmoe-0.1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


class FakePip:
    """Builds and downloads wheels of nothing, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, words):
        self.asked.append(list(words))
        if words[0] == "wheel":
            source = Path(words[-1])
            wanted = ("specmoe/__init__.py", "notebooks/report.ipynb", "setup.py", "MANIFEST.in")
            assert all((source / name).is_file() for name in wanted)
            fake_wheel(Path(words[words.index("--wheel-dir") + 1]))
            return
        shelf = Path(words[words.index("--dest") + 1])
        for pin in (word for word in words if "==" in word):
            with zipfile.ZipFile(shelf / f"{pin}.whl", "w") as archive:
                needs = ">=3.11.5" if pin.startswith("numpy") else ">=3.9,!=3.9.0"
                archive.writestr("a.dist-info/METADATA", f"Name: a\nRequires-Python: {needs}\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pip, out = FakePip(), tmp_path_factory.mktemp("usb")
    found = usb.build(usb.Kit(ROOT, out, ["linux", "macos", "windows"], ["3.11", "3.12"]), pip)
    return out, found, pip


def names(pins) -> set[str]:
    return {pin.partition("==")[0] for pin in pins}


# Packages


def test_packages_are_those_of_the_other_system_at_the_versions_of_this_one(tmp_path):
    wheel = fake_wheel(tmp_path)
    linux, macos, windows = (wheels.closure(wheel, name, "3.12") for name in wheels.PLATFORMS)
    assert {"torch", "numpy", "jupyterlab", "ipykernel"} <= names(linux) & names(windows)
    assert "pytest" not in names(linux), "an extra that no room needs"
    assert "pywinpty" in names(windows) and "pywinpty" not in names(linux) | names(macos)
    assert "appnope" in names(macos) and "appnope" not in names(linux) | names(windows)
    assert "pexpect" in names(linux) and "pexpect" not in names(windows)
    assert any(pin.startswith("torch==") and pin.endswith("+cpu") for pin in linux)
    assert not any("+" in pin for pin in [*macos, *windows])
    assert not any(name.startswith("nvidia") for name in names(linux))


def test_an_extra_of_a_requirement_is_followed_and_a_circle_ends(tmp_path, monkeypatch):
    lines = {"a": ["b[more]"], "b": ["a", 'c; extra == "more"'], "c": [], "d": []}
    monkeypatch.setattr(wheels, "_installed", lambda name: ("1", lines[name]))
    assert wheels.closure(fake_wheel(tmp_path, ["a"]), "linux", "3.12") == [
        "a==1",
        "b==1",
        "c==1",
    ]


def test_an_extra_of_ours_that_another_names_is_read_from_the_wheel(tmp_path):
    requires = ['specmoe[report]; extra == "notebooks"', 'packaging>=2; extra == "report"']
    found = names(wheels.closure(fake_wheel(tmp_path, requires), "linux", "3.12"))
    assert found == {"packaging"}, "specmoe itself is on the shelf"


def test_pip_is_told_every_package_and_the_platform(made):
    _, _, pip = made
    downloads = [words for words in pip.asked if words[0] == "download"]
    assert len(downloads) == 6 + 2, "one for each system and Python, torch for Linux apart"
    assert all("--no-deps" in words and "--only-binary=:all:" in words for words in downloads)
    for words in downloads:
        is_torch = any(word.endswith("+cpu") for word in words)
        assert is_torch == (usb.CPU_INDEX in words)
    windows = [words for words in downloads if "win_amd64" in words]
    assert [words[words.index("--python-version") + 1] for words in windows] == [
        "3.11.9",
        "3.12.9",
    ], "3.11 alone would be 3.11.0, which some packages refuse"


def test_a_failing_pip_is_one_sentence(monkeypatch):
    failing = [
        sys.executable,
        "-c",
        "import sys; sys.exit('ERROR: passed over\\nERROR: no such wheel')",
    ]
    really = subprocess.run
    monkeypatch.setattr(usb.subprocess, "run", lambda command, **how: really(failing, **how))
    with pytest.raises(SpecMoEError, match="pip download failed .*no such wheel.*leave that"):
        usb.run_pip(["download"])


# What lies in the kit


def test_the_kit_holds_all_that_a_room_needs(made):
    out, found, _ = made
    for name in ("start.sh", "start.command", "start.bat", "README.txt", "kit.json"):
        assert (out / name).stat().st_size > 0, name
    assert (out / "notebooks" / "00_start_here.ipynb").is_file()
    assert list((out / "tutorials" / "exercises").glob("*.ipynb"))
    assert not (out / "tutorials" / "source").exists(), "the sources hold the solutions' stubs"
    assert (out / "slides" / "ninety_minutes.html").is_file()
    assert (out / "specmoe.html").is_file() == (ROOT / "docs" / "specmoe.html").is_file()
    assert list((out / "wheels").glob("specmoe-*.whl"))
    assert json.loads((out / "kit.json").read_text())["pythons"] == ["3.11", "3.12"]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.name != "kit.json")
    assert found["bytes"] <= size


def test_only_the_scripts_of_the_chosen_systems_are_written(tmp_path):
    usb.build(usb.Kit(ROOT, tmp_path, ["windows"], ["3.12"]), FakePip())
    assert {path.name for path in tmp_path.glob("start*")} == {"start.bat"}


def test_windows_has_its_own_folders_and_line_ends(made):
    out, _, _ = made
    text = (out / "start.bat").read_bytes().decode()
    assert r"\Scripts\python.exe" in text and "\n" not in text.replace("\r\n", "")
    assert (
        "(3.11 3.12)" in text and "{11: 5, 12: 0}" in text and "@" not in text.replace("@echo", "")
    )
    echoed = [line for line in text.splitlines() if line.startswith("  echo")]
    assert echoed and not any(")" in line for line in echoed), (
        "a bracket would end the block around it"
    )
    shell = (out / "start.sh").read_text()
    assert "\r" not in shell and "for version in 3.11 3.12;" in shell
    assert (out / "start.command").read_text() == shell


def test_the_shell_script_is_sound_and_refuses_a_wrong_python_in_one_sentence(tmp_path):
    script = tmp_path / "start.sh"
    script.write_text(usb.script("start.sh", {"2.6": 3}))
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    env = {**os.environ, "SPECMOE_WORKSHOP": str(tmp_path / "work")}
    done = subprocess.run(["sh", script], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "work").exists()
    assert done.stderr.startswith("This kit is for Python 2.6 from 2.6.3 on, and none")


@pytest.mark.parametrize(("more", "taken"), [(0, True), (1, False)])
def test_a_python_older_than_the_packages_take_is_refused_before_anything_is_made(
    tmp_path, more, taken
):
    """Debian 12 has 3.11.2, and a package of the kit wants 3.11.5: pip would say so at the end."""
    major, minor, patch = sys.version_info[:3]
    (tmp_path / "start.sh").write_text(usb.script("start.sh", {f"{major}.{minor}": patch + more}))
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "mkdir", "find", "cp", "touch"):
        (folder / name).symlink_to(shutil.which(name))
    env = {"HOME": str(tmp_path), "PATH": str(folder), "PYTHON": sys.executable}
    env["SPECMOE_WORKSHOP"] = str(tmp_path / "work")
    done = subprocess.run(
        [shutil.which("sh"), tmp_path / "start.sh", "--check"],
        env=env,
        capture_output=True,
        text=True,
    )
    refused = f"from {major}.{minor}.{patch + more} on, and none is here" in done.stderr
    assert refused != taken and done.stdout.startswith("Setting up") == taken
    assert (tmp_path / "work").exists() == taken and done.returncode


def test_the_shell_script_copies_what_is_missing_and_keeps_what_is_yours(tmp_path):
    """With an environment that is there already: a Python that only says what it was asked."""
    kit, work = tmp_path / "a kit", tmp_path / "my work"
    for folder in ("notebooks", "tutorials/exercises"):
        (kit / folder).mkdir(parents=True)
    (kit / "notebooks" / "a b.ipynb").write_text("new")
    (kit / "tutorials" / "exercises" / "1.ipynb").write_text("new")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (kit / "start.sh").write_text(usb.script("start.sh", {here: 0}))
    (work / ".venv" / "bin").mkdir(parents=True)
    python = work / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$SPECMOE_NOTEBOOKS" "$@"\n')
    python.chmod(0o755)
    (work / ".ready").write_text("")
    (work / "notebooks").mkdir()
    (work / "notebooks" / "a b.ipynb").write_text("mine")
    env = {**os.environ, "SPECMOE_WORKSHOP": str(work), "PYTHON": sys.executable}
    for words, said in (["--check"], "-m specmoe doctor --workshop"), ([], "-m jupyterlab"):
        command_line = ["sh", str(kit / "start.sh"), *words]
        done = subprocess.run(command_line, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{work}/notebooks {said}")
    assert (work / "notebooks" / "a b.ipynb").read_text() == "mine"
    assert (work / "tutorials" / "exercises" / "1.ipynb").read_text() == "new"


# Words that a person may get wrong


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--platforms", "linux,amiga"], "platforms='amiga' is unknown"),
        (["--python", "three"], "python='three' is no version"),
        (["--platforms", ","], "a kit needs a platform"),
    ],
)
def test_a_wrong_word_is_one_sentence(words, sentence, tmp_path):
    with pytest.raises(OptionError, match=sentence):
        command.main(["usb", "--out", str(tmp_path / "kit"), *words])
    assert not (tmp_path / "kit").exists()


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path, capsys):
    words = ["usb", "--out", str(tmp_path / "kit"), "--platforms", "macos", "--dry-run"]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "wheels for macos" in said and "start.command" in said and "windows" not in said
    assert list(tmp_path.iterdir()) == []


# Times


def test_times_are_of_each_notebook_and_the_others_stay(tmp_path):
    from test_workshop_check import notebook_of

    (tmp_path / "notebooks").mkdir()
    notebook_of(tmp_path / "notebooks", "import time; time.sleep(0.3)", "00_a")
    notebook_of(tmp_path / "notebooks", "1", "01_b")
    target = tmp_path / "times.json"
    found = times.measure(tmp_path, target)["notebooks"]
    assert set(found) == {"00_a", "01_b"}
    assert 0.3 <= found["00_a"]["slowest_cell_seconds"] <= found["00_a"]["seconds"]
    before = found["00_a"]
    times.measure(tmp_path, target, ["01_b"])
    assert places.read_json(target)["notebooks"]["00_a"] == before
    with pytest.raises(OptionError, match="--only='02_c' is unknown"):
        times.measure(tmp_path, target, ["02_c"])
