"""What a report says first and beside an earlier one: ratios with their ranges, honest where they hold
1; a comparison only of like with like; progress wherever it runs; a name that says how it stands."""

# ruff: noqa: F811 - fixtures of test_report are arguments here
from __future__ import annotations

import io
import json
import math
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell
from test_report import folder, write  # noqa: F401 - a fixture

import specmoe
from specmoe.errors import OptionError, SpecMoEError
from specmoe.lab import report
from specmoe.lab.markdown import pictures_of
from specmoe.lab.report import about, progress


def row(method: str, batch: int, low: float, middle: float, high: float, **more) -> dict:
    fields = {"method": method, "batch": batch, "eviction": None, "repeats": 3}
    fields |= {"tokens_per_second": middle, "fetched_bytes_per_token": 1024.0}
    return fields | {"tokens_per_second_min": low, "tokens_per_second_max": high} | more


@pytest.fixture
def rows() -> list[dict]:
    return [
        row("on_demand", 1, 9.0, 10.0, 11.0),
        row("cached", 1, 19.0, 20.0, 21.0),
        row("specmoe", 1, 18.0, 21.0, 22.0),
        row("resident", 1, 39.0, 40.0, 41.0, fetched_bytes_per_token=0.0),
        row("on_demand", 64, 90.0, 100.0, 110.0),
        row("cached", 64, 140.0, 150.0, 160.0),
        row("specmoe", 64, 280.0, 300.0, 310.0),
        row("resident", 64, 590.0, 600.0, 610.0, fetched_bytes_per_token=0.0),
    ]


def result_of(rows: list[dict]) -> SimpleNamespace:
    model = {"layers": 4, "experts": 128, "record_bytes": 2**18, "fast_memory_bytes": 4 * 2**20}
    return SimpleNamespace(rows=rows, model=model)


# ---- the summary


def test_the_summary_names_the_fastest_by_how_much_and_its_range(rows):
    said = report.say_summary(result_of(rows)).splitlines()
    assert "4 MiB of fast memory, 3.1 % of the 128 MiB" in said[0]
    assert (
        "| 64 | `specmoe` | 300 (280 to 310) | 3.00 (2.55 to 3.44) | "
        "`specmoe` / `cached` = 2.00 (1.75 to 2.21): ahead |"
    ) in said
    assert "from the slowest to the fastest of 3 repeats" in said[-1]


def test_the_summary_is_honest_where_the_range_holds_one(rows):
    said = report.say_summary(result_of(rows))
    line = next(line for line in said.splitlines() if line.startswith("| 1 |"))
    assert "`specmoe` / `cached` = 1.05 (0.86 to 1.16): not settled: the range holds 1" in line
    assert "level with `cached`" in line
    assert "- Drafting is not settled at batch 1; it pays at batch 64." in said


def test_the_summary_says_when_drafting_loses(rows):
    rows[2] |= {
        "tokens_per_second": 15.0,
        "tokens_per_second_min": 14.0,
        "tokens_per_second_max": 16.0,
    }
    said = report.say_summary(result_of(rows))
    assert "`specmoe` / `cached` = 0.75 (0.67 to 0.84): behind" in said
    assert "- Drafting loses at batch 1; it pays at batch 64." in said
    assert "(`resident`" not in said.split("Drafting")[0]


def test_what_was_measured_once_has_no_range_and_settles_nothing(rows):
    rows = [each | {"repeats": 1} for each in rows]
    said = report.say_summary(result_of(rows))
    assert "measured once, so not settled" in said and "there are no ranges" in said
    assert "ahead" not in said and "(280" not in said


def test_the_summary_of_one_kind_of_method_makes_no_duel_up(rows):
    plain = [each for each in rows if each["method"] in ("on_demand", "cached")]
    said = report.say_summary(result_of(plain))
    assert "Drafting" not in said and "resident" not in said
    assert "nothing to choose between" in report.say_summary(result_of([rows[3]]))


def test_the_saved_memory_is_beside_what_it_costs(rows):
    said = report.say_memory(result_of(rows))
    assert "| 64 | 4 MiB | `specmoe` | 300 (280 to 310) | 0.50 (0.46 to 0.53) | 75 |" in said
    assert "| 64 | 128 MiB | `resident` | 600 (590 to 610) | 1 | 4.69 |" in said
    assert said.endswith(
        "124 MiB of fast memory are saved, 96.9 % of what the experts take. `resident` is 1.90 to 2.00 "
        "times as fast, for 32 times the memory. Where 128 MiB are free, take `resident`; where they "
        "are not, the method beside it above is the best of the smaller memory."
    )
    slow = [each for each in rows if each["method"] != "resident"]
    slow += [row("resident", 1, 9.0, 10.0, 11.0)]
    assert "not ahead everywhere" in report.say_memory(result_of(slow))
    assert "was not measured" in report.say_memory(result_of(slow[:-1]))


def test_layers_that_decode_are_told_from_all(rows):
    counts = pd.DataFrame([[6, 2, 0, 0], [4, 4, 0, 0]], index=[2, 3])
    assert report.say_use(counts, 1, 4).endswith(
        "; 4 of 8 experts (those of the 2 MoE layers that decode) were not called at all."
    )
    assert report.say_use(counts, 1, 2).endswith("; 4 of 8 experts were not called at all.")


def test_waiting_says_its_range(rows):
    share = {
        "method": "cached",
        "batch": 4,
        "draft_share": 0.0,
        "verify_share": 0.5,
        "rest_share": 0.0,
    }
    share |= {"wait_share": 0.5, "wait_share_min": 0.3, "wait_share_max": 0.6}
    assert "`cached`: 50 % (30 to 60) waiting for reads" in report.say_time([share])
    same = share | {"wait_share_min": 0.5, "wait_share_max": 0.5}
    assert "`cached`: 50 % waiting for reads" in report.say_time([same])


# ---- against an earlier report


SETTINGS = {"model": "tiny-skewed", "methods": ["on_demand", "cached", "specmoe", "resident"]}
SETTINGS |= {"batch_sizes": [1, 64], "seed": 0, "repeats": 3, "gamma": 5}


@pytest.fixture
def earlier(rows, tmp_path):
    """A folder of an earlier run; call it to change what its metrics say."""

    def change(**changes):
        made = {"report": "report", "made": "2026-11-25 <b>07:00", "revision": "specmoe 0.1.0"}
        made |= {"machine": "a | cpu", "settings": SETTINGS}
        numbers = {"made": made, "rows": rows} | changes
        (tmp_path / "metrics.json").write_text(json.dumps(numbers))
        return tmp_path

    change()
    return change


def test_a_change_counts_only_beyond_both_ranges(earlier, rows):
    now = [dict(each) for each in rows]
    now[6] |= {
        "tokens_per_second": 600.0,
        "tokens_per_second_min": 590.0,
        "tokens_per_second_max": 610.0,
    }
    now[0] |= {"tokens_per_second": 8.0, "tokens_per_second_min": 7.0, "tokens_per_second_max": 8.9}
    now[5] |= {"tokens_per_second": 155.0, "fetched_bytes_per_token": 512.0}
    said = report.say_change(earlier(), now)
    assert said.startswith("## Against the earlier report")
    assert (
        "| 64 | `specmoe` | 300 (280 to 310) | 600 (590 to 610) | 2.00 (1.90 to 2.18) | faster | 1 |"
        in said
    )
    assert (
        "| 1 | `on_demand` | 10 (9 to 11) | 8 (7 to 8.9) | 0.80 (0.64 to 0.99) | slower | 1 |"
        in said
    )
    assert (
        "| 64 | `cached` | 150 (140 to 160) | 155 (140 to 160) | 1.03 (0.88 to 1.14) | within the ranges | 0.5 |"
        in said
    )
    assert "<b>" not in said and "a &#124; cpu" in said
    assert "1 of 8 runs are faster beyond both ranges, 1 slower" in report.count_changes(
        earlier(), now
    )


def test_only_runs_that_both_have_are_compared(earlier, rows):
    assert len(report.changes(earlier(), rows[:3])) == 3
    assert len(report.changes(earlier(rows=rows[5:]), rows)) == 3


def test_like_is_compared_with_like(earlier):
    there = earlier()
    report.check_against(there, "report", SETTINGS)
    report.check_against(there, "report", SETTINGS | {"repeats": 1, "methods": ["cached"]})
    for changed, words in [
        ({"model": "tiny-translate"}, "measured with model='tiny-skewed' (now 'tiny-translate')"),
        ({"gamma": None}, "measured with gamma=5 (now None)"),
        ({"methods": ["auto"]}, "none of the methods of this report"),
        ({"batch_sizes": [2]}, "none of the batch_sizes of this report"),
    ]:
        with pytest.raises(OptionError, match=re.escape(words)):
            report.check_against(there, "report", SETTINGS | changed)
    with pytest.raises(OptionError, match="of the report 'report', this one is 'paper'"):
        report.check_against(there, "paper", SETTINGS)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", '{"rows": 3}', '{"rows": [3]}', '{"rows": []}']
    + ['{"rows": [{"method": "cached", "batch": 1}]}', "[" * 100_000, "\x00", '{"rows": [{}]}'],
    ids=lambda text: text[:40],
)
def test_what_no_report_wrote_is_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(OptionError, match="metrics.json") as caught:
        report.check_against(tmp_path, "report", SETTINGS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens_per_second", 0), ("tokens_per_second_max", "9"), ("tokens_per_second_min", None)]
    + [
        ("tokens_per_second", math.inf),
        ("tokens_per_second", math.nan),
        ("batch", "1"),
        ("batch", 1.5),
    ]
    + [
        ("fetched_bytes_per_token", -1),
        ("method", "specmo"),
        ("method", 3),
        ("tokens_per_second", True),
    ],
)
def test_a_number_that_nobody_measured_is_refused(earlier, rows, name, value):
    with pytest.raises(OptionError, match="metrics.json"):
        report.check_against(earlier(rows=[rows[0] | {name: value}]), "report", SETTINGS)


def test_a_folder_without_metrics_and_one_without_settings_are_named(earlier, tmp_path):
    with pytest.raises(
        OptionError, match="there is no metrics.json of an earlier report in .*nowhere"
    ):
        report.check_against(tmp_path / "nowhere", "report", SETTINGS)
    for made in (None, {}, {"report": "report", "settings": 3}):
        with pytest.raises(OptionError, match="does not say how it was made"):
            report.check_against(earlier(made=made), "report", SETTINGS)


def test_nothing_is_run_or_written_for_a_comparison_that_cannot_be(earlier, tmp_path, monkeypatch):
    monkeypatch.setattr(report.run, "_execute", lambda *_: pytest.fail("ran all the same"))
    with pytest.raises(OptionError, match="model='tiny-skewed'"):
        report.run_report("report", out_dir=tmp_path / "out", against=earlier())
    with pytest.raises(OptionError, match="model='tiny-skewed'"):
        report.run_report("report", {"against": str(earlier())}, tmp_path / "out")
    with pytest.raises(OptionError, match="'performance' cannot be compared with an earlier one"):
        report.run_report("performance", out_dir=tmp_path / "out", against=earlier())
    assert not (tmp_path / "out").exists()


# ---- how it was made


def test_the_command_makes_the_same_report_again(folder):
    given = {"gamma": None, "batch_sizes": [2, 4], "strict": False, "model": "a b", "rate": 2.5e8}
    words = about.command("small", given | {"out_dir": "/x", "against": "old run"})
    assert words == (
        "specmoe report run small -p gamma=null -p batch_sizes=2,4 -p strict=false -p 'model=a b' "
        "-p rate=250000000.0 --against 'old run'"
    )
    read = dict(word.split("=", 1) for word in shlex.split(words) if "=" in word)
    assert report.typed_parameters("small", read) == given


def test_a_revision_is_that_of_our_own_repository(tmp_path, monkeypatch):
    assert re.fullmatch(rf"specmoe {specmoe.__version__}(, commit [0-9a-f]+\+?)?", about.revision())
    # a package folder inside a stranger's repository has no .git of its own
    monkeypatch.setattr(about, "package_path", lambda: tmp_path / "site-packages" / "specmoe")
    assert about.revision() == f"specmoe {specmoe.__version__}"


def test_the_metrics_say_how_they_were_made(folder, tmp_path):
    code = (
        "import json, pathlib\npathlib.Path(out_dir, 'metrics.json').write_text('{\"rows\": []}')"
    )
    write(folder, "object", new_markdown_cell("# O"), new_code_cell(code))
    page = report.run_report("object", {"gamma": "3"}, tmp_path / "out", progress=False)
    made = json.loads((tmp_path / "out" / "metrics.json").read_text())["made"]
    assert made["report"] == "object" and made["command"] == "specmoe report run object -p gamma=3"
    assert made["settings"]["gamma"] == 3 and made["settings"]["batch_sizes"] == [1, 16]
    assert "out_dir" not in made["settings"]
    html = page.read_text(encoding="utf-8")
    for words in (made["made"], made["revision"], made["command"], made["machine"]):
        assert f"<dd>{words}</dd>" in html


# ---- while it runs


def seen_names(folder, tmp_path, code: str) -> tuple[list[str], str]:
    write(folder, "names", new_markdown_cell("# N"), new_code_cell(code))
    out = tmp_path / "out"
    try:
        report.run_report("names", out_dir=out, progress=False)
    except SpecMoEError as failure:
        return sorted(path.name for path in out.iterdir()), str(failure)
    return sorted(path.name for path in out.iterdir()), ""


def test_a_notebook_is_called_failed_only_once_it_has_failed(folder, tmp_path):
    code = "import os\nassert sorted(os.listdir(out_dir)) == ['env.json', 'names.running.ipynb']"
    assert seen_names(folder, tmp_path, code) == (["env.json", "names.html", "names.ipynb"], "")
    names, said = seen_names(folder, tmp_path / "second", "1 / 0")
    assert names == ["env.json", "names.failed.ipynb"] and "names.failed.ipynb" in said


def test_an_interrupted_report_is_called_failed_and_the_next_one_clears_it(
    folder, tmp_path, monkeypatch
):
    def interrupted(source, target, *_):
        target.write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(report.run, "_execute", interrupted)
        with pytest.raises(KeyboardInterrupt):
            report.run_report("small", out_dir=tmp_path / "out", progress=False)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["env.json", "small.failed.ipynb"]
    report.run_report("small", out_dir=tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "small.failed.ipynb").exists()


@pytest.mark.parametrize(
    ("breaks", "said", "remedy"),
    [
        ("offline_html", "could not be made into a page", "install nbconvert"),
        ("add_to_metrics", "could not be written", "free some space"),
    ],
)
def test_a_page_that_cannot_be_made_is_no_full_disk(
    folder, tmp_path, monkeypatch, breaks, said, remedy
):
    """soupsieve's own error under a Python that it is not for: no disk was full."""

    def fails(*_):
        raise ValueError("Invalid character 'i' position 0\n  line 1:")

    monkeypatch.setattr(report.run, "_execute", lambda source, target, *_: target.write_text("{}"))
    monkeypatch.setattr(report.run, "offline_html", lambda *_: "")
    monkeypatch.setattr(report.run, breaks, fails)
    with pytest.raises(SpecMoEError, match=f"{said}.*Invalid character 'i'.*{remedy}") as refused:
        report.run_report("small", out_dir=tmp_path / "out", progress=False)
    assert "small.failed.ipynb" in str(refused.value)
    assert (tmp_path / "out" / "small.failed.ipynb").exists()


def test_a_folder_in_which_a_report_runs_is_refused(folder, tmp_path):
    (tmp_path / "small.running.ipynb").write_text("{}")
    with pytest.raises(OptionError, match="still runs, or was killed"):
        report.run_report("small", out_dir=tmp_path, progress=False)
    report.run_report("small", out_dir=tmp_path, overwrite=True, progress=False)


def test_a_report_says_its_steps_also_when_nobody_sits_at_a_terminal(folder, tmp_path, capsys):
    code = "from specmoe.lab import report\ntell = report.teller([1], 2)\nfor done in range(3): tell(done, 3, f'run of {done}')"
    write(folder, "steps", new_markdown_cell("# S"), new_code_cell(code))
    report.run_report("steps", out_dir=tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"steps: cell \d of \d", lines[0])
    runs = [line for line in lines if ": run " in line]
    assert runs[0] == "steps: run 1 of 3: run of 0"
    assert [bool(re.search(r"run of \d; about \d+ s left$", line)) for line in runs] == [
        False,
        True,
        True,
    ]
    assert re.fullmatch(r"steps: done in .*\d s", lines[-1])
    # and none of it is part of the report
    assert "run of" not in (tmp_path / "out" / "steps.html").read_text(encoding="utf-8")
    report.run_report("steps", out_dir=tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_tell_is_silent_where_no_report_runs(monkeypatch, capsys):
    monkeypatch.delenv(progress.FILE, raising=False)
    report.teller([1], 2)(0, 3, "x")
    assert capsys.readouterr() == ("", "")


def test_the_time_left_is_that_of_the_runs_so_far(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.s)
    out = io.StringIO()
    told = progress.Told("r", out=out)
    told.run(0, 10, "a", 0.0)
    now.s += 30
    told.run(3, 10, "b", 0.3)
    now.s += 170
    told.run(5, 10, "c", 0.5)
    assert out.getvalue().splitlines() == [
        "r: run 1 of 10: a",
        "r: run 4 of 10: b; about 1 min 10 s left",
        "r: run 6 of 10: c; about 3 min 20 s left",
    ]


def test_large_batches_and_repeats_are_most_of_the_time():
    """Two methods, two repeats: a warm-up and two runs of each, at batch 1 and at 64."""
    shares = [progress.share_of_time(done, 12, [1, 64], 2) for done in range(13)]
    assert shares[0] == 0 and shares[12] == 1 and shares == sorted(shares)
    assert shares[6] == pytest.approx(1 / 9)
    first, second = (shares[at + 1] - shares[at] for at in (0, 2))
    assert second == pytest.approx(10 * first)


def test_on_a_terminal_one_line_is_written_again():
    out = io.StringIO()
    out.isatty = lambda: True
    told = progress.Told("r", out=out)
    told.say("a long line")
    told.say("short")
    assert out.getvalue() == "\rr: a long line\rr: short      "


def test_the_readme_shows_the_figure_of_the_committed_report():
    notebook = nbformat.read(report.notebooks_dir() / "report.ipynb", as_version=4)
    shown = Path(__file__).parent.parent / "docs" / "images" / "report.png"
    assert pictures_of(notebook) == {"report.png": shown.read_bytes()}
