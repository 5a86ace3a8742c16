"""JupyterLab in a real browser runs each notebook: no error, no request to elsewhere, every control
moves its figure.

In ``make test`` the shortest notebook only; ``make browser-test`` sets SPECMOE_BROWSER=all.
Pictures are kept under ``reports/browser/``. SPECMOE_FRONT_END=notebook or voila opens Notebook 7
or Voila instead, which may live in another environment (SPECMOE_JUPYTER=its Python).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from jupyter import FRONT_ENDS, serving  # noqa: E402
from page import Problems, failures, move_controls, open_and_run, picture  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "reports" / "browser"
CHROMIUM = (
    os.environ.get("SPECMOE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
)
ALL = os.environ.get("SPECMOE_BROWSER", "")
FRONT_END = os.environ.get("SPECMOE_FRONT_END", "lab")
FIRST = "07_sampling_without_bias"
# seconds they may take on a busy machine; the others have 300
SLOW = {"report": 420, "09_when_does_it_pay": 420}
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def chosen() -> list[Path]:
    """One notebook, all, or those that SPECMOE_BROWSER names with commas between."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    wanted = {FIRST} if not ALL else set(ALL.split(","))
    return [path for path in found if "all" in wanted or path.stem in wanted]


def widgets_in(path: Path) -> int:
    """How many widgets the notebook's cells make."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return len(re.findall(r"\bwidgets\.\w+\(", code))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in SPECMOE_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright here: make browser-test installs it"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with serving(chosen(), tmp_path_factory.mktemp("jupyter"), FRONT_END) as address:
        yield address


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("path", chosen(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_widgets_move(path, page, server):
    SHOTS.mkdir(parents=True, exist_ok=True)
    problems = Problems()
    problems.watch(page)
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    open_and_run(page, *server, path.name, FRONT_END, SLOW.get(path.stem, 300))
    shot = SHOTS / f"{path.stem}{'' if FRONT_END == 'lab' else '_' + FRONT_END}.png"
    picture(page, shot)
    moved, still = move_controls(page, shot)
    print(f"{path.stem} in {FRONT_END}: controls moved per widget: {moved}")
    print(*problems, sep="\n")
    assert [*failures(page), *still, *problems.not_of(FRONT_END)] == []
    assert len(moved) == widgets_in(path) and all(moved), (
        "a widget of this notebook shows no control that moves"
    )


def brightness(color: str) -> float:
    return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 765


@pytest.mark.skipif(FRONT_END != "lab", reason="the theme is JupyterLab's")
def test_in_jupyterlab_s_dark_theme_a_widget_is_dark_and_its_words_are_light(
    browser, page, tmp_path
):
    cell = nbformat.v4.new_code_cell("from specmoe.lab import widgets\nwidgets.accept_or_reject()")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "dark.ipynb")
    with serving([tmp_path / "dark.ipynb"], tmp_path / "jupyter", theme="JupyterLab Dark") as where:
        open_and_run(page, *where, "dark.ipynb")
        page.wait_for_selector(".jp-OutputArea-output .sm-live .sm-summary")
        assert page.get_attribute("body", "data-jp-theme-light") == "false"
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / "dark_theme.png")
        ground, *words = page.evaluate(
            "() => ['.sm-live', '.sm-live', '.sm-name', '.sm-summary', '.sm-live button'].map((one, i) => "
            "getComputedStyle(document.querySelector(one))[i ? 'color' : 'backgroundColor'])"
        )
    assert brightness(ground) < 0.25 and min(map(brightness, words)) > 0.6


def test_an_external_request_and_a_console_error_would_be_seen(page):
    """The watch itself can fail: a page that does both is caught."""
    problems = Problems()
    problems.watch(page)
    page.route("**/*", lambda route: route.abort())
    page.set_content(
        "<img src='https://cdn.example/x.png'><script>console.error('broken')</script>"
    )
    page.wait_for_timeout(300)
    assert any("external request: https://cdn.example/x.png" in problem for problem in problems)
    assert any("console error: broken" in problem for problem in problems)


BOX = (
    "<div class='jp-OutputArea-output'><div class='sm-live'>{}<img "
    "src='data:image/png;base64,AAAA'></div></div>"
)
MENU = "<div class='sm-menu'>name<select><option>a<option>b</select></div>"


def test_a_control_that_moves_nothing_and_a_widget_without_controls_would_be_seen(page, tmp_path):
    page.set_content(BOX.format(MENU) + BOX.format(""))
    moved, still = move_controls(page, tmp_path / "shot.png")
    assert moved == [1] and still == ["widget 1: name changes no figure"]


def test_a_choice_of_one_is_no_control_that_moves(page, tmp_path):
    lone = "<fieldset class='sm-radios'><input type='radio' checked>the full model</fieldset>"
    page.set_content(BOX.format(lone + MENU))
    moved, still = move_controls(page, tmp_path / "shot.png")
    assert moved == [1] and still == ["widget 1: name changes no figure"]


def test_a_widget_that_loses_its_figure_would_be_seen(page, tmp_path):
    page.set_content(BOX.format(MENU))
    # void: what evaluates to a function is called at once
    page.evaluate(
        "void (document.querySelector('select').onchange = () => "
        "document.querySelector('img').outerHTML = '<pre>KeyError: 7</pre>')"
    )
    _, found = move_controls(page, tmp_path / "shot.png")
    assert found == ["widget 1: no figure any more: KeyError: 7"]


def test_an_error_in_an_output_would_be_seen(page):
    shown = (
        "<pre data-mime-type='application/vnd.jupyter.error'>Traceback\nZeroDivisionError: "
        "division by zero</pre>"
    )
    page.set_content(f"<div class='jp-Notebook'>{shown}</div>")
    assert failures(page) == ["a cell or widget failed: ZeroDivisionError: division by zero"]


def test_the_front_end_is_one_of_three():
    assert FRONT_END in FRONT_ENDS
