"""Names, texts and errors are data wherever they are shown: tables, Markdown, pages, figures,
widgets, terminals."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import specmoe
from specmoe.engine.exactness import Divergence, ExactReport
from specmoe.engine.output import Output, Stats
from specmoe.engine.shown import Shown
from specmoe.errors import CheckpointError, OptionError, SpecMoEError, door
from specmoe.lab import figures, report
from specmoe.lab.figures.tokens import words_of
from specmoe.trace import Trace

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><script>alert(1)</script>",
    "a | b | c",
    "a\n\n# heading\n| x | y |",
    "[link](javascript:alert(1))",
    "![p](http://example.org/x.png)",
    "`code` **bold** _x_ ~~y~~",
    "$\\frac{$ and $x^$",
    "&lt;b&gt; &amp;",
    "\x1b[31mred\x07",
    "\ud800 half",
)
PACKAGE = Path(specmoe.__file__).resolve().parent


def stats(method: str) -> Stats:
    values = {field.name: 0 for field in dataclasses.fields(Stats)}
    return Stats(**{**values, "method": method})


def shown(name: str) -> dict[str, str]:
    """The HTML of an object of each class that shows itself in a notebook, with ``name`` in every
    text."""
    sequences = [torch.tensor([1, 2])]
    output = Output(sequences, [name], [name], [1], stats(name), Trace(enabled=False))
    wrong = ExactReport(1, 2, (name,), (Divergence(name, 0, 1, 2, 3, (0.5, 0.25)),))
    trace, facts = Trace(), Shown()
    trace.add(name)
    facts.__class__ = type("Facts", (Shown,), {"info": {name: name}})
    return {
        "Trace": trace._repr_html_(),
        "Shown": facts._repr_html_(),
        "Stats": stats(name)._repr_html_(),
        "Output": output._repr_html_(),
        "ExactReport": wrong._repr_html_(),
    }


def setup_of(name: str) -> str:
    model = {
        "name": name,
        "layers": 2,
        "experts": 8,
        "top_k": 2,
        "expert_bytes": 2**18,
        "record_bytes": 2**18,
    }
    model |= {
        "expert_dtype": name,
        "widened_from": 2**16,
        "fast_memory_bytes": 2**20,
        "draft_experts": 4,
    }
    store = {"store": "disk", "reads": name, "num_readers": 4, "link_bytes_per_s": None}
    versions = dict.fromkeys(("specmoe", "torch", "transformers", "python"), name)
    machine = {
        "cpu": name,
        "cores": 2,
        "memory": {"total_bytes": 2**33},
        "threads": 1,
        "store": store,
    } | versions
    rows = [{"method": "cached", "batch": 1, "eviction": None, "num_prompts": 2, "repeats": 3}]
    return report.say_setup(SimpleNamespace(machine=machine, model=model, rows=rows))


def test_every_class_that_shows_itself_is_looked_at_here():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for part in re.split(r"^class ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            if "def _repr_html_" in part or "def _repr_markdown_" in part:
                found.add(re.match(r"\w+", part)[0])
    assert found == set(shown("x"))


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_html_of_every_class_holds_no_tag_of_a_name(name):
    for kind, page in shown(name).items():
        tags = set(re.findall(r"<\s*/?\s*([a-zA-Z]+)", page))
        assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "pre"}, kind
        assert "<img" not in page and "<script" not in page, kind


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_the_setup_of_a_report_keeps_its_rows_and_shows_the_name_as_it_is(name):
    """Rendered as a report is: the cells of the table are those of an honest name, and no tag is
    added."""
    honest, page = (rendered(setup_of(each)) for each in ("honest", name))
    assert len(re.findall("<t[rd]", page)) == len(re.findall("<t[rd]", honest))
    for tag in ("img", "script", "h1", "code", "strong", "em", "del", "a"):
        assert len(re.findall(f"<{tag}[ >]", page)) == len(re.findall(f"<{tag}[ >]", honest)), tag
    assert 'javascript:alert(1)"' not in page


def rendered(text: str) -> str:
    """The body of a report's page that holds ``text`` as the output of a cell."""
    output = new_output("display_data", data={"text/markdown": text, "text/plain": "x"})
    cells = [new_markdown_cell("Intro"), new_code_cell("1", outputs=[output])]
    page = report.offline_html(nbformat.from_dict(new_notebook(cells=cells)))
    return page[page.index("<body") :]


def test_an_ordinary_name_stays_as_it_is():
    assert report.as_markdown("tiny-skewed 1.5 (AMD EPYC, 2 cores)") == (
        "tiny-skewed 1.5 (AMD EPYC, 2 cores)"
    )


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_figure_with_a_hostile_caption_and_hostile_tokens_is_drawn(name):
    rows = [{"method": "specmoe", "batch": 1, "eviction": None}]
    tokenizer = SimpleNamespace(decode=lambda tokens: name)
    name = name.encode("utf-8", "replace").decode()
    figure = plt.figure()
    figure.text(0, 0, figures.caption(rows, name))
    figure.text(0, 1, words_of(tokenizer, [1])[0])
    figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_the_data_of_a_module_cannot_end_its_script(name):
    from specmoe.lab import live

    html = live.place("rounds", {"words": [name]}, name)
    data = re.fullmatch(
        r'<div data-live="rounds" data-about="[^"<>]*"><script type="application/json">([^<]*)</script></div>',
        html,
    )
    assert json.loads(data[1]) == {"words": [name]}


@pytest.mark.parametrize(
    "name", [*HOSTILE, "x" * 100_000, "\r\u2028\u202e"], ids=lambda name: ascii(name)[:30]
)
def test_a_message_is_one_line_that_a_terminal_can_show(name):
    for kind in (SpecMoEError, CheckpointError, OptionError):
        said = str(kind(f"{name}: wrong"))
        assert said.isprintable() and len(said) < 2100 and said.endswith(": wrong")


def test_the_door_turns_everything_foreign_into_one_sentence():
    foreign = (
        KeyError("added_tokens"),
        ValueError("first\nsecond"),
        EOFError(),
        RecursionError("deep"),
    )
    for failure in (*foreign, OSError(5, "EIO")):
        with (
            pytest.raises(CheckpointError, match=type(failure).__name__) as caught,
            door("f.json is wrong", "mend it"),
        ):
            raise failure
        assert str(caught.value).endswith(": mend it") and "second" not in str(caught.value)
        assert caught.value.__cause__ is failure


def test_the_door_lets_typed_errors_and_interrupts_through():
    for failure in (OptionError("gamma=-1"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(failure)) as caught, door("f.json is wrong", "mend it"):
            raise failure
        assert caught.value is failure


def test_a_lack_of_memory_is_said_as_one():
    from specmoe.errors import FastMemoryError

    with pytest.raises(FastMemoryError, match="no memory left"), door("f.json is wrong", "mend it"):
        raise MemoryError
