"""compile=True: the same tokens through torch.compile, and one warning with the plain path where
nothing compiles."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_architectures import make_checkpoint

import specmoe
from specmoe.errors import OptionError
from specmoe.lab import compiling
from specmoe.model.decoder import kept
from specmoe.model.operator import experts_operator

PROMPTS = [[5, 6, 7, 8], [3], [20, 21, 22]]
JOB = {"method": "specmoe", "gamma": 3, "max_new_tokens": 10, "batch_size": 2, "eos_token_id": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile") / "mixtral"
    # a compiler takes its time for each layer
    make_checkpoint("mixtral", folder, dtype=torch.float32, num_hidden_layers=1)
    return folder


def tokens_of(folder, **options):
    with specmoe.load(str(folder), draft_experts=3, **options) as engine:
        output = engine.generate(PROMPTS, **JOB)
        return [sequence.tolist() for sequence in output.sequences], output.stats, engine


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a compiler and other processes: minutes where the cores are taken
def test_compiled_draft_and_kernels_give_the_same_tokens(folder, caplog):
    plain, plain_stats, _ = tokens_of(folder)
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        compiled, stats, engine = tokens_of(folder, compile=True)
    assert compiled == plain
    # it did not fall back
    assert engine.compiled and engine.decoder.passes.compiled is not None, caplog.text
    # the same draft model
    assert stats.acceptance_rate == pytest.approx(plain_stats.acceptance_rate, abs=0.1)


def test_without_a_compiler_one_warning_and_the_plain_path(folder, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        compiled, _, engine = tokens_of(folder, compile=True)
    assert not engine.compiled
    assert [record.message for record in caplog.records if "compile=True" in record.message] == [
        "compile=True: torch.compile does not work here (no C++ compiler found); using the plain "
        "path"
    ]
    monkeypatch.undo()
    assert compiled == tokens_of(folder)[0]


def test_a_mode_is_handed_to_the_compiler_of_the_pass_and_the_tokens_are_the_same(
    folder, monkeypatch
):
    modes = []

    def compiled(function, mode=None, **how):
        modes.append(mode)
        return function

    plain = tokens_of(folder)[0]
    monkeypatch.setattr(torch, "compile", compiled)
    assert tokens_of(folder, compile="reduce-overhead")[0] == plain
    assert modes.count("reduce-overhead") == 1 and set(modes) == {None, "reduce-overhead"}
    del modes[:]
    assert tokens_of(folder, compile=True)[0] == plain and set(modes) == {None}
    with pytest.raises(OptionError, match="must be True, reduce-overhead or False"):
        specmoe.load(str(folder), compile="fastest")


def test_logits_of_a_replayed_graph_outlive_the_next_replay():
    memory = torch.zeros(2)  # where every replay writes
    step = partial(kept, lambda number: SimpleNamespace(logits=memory.fill_(number)))
    first, second = step(number=1.0), step(number=2.0)
    assert first.logits.tolist() == [1, 1] and second.logits.tolist() == [2, 2]


def test_the_experts_are_no_part_of_a_graph_that_is_replayed(folder):
    """They look at what the GPU computed: torch has to cut the graph there."""
    experts_operator()
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    assert tag is None or tag in torch.ops.specmoe.experts.default.tags


@pytest.mark.parametrize(("wrong", "apart"), [(1.0, 0.0), (1.5, 0.5)])
def test_a_compiled_expert_is_held_against_the_eager_one(folder, monkeypatch, wrong, apart):
    """The difference is the compiled result's own; padding rows do not count. (Here "compiling"
    scales the result.)"""
    monkeypatch.setattr(compiling, "compiler_works", lambda: True)
    monkeypatch.setattr(
        torch, "compile", lambda function, **how: lambda *args: wrong * function(*args)
    )
    with specmoe.load(str(folder), draft_experts=3) as engine:
        table = compiling.compare_expert(engine, tokens=(1, 20), repeats=2)
    assert table["padded_to"].tolist() == [16, 32] and (table["first_call_s"] > 0).all()
    assert table["relative_difference"].tolist() == pytest.approx([apart, apart], abs=1e-4)


def test_where_nothing_compiles_the_columns_are_empty(folder, monkeypatch):
    monkeypatch.setattr(compiling, "compiler_works", lambda: False)
    with specmoe.load(str(folder), draft_experts=3) as engine:
        table = compiling.compare_expert(engine, tokens=(4,), repeats=1)
    assert (
        table["compiled_us"].isna().all()
        and table["first_call_s"].isna().all()
        and (table["eager_us"] > 0).all()
    )


def test_the_shipped_measurement_says_when_and_where_and_that_no_token_changed():
    table, machine = compiling.shipped()
    assert set(table.index) == {"eager", "compiled"} and table["same_tokens"].all()
    assert machine["date"][:4].isdigit() and machine["cores"] and machine["torch"]
    assert table.loc["compiled", "first_run_s"] > 10 * table.loc["eager", "first_run_s"]
