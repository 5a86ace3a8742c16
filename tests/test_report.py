"""Reports: strict parameters, one failing cell named, HTML that needs no network, sentences that
follow the numbers."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import papermill
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from specmoe.errors import OptionError, SpecMoEError
from specmoe.lab import report
from specmoe.options import SPIN

PARAMETERS = """\
from typing import List, Optional

model: str = "tiny"  # shipped name or folder
batch_sizes: List[int] = [1, 16]  # rows in flight
gamma: Optional[int] = None  # null lets the planner choose
rate: Optional[float] = 2.5e8
sizes: Optional[List[float]] = None
strict: bool = True
label = "none given"
out_dir: Optional[str] = None"""

SMALL = """\
import json, pathlib
pathlib.Path(out_dir, "metrics.json").write_text(json.dumps([model, batch_sizes, gamma, rate, strict]))"""


def write(folder: Path, name: str, *cells, tag: bool = True) -> None:
    cells = list(cells)
    if tag:
        cells.insert(1, new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = new_notebook(
        cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A notebooks folder of our own, with braces in its name, which papermill would take for
    parameters."""
    folder = tmp_path / "note{books}"
    folder.mkdir()
    monkeypatch.setenv("SPECMOE_NOTEBOOKS", str(folder))
    write(folder, "small", new_markdown_cell("Intro\n\n# A small report"), new_code_cell(SMALL))
    write(folder, "plain", new_markdown_cell("# No parameters"), tag=False)
    return folder


# ---- which there are, and what they take ----


def test_reports_are_the_notebooks_with_parameters(folder):
    listed = report.list_reports()
    assert listed == [
        {"name": "small", "title": "A small report", "path": str(folder / "small.ipynb")}
    ]


def test_parameters_with_type_default_and_help(folder):
    found = report.report_parameters("small")
    assert found["model"] == {"type": "str", "default": "tiny", "help": "shipped name or folder"}
    assert found["batch_sizes"] == {
        "type": "List[int]",
        "default": [1, 16],
        "help": "rows in flight",
    }
    assert found["gamma"]["type"] == "Optional[int]" and found["gamma"]["default"] is None
    assert found["sizes"]["type"] == "Optional[List[float]]"
    assert found["label"]["type"] == "str"
    assert "out_dir" not in found


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("gamma", "5", 5),
        ("gamma", "null", None),
        ("gamma", None, None),
        ("gamma", "1e3", 1000),
        ("rate", "7e10", 7e10),
        ("rate", 3, 3.0),
        ("model", "7e10", "7e10"),
        ("model", " a b ", "a b"),
        ("batch_sizes", "1,16,64", [1, 16, 64]),
        ("batch_sizes", "[4, 8]", [4, 8]),
        ("batch_sizes", "7", [7]),
        ("batch_sizes", (1, 2), [1, 2]),
        ("sizes", "0.5,2", [0.5, 2.0]),
        ("sizes", "None", None),
        ("strict", "false", False),
    ],
)
def test_values_become_the_declared_type(folder, name, given, expected):
    typed = report.typed_parameters("small", {name: given})[name]
    assert typed == expected and type(typed) is type(expected)
    if isinstance(expected, list):
        assert [type(item) for item in typed] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("gamma", "five", r"gamma='five' is not a whole number \(or null\)"),
        ("gamma", "2.5", "gamma='2.5'"),
        ("gamma", True, "gamma=True"),
        ("gamma", [5], r"gamma=\[5\]"),
        ("model", 5, "model=5 is not a text"),
        ("model", "null", "model='null' is not a text"),
        ("rate", "inf", "rate='inf' is not a number"),
        ("rate", math.nan, "rate=nan"),
        ("batch_sizes", "1,,2", "batch_sizes='1,,2' is not a list such as 1,16,64"),
        ("batch_sizes", "[1, 2.5]", "batch_sizes"),
        ("batch_sizes", [], r"batch_sizes=\[\]"),
        ("batch_sizes", "[1, 2", "batch_sizes"),
        ("strict", "maybe", "strict='maybe' is not true or false"),
        ("strict", 1, "strict=1"),
    ],
)
def test_a_wrong_type_names_parameter_value_and_type(folder, name, given, words):
    with pytest.raises(OptionError, match=words):
        report.typed_parameters("small", {name: given})


def test_unknown_names_get_the_nearest(folder):
    with pytest.raises(OptionError, match="no parameter 'gama'.*did you mean 'gamma'"):
        report.typed_parameters("small", {"gama": 3})
    with pytest.raises(OptionError, match="report 'smal' is unknown.*did you mean 'small'"):
        report.report_parameters("smal")
    with pytest.raises(OptionError, match="report 'plain' is unknown"):
        report.report_parameters("plain")
    with pytest.raises(OptionError, match="--out"):
        report.typed_parameters("small", {"out_dir": "here"})


def test_a_type_that_papermill_cannot_read_is_named(folder):
    cell = new_code_cell("x: dict = {}", metadata={"tags": ["parameters"]})
    write(folder, "odd", new_markdown_cell("# Odd"), cell, tag=False)
    with pytest.raises(OptionError, match="parameter x is declared as 'dict'"):
        report.report_parameters("odd")


def test_a_report_is_read_and_inspected_once_and_the_others_not_at_all(
    folder, tmp_path, monkeypatch
):
    (folder / "broken.ipynb").write_text("{")
    inspect, seen = papermill.inspect_notebook, []
    monkeypatch.setattr(
        papermill, "inspect_notebook", lambda path: seen.append(path) or inspect(path)
    )
    monkeypatch.setattr(report.run, "_execute", lambda source, target, *_: target.write_text("{}"))
    monkeypatch.setattr(report.run, "offline_html", lambda notebook, facts: "page")
    report.run_report("small", {"gamma": "3"}, tmp_path / "out")
    assert len(seen) == 1


def test_a_missing_folder_and_a_broken_notebook_are_named(folder, monkeypatch):
    (folder / "broken.ipynb").write_text("{")
    with pytest.raises(OptionError, match="broken.ipynb is not a notebook"):
        report.list_reports()
    monkeypatch.setenv("SPECMOE_NOTEBOOKS", str(folder / "nowhere"))
    with pytest.raises(OptionError, match="nowhere.*SPECMOE_NOTEBOOKS"):
        report.list_reports()


# ---- running ----


def test_a_run_leaves_html_notebook_and_metrics_and_overwrites_only_when_told(folder, tmp_path):
    out = tmp_path / "out{1}"
    page = report.run_report("small", {"gamma": "3", "batch_sizes": "2,4"}, out)
    assert sorted(path.name for path in out.iterdir()) == [
        "env.json",
        "metrics.json",
        "small.html",
        "small.ipynb",
    ]
    assert json.loads((out / "metrics.json").read_text()) == ["tiny", [2, 4], 3, 2.5e8, True]
    assert page == out / "small.html" and "A small report" in page.read_text()
    # readers see no code; the notebook beside it has it
    assert "write_text" not in page.read_text()
    with pytest.raises(OptionError, match="small.ipynb exists already"):
        report.run_report("small", {"gamma": "4"}, out)
    assert json.loads((out / "metrics.json").read_text())[2] == 3
    report.run_report("small", {"gamma": "4"}, out, overwrite=True)
    assert json.loads((out / "metrics.json").read_text())[2] == 4


@pytest.mark.parametrize("own", [None, "123"])
def test_kernels_get_threads_that_soon_sleep_unless_told_otherwise(
    folder, tmp_path, monkeypatch, own
):
    name, value = SPIN
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(name, own)
    write(
        folder,
        "env",
        new_markdown_cell("# Env"),
        new_code_cell(f"import os\n'spin ' + os.environ['{name}']"),
    )
    page = report.run_report("env", out_dir=tmp_path / "out")
    assert f"spin {own or value}" in page.read_text(encoding="utf-8")
    assert os.environ.get(name) == own


@pytest.mark.parametrize("parameters", [{"gama": 3}, {"gamma": "x"}])
def test_bad_parameters_leave_nothing_behind(folder, tmp_path, parameters):
    with pytest.raises(OptionError):
        report.run_report("small", parameters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_refused(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OptionError, match="is a file"):
        report.run_report("small", out_dir=tmp_path / "out")


def test_a_failing_cell_is_named_with_its_error_and_gives_no_html(folder, tmp_path):
    code = "# what comes next fails\nvalue = int('seven')\nprint(value)"
    write(
        folder, "fails", new_markdown_cell("# Fails"), new_code_cell("1 + 1"), new_code_cell(code)
    )
    with pytest.raises(SpecMoEError) as caught:
        report.run_report("fails", out_dir=tmp_path / "out")
    message = str(caught.value)
    assert "fails.ipynb failed in cell [" in message and "`value = int('seven')`" in message
    assert "ValueError: invalid literal for int() with base 10: 'seven'" in message
    assert "\n" not in message and type(caught.value) is SpecMoEError
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["env.json", "fails.failed.ipynb"]


def test_an_error_inside_a_widget_callback_is_a_failure_too(folder, tmp_path):
    pytest.importorskip("ipywidgets")
    # set, not captured: nbclient sends captured output back, and can miss the cell's answer under
    # papermill
    code = (
        "import ipywidgets\n"
        "out = ipywidgets.Output()\n"
        "out.outputs = [dict(output_type='error', ename='ValueError', evalue='the slider broke', "
        "traceback=[])]\n"
        "out"
    )
    write(folder, "widget", new_markdown_cell("# Widget"), new_code_cell(code))
    with pytest.raises(SpecMoEError, match="inside a widget: ValueError: the slider broke"):
        report.run_report("widget", out_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "widget.html").exists()


def test_a_kernel_without_the_package_is_told_apart():
    from specmoe.lab.report.run import _hint

    assert "another Python" in _hint("ModuleNotFoundError", "No module named 'specmoe'")
    assert _hint("ModuleNotFoundError", "No module named 'foo'") == ""


# ---- the page ----


def bundle(**data) -> dict:
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {k.replace("_", "/"): v for k, v in data.items()},
    }


def test_the_page_loads_nothing_where_the_stock_page_does():
    widget = {
        "application/vnd.jupyter.widget-view+json": {
            "model_id": "1",
            "version_major": 2,
            "version_minor": 0,
        }
    }
    output = bundle(image_png="aGVsbG8=", text_plain="a figure")
    output["data"] |= widget
    cell = new_code_cell("figure", outputs=[output])
    state = {
        "application/vnd.jupyter.widget-state+json": {
            "version_major": 2,
            "version_minor": 0,
            "state": {},
        }
    }
    link = new_markdown_cell("[the paper](https://arxiv.org/abs/2604.10152) and $x$")
    notebook = nbformat.from_dict(new_notebook(cells=[link, cell], metadata={"widgets": state}))
    page = report.offline_html(notebook)
    assert report.external_loads(page) == []
    assert "aGVsbG8=" in page and "arxiv.org" in page
    stock, _ = HTMLExporter().from_notebook_node(notebook)
    assert len(report.external_loads(stock)) >= 3


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<script async src='//cdn.example/x.js'>",
        "<link rel=stylesheet href=http://example.org/a.css>",
        '<img alt="a" src="http://example.org/a.png">',
        "<style>@import url(https://fonts.example/f);</style>",
        "<style>a{background:url('//example.org/a.png')}</style>",
        "<script type=module>import mermaid from 'https://cdn.example/m.mjs'</script>",
        "<script>script.src = 'https://unpkg.com/a.js'</script>",
        "<iframe src=https://example.org></iframe>",
    ],
)
def test_every_way_to_load_is_seen(html):
    assert len(report.external_loads(html)) == 1


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://example.org">x</a>',
        '<img src="data:image/png;base64,aa">',
        "see https://example.org",
    ],
)
def test_a_link_is_no_load(html):
    assert report.external_loads(html) == []


# ---- the sentences ----


def row(method: str, batch: int, speed: float, moved: float, **more) -> dict:
    fields = {
        "method": method,
        "batch": batch,
        "tokens_per_second": float(speed),
        "fetched_bytes_per_token": moved,
    }
    fields |= {
        "tokens_per_round": 4.0 if method == "specmoe" else 1.0,
        "gamma": 5.0,
        "acceptance_rate": 0.625,
    }
    return fields | {"same_tokens_as_plain": True, "eviction": None} | more


@pytest.fixture
def rows() -> list[dict]:
    return [
        row("on_demand", 1, 10, 4096),
        row("cached", 1, 20, 1024),
        row("specmoe", 1, 15, 2048),
        row("on_demand", 16, 50, 1024),
        row("cached", 16, 60, 512),
        row("specmoe", 16, 100, 256),
        row("resident", 16, 900, 0),
    ]


def test_the_verdict_on_speed_follows_the_numbers(rows):
    first, second = report.say_speed(rows).splitlines()
    assert first == (
        "- batch 1: `cached` is fastest, 20 tokens/s, 2.00 times `on_demand`; `specmoe` gets 15, "
        "1.50 times `on_demand`."
    )
    assert second == (
        "- batch 16: `specmoe` is fastest, 100 tokens/s, 2.00 times `on_demand`; next is `cached`, "
        "1.20 times `on_demand`."
    )
    rows[1]["tokens_per_second"] = 14.5
    assert "`specmoe` and `cached` are level in front, 15 tokens/s" in report.say_speed(rows)
    reach = {("cached", 16): (50, 110), ("specmoe", 16): (55, 120), ("on_demand", 16): (49, 100)}
    for each in rows:
        speed = each["tokens_per_second"]
        low, high = reach.get((each["method"], each["batch"]), (speed, speed))
        each |= {"tokens_per_second_min": low, "tokens_per_second_max": high}
    assert "batch 16: `specmoe` and `cached` are level in front" in report.say_speed(rows)


def test_the_verdict_on_tokens_names_the_one_that_differs(rows):
    assert report.say_same_tokens(rows) == "All 7 runs gave exactly the tokens of plain decoding."
    rows[4]["same_tokens_as_plain"] = False
    assert report.say_same_tokens(rows).startswith(
        "**Different tokens** from plain decoding: cached at batch 16."
    )
    rows[4]["same_tokens_as_plain"] = None
    assert report.say_same_tokens(rows).startswith("6 of 7 runs were compared")


def test_the_growth_of_bytes_is_of_one_token_of_every_row(rows):
    assert report.say_growth(rows) == (
        "From batch 1 to 16 the bytes for one token of every row grow: `on_demand` 4.0 times, "
        "`cached` 8.0 times, `specmoe` 2.0 times."
    )
    assert report.say_growth(rows[:3]) == "", "one batch does not grow"


def test_the_setup_names_budget_widening_reads_and_throttle(rows):
    model = {
        "name": "m",
        "layers": 2,
        "experts": 8,
        "top_k": 2,
        "expert_bytes": 2**18,
        "record_bytes": 2**18,
    }
    model |= {
        "expert_dtype": "bfloat16",
        "widened_from": 2**16,
        "fast_memory_bytes": 3 * 2**20,
        "draft_experts": 4,
    }
    store = {"store": "disk", "reads": "direct", "num_readers": 4, "link_bytes_per_s": 2.5e8}
    versions = {"specmoe": "1", "torch": "2", "transformers": "5", "python": "3"}
    machine = {
        "cpu": "a cpu",
        "cores": 2,
        "memory": {"total_bytes": 2**33},
        "threads": 1,
        "store": store,
    } | versions
    rows = [each | {"num_prompts": 2 * each["batch"], "repeats": 3} for each in rows]
    said = report.say_setup(SimpleNamespace(machine=machine, model=model, rows=rows))
    assert "| 3 MiB, the same for every method but resident |" in said
    assert "256 KiB of bfloat16, widened with zeros from 64 KiB" in said
    assert "| all experts | 4 MiB |" in said
    assert "direct I/O (no page cache), throttled to 0.25 GB/s" in said
    assert "prompts: 2 at batch 1, 32 at batch 16; each method 3 times in turn" in said
    store |= {"reads": "page cache", "link_bytes_per_s": None}
    said = report.say_setup(
        SimpleNamespace(machine=machine, model=model | {"widened_from": None}, rows=rows)
    )
    assert "(**not** direct I/O), as fast as it is" in said and "widened" not in said


def test_time_and_use_in_words():
    shares = [
        {
            "method": "on_demand",
            "batch": 4,
            "draft_share": 0,
            "verify_share": 0.2,
            "wait_share": 0.7,
            "rest_share": 0.1,
        },
        {
            "method": "specmoe",
            "batch": 4,
            "draft_share": 0.6,
            "verify_share": 0.3,
            "wait_share": 0,
            "rest_share": 0.1,
        },
    ]
    said = report.say_time(shares)
    assert "`on_demand`: 70 % waiting for reads." in said
    assert "`specmoe`: 0 % waiting for reads; most goes into drafting (60 %)." in said
    said = report.say_use(pd.DataFrame([[6, 2, 0, 0]]), 1)
    assert (
        "**0.62**" in said
        and "1 most used of 4 experts take 75 %" in said
        and "; 2 of 4 experts were not called at all." in said
    )
    assert report.say_use(pd.DataFrame([[6, 2], [1, 1]]), 1).endswith("; every expert was called.")


def test_the_oracle_of_overlapping_is_marked_as_computed():
    share = {"method": "overlapped", "batch": 4, "oracle_overlap_seconds": 0.9, "rest_share": 0.05}
    share |= {"decode_seconds": 2.0, "new_tokens": 100}
    said = report.say_oracle([share])
    assert "**computed**" in said and said.endswith("- batch 4: 100 tokens/s, 50 measured.")
    assert report.say_oracle([share | {"method": "cached"}]) == ""


def test_the_table_keeps_every_row_and_empties_what_is_missing(rows):
    rows[0]["gamma"] = None
    table = report.number_table(rows)
    assert len(table) == 7
    assert table.loc[(1, "on_demand"), "gamma"] == ""
    assert table.loc[(1, "on_demand"), "KiB read per token"] == "4"
    assert table.loc[(16, "specmoe"), "tokens/s"] == "100"


def test_metrics_are_plain_json_whatever_is_in_them(tmp_path):
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, math.nan]})
    report.save_metrics(
        tmp_path, {"frame": frame, "inf": math.inf, "deep": {1: (frame["a"].sum(),)}}
    )
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "frame": [{"a": 1, "b": 0.5}, {"a": 2, "b": None}],
        "inf": None,
        "deep": {"1": [3]},
    }
    report.save_metrics(None, {})


# ---- the main report ----


def test_the_main_report_is_listed_and_all_its_parameters_are_typed_and_explained():
    named = {listed["name"]: listed["title"] for listed in report.list_reports()}
    assert named["report"].startswith("Decoding a Mixture-of-Experts model")
    parameters = report.report_parameters("report")
    assert {
        "model",
        "methods",
        "batch_sizes",
        "gamma",
        "draft_experts",
        "fast_memory",
        "seed",
    } <= set(parameters)
    assert parameters["gamma"]["type"] == "Optional[int]"
    assert [name for name, about in parameters.items() if not about["help"]] == []


def test_the_main_report_keeps_to_what_a_page_can_hold():
    path = report.notebooks_dir() / "report.ipynb"
    cells = nbformat.read(path, as_version=4)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(len(cell["source"].splitlines()) <= 20 for cell in code)
    assert all(cell["execution_count"] for cell in code), "run the notebook before committing it"
    # settings that papermill was given, if any
    own = [cell for cell in code if "injected-parameters" not in cell["metadata"].get("tags", [])]
    silent = [cell["source"].splitlines()[0].split()[0] for cell in own if not cell["outputs"]]
    assert silent == ["from", "from"]  # the parameters and the imports
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert len(outputs) < 300_000
    assert "/home/" not in outputs and "/root/" not in outputs and str(path.parent) not in outputs


@pytest.mark.slow
def test_the_main_report_end_to_end(tmp_path):
    """Bytes and tokens are facts of the method; no time is asserted."""
    wanted = {
        "batch_sizes": "1,4",
        "new_tokens": 8,
        "repeats": 1,
        "expert_bytes": "null",
        "link_bytes_per_s": "null",
    }
    page = report.run_report("report", wanted, tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = {(row["method"], row["batch"]): row for row in numbers["rows"]}
    assert len(rows) == 6 * 2
    assert all(row["same_tokens_as_plain"] is True for row in rows.values())
    assert (
        len({row["fast_memory_bytes"] for row in rows.values() if row["method"] != "resident"}) == 1
    )
    for batch in (1, 4):
        moved = {
            method: rows[method, batch]["fetched_bytes_per_token"]
            for method in ("on_demand", "specmoe")
        }
        assert 0 < moved["specmoe"] < moved["on_demand"]
        assert (
            rows["on_demand", batch]["tokens_per_round"]
            == 1
            < rows["specmoe", batch]["tokens_per_round"]
            <= 11
        )
    for share in numbers["shares"]:  # the trace tells the same story as the counters
        row = rows[share["method"], share["batch"]]
        assert share["bytes_per_token"] == pytest.approx(row["fetched_bytes_per_token"], rel=0.1)
        assert share["tokens_per_round"] == pytest.approx(row["tokens_per_round"], rel=0.1)
        # the others may find every read done in time
        if share["method"] in ("on_demand", "resident"):
            assert (share["wait_share"] > 0) == (share["method"] == "on_demand")
    assert 0 < numbers["skewness"] < 1
    assert report.external_loads(page.read_text(encoding="utf-8")) == []
    pictures = re.findall(r'<img[^>]* alt="Figure: ([^"]*)"', page.read_text(encoding="utf-8"))
    assert len(pictures) == 5 and sum("batch kept full" in said for said in pictures) == 4


def test_a_module_lives_in_the_page_with_its_data_and_its_picture_for_where_no_script_runs():
    from specmoe.lab import live

    view = {"model_id": "7", "version_major": 2, "version_minor": 0}
    output = bundle(image_png="aGVsbG8=", text_plain="Widget: weights")
    output["data"]["application/vnd.jupyter.widget-view+json"] = view
    data = {"p": [1, 2], "q": [2, 1], "words": ["</script>", "{{ x }}"]}
    state = {"7": {"state": {"kind": "accept", "data": data, "about": "weights"}}}
    widgets = {"application/vnd.jupyter.widget-state+json": {"version_major": 2, "state": state}}
    cells = [new_markdown_cell("# A"), new_code_cell("figure", outputs=[output])]
    notebook = nbformat.from_dict(new_notebook(cells=cells, metadata={"widgets": widgets}))
    page = report.offline_html(notebook)
    place = re.search(r'<div [^>]*data-live="accept".*?</div>', page, re.S)[0]
    assert 'src="data:image/png;base64,aGVsbG8="' in place
    packed = re.search(r'<script type="application/json">(.*?)</script>', place)[1]
    assert json.loads(packed) == data and report.external_loads(page) == []
    assert page.count("LIVE.accept = ") == 1 and live.style() in page and "LIVE.pool" not in page
    notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"] = {}
    assert "data-live" not in report.offline_html(notebook)
