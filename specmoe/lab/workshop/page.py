"""How slides and the handout look: one HTML file with its style and its keys, nothing loaded.

Comes in: slides as ``slides`` makes them, Markdown. Goes out: HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .slides import Slide

KEYS = (
    "Keys: right, left (or space, page up, page down), home, end; n: notes; f: full screen; "
    "print: one slide a page, with notes below if they are shown"
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --quiet: #57606a; --line: #d0d7de;
  --accent: #0b5fa5; --box: #eef4fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #14181d; --quiet: #9aa4ae;
  --line: #3a424a; --accent: #79b8f2; --box: #1d2731; } img { background: #fff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.4 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
.slide { display: none; height: 100vh; padding: 3vh 4vw 5vh; flex-direction: column; }
.slide.now { display: flex; }
.inner { flex: 1; min-height: 0; overflow: auto; font-size: 1.9vw; }
h1 { font-size: 1.5em; line-height: 1.15; margin: 0 0 .5em; }
.title .inner { display: flex; flex-direction: column; justify-content: center; }
.title h1 { font-size: 2.1em; }
.predict .inner, .task .inner { display: flex; flex-direction: column; justify-content: center; }
.predict .body, .task .body { font-size: 1.35em; background: var(--box); padding: .6em 1em;
  border-left: .3em solid var(--accent); }
.predict h1, .task h1 { color: var(--accent); }
p, ul, ol { margin: .4em 0; max-width: 60em; }
pre, code { font-family: ui-monospace, "Liberation Mono", Consolas, monospace; font-size: .85em; }
pre { white-space: pre-wrap; border: 1px solid var(--line); padding: .5em .8em; margin: .4em 0; }
img { max-width: 100%; max-height: 66vh; display: block; margin: .3em 0; }
table { border-collapse: collapse; font-size: .72em; margin: .4em 0;
  font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2em .6em; text-align: right; }
th { font-weight: 600; } td:first-child, th:first-child { text-align: left; }
.seen { font-size: .85em; }
.body:has(tr:nth-of-type(12)) { display: grid; grid-template-columns: auto 1fr; gap: 0 2em; }
.body:has(tr:nth-of-type(12)) .seen { font-size: 1.2em; }
footer { display: flex; justify-content: space-between; color: var(--quiet); font-size: 13px; }
.notes { display: none; border-top: 2px solid var(--accent); padding: .5em 0; font-size: 1.2vw;
  max-height: 30vh; overflow: auto; }
body.speaking .notes { display: block; }
@media (max-width: 700px) { .inner { font-size: 4vw; } .notes { font-size: 3.4vw; } }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  :root { --ink: #000; --paper: #fff; --quiet: #555; --line: #bbb; --accent: #0b5fa5;
    --box: #f3f6f9; }
  .slide { display: flex; height: auto; min-height: 180mm; padding: 0; break-after: page; }
  .body:has(tr:nth-of-type(12)) table { font-size: .5em; } button { display: none; }
  .inner { overflow: visible; font-size: 15pt !important; } .notes { font-size: 10pt;
    max-height: none; } img { max-height: 120mm; }
}
"""
# A slide whose text does not fit is set smaller until it does, to a third of its size at most.
_SCRIPT = """
const slides = [...document.querySelectorAll('.slide')];
let now = 0;
function fit(slide) {
  const inner = slide.querySelector('.inner');
  inner.style.fontSize = '';
  const whole = parseFloat(getComputedStyle(inner).fontSize);
  for (let part = 1; part > .35; part -= .05) {
    inner.style.fontSize = whole * part + 'px';
    if (inner.scrollHeight <= inner.clientHeight && inner.scrollWidth <= inner.clientWidth) return;
  }
}
function show(index, told) {
  now = Math.max(0, Math.min(slides.length - 1, index));
  slides.forEach((slide, place) => {
    slide.classList.toggle('now', place === now);
    slide.setAttribute('aria-hidden', place !== now);
  });
  fit(slides[now]);
  if (told !== false) history.replaceState(null, '', '#' + (now + 1));
  document.title = (now + 1) + '/' + slides.length + ' ' + document.body.dataset.title;
}
const steps = { ArrowRight: 1, PageDown: 1, ' ': 1, ArrowDown: 1, ArrowLeft: -1, PageUp: -1,
  ArrowUp: -1, Home: -Infinity, End: Infinity };
addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in steps) { show(event.key === 'Home' ? 0 : event.key === 'End'
    ? slides.length - 1 : now + steps[event.key]); event.preventDefault(); }
  if (event.key === 'n') { document.body.classList.toggle('speaking'); fit(slides[now]); }
  if (event.key === 'f') document.fullscreenElement ? document.exitFullscreen()
    : document.documentElement.requestFullscreen();
});
addEventListener('resize', () => fit(slides[now]));
addEventListener('hashchange', () => show(parseInt(location.hash.slice(1) || '1') - 1, false));
document.querySelectorAll('[data-step]').forEach(button =>
  button.addEventListener('click', () => show(now + Number(button.dataset.step))));
show(parseInt(location.hash.slice(1) || '1') - 1, false);
"""
_SHEET = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 186mm; padding: 10mm; color: #000; background: #fff;
  font: 10pt/1.35 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 15pt; margin: 0 0 2mm; } h2 { font-size: 11pt; margin: 3.5mm 0 1mm; }
p, ul, ol, table { margin: 1mm 0; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; border-bottom: .3mm solid #bbb; padding: .7mm 2mm; vertical-align: top; }
pre { margin: 1mm 0; font-size: 9pt; white-space: pre-wrap; }
@page { size: A4; margin: 12mm; } @media print { body { padding: 0; max-width: none; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body data-title="{title}">
{body}
</body></html>
"""


def deck(title: str, slides: Iterable[Slide]) -> str:
    """One page that shows one slide at a time."""
    slides = list(slides)
    parts = [_section(slide, place, len(slides)) for place, slide in enumerate(slides, 1)]
    body = "\n".join([*parts, f"<script>{_SCRIPT}</script>"])
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _section(slide: Slide, place: int, count: int) -> str:
    notes = f'<aside class="notes">{markdown(slide.notes)}</aside>' if slide.notes else ""
    body = "\n".join(slide.body)
    hint = f' title="{KEYS}"'
    return (
        f'<section class="slide {slide.kind}" aria-label="slide {place} of {count}">'
        f'<div class="inner"><h1>{inline(slide.heading)}</h1><div class="body">{body}</div></div>'
        f"{notes}<footer><span>{html.escape(slide.where)}</span><span{hint}>"
        '<button data-step="-1" aria-label="previous slide">&#8592;</button> '
        f'{place} / {count} <button data-step="1" aria-label="next slide">&#8594;</button>'
        "</span></footer></section>"
    )


def sheet(text: str) -> str:
    """A page of Markdown that prints on A4."""
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    name = html.escape(title[1] if title else "specmoe")
    return _PAGE.format(title=name, style=_SHEET, body=markdown(text))


def markdown(text: str) -> str:
    """HTML of Markdown with tables; links keep their words only, a slide has nowhere to go."""
    import mistune  # nbconvert brings it

    rendered = mistune.create_markdown(plugins=["table"])(text)
    return re.sub(r"</?a\b[^>]*>", "", str(rendered))


def inline(text: str) -> str:
    return re.sub(r"^<p>|</p>$", "", markdown(text).strip())


def code(source: str) -> str:
    return f'<pre class="code">{html.escape(source)}</pre>'


def harmless(fragment: str) -> str:
    """A table's HTML without its own styles and scripts."""
    return re.sub(r"<(style|script)\b.*?</\1>", "", fragment, flags=re.DOTALL | re.IGNORECASE)
