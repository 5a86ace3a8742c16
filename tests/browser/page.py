"""One notebook in JupyterLab, Notebook 7 or Voila, as a person uses it: open, run all, move every
control, look.

Comes in: a playwright page and the server's address. Goes out: what went wrong, as sentences, and
screenshots.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

LOCAL = {"127.0.0.1", "localhost", ""}
# The shell's own remarks that say nothing about a notebook: a file it looks for and may not find.
HARMLESS = ("favicon", "Failed to load resource: the server responded with a status of 404")
# What the other two front ends do by themselves (Notebook 7.6, Voila 0.5): neither keeps a widget
# from working, and the addresses are refused here as a room without a network would refuse them.
OF_FRONT_END = {
    "lab": (),
    "notebook": ("Cannot read properties of undefined (reading 'schema')",),
    "voila": (
        "external request: https://cdn.jsdelivr.net/npm/@fortawesome/",
        "Failed to load resource: net::ERR_",
        "The getter for the shared module is not a function",
    ),
}
IDLE = """() => (document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status ?? 'idle') === 'idle'
    && !!document.querySelector('.jp-Toolbar-kernelName, .jp-KernelName')?.innerText.includes('Python')"""
WAITING = """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')]
    .some(prompt => prompt.innerText.includes('[*]'))"""
MISSING = """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')]
    .filter(cell => cell.querySelector('.cm-content')?.innerText.trim()
        && /^\\[\\s*\\]:?$/.test(cell.querySelector('.jp-InputPrompt').innerText.trim())).length"""
# what a widget shows, controls apart: its words, its drawings, its pictures
FIGURES = """root => {
    const copy = root.cloneNode(true);
    copy.querySelectorAll('.sm-controls').forEach(one => one.remove());
    const drawn = [...root.querySelectorAll('canvas')].map(one => one.toDataURL());
    const pictures = [...root.querySelectorAll('img')].map(one => one.src.length + one.src.slice(-400));
    return [copy.innerHTML.replace(/src="[^"]*"/g, ''), ...drawn, ...pictures].join();
}"""
CONTROLS = ".sm-slider, .sm-menu, .sm-radios, .sm-check, .sm-controls > button"
WIDGETS = ".jp-OutputArea-output .sm-live"
PICTURES = "img, canvas, svg, .sm-memory, table"
PATHS = {"lab": "lab/tree", "notebook": "notebooks", "voila": "voila/render"}
SCROLLED = ".jp-WindowedPanel-outer, .jp-Notebook, body"  # one of them is as tall as all cells
TALLEST = 14_000  # pixels of a picture of a whole notebook


class Problems(list):
    """Console errors and requests that left this machine, collected while a page lives."""

    def not_of(self, front_end: str) -> list[str]:
        """Those that are not the front end's own."""
        return [
            problem
            for problem in self
            if not any(words in problem for words in OF_FRONT_END[front_end])
        ]

    def watch(self, page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.append(f"page error: {error}"))
        page.on("request", self._request)

    def _console(self, message) -> None:
        if message.type == "error" and not any(words in message.text for words in HARMLESS):
            self.append(f"console error: {message.text[:300]}")

    def _request(self, request) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.hostname not in LOCAL:
            self.append(f"external request: {request.url[:200]}")


def open_and_run(
    page, address: str, token: str, name: str, front_end: str = "lab", seconds: int = 120
) -> None:
    """Open the notebook ``name``, run all its cells and wait until the kernel rests."""
    more = "&reset" if front_end == "lab" else ""
    page.goto(f"{address}/{PATHS[front_end]}/{name}?token={token}{more}", timeout=seconds * 1000)
    if front_end == "voila":  # runs by itself, and shows the page when all is done
        page.wait_for_selector(".jp-OutputArea-output", timeout=seconds * 1000)
        page.wait_for_timeout(3000)
        return
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=60_000)
    page.wait_for_function(
        f"() => document.querySelector('.jp-Dialog') || ({IDLE})()", timeout=60_000
    )
    if page.query_selector(".jp-Dialog"):
        raise AssertionError(
            f"opening {name} asks something: {page.inner_text('.jp-Dialog')[:200]!r}"
        )
    page.click("text=Run >> nth=0")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    page.wait_for_timeout(500)
    page.wait_for_function(f"() => !({WAITING})() && ({IDLE})()", timeout=seconds * 1000)


def picture(page, path: Path) -> None:
    """The whole notebook in one picture: the window is made as tall as its cells, and small
    again."""
    size = page.viewport_size
    tall = page.evaluate(
        f"() => Math.max(...[...document.querySelectorAll('{SCROLLED}')].map(one "
        "=> one.scrollHeight))"
    )
    page.set_viewport_size({**size, "height": min(TALLEST, int(tall) + 160)})
    page.evaluate(
        f"() => document.querySelectorAll('{SCROLLED}').forEach(one => one.scrollTop = 0)"
    )
    page.wait_for_timeout(800)
    page.screenshot(path=path)
    page.set_viewport_size(size)


def failures(page) -> list[str]:
    """Errors in outputs, and cells that Run All left out."""
    found = []
    for output in page.query_selector_all(
        "[data-mime-type='application/vnd.jupyter.error'], .jp-RenderedError"
    ):
        found.append(f"a cell or widget failed: {output.inner_text().strip().splitlines()[-1]}")
    if left := page.evaluate(MISSING):
        found.append(f"{left} cells were not run")
    return found


def move_controls(page, shots: Path) -> tuple[list[int], list[str]]:
    """Move every control of every widget: how many there were in each, and those that changed no
    figure."""
    found, moved = [], []
    boxes = page.query_selector_all(WIDGETS)
    boxes = [box for box in boxes if box.query_selector(PICTURES) and box.query_selector(CONTROLS)]
    for number, box in enumerate(boxes, 1):
        moved.append(0)
        for control in box.query_selector_all(CONTROLS):
            if (changed := _move(page, box, control)) is not None:
                moved[-1] += 1
                if not box.query_selector(PICTURES):
                    said = box.inner_text().strip().splitlines()[-1]
                    found.append(f"widget {number}: no figure any more: {said}")
                    break
                if not changed:
                    found.append(
                        f"widget {number}: {control.inner_text().splitlines()[0]} changes no figure"
                    )
        box.scroll_into_view_if_needed()
        box.screenshot(path=shots.with_name(f"{shots.stem}_widget{number}.png"))
    return moved, found


def _move(page, box, control) -> bool | None:
    """Whether the figure changed; None: the control has one value only."""
    before = box.evaluate(FIGURES)
    if not _set_next(control):
        return None
    for _ in range(50):
        page.wait_for_timeout(100)
        if box.evaluate(FIGURES) != before:
            return True
    return False


def _set_next(control) -> bool:
    """Another value by hand: the next of a menu, a button pressed, a slider moved. False: there is
    none."""
    if not control.evaluate("one => one.isConnected && one.offsetParent !== null"):
        return False  # an earlier move replaced or hid it
    if control.evaluate("one => one.tagName === 'BUTTON'"):
        return control.evaluate("one => { const open = !one.disabled; one.click(); return open; }")
    if select := control.query_selector("select"):
        count, chosen = select.evaluate("s => [s.options.length, s.selectedIndex]")
        if count > 1:
            select.select_option(index=(chosen + 1) % count)
        return count > 1
    if inputs := control.query_selector_all("input[type=radio], input[type=checkbox]"):
        others = [one for one in inputs if one.get_attribute("type") == "checkbox"]
        others = others or [one for one in inputs if not one.is_checked()]
        if others:
            others[0].click()
        return bool(others)
    if bar := control.query_selector("input[type=range]"):
        most = int(bar.get_attribute("max"))
        low = int(bar.input_value()) > most / 2
        bar.evaluate(
            "(one, at) => { one.value = at; one.dispatchEvent(new Event('input')); }",
            0 if low else most,
        )
        return most > 0
    return False
