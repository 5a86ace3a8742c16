"""Many runs of a report: a folder each, one page that compares them, failed ones with their error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from specmoe.cli import parser as cli
from specmoe.errors import OptionError
from specmoe.lab import report
from specmoe.lab.report import runs

PARAMETERS = """\
from typing import Optional

gamma: int = 2
name: str = "a"
sizes: list[int] = [1]
out_dir: Optional[str] = None"""
MANY = ",".join(map(str, range(501)))
WORK = """\
import json, pathlib
assert gamma != 13, "no <b>luck</b>"
rows = [{"tokens_per_second": 10.0 * gamma, "fetched_bytes_per_token": 5}]
pathlib.Path(out_dir, "metrics.json").write_text(json.dumps({"rows": rows, "score": gamma / 2}))"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.setenv("SPECMOE_NOTEBOOKS", str(notebooks))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [
        new_markdown_cell("# Small"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(WORK),
    ]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, notebooks / "small.ipynb")
    return tmp_path


def test_a_sweep_of_a_report_is_a_folder_for_each_and_a_page_that_names_the_failed_one(
    folder, capsys, monkeypatch
):
    (folder / "given.yaml").write_text("name: from-file\ngamma: 5\n")
    words = ["report", "run", "small", "--parameters", str(folder / "given.yaml"), "--out"]
    words += [str(folder / "out"), "--sweep", "gamma=2,13"]
    monkeypatch.setattr(runs, "MOST", 1)
    assert cli.main(words) == 2 and "for 2 runs, more than 1: give" in capsys.readouterr().err
    assert cli.main([*words, "--yes"]) == 1
    page = folder / "out" / "index.html"
    captured = capsys.readouterr()
    assert captured.out.strip() == str(page) and "1 of 2 runs failed" in captured.err
    good, bad = folder / "out" / "01", folder / "out" / "02"
    names = {"small.ipynb", "small.html", "metrics.json", "env.json"}
    assert {file.name for file in good.iterdir()} == names
    env = json.loads((good / "env.json").read_text())
    assert env["error"] == "" and env["settings"] == {"gamma": 2, "name": "from-file", "sizes": [1]}
    assert env["python"] == sys.version.split()[0] and env["torch"] and env["machine"]
    assert "no <b>luck</b>" in json.loads((bad / "env.json").read_text())["error"]
    assert not (bad / "small.html").exists()

    table = pd.read_csv(folder / "out" / "index.csv", dtype={"run": str})
    assert table["run"].tolist() == ["01", "02"] and table["gamma"].tolist() == [2, 13]
    assert table["tokens_per_second"].tolist()[0] == 20 and table["score"].tolist()[0] == 1
    assert "luck" in table["error"][1]
    text = page.read_text(encoding="utf-8")
    assert report.external_loads(text) == [] and "<b>luck" not in text and "aria-sort" in text
    assert '<a href="01/small.html">' in text and '<a href="02/small.failed.ipynb">' in text
    assert "<th>sizes" not in text, "what never changes is left to the CSV"

    # again: what is there stays, what failed is tried again
    before = (good / "small.html").stat().st_mtime_ns
    monkeypatch.setattr(runs, "MOST", 2)
    assert report.run_many("small", {"gamma": ["2", "13"]}, {"name": "from-file"}, folder / "out")
    assert (good / "small.html").stat().st_mtime_ns == before
    with pytest.raises(OptionError, match="exists already"):
        report.run_many("small", {"gamma": ["3"]}, {}, folder / "out")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "small", "--sweep", "gamma"], "is not k=a,b"),
        (["run", "small", "--sweep", "gamma=,"], "no value"),
        (["run", "small", "--sweep", "gamma=1,x"], "gamma='x' is not a whole number"),
        (["run", "small", "--sweep", "gama=1,2"], "no parameter 'gama'"),
        (["run", "small", "--sweep", "gamma=1", "--against", "x"], "leave --sweep out"),
        (["run", "small", "--sweep", "gamma="], "is not k=a,b"),
        (["run", "small", "--sweep", "gamma=2", "--sweep", "gamma=4"], "gamma stands twice"),
        (["run", "small", "--sweep", "gamma=2", "-p", "gamma=4"], "in -p and in --sweep"),
        (["run", "small", "--sweep", f"gamma={MANY}"], "501 runs, more than 500: give fewer"),
        (["run", "small", "--sweep", "gamma=2", "--out", "words.yaml"], "nothing can be written"),
        (["run", "small", "--yes"], "--yes belongs to --sweep"),
        (["run", "small", "-p", "gamma=2", "-p", "gamma=4"], "-p gamma stands twice"),
        (["run", "small", "-p", "gama=4"], "no parameter 'gama': did you mean 'gamma'"),
        (["run", "small", "-p", "gamma="], "gamma='' is not a whole number"),
        (["run", "small", "-p", "=4"], "is not K=V"),
        (["run", "small", "--out", "words.yaml"], "words.yaml, which is a file: name a folder"),
        (["list", "small"], "list takes no NAME"),
        (["run", "small", "--parameters", "words.yaml"], "is no file of parameters: write lines"),
        (["run", "small", "--parameters", "twice.yaml"], "twice.yaml has 'gamma' twice"),
        (["run", "small", "--parameters", "none.yaml"], "there is no file none.yaml"),
        (["index", "none"], "no run of a report in none"),
        (["index", "none", "--sweep", "a=1"], "belong to"),
    ],
)
def test_what_cannot_be_swept_or_compared_is_one_sentence(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    (folder / "words.yaml").write_text("just words\n")
    (folder / "twice.yaml").write_text("gamma: 2\ngamma: 4\n")
    assert cli.main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.strip().splitlines()) == 1
    assert not (folder / "reports").exists()


def test_values_of_a_sweep_split_at_commas_outside_brackets():
    assert report.swept(["gamma=2, 4", "sizes=[1,2],[3]"]) == {
        "gamma": ["2", "4"],
        "sizes": ["[1,2]", "[3]"],
    }
