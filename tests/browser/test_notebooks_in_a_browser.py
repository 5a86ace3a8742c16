"""JupyterLab in a real browser runs each notebook: no error, no request to elsewhere, every control moves its figure.

In ``make test`` the shortest notebook only; ``make browser-test`` sets SPECMOE_BROWSER=all. Screenshots are kept under
``reports/browser/``.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from jupyter import serving  # noqa: E402
from page import Problems, failures, move_controls, open_and_run  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "reports" / "browser"
CHROMIUM = os.environ.get("SPECMOE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ALL = os.environ.get("SPECMOE_BROWSER", "")
FIRST = "00_start_here"
pytestmark = [pytest.mark.browser, pytest.mark.slow]


def chosen() -> list[Path]:
    """One notebook, all, or those that SPECMOE_BROWSER names with commas between."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    wanted = {FIRST} if not ALL else set(ALL.split(","))
    return [path for path in found if "all" in wanted or path.stem in wanted]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name one in SPECMOE_CHROMIUM")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: make browser-test installs it")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with serving(chosen(), tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("path", chosen(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_widgets_move(path, page, lab):
    SHOTS.mkdir(parents=True, exist_ok=True)
    problems = Problems()
    problems.watch(page)
    open_and_run(page, *lab, path.name)
    shot = SHOTS / f"{path.stem}.png"
    page.screenshot(path=shot)
    moved, still = move_controls(page, shot)
    print(f"{path.stem}: {moved} controls moved")
    assert [*failures(page), *still, *problems] == []
    assert moved > 0 or "widgets." not in path.read_text(encoding="utf-8"), "no widget of this notebook shows a control"


def test_an_external_request_and_a_console_error_would_be_seen(page):
    """The watch itself can fail: a page that does both is caught."""
    problems = Problems()
    problems.watch(page)
    page.route("**/*", lambda route: route.abort())
    page.set_content("<img src='https://cdn.example/x.png'><script>console.error('broken')</script>")
    page.wait_for_timeout(300)
    assert any("external request: https://cdn.example/x.png" in problem for problem in problems)
    assert any("console error: broken" in problem for problem in problems)
