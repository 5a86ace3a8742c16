"""Experts in low-bit formats: stored as they are in the checkpoint, widened to the very numbers that
transformers gives with ``dequantize=True``, and so with the same tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, tokens_of
from tiny_architectures import make_checkpoint
from tiny_low_bit import fp8, make_low_bit, mxfp4, rewrite, ue8m0
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config, PreTrainedModel

import specmoe
from specmoe.checkpoint import formats, layout
from specmoe.checkpoint.packing import pack
from specmoe.errors import CheckpointError, OptionError
from specmoe.offload.affinity import expert_distances

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "auto", "resident")
NEW_TOKENS = 16
# what a checkpoint is made with, how transformers is told to dequantise it
FORMATS = {
    "mxfp4 gpt_oss": (mxfp4, lambda: Mxfp4Config(dequantize=True)),
    "fp8 qwen3_moe": (fp8, lambda: FineGrainedFP8Config(dequantize=True)),
    "fp8 deepseek_v3": (fp8, lambda: FineGrainedFP8Config(dequantize=True)),
    "ue8m0 qwen3_moe": (ue8m0, lambda: FineGrainedFP8Config(dequantize=True)),
}
SIZES = {"hidden_size": 64}
FFN = {"gpt_oss": "intermediate_size"}


@pytest.fixture(scope="module")
def low_bit(tmp_path_factory):
    """``low_bit("mxfp4 gpt_oss")``: the folder of a tiny checkpoint in that format, made once."""
    root = tmp_path_factory.mktemp("low_bit")

    @cache
    def make(name: str) -> Path:
        architecture = name.split()[1]
        sizes = SIZES | {FFN.get(architecture, "moe_intermediate_size"): 96}
        plain = make_checkpoint(architecture, root / f"{name}_plain", dtype=torch.bfloat16, **sizes)
        return make_low_bit(plain, root / name, FORMATS[name][0])

    return make


@pytest.fixture(scope="module")
def reference(low_bit):
    """transformers' own model of a format, dequantised while it is loaded."""

    @cache
    def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        options = {"dtype": dtype, "quantization_config": FORMATS[name][1]()}
        model = AutoModelForCausalLM.from_pretrained(low_bit(name), **options)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "eager"
        return model

    return make


def widened(packed, layer: int, expert: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    made = packed.layout.empty(dtype)
    content = packed.data_file.read_bytes()
    start = packed.offset(layer, expert)
    record = torch.frombuffer(
        bytearray(content[start : start + packed.layout.record_bytes]), dtype=torch.uint8
    )
    packed.layout.widen(record, made)
    return made


def differences(packed, model: PreTrainedModel) -> list[str]:
    """The parameters of experts that are not bit for bit those of ``model``."""
    return [
        f"{layer}.{name} of expert {expert}"
        for index, layer in enumerate(packed.layers)
        for expert in range(packed.num_experts)
        for name, tensor in widened(packed, index, expert, model.dtype).items()
        if not torch.equal(tensor, model.get_parameter(f"{layer}.{name}")[expert])
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_widened_experts_are_those_of_transformers_bit_for_bit(low_bit, reference, name, dtype):
    packed = pack(low_bit(name))
    assert packed.layout.is_low_bit and differences(packed, reference(name, dtype)) == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_backbone_is_that_of_transformers_bit_for_bit(low_bit, reference, name):
    made, want = specmoe.checkpoint.build_model(low_bit(name)), reference(name).state_dict()
    have = {name: tensor for name, tensor in made.state_dict().items() if not tensor.is_meta}
    assert len(have) > 10
    assert [name for name, tensor in have.items() if not torch.equal(tensor, want[name])] == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_method_gives_the_tokens_of_transformers(low_bit, plain_tokens, name, method):
    with specmoe.load(low_bit(name), draft_experts=3) as engine:
        output = engine.generate(PROMPTS, method=method, max_new_tokens=NEW_TOKENS, eos_token_id=[])
        assert engine.info["expert_dtype"] == name.split()[0].replace("ue8m0", "fp8")
    assert tokens_of(output) == plain_tokens(name)


@pytest.fixture(scope="module")
def plain_tokens(reference):
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"eos_token_id": None, "pad_token_id": 0}

    @cache
    def make(name: str) -> list[list[int]]:
        model = reference(name)
        return [model.generate(torch.tensor([row]), **options)[0].tolist() for row in PROMPTS]

    return make


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_holds_the_bytes_of_the_file_and_nothing_else(low_bit, name):
    packed = pack(low_bit(name))
    file = (low_bit(name) / "model.safetensors").read_bytes()
    record = packed.data_file.read_bytes()[packed.offset(1, 3) :][: packed.layout.record_bytes]
    for part, start in zip(packed.layout.parts, packed.layout.offsets()):
        content = record[start : start + part.num_bytes]
        assert len(content) > 100 or part.num_bytes < 100
        assert content in file
    assert sum(part.num_bytes for part in packed.layout.parts) == packed.layout.payload_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_records_of_real_experts_are_at_most_two_percent_larger(low_bit, name):
    """Parts are aligned, a record too: of 200 kB and more that is next to nothing."""
    small = pack(low_bit(name)).layout
    parts = tuple(
        part._replace(shape=tuple(side if side == 16 else side * 8 for side in part.shape))
        for part in small.parts
    )
    large = layout.ExpertLayout.of(dict(zip(small.names, small.shapes)), small.dtype, parts)
    assert large.payload_bytes > 200_000
    assert large.record_bytes <= 1.02 * large.payload_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_a_manifest_gives_the_layout_back(low_bit, name):
    packed = pack(low_bit(name))
    again = specmoe.checkpoint.open_packed(packed.directory)
    assert again == packed and again.layout.weights == packed.layout.weights


@pytest.mark.parametrize("name", FORMATS)
def test_distances_are_those_of_the_widened_weights(low_bit, name, monkeypatch):
    """And do not depend on how many rows are widened at a time."""
    monkeypatch.setattr(layout, "PIECE_ELEMENTS", 1500)
    packed = pack(low_bit(name))
    assert len(packed.layout.pieces) > len(packed.layout.weights)
    found = expert_distances(packed)
    experts = [
        torch.cat([t.flatten() for t in widened(packed, 0, expert, torch.float64).values()])
        for expert in range(packed.num_experts)
    ]
    want = torch.cdist(torch.stack(experts), torch.stack(experts))
    assert torch.allclose(found[0].double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_fast_memory_counts_records_as_stored_and_the_scratch_as_widened(low_bit, name):
    with specmoe.load(low_bit(name), dtype=torch.float32, draft_experts=2) as engine:
        memory, found = engine.memory, engine.packed.layout
    elements = sum(torch.Size(shape).numel() for shape in found.shapes)
    assert memory.scratch_bytes == 4 * elements > 3 * found.payload_bytes
    assert memory.used_bytes == memory.num_slots * found.record_bytes + memory.scratch_bytes
    with specmoe.load(low_bit(name), dtype=torch.bfloat16, draft_experts=2) as engine:
        assert engine.memory.scratch_bytes == 2 * elements


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_folder_loads_by_itself(low_bit, plain_tokens, tmp_path, name):
    pack(low_bit(name), tmp_path / "packed")
    with specmoe.load(tmp_path / "packed") as engine:
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens(name)


@pytest.mark.parametrize("name", FORMATS)
def test_the_check_of_an_engine_compares_with_the_dequantised_model(low_bit, name):
    with specmoe.load(low_bit(name)) as engine:
        report = engine.check_exact(PROMPTS[:1], max_new_tokens=8)
    assert report and report.reference.startswith("transformers")


def test_every_byte_and_every_scale_of_mxfp4_is_that_of_transformers():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    byte = torch.arange(256, dtype=torch.uint8)
    blocks = byte.repeat(256).view(1, 256, 16, 16)
    scales = byte[:, None].expand(256, 16)[None]
    for dtype in (torch.float32, torch.bfloat16):
        want = convert_moe_packed_tensors(blocks, scales, dtype=dtype)[0].T
        have = formats.mxfp4(blocks[0], scales[0].contiguous()).to(dtype)
        assert torch.equal(have.nan_to_num(7), want.nan_to_num(7))


# ---- what is refused ----


@pytest.fixture
def own(low_bit, tmp_path):
    """A copy that a test may spoil."""

    def copy(name: str) -> Path:
        return make_low_bit(low_bit(name), tmp_path / name, lambda tensors: None)

    return copy


def refused(folder: Path, tmp_path: Path, match: str) -> None:
    """Refused by name when packed and when loaded; nothing is left half written."""
    with pytest.raises(CheckpointError, match=match):
        pack(folder, tmp_path / "packed")
    with pytest.raises(CheckpointError, match=match):
        specmoe.load(folder)
    assert not list(tmp_path.glob("packed*"))


METHODS_REFUSED = ["gptq", "awq", "bitsandbytes", "hqq", "nvfp4", "quip5000"]


@pytest.mark.parametrize("method", METHODS_REFUSED)
def test_formats_that_are_not_read_are_refused_by_name(own, tmp_path, method):
    folder = own("mxfp4 gpt_oss")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, tmp_path, rf"quantised \({method}.*unquantised checkpoint, or one in MXFP4")


SCALES = "model.layers.1.mlp.experts.down_proj_scales"


def test_a_missing_scale_is_named(own, tmp_path):
    folder = own("mxfp4 gpt_oss")
    rewrite(folder, lambda tensors: tensors.__delitem__(SCALES))
    refused(folder, tmp_path, f"the tensor '{SCALES}' that belongs to .* missing")


def test_a_grid_of_scales_that_does_not_fit_is_named(own, tmp_path):
    folder = own("mxfp4 gpt_oss")
    rewrite(folder, lambda tensors: tensors.update({SCALES: tensors[SCALES].transpose(1, 2)}))
    refused(folder, tmp_path, rf"{SCALES}' .*\[8, 3, 64\], not \[8, 64, 3\]")


def test_low_bit_experts_are_not_widened(low_bit):
    with pytest.raises(OptionError, match="expert_bytes=99999: experts in mxfp4"):
        specmoe.load(low_bit("mxfp4 gpt_oss"), expert_bytes=99_999)
