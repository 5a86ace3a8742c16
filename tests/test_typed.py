"""Options are found by Tab, by help(), by inspect and by type checkers, all from one place."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import specmoe
from specmoe.engine.settings import INSTEAD, PROCESSED, SAMPLED
from specmoe.engine.typed import GenerateArguments, LoadArguments, Settings, said
from specmoe.options import GenerateOptions, LoadOptions

ROOT = Path(__file__).parents[1]
PAIRS = [(LoadArguments, LoadOptions), (GenerateArguments, GenerateOptions)]


@pytest.mark.parametrize("arguments, options", PAIRS)
def test_typed_arguments_are_the_options_with_a_text_each(arguments, options):
    typed, ours = get_type_hints(arguments), get_type_hints(options)
    ours.pop("own", None)
    assert {name: typed.get(name) for name in ours} == ours
    assert {*said(arguments)} == {*ours} and all(said(arguments).values())


def test_the_other_arguments_are_the_settings_that_are_followed():
    ours = {field.name for field in dataclasses.fields(GenerateOptions)}
    followed = {*PROCESSED, *SAMPLED, "generation_config", "token_type_ids", "pad_token_id"} - ours
    assert {*get_type_hints(Settings)} == followed and INSTEAD["pad_token_id"][0] is ...


@pytest.mark.parametrize(
    "function, options",
    [
        (specmoe.load, LoadOptions),
        (specmoe.Engine.generate, GenerateOptions),
        (specmoe.Engine.start, GenerateOptions),
    ],
)
def test_signature_and_help_list_every_option_with_its_default(function, options):
    listed, page = inspect.signature(function).parameters, pydoc.render_doc(function)
    for field in dataclasses.fields(options):
        if field.name != "own":
            assert listed[field.name].default == field.default
            assert f"{field.name}={field.default!r}: " in page
    if options is GenerateOptions:
        assert "repetition_penalty" in page
    assert "options" in get_type_hints(function)  # every name in it is there at run time


# ---- reprs


def test_what_a_user_holds_shows_itself_in_a_line_and_in_a_table():
    with specmoe.load("tiny-skewed", draft_experts=4) as engine:
        with engine.start(["The "], max_new_tokens=4, eos_token_id=[]) as run:
            assert "rounds=0" in repr(run)
            output = run.output()
        assert repr(engine).startswith("Engine(name=tiny-skewed, architecture=mixtral, layers=")
        assert repr(run).startswith("Run(method=auto, prompts=1, batch_size=1, rounds=")
        assert "new_tokens=4" in repr(run)
        assert repr(output).startswith("Output(sequences=1, method=auto")
        assert repr(output.stats).startswith("Stats(method=auto, gamma=")
        assert repr(output.trace).startswith(f"Trace({len(output.trace):,} events in ")
        for shown in (engine, run, output, output.stats, output.trace):
            assert len(repr(shown)) < 200 and "\n" not in repr(shown)
            assert shown._repr_html_().count("<tr") > 3
    assert "tiny-skewed" in repr(engine)
    with pytest.raises(specmoe.SpecMoEError, match="closed"):
        _ = engine.store_info


def test_a_bench_frame_has_no_column_of_objects():
    from specmoe.lab.bench.rows import BenchResult

    rows = [
        {"a": None, "b": True, "c": "x", "d": 1, "e": None},
        {"a": None, "b": None, "c": None, "d": 2, "e": 3.5},
    ]
    frame = BenchResult({}, {}, rows, {}).to_frame()
    assert "object" not in {str(kind) for kind in frame.dtypes}
    assert (str(frame.b.dtype), frame.e.tolist()[1], frame.d.tolist()) == ("boolean", 3.5, [1, 2])
    assert frame.b.isna().tolist() == [False, True] and frame.a.isna().all()


# ---- type checkers

WRONG = """import specmoe

engine = specmoe.load("tiny-skewed", draft_expert=3)
engine = specmoe.load("tiny-skewed", draft_experts="3")
engine.generate(["a"], max_new_token=3)
engine.generate(["a"], repetition_penalti=1.3)
engine.start(["a"], gama=2)
engine.generate(["a"]).stats.token_per_second
"""


def says(checker: str, *words: str) -> subprocess.CompletedProcess:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    call = [sys.executable, "-m", checker, *words]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_public_surface_has_no_error_of_types(checker):
    done = says(checker)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("checker", ["mypy --python-version=", "pyright --pythonversion="])
@pytest.mark.parametrize("python", ["3.10", "3.12"])  # the oldest has no typing.Unpack
def test_a_misspelt_option_is_found_on_its_line(checker, python, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    program, word = checker.split()
    done = says(program, f"{word}{python}", str(file))
    lines = [f"wrong.py:{line}" for line in range(3, 9)]
    assert done.returncode == 1 and all(line in done.stdout for line in lines), done.stdout
