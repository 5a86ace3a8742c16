"""Shared by all tests: a cache folder of their own, one torch thread, and tiny checkpoints made
once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny_architectures import make_checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

import specmoe
from specmoe.model import native

settings.register_profile(
    "specmoe",
    deadline=None,
    database=None,
    # The same examples on every machine: a failure is a change of the code.
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("specmoe")

# ragged, one of a single token
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3], [20, 21, 22], [1, 2, 3, 4, 5]]
NEW_TOKENS = 16


# Files that take minutes, longest first: a worker that began one last would end alone.
LONGEST = ("notebooks", "reproduction", "tutorials", "compile", "life", "report", "benchmarks")


def pytest_collection_modifyitems(items):
    """The longest files first (with ``--no-loadscope-reorder``), the rest as they were."""
    rank = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def _own_session(tmp_path_factory):
    """Nothing is written to the home folder; one torch thread."""
    before = os.environ.get("SPECMOE_CACHE")
    os.environ["SPECMOE_CACHE"] = str(tmp_path_factory.mktemp("specmoe_cache"))
    torch.set_num_threads(1)
    yield
    os.environ.pop("SPECMOE_CACHE")
    if before is not None:
        os.environ["SPECMOE_CACHE"] = before


@pytest.fixture(scope="session")
def c_compiler():
    """What needs the products in C is skipped where they cannot be compiled."""
    if native.library() is None:
        pytest.skip("no C compiler")


@pytest.fixture
def no_compiler(monkeypatch):
    """As on a machine without one."""

    def fails(_):
        raise OSError("\nno compiler\nat all")

    monkeypatch.setattr(native, "_compile", fails)
    monkeypatch.setattr(native, "FLAGS", ())  # else the file of before would be found
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Nothing that another test packed or measured is found."""
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Callable[..., Path]:
    """``tiny("mixtral", dtype=..., **config)``: the folder of a random checkpoint, made once."""
    made: dict[tuple, Path] = {}

    def make(architecture: str, dtype: torch.dtype = torch.float64, **config) -> Path:
        key = (architecture, dtype, *sorted(config.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{architecture}_{len(made)}")
            made[key] = make_checkpoint(architecture, folder, dtype=dtype, **config)
        return made[key]

    return make


@pytest.fixture(scope="module")
def open_engine(tiny):
    """``open_engine("mixtral", draft_experts=3, ...)``: an engine shared by the tests of a module,
    closed after them."""
    opened: dict[tuple, specmoe.Engine] = {}

    def get(architecture: str = "mixtral", config: dict | None = None, **options) -> specmoe.Engine:
        options = {"dtype": torch.float64, "draft_experts": 3, **options}
        key = (architecture, str(config), str(sorted(options.items())))
        if key not in opened:
            opened[key] = specmoe.load(tiny(architecture, **(config or {})), **options)
        return opened[key]

    yield get
    for engine in opened.values():
        engine.close()


def reference_model(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """transformers' own model, with its plain experts loop (grouped_mm knows no float64)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._experts_implementation = "eager"
    return model


def reference_tokens(
    folder: Path, prompts=PROMPTS, new_tokens: int = NEW_TOKENS, dtype=torch.float64
) -> list[list[int]]:
    """transformers' greedy output, one prompt at a time, without EOS."""
    model = reference_model(folder, dtype)
    options = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return [model.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]


@pytest.fixture(scope="session")
def plain(tiny):
    """``plain("mixtral")``: transformers' greedy continuation of ``PROMPTS``, computed once."""
    known: dict[tuple, list[list[int]]] = {}

    def get(architecture: str, **config) -> list[list[int]]:
        key = (architecture, *sorted(config.items()))
        if key not in known:
            known[key] = reference_tokens(tiny(architecture, **config))
        return known[key]

    return get


def tokens_of(output) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]
