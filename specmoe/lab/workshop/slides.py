"""Slides made from the notebooks, by their own grammar: title, section, *Predict*, output with *What
you see*, recap, limits.

Comes in: a plan of ``tutorials/slides.json`` and executed notebooks. Goes out: one HTML file for
each plan, which loads nothing from anywhere; ``page`` has its style and its keys. No notebook
carries a mark for this.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import OptionError, nearest
from . import page, places
from .answers import Answer, Question, answer_to, predictions, read_answers

PLAN = "slides.json"
LEFT_OUT = ("Check", "Exercises")
QUIET_TAGS = {"parameters", "check", "key-numbers", "predict"}
_HEADING = re.compile(r"^(#{1,2}) (.+)$", re.MULTILINE)
# What a page without sliders can call is nothing to a room.
_ASIDE = re.compile(r"\(\w[^()]*`figures\.(?:[^()]|\([^()]*\))*\)")
_NO_GUESS = re.compile(r"^No guess was made\. ", re.MULTILINE)
_PREDICT = re.compile(r"^> \*\*Predict\.\*\*.*(?:\n>.*)*", re.MULTILINE)


@dataclass
class Slide:
    """``kind`` chooses its looks; ``notes`` (Markdown) are for the speaker."""

    kind: str
    heading: str
    body: list[str] = field(default_factory=list)
    notes: str = ""
    where: str = ""


def make(root: Path, out: Path) -> list[Path]:
    """Write the slides of every plan and the handout; returns the files."""
    plans = places.read_json(root / "tutorials" / PLAN)
    known = read_answers(root / "tutorials" / "answers.md")
    written = []
    for name, plan in plans.items():
        slides = list(of_plan(root, plan, known))
        target = out / f"{name}.html"
        target.write_text(page.deck(plan["title"], slides), encoding="utf-8")
        written.append(target)
    handout = (root / "tutorials" / "handout.md").read_text(encoding="utf-8")
    (out / "handout.html").write_text(page.sheet(handout), encoding="utf-8")
    return [*written, out / "handout.html"]


def of_plan(root: Path, plan: Mapping[str, Any], known: list[Answer]) -> Iterator[Slide]:
    """The slides of one plan, in its order."""
    yield Slide("title", plan["title"], [page.markdown(plan["subtitle"])])
    minute = 0
    for part in plan["parts"]:
        clock = f"minute {minute}, {part['minutes']} min"
        made = _task(part) if "task" in part else of_notebook(root, part, known)
        for slide in made:
            slide.where = f"{slide.where} · {clock}" if slide.where else clock
            yield slide
        minute += part["minutes"]


def _task(part: Mapping[str, Any]) -> Iterator[Slide]:
    yield Slide("task", part["task"], [page.markdown(part["text"])], part.get("notes", ""))


def of_notebook(root: Path, part: Mapping[str, Any], known: list[Answer]) -> Iterator[Slide]:
    """The slides of a notebook's chosen sections (all, where none is named)."""
    name = part["notebook"]
    cells = places.notebook_cells(root / "notebooks" / f"{name}.ipynb")
    sections = _sections(cells)
    wanted = part.get("sections", list(sections))
    for choice in wanted:
        title = next((one for one in sections if one.startswith(choice)), None)
        if title is None:
            raise OptionError(f"{name} has no section {choice!r}: {nearest(choice, sections)}")
        if title.startswith(LEFT_OUT) or (title == "Look inside" and not part.get("code")):
            continue
        for slide in _of_section(title, sections[title], part.get("code", False)):
            slide.where = name
            if slide.kind == "predict":
                found = answer_to(Question(name, "Predict", slide.notes), known)
                slide.notes = found.text if found else ""
            yield slide


def _sections(cells: list[Any]) -> dict[str, list[Any]]:
    """Heading -> pieces: Markdown texts and code cells, in order; the first heading is the
    title."""
    sections: dict[str, list[Any]] = {}
    pieces: list[Any] = []
    for cell in cells:
        if cell.cell_type == "code":
            pieces.append(cell)
            continue
        begin = 0
        for match in _HEADING.finditer(cell.source):
            pieces.append(cell.source[begin : match.start()].strip())
            pieces = sections.setdefault(match[2], [])
            begin = match.end()
        pieces.append(cell.source[begin:].strip())
    return {title: [piece for piece in found if piece] for title, found in sections.items()}


def _of_section(title: str, pieces: list[Any], code: bool) -> Iterator[Slide]:
    """Prose, a slide for each question, a slide for each output with what is said of it."""
    shown: Slide | None = None
    for piece in pieces:
        if isinstance(piece, str):
            seen, rest = _seen(piece)
            if seen and shown:
                shown.body.append(f'<div class="seen">{page.markdown(seen)}</div>')
            elif seen:
                rest = piece
            yield from filter(None, [shown])
            shown = None
            yield from _prose(title, rest)
            continue
        body = _outputs(piece)
        if QUIET_TAGS & set(piece.metadata.get("tags", ())) or piece.source.startswith("guess ="):
            continue
        if code:
            body = [page.code(piece.source), *body]
        if body:
            yield from filter(None, [shown])
            shown = Slide("result", title, body)
    yield from filter(None, [shown])


def _seen(text: str) -> tuple[str, str]:
    """What is said of the output above, and what comes after it."""
    text = _ASIDE.sub("", text)
    if not text.startswith("**What you see.**"):
        return "", text
    question = _PREDICT.search(text)
    end = question.start() if question else len(text)
    return text[:end].strip(), text[end:].strip()


def _prose(title: str, text: str) -> Iterator[Slide]:
    begin = 0
    for match in _PREDICT.finditer(text):
        yield from _plain(title, text[begin : match.start()])
        (question,) = predictions(match[0])
        yield Slide("predict", "Predict", [page.markdown(question)], question)
        begin = match.end()
    yield from _plain(title, text[begin:])


def _plain(title: str, text: str) -> Iterator[Slide]:
    if text.strip():
        kind = "title" if "**Question.**" in text else "text"
        yield Slide(kind, title, [page.markdown(text.strip())])


def _outputs(cell: Any) -> list[str]:
    """Pictures before tables before text, as a page without a kernel shows them."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            alt = output.metadata.get("image/png", {}).get("alt", "figure")
            source = "".join(data["image/png"].split())
            found.append(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">')
        elif "text/html" in data:
            found.append(f'<div class="table">{page.harmless(data["text/html"])}</div>')
        elif "text/markdown" in data:
            found.append(page.markdown(data["text/markdown"]))
        elif data.get("text/plain", "<")[0] != "<":
            found.append(f"<pre>{html.escape(data['text/plain'])}</pre>")
        elif output.output_type == "stream" and output.name == "stdout":
            found.append(f"<pre>{html.escape(_NO_GUESS.sub('', output.text).strip())}</pre>")
    return found
