"""Figures: what is on the axes is what the rows say."""

from __future__ import annotations

import io

import matplotlib
import matplotlib.image

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from specmoe.errors import OptionError
from specmoe.lab import figures
from specmoe.lab.figures.base import PART_NAMES
from specmoe.options import METHODS

BY_BATCH = [figures.throughput, figures.bytes_per_token, figures.time_shares]
SPEEDS = {"specmoe": 30.0, "on_demand": 10.0, "cached": 20.0, "resident": 80.0}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def row(method: str, batch: int, **more) -> dict:
    fields = {
        "method": method,
        "batch": batch,
        "tokens_per_second": SPEEDS.get(method, 15.0) * batch,
    }
    fields |= {
        "fetched_bytes_per_token": 0
        if method == "resident"
        else 2**20 * 60 / SPEEDS.get(method, 15.0)
    }
    fields |= {
        "tokens_per_round": 4.25 if method == "specmoe" else 1.0,
        "kept_full": True,
        "eviction": "temporal",
    }
    fields |= {"draft_share": 0.25, "verify_share": 0.5, "wait_share": 0.2, "rest_share": 0.05}
    return fields | {"fast_memory_bytes": 3 * 2**20, "gamma": 5, "draft_experts": 4} | more


@pytest.fixture
def rows() -> list[dict]:
    return [row(method, batch) for batch in (16, 1) for method in SPEEDS]


def panels(axes) -> list[Axes]:
    return [axes] if isinstance(axes, Axes) else list(axes)


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def bar_colors(ax: Axes) -> list[str]:
    return [to_hex(bar.get_facecolor()) for bar in ax.containers[0]]


@pytest.mark.parametrize(
    ("draw", "unit"),
    [
        (figures.throughput, "tokens per second"),
        (figures.bytes_per_token, "MiB per new token"),
        (figures.time_shares, "% of decoding time"),
    ],
)
def test_a_panel_per_batch_with_units(rows, draw, unit):
    drawn = panels(draw(rows))
    assert [ax.get_title() for ax in drawn] == ["batch 1", "batch 16"]
    assert [ax.get_xlabel() for ax in drawn] == [unit, unit]


def test_every_method_has_its_own_colour_whatever_else_is_drawn(rows):
    assert set(figures.METHOD_COLORS) == set(METHODS)
    assert len({to_hex(color) for color in figures.METHOD_COLORS.values()}) == len(METHODS)
    of_all = bar_colors(panels(figures.throughput(rows))[0])
    assert of_all == [
        to_hex(figures.METHOD_COLORS[m]) for m in ("on_demand", "cached", "specmoe", "resident")
    ]
    alone = bar_colors(figures.throughput([row("specmoe", 1)]))
    assert alone == [to_hex(figures.METHOD_COLORS["specmoe"])]


def test_throughput_labels_speed_and_ratio_of_the_same_batch(rows):
    first, second = panels(figures.throughput(rows))
    assert words(first) == ["10", "20  (2.00×)", "30  (3.00×)", "80  (8.00×)"]
    assert words(second)[2] == "480  (3.00×)"
    assert [bar.get_width() for bar in second.containers[0]] == [160, 320, 480, 1280]


def test_panels_share_one_scale_and_say_so_where_they_cannot(rows):
    near = [row(m, b) | {"tokens_per_second": SPEEDS[m] * (1 + b)} for b in (1, 4) for m in SPEEDS]
    first, second = panels(figures.throughput(near))
    assert first.get_xlim() == second.get_xlim()
    assert figures.base.OWN_SCALES not in first.figure.get_supxlabel()
    first, second = panels(figures.throughput(rows))  # batch 16 is 16 times as fast
    assert first.get_xlim() != second.get_xlim()
    assert figures.base.OWN_SCALES in first.figure.get_supxlabel()


def test_repeats_show_as_lines_at_the_bars_ends(rows):
    assert panels(figures.throughput(rows))[0].containers[0].errorbar is None
    spread = [
        r | {"tokens_per_second_min": 8.0, "tokens_per_second_max": 90.0}
        for r in rows
        if r["batch"] == 1
    ]
    ax = figures.throughput(spread)
    lines = ax.containers[-1].errorbar.lines[2][0].get_segments()
    assert [segment[:, 0].tolist() for segment in lines] == [[8, 90]] * 4
    assert words(ax) == ["10", "20  (2.00×)", "30  (3.00×)", "80  (8.00×)"]


def test_bytes_leave_out_what_reads_nothing_and_say_the_change(rows):
    ax = panels(figures.bytes_per_token(rows))[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "on_demand",
        "cached",
        "specmoe",
    ]
    assert words(ax) == ["6", "3  (−50 %)", "2  (−67 %)"]


def test_a_method_that_a_batch_lacks_is_named_and_moves_no_other(rows):
    rows = [r for r in rows if (r["method"], r["batch"]) != ("cached", 1)]
    first, second = panels(figures.throughput(rows))
    assert words(first) == ["10", "not run", "30  (3.00×)", "80  (8.00×)"]
    assert len(words(second)) == 4


def test_several_evictions_of_one_method_are_told_apart():
    rows = [
        row("cached", 1, eviction="lru"),
        row("cached", 1, eviction="temporal"),
        row("on_demand", 1),
    ]
    ax = figures.throughput(rows)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["on_demand", "cached:lru", "cached:temporal"]
    assert bar_colors(ax)[1] == bar_colors(ax)[2] == to_hex(figures.METHOD_COLORS["cached"])


def test_tokens_per_round_shows_only_methods_that_draft(rows):
    ax = figures.tokens_per_round([*rows, row("auto", 1), row("auto", 16)])
    assert ax.get_ylabel() == "tokens per row and round"
    assert sorted(words(ax)) == ["1.00", "1.00", "4.25", "4.25"]
    assert {to_hex(p.get_facecolor()) for c in ax.containers for p in c} == {
        to_hex(figures.METHOD_COLORS[method]) for method in ("specmoe", "auto")
    }
    with pytest.raises(OptionError, match="drafts"):
        figures.tokens_per_round([row("cached", 1)])


def test_the_legend_of_time_names_no_part_that_occurs_nowhere(rows):
    plain = [r | {"draft_share": 0.0, "rest_share": 0.3} for r in rows]
    for given, missing in ((plain, "drafting"), (rows, None)):
        legend = panels(figures.time_shares(given))[0].figure.legends[0]
        names = {text.get_text() for text in legend.get_texts()}
        assert names == set(PART_NAMES.values()) - {missing}


def test_time_shares_are_stacked_to_a_hundred(rows):
    ax = panels(figures.time_shares(rows))[0]
    ends = {round(bar.get_x() + bar.get_width(), 6) for bar in ax.containers[-1]}
    assert ends == {100}
    assert [len(container) for container in ax.containers] == [4] * 4
    # a sliver has no room for its number
    assert words(ax)[:4] == ["25"] * 4 and "5" not in words(ax)


@pytest.mark.parametrize(("least", "shown"), [(0.18, True), (0.05, False)])
def test_the_number_of_waiting_does_not_lie_under_the_reach_of_its_repeats(rows, least, shown):
    """It stands in what the line of the repeats leaves free, or nowhere."""
    ranged = [r | {"wait_share_min": least, "wait_share_max": 0.2} for r in rows]
    ax = panels(figures.time_shares(ranged))[0]
    numbers = [text for text in ax.texts if text.get_text() == "20"]
    assert len(numbers) == (4 if shown else 0)
    ax.figure.canvas.draw()
    begins = ax.transData.transform((75 + 100 * least, 0))[0]  # the line begins here
    assert all(one.get_window_extent().x1 <= begins for one in numbers)


def test_time_shares_of_traces_take_their_caption_from_the_bench(rows):
    shares = [
        {name: value for name, value in r.items() if name in ("method", "batch") or "share" in name}
        for r in rows
    ]
    assert "kept full" not in panels(figures.time_shares(shares))[0].figure.get_supxlabel()
    assert "kept full" in panels(figures.time_shares(shares, about=rows))[0].figure.get_supxlabel()


def test_expert_use_sorts_and_says_gini_and_unused():
    counts = pd.DataFrame([[1, 0, 3, 0], [2, 2, 2, 2]])
    ax = figures.expert_use(counts)
    assert ax.lines[0].get_ydata().tolist() == [75, 25, 0, 0]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:2] == ["layer 0: Gini 0.62, 2 unused", "layer 1: Gini 0.00, 0 unused"]
    assert "mean Gini 0.31" in ax.get_title(loc="left")
    assert "%" in ax.get_ylabel() and "rank" in ax.get_xlabel()
    with pytest.raises(OptionError, match="no token"):
        figures.expert_use(counts * 0)


def test_caption_says_memory_settings_and_whether_the_batch_was_kept_full(rows):
    said = figures.caption(rows, "tiny-skewed")
    assert said == (
        "tiny-skewed; 3 MiB of fast memory for experts; specmoe: N = 4, γ = 5; batch kept full; "
        "resident: all experts in memory"
    )
    rows = [r | {"kept_full": r["batch"] == 1, "gamma": 5 - 0.31 * (r["batch"] == 1)} for r in rows]
    assert "γ 4.7 to 5 on average" in figures.caption(rows)
    assert "batch kept full except at 16" in figures.caption(rows)
    assert "batch not kept full" in figures.caption([r for r in rows if r["batch"] == 16])
    assert figures.caption([{"method": "cached", "batch": 1}]) == ""


@pytest.mark.parametrize("draw", [*BY_BATCH, figures.tokens_per_round])
def test_every_figure_says_whether_the_batch_was_kept_full(rows, draw):
    figure = panels(draw(rows))[0].figure
    assert "batch kept full" in figure.get_supxlabel()


@pytest.mark.parametrize("draw", [*BY_BATCH, figures.tokens_per_round])
def test_given_axes_are_drawn_on_and_say_it_too(rows, draw):
    _, ax = plt.subplots()
    drawn = draw([r for r in rows if r["batch"] == 16], ax=ax)
    assert drawn is ax and len(plt.get_fignums()) == 1
    assert "batch kept full" in ax.get_xlabel()


@pytest.mark.parametrize("draw", BY_BATCH)
def test_as_many_axes_as_batches(rows, draw):
    _, axes = plt.subplots(1, 2)
    assert panels(draw(rows, ax=axes)) == list(axes)
    with pytest.raises(OptionError, match=r"1 Axes for 2 batches \[1, 16\]"):
        draw(rows, ax=axes[0])


def test_nobodys_own_style_changes(rows):
    sns.reset_defaults()
    before = dict(matplotlib.rcParams)
    figures.throughput(rows)
    figures.expert_use(pd.DataFrame([[1, 2]]))
    assert dict(matplotlib.rcParams) == before


def test_shown_figures_are_small_sharp_and_closed(rows, monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    figures.show(figures.throughput(rows))
    assert plt.get_fignums() == []
    data = seen[0].data
    assert seen[0].alt.startswith("Figure: Decoding speed") and "batch kept full" in seen[0].alt
    assert len(data) < 60_000
    assert matplotlib.image.imread(io.BytesIO(data)).shape[1] > 1.3 * seen[0].width


def test_rows_that_cannot_be_drawn_are_refused(rows):
    with pytest.raises(OptionError, match="nothing to draw"):
        figures.throughput([])
    with pytest.raises(OptionError, match="did you mean 'specmoe'"):
        figures.throughput([row("spectmoe", 1)])
    with pytest.raises(OptionError, match="no 'tokens_per_second'"):
        figures.throughput([{"method": "cached", "batch": 1}])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(512, "512 B"), (1536, "1.5 KiB"), (3 * 2**20, "3 MiB"), (200 * 2**30, "200 GiB")],
)
def test_bytes_for_people(value, expected):
    assert figures.show_bytes(value) == expected
