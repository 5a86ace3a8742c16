"""What goes wrong at a notebook's keyboard: an interrupted cell leaves an engine that the next cell can use."""

from __future__ import annotations

import signal

import pytest
from conftest import PROMPTS, tokens_of

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "resident")


def interrupt_at(monkeypatch, owner, name: str, count: int) -> None:
    """Ctrl-C, as Jupyter's stop button sends it, when ``owner.name`` is called for the ``count``-th time."""
    original, calls = getattr(owner, name), []

    def counting(*arguments, **options):
        calls.append(name)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_generate_leaves_an_engine_that_gives_the_same_tokens(open_engine, plain, monkeypatch, method, count):
    engine = open_engine("mixtral", store="disk")
    options = {"method": method, "max_new_tokens": 16, "batch_size": 2, "eos_token_id": []}
    with monkeypatch.context() as patched:
        interrupt_at(patched, engine.model, "forward", count)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, **options)
    assert tokens_of(engine.generate(PROMPTS, **options)) == plain("mixtral")


@pytest.mark.parametrize("method", ("on_demand", "cached", "specmoe"))
def test_an_interrupted_fetch_leaves_no_half_read_expert(open_engine, plain, monkeypatch, method):
    engine = open_engine("mixtral", store="disk")
    options = {"method": method, "max_new_tokens": 16, "batch_size": 2, "eos_token_id": []}
    with monkeypatch.context() as patched:
        interrupt_at(patched, engine.store, "submit", 3)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, **options)
    assert tokens_of(engine.generate(PROMPTS, **options)) == plain("mixtral")
