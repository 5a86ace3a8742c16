"""environment.yml, pyproject.toml, the Makefile and the environment of this run say the same
thing."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import LONGEST, pytest_collection_modifyitems
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import specmoe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
MINOR_VERSIONS = [f"3.{minor}" for minor in range(6, 30)]
BROWSERS = {"playwright", "pytest-playwright", "selenium", "pyppeteer", "webdriver-manager"}


@pytest.fixture(scope="module")
def environment() -> dict:
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def conda_packages(environment: dict) -> dict[str, str]:
    """Name -> version constraint of what conda itself installs."""
    specs = [spec for spec in environment["dependencies"] if isinstance(spec, str)]
    return {re.split(r"[\s<>=!~]", spec)[0]: re.sub(r"^[\w-]+\s*", "", spec) for spec in specs}


def pip_lines(environment: dict) -> list[str]:
    blocks = [spec["pip"] for spec in environment["dependencies"] if isinstance(spec, dict)]
    assert len(blocks) == 1, "environment.yml has one pip block"
    return blocks[0]


def extra(name: str) -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["optional-dependencies"][name]]


def core() -> list[Requirement]:
    return [Requirement(line) for line in PROJECT["dependencies"]]


def test_conda_environment_is_ours_and_from_conda_forge_only(environment):
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]


def test_conda_allows_the_same_oldest_python_and_none_that_pyproject_refuses(environment):
    ours = SpecifierSet(PROJECT["requires-python"])
    conda = SpecifierSet(conda_packages(environment)["python"])
    allowed_here = [version for version in MINOR_VERSIONS if version in ours]
    allowed_there = [version for version in MINOR_VERSIONS if version in conda]
    assert allowed_there, "environment.yml allows no Python at all"
    assert allowed_here[0] == allowed_there[0]
    assert set(allowed_there) <= set(allowed_here)


def test_conda_brings_python_and_pip_and_leaves_every_package_to_pyproject(environment):
    assert set(conda_packages(environment)) == {"python", "pip"}


def test_conda_installs_this_checkout_with_the_notebooks(environment):
    (line,) = pip_lines(environment)
    match = re.fullmatch(r"-e \.\[([\w,-]+)\]", line)
    assert match, f"expected '-e .[extras]', found {line!r}"
    extras = match[1].split(",")
    assert "notebooks" in extras
    unknown = set(extras) - set(PROJECT["optional-dependencies"])
    assert not unknown, f"environment.yml names extras that pyproject.toml lacks: {sorted(unknown)}"


def test_make_installs_extras_that_exist():
    extras = re.search(r"-e '\.\[([\w,]+)\]'", MAKEFILE)[1].split(",")
    assert set(extras) == {"notebooks", "dev"}
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_torch_that_make_installs_is_one_that_pyproject_allows():
    pinned = Requirement(re.search(r"^TORCH \?= (\S+)", MAKEFILE, re.MULTILINE)[1])
    wanted = {requirement.name: requirement for requirement in core()}[pinned.name]
    (pin,) = pinned.specifier
    assert pin.operator == "=="
    assert pin.version in wanted.specifier


def test_make_checks_the_same_oldest_python_as_pyproject():
    major, minor = re.search(r"sys\.version_info < \((\d+), (\d+)\)", MAKEFILE).groups()
    assert PROJECT["requires-python"] == f">={major}.{minor}"


@pytest.mark.parametrize(
    "target",
    [
        "setup",
        "report",
        "test",
        "browser-test",
        "lab",
        "slides",
        "notebooks",
        "bench",
        "bench-real",
        "lint",
    ],
)
def test_make_has_the_promised_target_and_it_sets_up_first(target):
    rule = re.search(rf"^{target}:([^#\n]*)", MAKEFILE, re.MULTILINE)
    assert rule, f"the Makefile has no target {target}"
    assert rule[1].split() == (["$(STAMP)"] if target == "setup" else ["setup"])


@pytest.mark.parametrize("name", sorted(set(PROJECT["optional-dependencies"]) - {"browser"}))
def test_no_extra_but_its_own_pulls_what_drives_a_browser(name):
    assert not BROWSERS & {requirement.name.lower() for requirement in extra(name)}


@pytest.mark.parametrize("requirement", core() + extra("notebooks") + extra("dev"), ids=str)
def test_what_pyproject_asks_for_is_installed_here(requirement):
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip("not for this Python")
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        pytest.fail(f"{requirement} is not installed: run make setup")
    assert requirement.specifier.contains(installed, prereleases=True), f"{installed} is installed"


def test_the_installed_package_is_this_pyproject_and_not_an_older_one():
    installed = metadata.distribution(PROJECT["name"])
    plain = {Requirement(line) for line in installed.requires or [] if "extra ==" not in line}
    assert installed.version == specmoe.__version__, "run make setup"
    assert plain == set(core()), "run make setup"
    scripts = {
        entry.name: entry.value
        for entry in installed.entry_points
        if entry.group == "console_scripts"
    }
    assert scripts == PROJECT["scripts"], "run make setup"


def test_environment_yml_installs_this_package(environment):
    assert any(line.startswith("-e .") for line in pip_lines(environment))


def test_the_quick_start_tells_colab_to_install_from_the_repository():
    line = next(
        line
        for line in (ROOT / "docs" / "quickstart.md").read_text().splitlines()
        if "pip install" in line and "git+" in line
    )
    assert Requirement(re.search(r'"(specmoe[^"]*)"', line)[1]).extras <= set(
        PROJECT["optional-dependencies"]
    )


def test_the_colab_line_works_once_the_reader_fills_in_the_account():
    """OWNER is the one thing to replace, the text says so, and what comes out is an address that
    pip takes."""
    page = (ROOT / "docs" / "quickstart.md").read_text()
    (line,) = re.findall(r"^!pip install \"(.*)\"$", page, re.MULTILINE)
    filled = Requirement(line.replace("OWNER", "ada"))
    assert filled.url == "git+https://github.com/ada/specmoe" and line.count("OWNER") == 1
    assert re.search(r"in place of `OWNER`", page)


def test_a_test_that_hangs_fails_by_name_and_the_others_go_on(tmp_path):
    """Not once per new worker: pytest-timeout's way of ending the process would have the hanging
    test started again."""
    hanging = tmp_path / "test_hanging.py"
    hanging.write_text(
        "import threading\ndef test_hangs(): threading.Event().wait()\ndef test_after(): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
        "-n",
        "1",
        "--dist",
        "loadscope",
        "-o",
        "timeout=5",
        str(hanging),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (
        "test_hangs - Failed: Timeout"
    ) in done.stdout and "1 failed, 1 passed" in done.stdout, done.stdout[-2000:]


def test_every_test_may_hang_for_less_than_the_whole_run_may_take():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert 0 < options["timeout"] <= 600


def test_every_target_that_the_pages_name_is_in_the_makefile_and_its_variables_are():
    """Also those that pyproject.toml names beside its marks. docs/log.md is a diary."""
    pages = [ROOT / "pyproject.toml", *ROOT.glob("*.md"), *ROOT.glob("specmoe/lab/**/*.md")]
    pages += [*ROOT.glob("docs/*.md"), *ROOT.glob("tutorials/*.md")]
    text = "\n".join(p.read_text(encoding="utf-8") for p in pages if p.name != "log.md")
    said = re.findall(r"(?:`|only |^)make ([a-z-]+)(?: ([A-Z_]+)=)?", text, re.M)
    named = {target for target, _ in said}
    made = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    variables = set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M))
    assert "test-long" in named and named - made == set()
    assert {variable for _, variable in said if variable} - variables == set()


def test_the_longest_files_of_tests_begin_first():
    """Else a worker would begin a file of ten minutes when the other has ended."""
    assert "--no-loadscope-reorder" in MAKEFILE
    assert [name for name in LONGEST if not (ROOT / f"tests/test_{name}.py").is_file()] == []
    paths = [ROOT / f"tests/test_{name}.py" for name in ("sizes", LONGEST[1], "doors", LONGEST[0])]
    items = [SimpleNamespace(path=path) for path in paths]
    pytest_collection_modifyitems(items)
    assert [item.path for item in items] == [paths[3], paths[1], paths[0], paths[2]]
