"""Checkpoints of real shapes, and what is measured on them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from specmoe.errors import OptionError
from specmoe.lab.bench import real, real_checkpoint
from specmoe.lab.simulate.real_models import known_models


@pytest.fixture
def small(monkeypatch):
    """OLMoE with short sides."""
    sides = {"hidden_size": 64, "intermediate_size": 32, "vocab_size": 320, "num_experts": 8}
    known = known_models()["olmoe-1b-7b"]
    for name, side in sides.items():
        monkeypatch.setitem(known.config, name, side)


def test_a_made_checkpoint_has_the_names_and_shapes_that_transformers_reads(small, tmp_path):
    assert real.main(["make", str(tmp_path / "made"), "--layers", "2"]) == 0
    files = {file.name for file in (tmp_path / "made").glob("*.safetensors")}
    assert real_checkpoint.NUM_SHARDS // 2 < len(files) <= real_checkpoint.NUM_SHARDS
    model, found = AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", output_loading_info=True, dtype=torch.bfloat16
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(model.model.layers) == 2
    deviation = model.lm_head.weight.float().std().item()
    assert abs(deviation / real_checkpoint.STD - 1) < 0.1


def test_the_whole_one_has_as_many_parameters_as_the_table_says():
    known = known_models()["olmoe-1b-7b"]
    shapes = [torch.Size(shape).numel() for _, shape in real_checkpoint.tensors(known.config)]
    assert abs(sum(shapes) / known.size.total - 1) < 1e-9


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(OptionError, match="is not empty"):
        real_checkpoint.make_checkpoint(tmp_path)
