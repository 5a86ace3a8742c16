"""Files for those who join and for the machines that check: they parse, and name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import notebook_links
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from test_environment import MAKEFILE, PROJECT, core

import specmoe

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def read(file: Path) -> dict:
    # YAML takes the key ``on`` for true
    return {
        "on" if key is True else key: value
        for key, value in yaml.safe_load(file.read_text()).items()
    }


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_parses_runs_targets_that_exist_and_names_no_secret(file):
    text, workflow = file.read_text(encoding="utf-8"), read(file)
    assert {"name", "on", "permissions", "jobs"} <= set(workflow)
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in text and "password" not in text
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step.get("uses", "a/b@c")), step
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert target in TARGETS, f"{file.name} runs make {target}"
    for job in workflow["jobs"].values():
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])


def test_the_matrix_is_every_python_that_we_allow_and_the_oldest_and_newest_transformers():
    (file,) = (one for one in WORKFLOWS if one.stem == "tests")
    matrix = read(file)["jobs"]["test"]["strategy"]["matrix"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][0]
    allowed = SpecifierSet(PROJECT["requires-python"]) & SpecifierSet(conda.split(" ", 1)[1])
    assert matrix["python"] == [f"3.{minor}" for minor in range(40) if f"3.{minor}" in allowed]
    assert matrix["transformers"] == ["oldest", "newest"]
    oldest = re.search(r"^OLDEST := transformers==(\S+)", MAKEFILE, re.M)[1]
    (wanted,) = (one.specifier for one in core() if one.name == "transformers")
    (lowest,) = wanted
    assert lowest.operator == ">=" and Version(lowest.version) == Version(oldest)


def test_every_kind_of_run_has_its_workflow():
    ran = {
        file.stem: " ".join(step.get("run", "") for step in steps(read(file))) for file in WORKFLOWS
    }
    wanted = {
        "tests": "make wheel-check",
        "nightly": "make notebooks",
        "release": "make wheel-check",
    }
    assert {name: words in ran[name] for name, words in wanted.items()} == dict.fromkeys(
        wanted, True
    )
    assert read(WORKFLOWS[1])["on"]["push"] == {"tags": ["v*"]} and "__version__" in ran["release"]


@pytest.mark.parametrize(
    "file", [f for f in FORMS if f.stem != "config"], ids=lambda file: file.stem
)
def test_an_issue_form_has_what_the_form_needs(file):
    form = yaml.safe_load(file.read_text())
    assert {"name", "description", "body"} <= set(form)
    for field in form["body"]:
        assert field["type"] in ("textarea", "input") and field["attributes"]["label"]
    assert len({field["id"] for field in form["body"]}) == len(form["body"])


def test_one_version_stands_in_the_code_and_the_pages_follow():
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["version"] == specmoe.__version__ and cited["license"] == PROJECT["license"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == specmoe.__version__


def test_the_citation_is_the_papers_in_the_readme():
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    names = " and ".join(author["family-names"] for author in paper["authors"])
    assert f"{{{names}}}" in readme and paper["identifiers"][0]["value"] in readme
    assert paper["title"] == re.search(r"title\s+= \{(.*)\},", readme)[1].replace("{", "").replace(
        "}", ""
    )


def test_binder_installs_this_checkout_with_a_torch_for_cpus():
    """pip runs in the repository's root; only there is ``-e .`` the checkout."""
    lines = (ROOT / "binder" / "requirements.txt").read_text().splitlines()
    assert lines[-1] == "-e .[notebooks]" and "torch" in lines
    assert any(line.startswith("--extra-index-url") and line.endswith("/cpu") for line in lines)
    python = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert not (ROOT / "binder" / "environment.yml").exists()


def test_each_notebook_of_the_course_leads_to_the_next_and_back():
    paths = notebook_links.course()
    ends = [nbformat.read(path, as_version=4).cells[-1].source.splitlines()[-1] for path in paths]
    opens = re.search(r"/github/([^/]+/[^/]+)/", ends[0])
    wanted = notebook_links.lines(paths, opens and opens[1])
    assert ends == wanted, "python tests/notebook_links.py"
    for place, end in enumerate(ends):
        around = {"Back": place - 1, "Next": place + 1}
        named = {word: paths[at].name for word, at in around.items() if 0 <= at < len(paths)}
        assert dict(re.findall(r"\*\*(\w+):\*\* \[[^]]+\]\(([^)]+)\)", end)) == named


def test_with_a_repository_each_notebook_opens_in_colab_and_binder():
    path = notebook_links.course()[3]
    (line,) = notebook_links.lines([path], "ada/specmoe")
    assert (
        f"https://colab.research.google.com/github/ada/specmoe/blob/main/notebooks/{path.name}"
        in line
    )
    assert f"https://mybinder.org/v2/gh/ada/specmoe/main?labpath=notebooks%2F{path.name}" in line
    text = notebook_links.written("1. Why?", "**Next:** [a](a.ipynb)")
    assert notebook_links.written(text, line) == f"1. Why?\n\n{line}"


def test_coverage_has_a_floor_and_tests_that_exist():
    block = re.search(r"^COVERAGE_TESTS := \$\(addprefix tests/test_,(.*)\)", MAKEFILE, re.M)[1]
    assert all((ROOT / "tests" / f"test_{name}").is_file() for name in block.split(" "))
    assert (
        int(re.search(r"^fail_under = (\d+)", (ROOT / "pyproject.toml").read_text(), re.M)[1]) > 50
    )
