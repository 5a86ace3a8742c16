"""compile=True: the same tokens through torch.compile, and one warning with the plain path where nothing compiles."""

import logging

import pytest
import torch
from tiny_architectures import make_checkpoint

import specmoe

PROMPTS = [[5, 6, 7, 8], [3], [20, 21, 22]]
JOB = {"method": "specmoe", "gamma": 3, "max_new_tokens": 10, "batch_size": 2, "eos_token_id": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compile") / "mixtral"
    make_checkpoint("mixtral", folder, dtype=torch.float32)
    return folder


def tokens_of(folder, **options):
    with specmoe.load(str(folder), draft_experts=3, **options) as engine:
        output = engine.generate(PROMPTS, **JOB)
        return [sequence.tolist() for sequence in output.sequences], output.stats, engine


@pytest.mark.slow
def test_compiled_draft_and_kernels_give_the_same_tokens(folder, caplog):
    plain, plain_stats, _ = tokens_of(folder)
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        compiled, stats, engine = tokens_of(folder, compile=True)
    assert compiled == plain
    assert engine.compiled and engine.decoder.passes.compiled is not None, caplog.text  # it did not fall back
    assert stats.acceptance_rate == pytest.approx(plain_stats.acceptance_rate, abs=0.1)  # the same draft model


def test_without_a_compiler_one_warning_and_the_plain_path(folder, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        compiled, _, engine = tokens_of(folder, compile=True)
    assert not engine.compiled
    assert [record.message for record in caplog.records if "compile=True" in record.message] == [
        "compile=True: torch.compile does not work here (no C++ compiler found); using the plain path"
    ]
    monkeypatch.undo()
    assert compiled == tokens_of(folder)[0]
