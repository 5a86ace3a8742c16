"""Every file of a checkpoint may lie: one typed sentence, soon, without much memory, and before a weight is used."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_architectures import make_checkpoint

import specmoe
from specmoe.errors import CheckpointError, SpecMoEError, UnsupportedModelError

from hostile_cases import COUNTS, HEADERS, INDEX, INDICES, JSON_FILES, PLACES, SHARD, WEIGHT_VALUES, WEIGHTS

FILES = {**HEADERS, **JSON_FILES, **PLACES, **INDICES, **COUNTS}
OPTIONS = {"draft_experts": 2, "dtype": torch.float32, "store": "memory"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))


def run(folder: Path, prompt: list[int] = [5, 6, 7]) -> list[int]:  # noqa: B006 (never changed)
    with specmoe.load(folder, **OPTIONS) as engine:
        return engine.generate([prompt], max_new_tokens=3, method="on_demand").sequences[0].tolist()


def is_sentence(error: BaseException) -> bool:
    """One line that a terminal can show, and not longer than anybody reads."""
    return str(error).isprintable() and 20 < len(str(error)) < 2100


def test_there_are_enough_cases():
    assert len(FILES) + len(WEIGHT_VALUES) > 120


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_sentence(name, copy, limits, monkeypatch):
    FILES[name](copy)
    monkeypatch.setattr("sys.stdin", None)
    with limits(), pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        run(copy)
    assert is_sentence(caught.value), str(caught.value)
    assert copy.name in str(caught.value), "the sentence says which checkpoint"
    assert ":" in str(caught.value), "and what to do"


@pytest.mark.parametrize("name", WEIGHT_VALUES)
def test_weights_that_are_no_numbers_are_noticed_or_do_not_matter(name, copy):
    WEIGHT_VALUES[name](copy)
    try:
        tokens = run(copy)
    except SpecMoEError as error:
        assert is_sentence(error) and "NaN" in str(error)
    else:
        assert all(0 <= token < 97 for token in tokens)


# ---- every setting of config.json ----------------------------------------------------------------------------------

ODD = (None, "x", [1, "a"], -1, 0, 10**9, 1e308, math.nan, {"a": {"b": []}}, True)


def settings_of(folder: Path) -> list[str]:
    return sorted(json.loads((folder / "config.json").read_text()))


@pytest.fixture(scope="module", params=["mixtral", "qwen2_moe"])
def family(request, tmp_path_factory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("families") / request.param)


def outcome(folder: Path) -> str:
    """ "" where the model runs or says in one sentence why not; else what came instead."""
    try:
        run(folder)
    except SpecMoEError as error:
        return "" if is_sentence(error) else f"no sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_each_setting_of_a_config_may_hold_anything(value, family, tmp_path, limits):
    wrong = {}
    folder = Path(shutil.copytree(family, tmp_path / "copy"))
    config = json.loads((family / "config.json").read_text())
    for name in config:
        (folder / "config.json").write_text(json.dumps({**config, name: value}))
        with limits():
            said = outcome(folder)
        if said:
            wrong[name] = said
    assert wrong == {}


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_each_setting_of_a_generation_config_may_hold_anything(value, good, tmp_path, limits):
    from transformers import GenerationConfig

    wrong = {}
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    for name in GenerationConfig().to_dict():
        (folder / "generation_config.json").write_text(json.dumps({name: value}))
        with limits():
            said = outcome(folder)
        if said:
            wrong[name] = said
    assert wrong == {}
