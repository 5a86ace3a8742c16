"""Experts in low-bit formats: stored as they are in the checkpoint, widened to the very numbers that
transformers gives with ``dequantize=True``, and so with the same tokens."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, tokens_of
from fake_gpu import FakeCuda, Mode
from safetensors.torch import load_file, save_file
from tiny_architectures import make_checkpoint
from tiny_gguf import TRIED as GGUF
from tiny_low_bit import (
    compressed_fp8,
    decompressed,
    fp8,
    int4,
    int8,
    make_low_bit,
    mxfp4,
    rewrite,
    ue8m0,
)
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    FineGrainedFP8Config,
    Mxfp4Config,
    PreTrainedModel,
)
from transformers.utils.import_utils import is_compressed_tensors_available

import specmoe
from specmoe.checkpoint import formats, layout
from specmoe.checkpoint.packed import seal
from specmoe.checkpoint.packing import pack
from specmoe.errors import CheckpointError, FastMemoryError, OptionError
from specmoe.model import kernels
from specmoe.offload import affinity
from specmoe.offload.affinity import expert_distances

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "auto", "resident")
NEW_TOKENS = 16
# what a checkpoint is made with, how transformers is told to dequantise it
FORMATS = {
    "mxfp4 gpt_oss": (mxfp4, lambda: Mxfp4Config(dequantize=True)),
    "fp8 qwen3_moe": (fp8, lambda: FineGrainedFP8Config(dequantize=True)),
    "fp8 deepseek_v3": (fp8, lambda: FineGrainedFP8Config(dequantize=True)),
    "ue8m0 qwen3_moe": (ue8m0, lambda: FineGrainedFP8Config(dequantize=True)),
    "int4 qwen3_moe": (int4, lambda: CompressedTensorsConfig(dequantize=True)),
    "int8 mixtral": (int8, lambda: CompressedTensorsConfig(dequantize=True)),
    "compressed-fp8 mixtral": (compressed_fp8, lambda: CompressedTensorsConfig(dequantize=True)),
}
COMPRESSED = (int4, int8, compressed_fp8)
MAKERS = {name.split()[0]: both for name, both in FORMATS.items()}
# Beside those that every method was tried with.
ALSO = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe", "phimoe")
ALSO += ("ernie4_5_moe",)
PAIRS = [f"{kind} {architecture}" for kind in ("fp8", "int4") for architecture in ALSO]
PAIRS = [pair for pair in PAIRS if pair not in FORMATS]
OLDER = ("gpt_oss", "mixtral", "olmoe", "phimoe")  # their name of the experts' width
SHARED = {"qwen2_moe": {"shared_expert_intermediate_size": 80}}
PAGE = Path(__file__).parents[1] / "docs" / "formats.md"


def sizes_of(architecture: str) -> dict:
    width = "intermediate_size" if architecture in OLDER else "moe_intermediate_size"
    # the norms of olmoe's queries and keys ask for the size that it has
    hidden = {} if architecture == "olmoe" else {"hidden_size": 64}
    return {width: 96, **hidden, **SHARED.get(architecture, {})}


@pytest.fixture(scope="module")
def low_bit(tmp_path_factory):
    """``low_bit("mxfp4 gpt_oss")``: the folder of a tiny checkpoint in that format, made once."""
    root = tmp_path_factory.mktemp("low_bit")

    @cache
    def make(name: str) -> Path:
        architecture = name.split()[1]
        sizes = sizes_of(architecture)
        plain = make_checkpoint(architecture, root / f"{name}_plain", dtype=torch.bfloat16, **sizes)
        return make_low_bit(plain, root / name, MAKERS[name.split()[0]][0])

    return make


@pytest.fixture(scope="module")
def reference(low_bit, tmp_path_factory):
    """transformers' own model of a format, dequantised while it is loaded; where the package for
    that is missing, from a checkpoint that was dequantised before."""

    @cache
    def make(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        if MAKERS[name.split()[0]][0] in COMPRESSED and not is_compressed_tensors_available():
            folder, options = tmp_path_factory.mktemp("decompressed") / "model", {}
            make_low_bit(low_bit(name), folder, decompressed)
        else:
            folder, options = low_bit(name), {"quantization_config": MAKERS[name.split()[0]][1]()}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
        # packed integers stay in the dtype of their scales there
        for parameter in (p for p in model.parameters() if p.dim() == 3):
            parameter.data = parameter.data.to(dtype)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "eager"
        return model

    return make


def widened(packed, layer: int, expert: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    made = packed.layout.empty(dtype)
    packed.layout.of_layer(layer).widen(record_of(packed, layer, expert), made)
    return made


def record_of(packed, layer: int, expert: int) -> torch.Tensor:
    start = packed.offset(layer, expert)
    content = packed.data_file.read_bytes()[start : start + packed.layout.record_bytes]
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


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
        assert engine.info["expert_dtype"] == re.sub("ue8m0|compressed-fp8", "fp8", name.split()[0])
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


@pytest.mark.parametrize("name", PAIRS)
def test_other_architectures_are_as_exact(low_bit, reference, plain_tokens, name):
    packed = pack(low_bit(name))
    assert packed.layout.is_low_bit and differences(packed, reference(name)) == []
    with specmoe.load(low_bit(name)) as engine:
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens(name)


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("name", FORMATS)
def test_experts_of_real_size_are_multiplied_as_they_are_stored(
    low_bit, plain_tokens, name, monkeypatch
):
    monkeypatch.setattr(kernels, "LEAST_STORED_LOW", 0)
    with specmoe.load(low_bit(name)) as engine:
        assert engine.experts.kernel.reads_stored()
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens(name)


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("method", ["specmoe", "resident", "on_demand"])
def test_experts_that_are_here_together_are_computed_together(
    low_bit, plain_tokens, method, monkeypatch
):
    """Else nothing but the clock would notice that they are not."""
    monkeypatch.setattr(kernels, "LEAST_STORED_LOW", 0)
    numbers, real = [], kernels.ExpertKernel.several

    def noted(kernel, module, records, counts, x):
        numbers.append(len(records))
        return real(kernel, module, records, counts, x)

    monkeypatch.setattr(kernels.ExpertKernel, "several", noted)
    with specmoe.load(low_bit("mxfp4 gpt_oss")) as engine:
        options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": []}
        output = engine.generate(PROMPTS, method=method, **options)
    assert max(numbers) > 1 and tokens_of(output) == plain_tokens("mxfp4 gpt_oss")


@pytest.mark.usefixtures("c_compiler")
def test_biases_beside_weights_that_are_multiplied_as_they_are_stored(tmp_path, monkeypatch):
    """In bf16, where no format says what a bias is."""
    folder = make_checkpoint("gpt_oss", tmp_path, torch.bfloat16, **sizes_of("gpt_oss"))
    outputs = []
    for least in (kernels.LEAST_STORED, 0):
        monkeypatch.setattr(kernels, "LEAST_STORED", least)
        with specmoe.load(folder) as engine:
            assert engine.experts.kernel.reads_stored() == (not least)
            outputs.append(engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[]))
    assert tokens_of(outputs[0]) == tokens_of(outputs[1])


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


U8, BF16, F32, F8 = torch.uint8, torch.bfloat16, torch.float32, torch.float8_e4m3fn


def _gpt_oss() -> list[tuple]:
    wide = [(U8, (5760, 90, 16)), (U8, (5760, 90)), (BF16, (5760,))]
    return wide + [(U8, (2880, 90, 16)), (U8, (2880, 90)), (BF16, (2880,))]


def _gated(hidden: int, ffn: int, parts) -> list[tuple]:
    return [
        part
        for rows, columns in [(ffn, hidden)] * 2 + [(hidden, ffn)]
        for part in parts(rows, columns)
    ]


# The experts of published models as they lie in their files.
REAL = {
    "gpt-oss-20b, MXFP4": _gpt_oss(),
    "Qwen3-30B-A3B, FP8": _gated(
        2048, 768, lambda rows, cols: [(F8, (rows, cols)), (F32, (rows // 128, cols // 128))]
    ),
    "DeepSeek-V3, FP8": _gated(
        7168, 2048, lambda rows, cols: [(F8, (rows, cols)), (F32, (rows // 128, cols // 128))]
    ),
    "Qwen3-30B-A3B, GGUF Q4_K": _gated(
        2048, 768, lambda rows, cols: [(U8, (rows, cols * 144 // 256))]
    ),
    "Mixtral-8x7B, int4 in groups of 128": _gated(
        4096,
        14336,
        lambda rows, cols: [(torch.int32, (rows, cols // 8)), (BF16, (rows, cols // 128))],
    ),
}


def stored(name: str) -> layout.ExpertLayout:
    parts = [layout.Part(str(i), dtype, shape) for i, (dtype, shape) in enumerate(REAL[name])]
    return layout.ExpertLayout.of({}, BF16, tuple(parts))


@pytest.mark.parametrize("name", REAL)
def test_records_of_real_experts_are_at_most_two_percent_larger(name):
    found = stored(name)
    in_file = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in REAL[name])
    assert found.payload_bytes == in_file and found.record_bytes <= 1.02 * in_file


def test_records_of_a_mixture_are_together_as_large_as_in_the_file():
    """Qwen3-30B-A3B in Q4_K_M: every other layer has a finer ``down_proj``, Q6_K."""
    coarse = _gated(2048, 768, lambda rows, cols: [(U8, (rows, cols * 144 // 256))])
    kinds = [coarse, [*coarse[:2], (U8, (2048, 768 * 210 // 256))]]
    one_each = [
        layout.ExpertLayout.of({}, BF16, tuple(layout.Part("", *part) for part in parts))
        for parts in kinds
    ]
    mixed = layout.ExpertLayout.mixed(one_each * 24)
    in_file = 24 * 128 * sum(one.payload_bytes for one in one_each)
    assert in_file <= mixed.first_byte(48, 128) <= 1.002 * in_file
    assert mixed.first_byte(1, 128) == 128 * one_each[0].record_bytes
    assert 48 * 128 * mixed.record_bytes > 1.06 * in_file  # as it was when all were that large


def each_kind(names: list[str]) -> list[str]:
    """Of models with several formats one name for each."""
    split = [name.split() for name in names]
    return [f"{a} {kind} {model}" for a, kinds, model in split for kind in kinds.split("+")]


def tables() -> str:
    """What ``docs/formats.md`` says of formats and architectures, and of sizes."""
    found: dict[str, list[str]] = {}
    for name in sorted({*FORMATS, *PAIRS, *each_kind(GGUF)}):
        kind, architecture = name.rsplit(maxsplit=1)
        found.setdefault(kind, []).append(f"`{architecture}`")
    rows = ["| Format | Architectures found exact |", "|---|---|"]
    rows += [f"| {kind} | {', '.join(made)} |" for kind, made in found.items()]
    rows += ["", "| An expert of | in the file | its record | record / file |", "|---|---|---|---|"]
    for name in REAL:
        one = stored(name)
        share = one.record_bytes / one.payload_bytes
        rows.append(f"| {name} | {one.payload_bytes:,} | {one.record_bytes:,} | {share:.4f} |")
    return "\n".join(rows)


def test_the_page_of_formats_says_what_these_tests_try():
    assert tables() in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FORMATS)
def test_a_manifest_gives_the_layout_back(low_bit, name):
    packed = pack(low_bit(name))
    again = specmoe.checkpoint.open_packed(packed.directory)
    assert again == packed and again.layout.weights == packed.layout.weights


ODD_WEIGHTS = {
    "another format": (1, "gptq"),
    "a parameter that is not there": (0, "up_proj"),
    "a part that is not there": (2, [0, 99]),
    "another shape": (3, [64, 97]),
    "a place outside": (4, [[0, 60, 1], [1, 0, 1]]),
    "no rows at a time": (5, [0, 16]),
}


@pytest.mark.parametrize("odd", ODD_WEIGHTS)
def test_a_manifest_whose_weights_cannot_be_is_refused(low_bit, tmp_path, odd):
    packed = pack(low_bit("fp8 qwen3_moe"), tmp_path / "packed")
    manifest = json.loads(seal(packed.manifest()))
    manifest.pop("manifest_crc32")
    field, value = ODD_WEIGHTS[odd]
    manifest["weights"][0][field] = value
    (tmp_path / "packed" / "manifest.json").write_text(seal(manifest))
    with pytest.raises(CheckpointError, match="manifest.json was altered or cut short"):
        specmoe.checkpoint.open_packed(tmp_path / "packed")


def test_experts_that_are_stacked_in_the_file_are_cut_out_of_it(own, plain_tokens):
    """As transformers keeps them: [E, 2F, D] and a grid of scales of each."""
    folder = own("fp8 qwen3_moe")

    def stack(tensors):
        for layer in range(2):
            stem = f"model.layers.{layer}.mlp.experts"
            for end in ("", "_scale_inv"):
                every = [
                    {
                        name: tensors.pop(f"{stem}.{expert}.{name}_proj.weight{end}")
                        for name in ("gate", "up", "down")
                    }
                    for expert in range(8)
                ]
                both = [torch.cat([one["gate"], one["up"]]) for one in every]
                tensors[f"{stem}.gate_up_proj{end}"] = torch.stack(both)
                tensors[f"{stem}.down_proj{end}"] = torch.stack([one["down"] for one in every])

    rewrite(folder, stack)
    with specmoe.load(folder) as engine:
        assert engine.info["expert_dtype"] == "fp8"
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens("fp8 qwen3_moe")


@pytest.mark.parametrize("name", FORMATS)
def test_a_gpu_widens_a_weight_at_once(low_bit, name, monkeypatch):
    """Hundreds of small pieces took it twenty times as long as their copy."""
    monkeypatch.setattr(layout, "PIECE_ELEMENTS", 1500)
    packed, asked = pack(low_bit(name)), []
    want = widened(packed, 0, 1, torch.float32)
    for kind, widen in layout.WIDEN.items():
        noted = lambda *parts, widen=widen: asked.append(1) or widen(*parts)  # noqa: E731
        monkeypatch.setitem(layout.WIDEN, kind, noted)
    found = FakeCuda()
    found.install(monkeypatch)
    with Mode():
        made = packed.layout.empty(torch.float32, "cuda")
        packed.layout.widen(record_of(packed, 0, 1).to("cuda"), made)
    assert len(asked) == len(packed.layout.weights) < len(packed.layout.pieces)
    assert all(torch.equal(made[name].cpu(), weight) for name, weight in want.items())


@pytest.mark.parametrize("name", FORMATS)
def test_distances_are_those_of_the_widened_weights(low_bit, name, monkeypatch):
    """And do not depend on how many rows are widened at a time."""
    monkeypatch.setattr(layout, "PIECE_ELEMENTS", 1500)
    packed = pack(low_bit(name))
    assert len(packed.layout.pieces) > len(packed.layout.weights)
    (packed.directory / "affinity.npy").unlink(missing_ok=True)
    found = expert_distances(packed)
    experts = [
        torch.cat([t.flatten() for t in widened(packed, 0, expert, torch.float64).values()])
        for expert in range(packed.num_experts)
    ]
    want = torch.cdist(torch.stack(experts), torch.stack(experts))
    assert torch.allclose(found[0].double(), want, rtol=1e-4, atol=1e-4)


def test_distances_of_large_experts_come_from_a_sample_of_their_rows(low_bit, monkeypatch):
    packed = pack(low_bit("int4 qwen3_moe"))
    kept = packed.directory / "affinity.npy"
    kept.unlink(missing_ok=True)
    whole = expert_distances(packed)
    kept.unlink()
    monkeypatch.setattr(layout, "PIECE_ELEMENTS", 1500)
    monkeypatch.setattr(affinity, "LARGEST_WHOLE", 1)
    monkeypatch.setattr(affinity, "PIECES", 4)
    again = pack(low_bit("int4 qwen3_moe"))
    assert len(affinity._places(again, 0)) <= 6 < len(again.layout.pieces)
    sample = expert_distances(again)
    kept.unlink()
    assert not torch.equal(sample, whole)
    torch.testing.assert_close(sample, whole, rtol=0.15, atol=0)


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
    assert report
    if MAKERS[name.split()[0]][0] in COMPRESSED and not is_compressed_tensors_available():
        assert "compressed-tensors" in report.reference
    else:
        assert report.reference.startswith("transformers' generate")


def test_every_byte_and_every_scale_of_mxfp4_is_that_of_transformers():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    byte = torch.arange(256, dtype=torch.uint8)
    blocks = byte.repeat(256).view(1, 256, 16, 16)
    scales = byte[:, None].expand(256, 16)[None]
    for dtype in (torch.float32, torch.bfloat16):
        want = convert_moe_packed_tensors(blocks, scales, dtype=dtype)[0].T
        have = formats.mxfp4(blocks[0], scales[0].contiguous()).to(dtype)
        assert torch.equal(have.nan_to_num(7), want.nan_to_num(7))


def every(dtype: torch.dtype) -> torch.Tensor:
    """A matrix [32, 64] of all bytes."""
    return torch.arange(256, dtype=torch.uint8).repeat(8).view(32, 64).view(dtype)


SCALES_OF_BLOCKS = {
    "float32": torch.linspace(1e-6, 3, 32).view(4, 8),
    "bfloat16": torch.linspace(1e-6, 3, 32).view(4, 8).bfloat16(),
    "uint8": torch.arange(100, 132, dtype=torch.uint8).view(4, 8),
    "float8_e8m0fnu": torch.arange(100, 132, dtype=torch.uint8).view(4, 8),
}


@pytest.mark.parametrize("kind", SCALES_OF_BLOCKS)
@pytest.mark.parametrize("weight", ["float8_e4m3fn", "float8_e5m2", "int8"])
def test_every_byte_of_fp8_and_of_fp4_is_that_of_transformers(weight, kind):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    scales = SCALES_OF_BLOCKS[kind]
    scales = scales.view(torch.float8_e8m0fnu) if "e8m0" in kind else scales
    content = every(getattr(torch, weight))
    widen, columns = (formats.fp4, 16) if weight == "int8" else (formats.fp8, 8)
    for dtype in (torch.float32, torch.bfloat16):
        want = Fp8Dequantize(None)._dequantize_one(content, scales, dtype)
        have = widen(content, scales, 8, columns).to(dtype)
        assert torch.equal(have.nan_to_num(7), want.nan_to_num(7))


def test_blocks_at_the_edge_are_cut_short_not_stretched():
    """As in DeepSeek's own kernel; transformers divides the matrix evenly, or refuses it."""
    weight, scales = torch.ones(11, 10).to(torch.float8_e4m3fn), torch.arange(1.0, 7).view(3, 2)
    have = formats.fp8(weight, scales, 4, 8)
    assert have[:, 0].tolist() == [1] * 4 + [3] * 4 + [5] * 3
    assert have[10].tolist() == [5] * 8 + [6] * 2


@pytest.mark.parametrize("bits", [4, 8])
def test_every_integer_is_where_the_words_have_it(bits):
    """Row by row, the first integer in the lowest bits; what fills the last word is left out."""
    half = 1 << (bits - 1)
    whole = (torch.arange(2 * 44) * 7 % (2 * half) - half).view(2, 44)
    padded = torch.nn.functional.pad(whole, (0, 4)) + half
    words = (padded.unflatten(1, (-1, 32 // bits)) << torch.arange(0, 32, bits)).sum(-1)
    words = words.to(torch.uint32).view(torch.int32)[:, : -(-44 * bits // 32)].contiguous()
    scales = torch.tensor([[0.5, 3.0], [1.0, 7.0]])
    have = formats.packed(words, scales, 1, 22, bits, 44)
    assert torch.equal(have, whole * scales.repeat_interleave(22, 1))


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


def without(tensors: dict, name: str) -> None:
    del tensors[name]


def turned(tensors: dict, name: str) -> None:
    tensors[name] = tensors[name].T


def shorter(tensors: dict, name: str) -> None:
    tensors[name] = tensors[name][:-1]


def narrower(tensors: dict, name: str) -> None:
    tensors[name] = tensors[name][..., :-1].contiguous()


QWEN = "model.layers.1.mlp.experts.5.down_proj.weight"
W2 = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
BLOCKS = "model.layers.1.mlp.experts.down_proj_blocks"
SPOILT = {
    ("mxfp4 gpt_oss", narrower, BLOCKS): "not rows of groups of 16 bytes",
    ("fp8 qwen3_moe", without, f"{QWEN}_scale_inv"): "that belongs to .* missing",
    ("fp8 qwen3_moe", turned, f"{QWEN}_scale_inv"): r"\[6, 8\], not \[8, 6\], one for each block",
    ("fp8 qwen3_moe", without, "model.layers.0.self_attn.q_proj.weight_scale_inv"): "missing",
    ("int4 qwen3_moe", without, f"{QWEN}_scale"): "that belongs to .* missing",
    ("int4 qwen3_moe", without, f"{QWEN}_shape"): "that belongs to .* missing",
    ("int4 qwen3_moe", shorter, f"{QWEN}_packed"): "not .* integers of 4 or 8 bits",
    ("int4 qwen3_moe", turned, f"{QWEN}_scale"): r"\[6, 64\], not a grid over \[64, 96\]",
    ("int8 mixtral", shorter, f"{W2}_packed"): "not .* integers of 4 or 8 bits",
    ("compressed-fp8 mixtral", shorter, f"{W2}_scale"): r"\[63, 1\], not a grid",
}


@pytest.mark.parametrize("name, spoil, tensor", SPOILT)
def test_what_does_not_fit_is_named(own, tmp_path, name, spoil, tensor):
    folder = own(name)
    rewrite(folder, lambda tensors: spoil(tensors, tensor))
    refused(folder, tmp_path, f"{tensor}.*{SPOILT[name, spoil, tensor]}")


def test_a_zero_point_is_refused_by_name(own, tmp_path):
    folder = own("int4 qwen3_moe")
    rewrite(
        folder, lambda t: t.update({f"{QWEN}_zero_point": torch.zeros(8, 6, dtype=torch.int32)})
    )
    refused(folder, tmp_path, f"'{QWEN}' .* has a zero_point, which specmoe does not read")


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"format": "int-quantized"}, "int-quantized"),
        ({"config_groups": {"a": {"weights": {"num_bits": 3, "type": "int"}}}}, "3-bit int"),
    ],
)
def test_kinds_of_compressed_tensors_that_are_not_read_are_named(own, tmp_path, settings, match):
    folder = own("int4 qwen3_moe")
    rewrite(folder, lambda tensors: {"quant_method": "compressed-tensors", **settings})
    refused(folder, tmp_path, rf"quantised \({match}, says its config.json\)")


def apart(folder: Path) -> Path:
    """Scales in one file, weights in another, as some writers of large models leave them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"{'a' if 'scale' in name else 'b'}.safetensors" for name in tensors}
    for file in set(place.values()):
        save_file({n: t for n, t in tensors.items() if place[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def test_parts_of_one_expert_may_lie_in_several_shards(own, low_bit, plain_tokens):
    folder = apart(own("fp8 qwen3_moe"))
    assert pack(folder).records == pack(low_bit("fp8 qwen3_moe")).records
    with specmoe.load(folder) as engine:
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens("fp8 qwen3_moe")


def test_a_missing_shard_with_parts_of_experts_is_named(own, tmp_path):
    folder = apart(own("fp8 qwen3_moe"))
    (folder / "a.safetensors").unlink()
    refused(folder, tmp_path, "lacks 1 of 2 shards, first 'a.safetensors': download")


@pytest.mark.parametrize("store", ["disk", "checkpoint"])
def test_a_budget_below_one_widened_expert_says_what_is_needed(low_bit, store):
    """And that much is enough."""
    folder, options = low_bit("mxfp4 gpt_oss"), {"store": store, "draft_experts": 1}
    with specmoe.load(folder, **options) as engine:
        memory = engine.memory
    with pytest.raises(
        FastMemoryError, match="holds 0 experts .* beside .* need at least"
    ) as found:
        specmoe.load(folder, fast_memory=memory.scratch_bytes - 1, **options)
    least = int(re.search("at least ([0-9]+) bytes$", str(found.value))[1])
    assert memory.scratch_bytes < least <= memory.used_bytes
    with specmoe.load(folder, fast_memory=least, **options) as engine:
        assert engine.memory.used_bytes <= least


def test_layers_may_be_in_two_formats_but_not_the_experts_of_one(own, plain_tokens):
    """Records are as large as the largest; layer 0 in float32, as it was before FP8."""
    folder = own("fp8 qwen3_moe")

    def change(tensors):
        for name in [n for n in tensors if "layers.0.mlp.experts" in n and n.endswith("weight")]:
            tensors[name] = formats.fp8(tensors[name], tensors.pop(f"{name}_scale_inv"), 8, 16)

    rewrite(folder, change)
    layouts = pack(folder).layout.by_layer
    assert [one.payload_bytes for one in layouts] == [3 * 64 * 96 * 4, 3 * 64 * 96 + 3 * 8 * 6 * 4]
    for store in ("disk", "checkpoint"):
        with specmoe.load(folder, store=store) as engine:
            output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
        assert tokens_of(output) == plain_tokens("fp8 qwen3_moe")
    rewrite(folder, lambda tensors: change_one(tensors, QWEN))
    with pytest.raises(CheckpointError, match=f"'{QWEN}' .* stored otherwise than"):
        specmoe.load(folder)


def change_one(tensors: dict, name: str) -> None:
    tensors[name] = tensors[name].bfloat16()
    del tensors[f"{name}_scale_inv"]
