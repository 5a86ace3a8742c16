"""The widgets' pictures, drawn in the page: small browser modules, which need no kernel, no server
and no request.

Comes in: a run's trace or simulated rows, as plain data (``traces``, ``data``). Goes out: the text
of a module for a widget (``module``), or a script and style that bring a page's modules to life
(``script``, ``style``). A module is one file under ``js/``; before it always stands ``base.js``.
``page`` makes ``specmoe.html``: ``python -m specmoe.lab.live --out specmoe.html``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

from ...shipped import need_path, package_path

KINDS = ("rounds", "pool", "timeline", "accept", "knobs", "winners", "routing")
_ESM = """
export default {
  render({ model, el }) {
    return mount(model.get("kind"), el, model.get("data"), model.get("about"));
  },
};
"""
_ALIVE = """
for (const place of document.querySelectorAll("[data-live]")) {
  const data = JSON.parse(place.querySelector("script").textContent);
  mount(place.dataset.live, place, data, place.dataset.about);
}
"""


def read(name: str) -> str:
    return need_path(package_path("lab/live/js") / name).read_text(encoding="utf-8")


def style() -> str:
    return read("live.css")


def module(kind: str) -> str:
    """One module as the ES module that anywidget loads."""
    return f"{read('base.js')}\n{read(f'{kind}.js')}\n{_ESM}"


def script(kinds: Iterable[str]) -> str:
    """The script for the end of a page: mounts every ``place`` in it."""
    parts = [read("base.js"), *(read(f"{kind}.js") for kind in dict.fromkeys(kinds)), _ALIVE]
    return "(() => {\n" + "\n".join(parts) + "})();"


def place(kind: str, data: dict, about: str, instead: str = "") -> str:
    """HTML of one module and its data; ``instead``: HTML for where no script runs."""
    # no token of a text may end the script that carries it
    packed = json.dumps(data, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    return (
        f'<div data-live="{escape(kind)}" data-about="{escape(about)}">{instead}'
        f'<script type="application/json">{packed}</script></div>'
    )
