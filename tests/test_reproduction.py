"""The paper's numbers and ours: kinds kept apart, tables join, claims follow the numbers, the page is
the executed notebook."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from specmoe.errors import OptionError
from specmoe.lab import paper, report
from specmoe.lab.figures import paper as draw
from specmoe.lab.markdown import DOCS, page_of, pictures_of
from specmoe.lab.paper import settings
from specmoe.lab.paper.measure import weights_digest
from specmoe.lab.paper.numbers import RESULTS
from specmoe.tiny import shipped_path

matplotlib.use("agg")
GROWTH = "growth of bytes, batch 1 to 256"
TOKENS = "tokens per round"


def number(table, label, measure, value, kind="measured", **other) -> paper.Number:
    return paper.Number(table, label, measure, value, kind, **other)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The report as `specmoe report run paper` makes it from committed results."""
    return report.run_report("paper", out_dir=tmp_path_factory.mktemp("paper") / "out")


# ---- the report ----


def test_the_report_renders_from_committed_results_without_network(page):
    html = page.read_text(encoding="utf-8")
    assert report.external_loads(html) == []
    committed = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", committed, re.M)
    assert len(titles) == 16 and all(
        title.replace("'", "&#39;") in html or title in html for title in titles
    )


def test_the_committed_page_is_the_notebook_and_the_notebook_agrees_with_the_results(page):
    committed = json.loads((report.notebooks_dir() / "paper.ipynb").read_text(encoding="utf-8"))
    executed = json.loads((page.parent / "paper.ipynb").read_text(encoding="utf-8"))
    written = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    say = "run: python -m specmoe.lab.paper document"
    assert written == page_of(committed) == page_of(executed), say
    assert (DOCS / "images/winners.png").read_bytes() == pictures_of(committed)["winners.png"], say


def test_every_number_has_a_kind_and_the_papers_are_all_there(page):
    found = json.loads((page.parent / "metrics.json").read_text(encoding="utf-8"))
    assert {row["kind"] for row in found["numbers"]} <= set(paper.KINDS)
    kept = {
        (r["table"], r["label"], r["measure"], r["value"])
        for r in found["numbers"]
        if r["kind"] == "paper"
    }
    assert kept == {(f.table, f.label, f.measure, f.value) for f in paper.FACTS}
    tables = {fact.table for fact in paper.FACTS}
    assert {row["table"] for row in found["numbers"] if row["kind"] == "measured"} <= tables
    assert {row["kind"] for row in found["numbers"]} == set(paper.KINDS)


def test_metrics_say_where_the_measured_numbers_come_from(page):
    about = json.loads((page.parent / "metrics.json").read_text(encoding="utf-8"))["measured_on"]
    assert {"cpu", "cores", "torch", "transformers"} <= set(about[settings.MAIN]["machine"])


def test_the_notebook_has_no_long_cell():
    notebook = json.loads((report.notebooks_dir() / "paper.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert max(len(source.splitlines()) for source in sources) <= 20
    assert not [source for source in sources if re.search(r"^\s*(def|class) ", source, re.M)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rerun": "fast"}, "rerun='fast'"),
        ({"model": "tiny-skewed"}, "needs a folder"),
        ({"rerun": "quick"}, "needs a folder"),
    ],
)
def test_bad_parameters_are_refused_in_one_sentence(given, words):
    with pytest.raises(OptionError, match=words):
        paper.open_results(**given)


def test_unknown_parameters_are_refused():
    with pytest.raises(OptionError, match="did you mean 'rerun'"):
        report.typed_parameters("paper", {"reruns": "quick"})


# ---- the paper's numbers ----


@pytest.mark.parametrize(
    ("table", "label", "measure", "value", "batch"),
    [
        ("throughput", "specmoe", "speed-up, best batch", 4.30, None),
        ("bytes", "specmoe", "change against on_demand, best batch", -76.73, None),
        ("bytes", "specmoe", "change against cached, best batch", -71.89, None),
        ("growth", "on_demand", GROWTH, 45.28, None),
        ("growth", "cached", GROWTH, 50.97, None),
        ("growth", "specmoe", GROWTH, 10.96, None),
        ("draft_set", "hot_temporal", TOKENS, 7.265, 256),
        ("draft_experts", "N = 8", "speed", 121.309, 256),
        ("ssd", "cached", "speed-up, mean over batches", 1.29, None),
        ("migration", "on_demand", "time in expert migration, largest", 90.11, None),
    ],
)
def test_the_papers_numbers(table, label, measure, value, batch):
    fact = paper.value_of(list(paper.FACTS), table, label, measure, "paper", batch)
    assert fact.value == value and fact.note.startswith("arXiv 2604.10152")


@pytest.fixture(scope="module")
def numbers() -> list[paper.Number]:
    return paper.all_numbers(paper.load_results())


def test_no_number_stands_twice(numbers):
    keys = [(n.table, n.label, n.measure, n.kind, n.batch) for n in numbers]
    assert len(keys) == len(set(keys))


# ---- committed results ----


def test_results_belong_to_the_shipped_weights():
    for name, found in paper.load_results().items():
        assert found["weights_sha256"] == weights_digest(str(shipped_path(name))), (
            f"{name} changed since it was measured"
        )


def test_greedy_runs_of_the_same_prompts_gave_the_same_tokens():
    """Every method, substitute, draft set and N: one text for each batch and set of prompts."""
    rows = paper.rows_of(paper.load_results(), settings.MAIN)
    counted = rows[rows["regime"] == "count"]
    assert (counted.groupby(["batch", "prompt_set"])["tokens_digest"].nunique() == 1).all()
    timed = rows[(rows["regime"] != "count")]
    assert (
        (timed.groupby(["batch", "prompt_set"])["tokens_digest"].nunique() == 1).all()
        if len(timed)
        else True
    )


def test_results_are_small():
    assert sum(file.stat().st_size for file in RESULTS.glob("*.json")) < 2**20


# ---- tables and sentences ----


def test_a_table_joins_the_kinds_of_one_number_and_mixes_none():
    numbers = [
        number("growth", "specmoe", GROWTH, 10.96, "paper"),
        number("growth", "specmoe", GROWTH, 8.0, low=7.0, high=9.0, num=5),
        number("growth", "cached", GROWTH, 60.0, "simulated"),
        number("ssd", "specmoe", "else", 1.0),
    ]
    joined = paper.compare(numbers, "growth").set_index("row")
    assert list(joined.index) == ["specmoe", "cached"]
    assert (
        joined.loc["specmoe", "paper"].startswith("11")
        and "7 to 9, 5" in joined.loc["specmoe", "measured"]
    )
    assert joined.loc["cached", "measured"] == "" and joined.loc["cached", "simulated"].startswith(
        "60"
    )


def test_numbers_of_a_batch_stand_in_columns_each_kind_in_a_table_of_its_own():
    made = [
        number("ssd", "specmoe", "speed-up", value, kind, batch=batch)
        for kind, value in (("measured", 2.0), ("simulated", 3.0))
        for batch in (1, 64)
    ]
    shown = {each.kind: each for each in paper.pivots(made, "ssd")}
    assert set(shown) == {"measured", "simulated"}
    assert (
        list(shown["measured"].frame.columns) == [1, 64]
        and "**measured**" in shown["measured"].caption
    )
    assert set(shown["measured"].frame.to_numpy().ravel()) == {"2"}
    # neither reported by the paper nor without a batch
    assert not len(paper.compare(made, "ssd"))


def judged(numbers: list[paper.Number], words: str) -> list[paper.Claim]:
    return [claim for claim in paper.claims(numbers) if words in claim.name]


def test_a_claim_is_a_boolean_with_the_numbers_it_stands_on():
    growth = [number("growth", "specmoe", GROWTH, 9.0), number("growth", "on_demand", GROWTH, 45.0)]
    [claim] = judged(growth, "grow less than half")
    assert claim.holds is True and list(claim.numbers) == growth and claim.kind == "measured"
    [claim] = judged([growth[0], replace(growth[1], value=17.0)], "grow less than half")
    assert claim.holds is False
    assert paper.claims([]) == [] == judged(growth, "on an SSD")


def test_the_frame_of_claims_says_the_papers_number_and_ours():
    growth = [number("growth", "specmoe", GROWTH, 9.0), number("growth", "on_demand", GROWTH, 45.0)]
    [row] = paper.claims_frame(paper.claims(growth)).to_dict("records")
    assert (row["paper"], row["holds"], row["kind"]) == ("11 times; 45.3 times", "yes", "measured")
    assert row["ours"].startswith("`specmoe` 9") and "`on_demand` 45" in row["ours"]


def test_verdicts_count_by_kind_and_list_what_does_not_hold():
    growth = [number("growth", "specmoe", GROWTH, 9.0), number("growth", "on_demand", GROWTH, 17.0)]
    steps = [
        number("draft_experts", f"N = {n}", TOKENS, float(n), batch=256) for n in (2, 4, 8, 16)
    ]
    said = paper.verdicts(paper.claims([*growth, *steps]))
    assert said.startswith("**Measured: 1 of 2 claims hold.**")
    assert "- *bytes grow less than half" in said and "rise with N" not in said
    assert "Not ours" not in paper.verdicts(paper.claims(steps))


def test_tables_by_batch_are_folded_away():
    made = [number("ssd", "specmoe", "speed-up", 2.0, batch=batch) for batch in (1, 64)]
    page = paper.markdown(made, "ssd")
    assert page.startswith("<details><summary>By batch (table)</summary>\n\n")
    assert page.endswith("</details>") and "Speed-up by batch" in page


def test_an_order_holds_only_where_one_is_ahead_on_every_set():
    def holds(**other) -> bool:
        about = {"batch": 256, "num": 5, "low": 1.0, "high": 5.0} | other
        pair = number("substitution", "affinity", f"{TOKENS} against random", 3.0, **about)
        smaller = replace(pair, batch=64, low=-9.0)  # the larger batch decides
        [claim] = judged([smaller, pair], "affinity is ahead")
        assert claim.numbers == (pair,)
        return claim.holds

    assert holds() and not holds(low=-1.0)
    [alone] = judged(
        [number("substitution", "affinity", f"{TOKENS} against random", 3.0, batch=256)], "affinity"
    )
    assert not alone.holds, "one set of prompts settles nothing"


def test_the_best_number_of_draft_experts_is_found():
    def claim(*speeds) -> paper.Claim:
        found = [
            number("draft_experts", f"N = {n}", "speed", value, batch=256)
            for n, value in zip((2, 4, 8, 16), speeds)
        ]
        return judged(found, "N = 4 is the fastest")[0]

    assert claim(1, 4, 3, 2).holds and [n.label for n in claim(1, 4, 3, 2).numbers] == ["N = 4"]
    assert not claim(1, 2, 3, 4).holds
    assert [n.label for n in claim(1, 2, 3, 4).numbers] == ["N = 4", "N = 16"]


@pytest.mark.parametrize(("ours", "cached", "holds"), [(2.0, 1.5, True), (2.0, 2.5, False)])
def test_who_is_fastest_is_judged_at_the_best_batch(ours, cached, holds):
    best = [
        number("ssd", label, "speed-up, best batch", value)
        for label, value in (("specmoe", ours), ("cached", cached), ("resident", 9.0))
    ]
    [claim] = judged(best, "on an SSD")
    assert claim.holds == holds and [n.label for n in claim.numbers] == ["specmoe", "cached"]


def test_a_model_leads_only_where_it_does_at_every_batch_above_4():
    def rows(ours: dict) -> list[paper.Number]:
        return [
            number("low_skew", f"tiny-skewed: {method}", "speed-up", value, batch=batch)
            for batch, value in ours.items()
            for method, value in (("specmoe", value), ("cached", 1.5))
        ]

    assert judged(rows({1: 1.0, 16: 2.0, 64: 1.6}), "tiny-skewed")[0].holds
    behind = judged(rows({1: 1.0, 16: 2.0, 64: 1.4}), "tiny-skewed")[0]
    assert not behind.holds and {n.batch for n in behind.numbers} == {64}


def test_near_is_within_a_quarter_of_the_papers():
    def holds(value: float) -> bool:
        measure = "change against on_demand, best batch"
        return judged([number("bytes", "specmoe", measure, value)], "fewer bytes")[0].holds

    assert holds(-80.0) and holds(-60.0) and not holds(-50.0)


def test_batch_one_and_the_control_are_judged():
    cached = number("throughput", "cached", "speed", 100.0, batch=1)
    for speed, holds in ((80.0, True), (130.0, False)):
        ours = number("throughput", "specmoe", "speed", speed, batch=1)
        assert judged([cached, ours], "at batch 1")[0].holds == holds
    for tokens, holds in ((2.0, True), (5.0, False)):
        found = [number("substitution", "affinity", TOKENS, 7.0, batch=256)]
        found.append(number("substitution", "no_experts", TOKENS, tokens, batch=256))
        assert judged(found, "without any expert")[0].holds == holds


def test_the_committed_results_reach_what_the_translation_model_was_made_for(numbers):
    results = paper.load_results()
    rows = results[settings.MAIN]["rows"].values()
    large = [
        r
        for r in rows
        if (r["regime"], r["batch"], r["budget"], r["prompt_set"]) == ("count", 256, "draft", 0)
    ]
    ours = next(
        r
        for r in large
        if r["method"] == "specmoe"
        and (r["draft_experts"], r["gamma"]) == (4, 10)
        and (r["draft_set"], r["substitute"]) == ("hot_temporal", "affinity")
    )
    theirs = next(r for r in large if r["method"] == "on_demand")
    assert ours["tokens_per_round"] >= 7.0
    assert ours["fetched_bytes_per_token"] / theirs["fetched_bytes_per_token"] <= 1 - 0.7673
    assert paper.value_of(numbers, "growth", "specmoe", GROWTH).value <= 10.96


def test_the_committed_clock_keeps_the_simulators_targets():
    rows = paper.clock_rows()
    cells = rows.groupby(["link", "model", "method", "batch"])["error"].median().abs()
    assert cells["0.25 GB/s"].median() <= 0.10 and cells["native"].median() <= 0.20
    assert set(cells["0.25 GB/s"].reset_index()["batch"]) == {1, 16, 64}


# ---- figures ----


def test_a_figure_shows_each_kind_and_refuses_an_unknown_measure():
    frame = paper.frame_of(
        [
            number("growth", "a", GROWTH, 1.0, "paper"),
            number("growth", "a", GROWTH, 2.0, low=1.5, high=3),
        ]
    )
    ax = draw.against_paper(frame, GROWTH)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["paper", "measured"]
    with pytest.raises(OptionError, match="no number is called 'other'"):
        draw.against_paper(frame, "other")


def test_the_clock_is_said_and_drawn_from_its_rows():
    assert not len(paper.clock_errors(pd.DataFrame()))
    row = {
        "model": "tiny-skewed",
        "method": "specmoe",
        "batch": 16,
        "link": "native",
        "measured": 100.0,
        "predicted": 110.0,
        "error": 0.1,
    }
    errors = paper.clock_errors(pd.DataFrame([row, row | {"batch": 64, "error": -0.3}]))
    [[model, link, median, worst, at]] = errors.values.tolist()
    assert (median, worst, at) == ("20%", "30%", "specmoe at batch 64")
    ax = draw.clock_scatter(pd.DataFrame([row]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["native", "specmoe"]


def test_names_of_lines_that_end_together_are_pushed_apart():
    heights = draw._apart(np.array([1.0, 1.01, 1.02, 3.0]), 0.5)
    assert np.diff(heights).min() >= 0.5 - 1e-9 and heights[3] == 3.0
    assert heights[:3].mean() == pytest.approx(1.01)  # the push is shared


def test_lines_are_named_at_their_ends():
    lines = pd.DataFrame({"on_demand": [1.0, 2.0], "specmoe": [2.0, 9.0]}, index=[1, 256])
    ax = draw.by_batch(lines, "tokens per second", "Throughput")
    assert {text.get_text() for text in ax.texts} == {"on_demand", "specmoe"}
    with pytest.raises(OptionError, match="nothing to draw"):
        draw.by_batch(pd.DataFrame(), "y", "t")
