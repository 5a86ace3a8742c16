"""The expected answers to every *Predict* and every exercise, as ``tutorials/answers.md`` has them.

Comes in: that file, and notebooks. Goes out: what the notebooks ask, and the answer to each
question, found by the notebook and a phrase of the question. ``slides`` shows them as notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import OptionError

_PREDICT = re.compile(r"^> \*\*Predict\.\*\*(.*(?:\n>.*)*)", re.MULTILINE)
_ITEM = re.compile(r"^\d+\. (.*(?:\n(?!\d+\. |\n).*)*)", re.MULTILINE)
_HEADING = re.compile(r"^### (Predict|Exercise): (.+)$")


@dataclass(frozen=True)
class Question:
    """A question of a notebook; ``kind`` is Predict or Exercise."""

    notebook: str
    kind: str
    text: str


@dataclass(frozen=True)
class Answer:
    """``phrase`` stands in the question that ``text`` (Markdown) answers."""

    notebook: str
    kind: str
    phrase: str
    text: str

    def answers(self, question: Question) -> bool:
        same = (self.notebook, self.kind) == (question.notebook, question.kind)
        return same and one_spaced(self.phrase) in one_spaced(question.text)


def one_spaced(text: str) -> str:
    """Without quote marks, line breaks and capitals, which an edit of a notebook may move."""
    return " ".join(re.sub(r"^>", "", text, flags=re.MULTILINE).split()).lower()


def questions(name: str, cells: list[Mapping[str, Any]]) -> list[Question]:
    """What the notebook ``name`` asks, in order."""
    found = []
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        prose, _, exercises = cell["source"].partition("## Exercises\n")
        found += [Question(name, "Predict", predict) for predict in predictions(prose)]
        found += [Question(name, "Exercise", item) for item in _ITEM.findall(exercises)]
    return found


def predictions(prose: str) -> list[str]:
    """The texts of the boxes, without their marks."""
    return [
        " ".join(re.sub(r"^>", "", text, flags=re.MULTILINE).split())
        for text in _PREDICT.findall(prose)
    ]


def read_answers(path: Path) -> list[Answer]:
    """Headings are ``## notebook``, then ``### Predict: phrase`` and ``### Exercise: phrase``."""
    found: list[Answer] = []
    notebook, heading, lines = "", None, []

    def close() -> None:
        if heading:
            text = "\n".join(lines).strip()
            if not text:
                raise OptionError(f"{path}: '{heading[0]}' has no answer below it")
            found.append(Answer(notebook, heading[1], heading[2].strip(), text))

    for line in path.read_text(encoding="utf-8").splitlines():
        is_heading = line.startswith(("## ", "### "))
        if not is_heading:
            lines.append(line)
            continue
        close()
        heading, lines = _HEADING.match(line), []
        if line.startswith("## "):
            notebook = line[3:].strip()
    close()
    return found


def answer_to(question: Question, known: list[Answer]) -> Answer | None:
    """The answer whose phrase fits best, the longest one."""
    fitting = [answer for answer in known if answer.answers(question)]
    return max(fitting, key=lambda answer: len(answer.phrase), default=None)
