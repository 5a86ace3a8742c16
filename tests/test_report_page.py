"""The HTML of a report: it says how it was made, has contents and numbered figures, loses no column on
paper or on a phone, is readable in the dark, and sorts its tables without a request."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from specmoe.lab import report

FACTS = {
    "model": "tiny-<b>skewed",
    "made": "2026-11-26 08:12 UTC",
    "code": "specmoe 0.1.0, commit 1a2b3c4",
    "command": "specmoe report run report -p gamma=5",
    "machine": "a <script>cpu</script>",
}


def figure(alt: str):
    from PIL import Image

    drawn = io.BytesIO()
    Image.new("RGB", (1100, 300), "white").save(drawn, "PNG")
    data = {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": "figure"}
    metadata = {"image/png": {"alt": alt, "width": 1100}}
    return new_code_cell("draw()", outputs=[new_output("display_data", data, metadata=metadata)])


def numbers():
    """The widest table of the main report, as it shows it."""
    rows = []
    for batch in (1, 16, 64):
        for place, method in enumerate(
            ["on_demand", "overlapped", "cached", "specmoe", "resident"]
        ):
            row = {
                "method": method,
                "batch": batch,
                "gamma": 9.48,
                "tokens_per_second": 100.0 + place,
            }
            row |= {"speedup_over_on_demand": 1.5, "fetched_bytes_per_token": 2e6, "eviction": None}
            row |= {"tokens_per_round": 1.25, "acceptance_rate": 0.625, "wait_share": 0.305}
            row |= {"prefetch_recall": 0.235, "prefetch_precision": 0.497, "prefill_s": 0.449}
            rows.append(row | {"same_tokens_as_plain": True})
    data = {"text/html": report.number_table(rows)._repr_html_(), "text/plain": "table"}
    return new_code_cell("table", outputs=[new_output("display_data", data)])


def summary():
    data = {"text/markdown": "**In short.** It is fast.", "text/plain": "text"}
    output = new_output("display_data", data)
    return new_code_cell("say()", outputs=[output], metadata={"tags": ["summary"]})


@pytest.fixture(scope="module")
def page() -> str:
    cells = [
        new_markdown_cell("# A report\n\nWhat it asks."),
        summary(),
        new_markdown_cell("## How fast\n\nText."),
        figure("Figure: Speed <fast>. 3 MiB of memory"),
        new_markdown_cell("## All numbers"),
        numbers(),
        figure("Figure: Bytes"),
        new_markdown_cell(
            "## A table in prose\n\n"
            + "| " * 9
            + "|\n"
            + "|---" * 9
            + "|\n"
            + "| wide-cell " * 9
            + "|"
        ),
    ]
    return report.offline_html(nbformat.from_dict(new_notebook(cells=cells)), FACTS)


def test_the_model_stands_in_the_title_and_the_facts_under_it(page):
    assert "<title>A report, tiny-&lt;b&gt;skewed, 2026-11-26 08:12 UTC</title>" in page
    assert re.search(r"<h1[^>]*>A report: tiny-&lt;b&gt;skewed", page)
    after = page[page.index("<h1") :]
    for name, words in FACTS.items():
        escaped = words.replace("<", "&lt;").replace(">", "&gt;")
        assert f"<dt>{name}</dt><dd>{escaped}</dd>" in after
    assert "<script>cpu" not in page and "<b>skewed" not in page


def test_the_box_comes_first_and_the_contents_before_the_first_section(page):
    box, contents, first = (
        page.index(words) for words in ("In short", 'aria-label="Contents"', 'id="How-fast"')
    )
    assert box < contents < first


def test_every_link_of_the_contents_leads_to_a_section(page):
    listed = re.findall(r'<li><a href="#([^"]*)">([^<]*)</a></li>', page)
    assert [words for _, words in listed] == ["How fast", "All numbers", "A table in prose"]
    for name, _ in listed:
        assert page.count(f'<h2 id="{name}">') == 1
    assert 'class="anchor-link"' in page


def test_figures_are_numbered_and_their_titles_are_text(page):
    said = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert said == ["Figure 1: Speed &lt;fast&gt;", "Figure 2: Bytes"]
    assert 'id="figure-1"' in page and 'id="figure-2"' in page


def test_a_page_without_facts_or_sections_is_as_it_was():
    notebook = nbformat.from_dict(new_notebook(cells=[new_markdown_cell("# Alone")]))
    page = report.offline_html(notebook)
    body = page[page.index("<body") :]
    assert 'class="facts"' not in body and 'class="contents"' not in body
    assert "<title>Alone</title>" in page


def test_the_notebook_is_left_as_it_was():
    notebook = nbformat.from_dict(
        new_notebook(cells=[new_markdown_cell("## A\n\n## B"), figure("F")])
    )
    before = nbformat.writes(notebook)
    report.offline_html(notebook)
    assert nbformat.writes(notebook) == before


# ---- in Chromium ----


@pytest.fixture(scope="module")
def chromium():
    sync = pytest.importorskip("playwright.sync_api")
    path = (
        os.environ.get("SPECMOE_CHROMIUM")
        or shutil.which("chromium")
        or shutil.which("google-chrome")
    )
    if not path:
        pytest.skip("no Chromium here")
    with sync.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, page, tmp_path):
    """Opens the page from a file, with the network cut; what it would have loaded is kept."""
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    pages = []

    def open_it(width: int, height: int = 900, **options):
        shown = chromium.new_page(viewport={"width": width, "height": height}, **options)
        shown.asked, shown.broken = [], []
        shown.on("request", lambda asked: shown.asked.append(asked.url))
        shown.on("pageerror", lambda error: shown.broken.append(str(error)))
        shown.goto(file.as_uri())
        pages.append(shown)
        return shown

    yield open_it
    for shown in pages:
        assert [url for url in shown.asked if not url.startswith(("file:", "data:"))] == []
        assert shown.broken == []
        shown.close()


A4_PX = round((210 - 2 * 12) / 25.4 * 96)  # between the margins of page.css
CUT = """width => [...document.querySelectorAll("td, th, figure img")].filter(cell => {
    for (let box = cell; box; box = box.parentElement) {
        const style = getComputedStyle(box);
        if (box !== cell && style.overflowX !== "visible"
            && cell.getBoundingClientRect().right > box.getBoundingClientRect().right + 1) return true;
    }
    return cell.getBoundingClientRect().right > width + 1;
}).map(cell => cell.textContent || cell.alt)"""


def test_no_column_and_no_figure_is_cut_on_a4(opened):
    shown = opened(A4_PX)
    assert shown.evaluate(CUT, A4_PX) != [], (
        "on the screen the table is wider than this: it scrolls"
    )
    shown.emulate_media(media="print")
    assert shown.evaluate(CUT, A4_PX) == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= A4_PX + 1


def test_a_phone_scrolls_tables_and_figures_but_not_the_page(opened):
    shown = opened(390, 844)
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    assert (
        shown.evaluate("document.querySelector('figure img').getBoundingClientRect().width") > 600
    )


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


READ = """where => { const cell = document.querySelector(where); let box = cell;
    while (/rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(box).backgroundColor)) box = box.parentElement;
    return [getComputedStyle(cell).color, getComputedStyle(box).backgroundColor]; }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_read_in_light_and_dark(opened, scheme):
    shown = opened(1000, color_scheme=scheme)
    for where in (
        "h1",
        "p",
        "td",
        "tbody tr:nth-child(2) td",
        ".facts dd",
        ".contents a",
        "figcaption",
        ".celltag_summary p",
    ):
        ink, paper = map(luminance, shown.evaluate(READ, where))
        light, dark = max(ink, paper), min(ink, paper)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, where)
        assert (paper < ink) == (scheme == "dark"), where
    drawn = shown.evaluate("getComputedStyle(document.querySelector('figure img')).backgroundColor")
    assert scheme == "light" or drawn == "rgb(255, 255, 255)"


def column(shown, place: int) -> list[str]:
    rows = "[...document.querySelector('table.dataframe').tBodies[0].rows]"
    return shown.evaluate(f"{rows}.map(row => row.cells[{place}].textContent.trim())")


def test_a_click_on_a_head_sorts_the_rows_and_keeps_each_whole(opened):
    shown = opened(1200)
    shown.click("th.sorts:has-text('tokens/s')")
    speeds = [float(each) for each in column(shown, 3)]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == 15
    # the batches spanned five rows each: every row has its own now
    assert sorted(column(shown, 0), key=int) == ["1"] * 5 + ["16"] * 5 + ["64"] * 5
    assert column(shown, 1)[:3] == ["resident"] * 3
    shown.focus("th.sorts:has-text('batch')")
    shown.keyboard.press("Enter")
    assert column(shown, 0) == ["1"] * 5 + ["16"] * 5 + ["64"] * 5
    shown.keyboard.press("Enter")
    assert column(shown, 0) == ["64"] * 5 + ["16"] * 5 + ["1"] * 5
    assert shown.get_attribute("th.sorts:has-text('batch')", "aria-sort") == "descending"
