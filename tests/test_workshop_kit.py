"""The instructor's material: plans that add up, slides that load nothing, an answer to every
question."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from specmoe.errors import OptionError
from specmoe.lab.report.page import external_loads
from specmoe.lab.workshop import __main__ as command
from specmoe.lab.workshop import answers, page, places, slides

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "tutorials"
PLANS = places.read_json(TUTORIALS / "slides.json")
KNOWN = answers.read_answers(TUTORIALS / "answers.md")
LENGTHS = {"ninety_minutes": 90, "half_a_day": 240, "second_half_day": 240}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("slides")
    return {path.stem: path.read_text(encoding="utf-8") for path in slides.make(ROOT, out)}


def small_notebook(folder: Path, name: str = "00_small"):
    """One section with a question, a picture, a table, and what is seen."""
    v4 = nbformat.v4
    html = v4.new_output(
        "execute_result",
        {"text/html": "<style>b</style><table><tr><td>7</td></tr></table><script>x</script>"},
        execution_count=2,
    )
    picture = v4.new_output(
        "display_data", {"image/png": PIXEL}, metadata={"image/png": {"alt": 'bars "a"'}}
    )
    cells = [
        v4.new_markdown_cell("# Title\n\n**Question.** Why?"),
        v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        v4.new_markdown_cell("## 1 First\n\nProse.\n\n> **Predict.** How\n> many?"),
        v4.new_code_cell("draw()", outputs=[picture]),
        v4.new_code_cell("count()", outputs=[html]),
        v4.new_markdown_cell(
            "**What you see.** Seven. (Without sliders: `figures.draw(it)`.)\n\n## 2 Second\n\nMore."
        ),
        v4.new_code_cell("1", outputs=[v4.new_output("stream", name="stderr", text="a warning")]),
        v4.new_markdown_cell("## Check"),
        v4.new_code_cell(
            "assert 1",
            metadata={"tags": ["check"]},
            outputs=[v4.new_output("stream", name="stdout", text="checked")],
        ),
        v4.new_markdown_cell(
            "## Recap\n\n- Seven.\n\n## Exercises\n\n1. Set `n` to\n   2.\n2. Why?"
        ),
    ]
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb")
    return cells


# Slides


def test_a_notebooks_grammar_becomes_slides(tmp_path):
    small_notebook(tmp_path)
    known = [answers.Answer("00_small", "Predict", "how many?", "Seven, *always*.")]
    found = list(slides.of_notebook(tmp_path, {"notebook": "00_small"}, known))
    assert [(one.kind, one.heading) for one in found] == [
        ("title", "Title"),
        ("text", "1 First"),
        ("predict", "Predict"),
        ("result", "1 First"),
        ("result", "1 First"),
        ("text", "2 Second"),
        ("text", "Recap"),
    ]
    assert "How many?" in found[2].body[0] and found[2].notes == "Seven, *always*."
    assert 'alt="bars &quot;a&quot;"' in found[3].body[0]
    table, seen = found[4].body
    assert "<td>7</td>" in table and "script" not in table and "style" not in table
    assert "Seven." in seen and "figures." not in seen


def test_code_is_shown_where_the_plan_says_so(tmp_path):
    small_notebook(tmp_path)
    part = {"notebook": "00_small", "sections": ["1 "], "code": True}
    found = list(slides.of_notebook(tmp_path, part, []))
    assert [("draw()" in "".join(one.body), "count()" in "".join(one.body)) for one in found][
        -2:
    ] == [(True, False), (False, True)]
    plain = list(slides.of_notebook(tmp_path, part | {"code": False}, []))
    assert not any("draw()" in "".join(one.body) for one in plain)


def test_a_plan_that_names_a_missing_section_or_notebook_says_which(tmp_path):
    small_notebook(tmp_path)
    with pytest.raises(OptionError, match="00_small has no section '1st'"):
        list(slides.of_notebook(tmp_path, {"notebook": "00_small", "sections": ["1st"]}, []))
    with pytest.raises(OptionError, match="no notebook .*99_none"):
        list(slides.of_notebook(tmp_path, {"notebook": "99_none"}, []))


@pytest.mark.parametrize("name", PLANS)
def test_slides_load_nothing_and_show_every_part(name, made):
    html = made[name]
    assert external_loads(html) == [] and "http" not in re.sub(r"base64,[^\"]*", "", html)
    for part in PLANS[name]["parts"]:
        assert (part.get("notebook") or page.inline(part["task"])) in html
    assert html.count('class="slide predict"') >= 3 and html.count("<img") >= 3


@pytest.mark.parametrize("name", PLANS)
def test_every_question_on_a_slide_has_its_answer_in_the_notes(name):
    found = [one for one in slides.of_plan(ROOT, PLANS[name], KNOWN) if one.kind == "predict"]
    assert [one.body for one in found if not one.notes] == []


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_adds_up(name):
    assert sum(part["minutes"] for part in PLANS[name]["parts"]) == LENGTHS[name]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("ninety_minutes", "Ninety"),
        ("half_a_day", "Half"),
        ("second_half_day", "The second half-day"),
    ],
)
def test_the_readmes_plan_is_the_one_of_the_slides(name, title):
    readme = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    table = readme.split(f"\n## {title}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*)", table, re.MULTILINE)
    minute = 0
    for part, (said, words) in zip(PLANS[name]["parts"], rows, strict=True):
        assert int(said) == minute
        numbers = {one.strip() for one in part.get("sections", []) if one.strip().isdigit()}
        if "notebook" in part:
            assert part["notebook"] in words
            first = words.split("|")[0]
            spoken = re.findall(r"\d+", first.partition("section")[2].partition(":")[0])
            ends = {str(n) for n in range(int(spoken[0]), int(spoken[-1]) + 1)} if spoken else set()
            assert not spoken or numbers in ({*spoken}, ends), (said, numbers, words)
        else:
            assert part["task"].split(":")[0].split(",")[0].lower() in words.lower()
        minute += part["minutes"]


def test_the_command_writes_the_files_and_names_them(tmp_path, capsys):
    assert command.main(["slides", "--out", str(tmp_path / "new" / "folder")]) == 0
    named = capsys.readouterr().out.split()
    assert {Path(one).name for one in named} == {*(f"{p}.html" for p in PLANS), "handout.html"}
    assert all(Path(one).stat().st_size > 1000 for one in named)


def test_an_unwritable_folder_and_a_root_without_notebooks_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="nothing can be written to .*--out DIR"):
        command.main(["slides", "--out", str(tmp_path / "file" / "below")])
    with pytest.raises(OptionError, match="no notebooks/ and tutorials/"):
        command.main(["--root", str(tmp_path), "slides", "--out", str(tmp_path)])


# Answers

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_question_of_a_notebook_has_an_answer_and_no_answer_is_left_over(name):
    cells = places.notebook_cells(ROOT / "notebooks" / f"{name}.ipynb")
    asked = answers.questions(name, cells)
    assert {question.kind for question in asked} == {"Predict", "Exercise"}
    found = [answers.answer_to(question, KNOWN) for question in asked]
    assert [q.text for q, answer in zip(asked, found, strict=True) if answer is None] == []
    used = [answer.phrase for answer in found]
    assert len(set(used)) == len(used), "one answer for two questions"
    known = [answer.phrase for answer in KNOWN if answer.notebook == name]
    assert sorted(set(known) - set(used)) == [], "answers to no question"


def test_answers_are_of_notebooks_that_exist():
    assert {answer.notebook for answer in KNOWN} <= set(NOTEBOOKS)


def test_a_new_question_is_noticed():
    name = NOTEBOOKS[0]
    cells = places.notebook_cells(ROOT / "notebooks" / f"{name}.ipynb")
    cells[-1].source += "\n9. What colour is an expert?"
    unanswered = [q for q in answers.questions(name, cells) if not answers.answer_to(q, KNOWN)]
    assert [question.text for question in unanswered] == ["What colour is an expert?"]


def test_questions_are_found_in_order_whatever_their_line_breaks(tmp_path):
    found = answers.questions("00_small", small_notebook(tmp_path))
    assert [(one.kind, answers.one_spaced(one.text)) for one in found] == [
        ("Predict", "how many?"),
        ("Exercise", "set `n` to 2."),
        ("Exercise", "why?"),
    ]


def test_an_answer_is_found_by_notebook_kind_and_phrase():
    known = [
        answers.Answer("00_a", "Predict", "which share", "a"),
        answers.Answer("00_a", "Exercise", "which share", "b"),
        answers.Answer("01_b", "Predict", "which share", "c"),
        answers.Answer("01_b", "Predict", "which share of all", "d"),
    ]
    question = answers.Question("01_b", "Predict", "Which\n> share of all bytes?")
    assert answers.answer_to(question, known).text == "d"
    assert answers.answer_to(answers.Question("02_c", "Predict", "which share"), known) is None


def test_an_answer_without_words_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("## 00_a\n\n### Predict: how\n\n### Exercise: why\nSo.\n")
    with pytest.raises(OptionError, match="'### Predict: how' has no answer"):
        answers.read_answers(tmp_path / "a.md")
