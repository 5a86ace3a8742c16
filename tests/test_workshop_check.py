"""``specmoe doctor --workshop``: ten lines that a room can trust."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types

import nbformat
import pytest

from specmoe.cli import parser
from specmoe.errors import OptionError
from specmoe.lab import exercises
from specmoe.lab.machine import rooms, workshop

NAMES = "memory disk widgets models exercise kernel jupyterlab notebook browser".split()


@pytest.fixture
def fine(monkeypatch):
    """Every check passes without doing anything."""
    for name in NAMES:
        monkeypatch.setattr(workshop, f"check_{name}", lambda *given: "fine")
    return monkeypatch


@pytest.fixture
def said(capsys):
    def run(*words):
        code = parser.main(["doctor", "--workshop", *words])
        return code, capsys.readouterr().out

    return run


def notebook_of(folder, code: str, name: str = workshop.NOTEBOOK):
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    return path


def finding(name: str) -> workshop.Finding:
    return workshop._finding(name, getattr(workshop, f"check_{name}"))


# The verdict


def test_ten_lines_and_a_pass(fine, said):
    code, out = said()
    lines = out.splitlines()
    assert code == 0 and len(lines) == 10
    assert [line.split()[:2] for line in lines] == [["PASS", name] for name in [*NAMES, "workshop"]]


@pytest.mark.parametrize("name", NAMES)
def test_one_failure_fails_the_workshop_by_name(name, fine, said):
    def broken(*given):
        raise ValueError("two\nlines")

    fine.setattr(workshop, f"check_{name}", broken)
    code, out = said()
    lines = out.splitlines()
    assert code == 1 and len(lines) == 10
    assert lines[NAMES.index(name)].startswith(f"FAIL  {name}")
    assert lines[-1].startswith("FAIL  workshop") and f"mend {name}" in lines[-1]


def test_a_doubt_is_named_and_does_not_fail(fine, said):
    def doubtful():
        raise workshop.Doubt("no browser was found: ask a neighbour")

    fine.setattr(workshop, "check_browser", doubtful)
    code, out = said()
    assert code == 0 and "WARN  browser     no browser was found" in out
    assert "PASS  workshop    ready, but look at browser" in out


def test_json_is_one_object_with_every_check(fine, said):
    code, out = said("--json")
    found = json.loads(out)
    assert code == 0 and found["verdict"] == "PASS"
    assert [one["name"] for one in found["checks"]] == NAMES


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["doctor", "--workshop", "--thorough"], "--thorough measures the machine"),
        (["doctor", "--notebooks", "."], "--notebooks belongs to --workshop"),
        (["doctor", "--workshop", "--notebooks", "nowhere"], "nowhere has no 00_start_here.ipynb"),
    ],
)
def test_words_that_do_not_go_together_are_refused_in_one_sentence(words, sentence, capsys):
    assert parser.main(words) == 2
    assert sentence in capsys.readouterr().err


# Each check, right and wrong


@pytest.mark.parametrize(
    ("free_bytes", "status"), [(3e9, "PASS"), (1.5e9, "WARN"), (5e8, "FAIL"), (None, "WARN")]
)
def test_little_memory_is_a_doubt_and_too_little_a_failure(free_bytes, status, monkeypatch):
    monkeypatch.setattr(rooms, "available_memory_bytes", lambda: free_bytes)
    assert finding("memory").status == status


def test_free_memory_is_never_more_than_the_limit_of_the_group(monkeypatch):
    monkeypatch.setattr("specmoe.lab.machine.doctor.memory_bytes", lambda: {"limit_bytes": 7})
    assert rooms.available_memory_bytes() == 7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is never writable")
def test_a_cache_that_cannot_be_written_says_which_variable_helps(monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", "/proc/specmoe")
    found = finding("disk")
    assert found.status == "FAIL" and "set SPECMOE_CACHE" in found.sentence


def test_a_full_disk_fails_and_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    assert finding("disk").status == "PASS"
    monkeypatch.setattr(
        workshop.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=10**6)
    )
    assert finding("disk").status == "FAIL" and list(tmp_path.iterdir()) == []


def test_a_missing_widget_package_is_named(monkeypatch):
    really = importlib.metadata.version

    def version(name):
        if name == "ipywidgets":
            raise importlib.metadata.PackageNotFoundError(name)
        return really(name)

    assert finding("widgets").status == "PASS"
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding("widgets").sentence == "ipywidgets is missing: install specmoe[notebooks] again"


def test_an_old_widget_package_is_named_with_what_is_wanted(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "7.0")
    found = finding("widgets")
    assert found.status == "FAIL" and "ipywidgets 7.0 is not >=8" in found.sentence


def test_a_lab_without_the_widgets_half_fails(monkeypatch):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *parts: ["/nowhere"])
    found = finding("widgets")
    assert found.status == "FAIL" and "jupyterlab_widgets" in found.sentence


def test_shipped_models_open_and_a_missing_one_fails(monkeypatch, tmp_path):
    assert finding("models").status == "PASS"
    monkeypatch.setattr("specmoe.checkpoint.files.SHIPPED", tmp_path)
    assert finding("models").status == "FAIL"


def test_a_check_that_passes_everything_is_noticed(monkeypatch):
    assert finding("exercise").status == "PASS"
    monkeypatch.setattr(exercises, "check_acceptance", lambda answer: None)
    assert finding("exercise").status == "FAIL"


def test_the_kernel_starts_and_a_foreign_one_is_named(monkeypatch, tmp_path):
    assert finding("kernel").status == "PASS"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "specmoe.py").write_text("")
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": argv, "display_name": "other", "language": "python"}
    kernel["env"] = {"PYTHONPATH": str(tmp_path / "other")}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    found = finding("kernel")
    assert found.status == "FAIL" and "ipykernel install --sys-prefix" in found.sentence


def test_a_kernel_without_specmoe_says_what_it_said():
    with pytest.raises(RuntimeError, match="in the kernel: ModuleNotFoundError"):
        rooms.ask_kernel("import specmoe_that_is_not_there")


@pytest.mark.slow
def test_jupyterlab_starts_and_is_gone_afterwards(tmp_path):
    assert rooms.start_jupyterlab(tmp_path) > 0
    psutil = pytest.importorskip("psutil")
    ours = psutil.Process().children(recursive=True)
    assert not [one for one in ours if "jupyterlab" in " ".join(one.cmdline())]


def test_a_jupyterlab_that_ends_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(rooms.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended at once: it said nothing"):
        rooms.start_jupyterlab(tmp_path)


def test_a_notebook_that_fails_is_quoted_and_a_slow_one_is_a_doubt(monkeypatch, tmp_path):
    notebook_of(tmp_path, "1 / 0")
    with pytest.raises(RuntimeError, match="00_start_here: ZeroDivisionError: division by zero"):
        workshop.check_notebook(tmp_path)
    notebook_of(tmp_path, "1")
    monkeypatch.setattr(workshop, "SLOW_NOTEBOOK_S", 0)
    with pytest.raises(workshop.Doubt, match="start long cells before"):
        workshop.check_notebook(tmp_path)


def test_no_notebooks_is_a_failure_that_says_where_to_start():
    with pytest.raises(workshop.Trouble, match="start this where notebooks/ lies"):
        workshop.check_notebook(None)


def test_notebooks_are_found_by_name_by_variable_and_in_the_checkout(monkeypatch, tmp_path):
    assert workshop.notebooks_folder(None).name == "notebooks"
    notebook_of(tmp_path, "1")
    monkeypatch.setenv("SPECMOE_NOTEBOOKS", str(tmp_path))
    assert workshop.notebooks_folder(None) == tmp_path == workshop.notebooks_folder(tmp_path)
    with pytest.raises(OptionError, match="name the folder of the notebooks"):
        workshop.notebooks_folder(tmp_path / "none")


def test_a_machine_without_a_browser_is_told_to_use_another(monkeypatch):
    monkeypatch.delenv("BROWSER", raising=False)
    monkeypatch.setattr(rooms.shutil, "which", lambda name: None)
    monkeypatch.setattr(rooms.sys, "platform", "linux")
    found = finding("browser")
    assert found.status == "WARN" and "from another machine" in found.sentence
    monkeypatch.setattr(rooms.shutil, "which", lambda name: "firefox" == name or None)
    assert finding("browser").sentence == "firefox is there"


# One root for notebooks and tutorials


def test_make_lab_serves_a_root_from_which_notebooks_and_tutorials_open():
    from pathlib import Path

    root = Path(__file__).parents[1]
    recipe = (root / "Makefile").read_text().split("\nlab: ")[1].split("\n\n")[0]
    assert "--ServerApp.root_dir=. " in recipe and "default_url=/lab/tree/notebooks" in recipe
    assert (root / "notebooks").is_dir() and (root / "tutorials").is_dir()
