"""Models with experts in GGUF files: experts stay in their blocks, and weights and tokens are those
that transformers has when it loads the same file."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import struct
import sys
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import PROMPTS, tokens_of
from test_low_bit import differences, widened
from tiny_gguf import SIZES, TRIED, add_blocks, as_kind, make_gguf, written
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import specmoe
from specmoe.checkpoint import blocks as ggml
from specmoe.checkpoint import build_model, gguf_file, gguf_header
from specmoe.checkpoint.identity import unchanged
from specmoe.checkpoint.packed import seal
from specmoe.checkpoint.packing import pack
from specmoe.checkpoint.plan import ExpertPlan
from specmoe.cli.copies import verify_packed
from specmoe.cli.identity import identity_of
from specmoe.cli.parser import main
from specmoe.errors import CheckpointError, OptionError, SpecMoEError, UnsupportedModelError
from specmoe.lab.simulate import plan
from specmoe.model import kernels
from specmoe.offload.affinity import expert_distances

NEW_TOKENS = 8
WIDTHS = ("moe_intermediate_size", "shared_expert_intermediate_size")
Q4_K = "gguf Q4_K minimax_m2"
Q4_K_M = "gguf Q4_K_M qwen3_moe"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made("gguf Q4_K minimax_m2")``: a file whose experts are in that type, made once."""
    root = tmp_path_factory.mktemp("gguf")

    @cache
    def make(name: str) -> Path:
        _, kind, model_type = name.split()
        return make_gguf(root / name / "model.gguf", model_type, as_kind(kind))

    return make


@pytest.fixture(scope="module")
def reference(made):
    """transformers' own model of the file."""

    @cache
    def make(name: str, dtype: torch.dtype = torch.float32):
        file = made(name)
        options = {"gguf_file": file.name, "dtype": dtype}
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        # its mapping has no key for them
        for width in WIDTHS:
            if width in SIZES.get(name.split()[2], ("", {}))[1]:
                setattr(config, width, SIZES[name.split()[2]][1][width])
        model = AutoModelForCausalLM.from_pretrained(file.parent, config=config, **options)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "eager"
        return model

    return make


@pytest.fixture(scope="module")
def plain_tokens(reference):
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    options |= {"eos_token_id": None, "pad_token_id": 0}

    @cache
    def make(name: str) -> list[list[int]]:
        model = reference(name)
        return [model.generate(torch.tensor([row]), **options)[0].tolist() for row in PROMPTS]

    return make


def generated(path, **options) -> list[list[int]]:
    with specmoe.load(path, **options) as engine:
        output = engine.generate(
            PROMPTS, method="cached", max_new_tokens=NEW_TOKENS, eos_token_id=[]
        )
    return tokens_of(output)


@pytest.mark.parametrize("number", ggml.TYPES)
def test_blocks_of_random_bytes_are_those_of_gguf_bit_for_bit(number):
    made, elements, size = ggml.TYPES[number]
    kind = gguf.GGMLQuantizationType(number)
    found = ggml.kind_of(made.__name__), (elements, size)
    assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == found
    content = np.random.default_rng(number).integers(0, 256, (64, 3 * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        want = torch.from_numpy(gguf.quants.dequantize(content, kind))
        have = ggml.WIDEN[made.__name__](torch.from_numpy(content))
    is_number = ~want.isnan()
    assert have.shape == (64, 3 * elements) and torch.equal(have.isnan(), ~is_number)
    # zeros have a sign
    assert torch.equal(have.view(torch.int32)[is_number], want.view(torch.int32)[is_number])


@pytest.mark.parametrize("name", TRIED)
def test_weights_and_tokens_are_those_of_transformers(made, reference, plain_tokens, name):
    """Bit for bit; experts packed or read where they lie."""
    assert wrong_weights(made(name), reference(name)) == []
    store = "disk" if "_K" in name else "checkpoint"
    with specmoe.load(made(name), store=store) as engine:
        kinds = set(name.split()[1].lower().replace("q4_k_m", "q4_k+q6_k").split("+")) - {"f16"}
        found = engine.info["expert_dtype"].replace("bfloat", "bf").replace("ggml_", "")
        assert sorted(found.split(", ")) == sorted(kinds)
        output = engine.generate(
            PROMPTS, method="cached", max_new_tokens=NEW_TOKENS, eos_token_id=[]
        )
    assert tokens_of(output) == plain_tokens(name)


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("name", ["gguf Q8_0 qwen3_moe", Q4_K_M, "gguf Q4_1 qwen2_moe"])
def test_large_experts_are_multiplied_block_by_block(made, plain_tokens, name, monkeypatch):
    monkeypatch.setattr(kernels, "LEAST_STORED_LOW", 0)
    with specmoe.load(made(name)) as engine:
        assert engine.experts.kernel.of_layer(0).reads_stored()
        assert engine.experts.kernel.of_layer(1).reads_stored()
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens(name)


def wrong_weights(file: Path, want) -> list[str]:
    """Names of those that are not bit for bit those of ``want``."""
    have = build_model(file, want.dtype).state_dict()
    have = {name: tensor for name, tensor in have.items() if not tensor.is_meta}
    assert len(have) > 10
    whole = want.state_dict()
    wrong = [name for name, tensor in have.items() if not torch.equal(tensor, whole[name])]
    return differences(pack(file), want) + wrong


@pytest.mark.parametrize("name", [Q4_K, "gguf BF16 minimax_m2"])
def test_weights_in_half_precision_are_those_of_transformers(made, reference, name):
    assert wrong_weights(made(name), reference(name, torch.bfloat16)) == []


def test_weights_in_half_precision_are_rounded_once(made, reference):
    """Where transformers rounds factors and products one by one."""
    name = "gguf Q8_0 qwen3_5_moe_text"
    once = copy.deepcopy(reference(name)).to(torch.bfloat16)
    assert wrong_weights(made(name), once) == []


@pytest.mark.parametrize("method", ["on_demand", "specmoe", "resident"])
def test_every_method_gives_them(made, plain_tokens, method):
    with specmoe.load(made(Q4_K), draft_experts=3) as engine:
        output = engine.generate(PROMPTS, method=method, max_new_tokens=NEW_TOKENS, eos_token_id=[])
    assert tokens_of(output) == plain_tokens(Q4_K)


@pytest.mark.parametrize("name", TRIED[1:3])
def test_a_record_holds_the_blocks_of_the_file_and_nothing_else(made, name):
    packed, content = pack(made(name)), made(name).read_bytes()
    tensors = gguf.GGUFReader(made(name)).tensors
    for index in range(len(packed.layers)):
        layout = packed.layout.of_layer(index)
        mine = [
            t.n_bytes for t in tensors if t.name.startswith(f"blk.{index}.") and "_exps" in t.name
        ]
        assert packed.num_experts * layout.payload_bytes == sum(mine)
        record = packed.data_file.read_bytes()[packed.offset(index, 3) :][: layout.record_bytes]
        for part, start in zip(layout.parts, layout.offsets(), strict=True):
            assert record[start : start + part.num_bytes // 2] in content
        # whole pages
        assert layout.record_bytes < layout.payload_bytes + 4096 + 3 * 64
        assert not any(record[sum(part.num_bytes for part in layout.parts) :])


def test_layers_in_several_types_keep_them(made):
    """As in a file of the kind Q4_K_M; each layer's records have a size of their own."""
    packed = pack(made(Q4_K_M))
    coarse, fine = 3 * 512 * 144, 2 * 512 * 144 + 256 * 2 * 210
    assert [one.payload_bytes for one in packed.layout.by_layer] == [fine, coarse]
    assert packed.layout.payload_bytes == fine
    assert packed.data_file.stat().st_size <= 1.02 * 8 * (coarse + fine)
    assert verify_packed(packed) == []
    again = specmoe.checkpoint.open_packed(packed.directory)
    assert again.layout == packed.layout
    distances = expert_distances(packed)
    for layer in range(2):
        experts = [widened(packed, layer, expert, torch.float64) for expert in range(8)]
        whole = torch.stack([torch.cat([t.flatten() for t in one.values()]) for one in experts])
        assert torch.allclose(distances[layer].double(), torch.cdist(whole, whole), rtol=1e-4)


@pytest.mark.parametrize("store", ["disk", "memory"])
def test_what_is_read_of_layers_in_several_types_is_counted_as_it_is(made, plain_tokens, store):
    with specmoe.load(made(Q4_K_M), store=store, draft_experts=2) as engine:
        output = engine.generate(
            PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[], method="on_demand"
        )
        sizes = [one.record_bytes for one in engine.packed.layout.by_layer]
    assert tokens_of(output) == plain_tokens(Q4_K_M)
    reads = [event for event in output.trace.events if event[3] == "fetch"]
    assert {(event[4], event[8]) for event in reads} == {(0, sizes[0]), (1, sizes[1])}
    assert sizes[0] > sizes[1] and output.stats.fetched_bytes <= sum(event[8] for event in reads)


def test_a_packing_of_such_layers_goes_on_where_it_was_ended(made, tmp_path, monkeypatch):
    whole, fill, filled = pack(made(Q4_K_M), tmp_path / "whole"), ExpertPlan.fill, []

    def killed(self, record, *place):
        filled.append(place)
        if len(filled) == 11:
            raise KeyboardInterrupt
        return fill(self, record, *place)

    monkeypatch.setattr(ExpertPlan, "fill", killed)
    monkeypatch.setattr("specmoe.checkpoint.packing.SYNC_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        pack(made(Q4_K_M), tmp_path / "parts")
    parts = pack(made(Q4_K_M), tmp_path / "parts")
    assert len(filled) == 16 + 1
    assert parts.data_file.read_bytes() == whole.data_file.read_bytes()


def test_a_manifest_with_fewer_layouts_than_layers_is_refused(made, tmp_path):
    packed = pack(made(Q4_K_M), tmp_path / "packed")
    manifest = packed.manifest()
    for kinds in ([0], [0, 0], [0, 1, 0], [0, -1]):
        (tmp_path / "packed" / "manifest.json").write_text(
            seal(manifest | {"kind_of_layer": kinds})
        )
        with pytest.raises(CheckpointError, match="manifest.json was altered or cut short"):
            specmoe.checkpoint.open_packed(tmp_path / "packed")


def test_a_folder_with_one_file_is_that_file(made, plain_tokens):
    assert generated(made(Q4_K).parent) == plain_tokens(Q4_K)


def test_a_packed_folder_loads_by_itself(made, plain_tokens, tmp_path):
    file = made(Q4_K_M)
    packed = pack(file, tmp_path / "packed")
    rest = tmp_path / "packed" / "model" / "model.gguf"
    assert rest.stat().st_size < file.stat().st_size - packed.layout.payload_bytes * 8
    with specmoe.load(tmp_path / "packed") as engine:
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
        assert engine.tokenizer("the than")["input_ids"] == [256, 68, 220, 256, 258]
        report = engine.check_exact(PROMPTS[:1], max_new_tokens=2)
        assert report and "reads no packed folder" in report.reference
    assert tokens_of(output) == plain_tokens(Q4_K_M)
    assert identity_of(tmp_path / "packed") == identity_of(file)
    with pytest.raises(CheckpointError, match="packed is packed already"):
        pack(tmp_path / "packed", tmp_path / "again")


def test_what_is_left_of_a_file_is_a_file_that_gguf_reads(made, tmp_path):
    file, rest = made(Q4_K), tmp_path / "rest.gguf"
    kept = {"output.weight", "blk.1.attn_norm.weight", "token_embd.weight"}
    gguf_file.write_part(gguf_header.read_gguf(file), kept, rest)
    whole, part = gguf.GGUFReader(file), gguf.GGUFReader(rest)
    assert {tensor.name for tensor in part.tensors} == kept
    for tensor in part.tensors:
        [same] = [other for other in whole.tensors if other.name == tensor.name]
        assert same.tensor_type == tensor.tensor_type and np.array_equal(same.data, tensor.data)
    for key, field in part.fields.items():
        assert field.contents() == whole.fields[key].contents() or key == "GGUF.tensor_count"


def test_the_tokenizer_and_the_settings_are_those_of_transformers(made, reference):
    file = made(Q4_K_M)
    want = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with specmoe.load(file) as engine:
        have, text = engine.tokenizer, "the thin sound of\n bells<|3|>"
        assert type(have) is type(want) and have(text) == want(text)
        assert have.eos_token == want.eos_token == "<|3|>"
        assert engine.model.generation_config.eos_token_id == 263
        config = engine.model.config.to_dict()
    other = reference(Q4_K_M).config.to_dict()
    own = {"_name_or_path", "dtype", "quantization_config", "_experts_implementation"}
    assert {k: v for k, v in config.items() if k not in own} == {
        k: v for k, v in other.items() if k not in own
    }


def test_the_check_compares_with_transformers(made):
    with specmoe.load(made(Q4_K)) as engine:
        report = engine.check_exact(PROMPTS[:1], max_new_tokens=4)
    assert report and report.reference.startswith("transformers' generate")


def test_a_plan_and_a_header_read_no_weights(made, monkeypatch, capsys):
    """And the plan knows what an expert takes in the file."""

    def refuse(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("specmoe.checkpoint.header.read_into", refuse)
    found = specmoe.checkpoint.files.open_checkpoint(made(Q4_K))
    assert found.tensors["blk.0.ffn_down_exps.weight"].shape == (8, 256, 256)
    options = ["--machine", "consumer", "--fast-memory", "4MiB", "--batch", "1", "--json"]
    for path in (made(Q4_K).parent, made(Q4_K)):
        assert main(["plan", str(path), *options]) == 0
        found = json.loads(capsys.readouterr().out)["model"]
        assert found["expert_bytes"] == 3 * 256 * 144
        assert (found["layers"], found["experts"]) == (2, 8)


def test_a_plan_counts_every_layer_as_it_is_and_says_what_slots_of_one_size_leave(made, capsys):
    coarse, fine = 3 * 512 * 144, 2 * 512 * 144 + 256 * 2 * 210
    options = [*"plan --machine consumer --fast-memory 4MiB --batch 1".split(), str(made(Q4_K_M))]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["expert_bytes"] == (coarse + fine) // 2
    assert found["model"]["experts_bytes"] == 8 * (coarse + fine)
    with specmoe.load(made(Q4_K_M), fast_memory="4MiB") as engine:
        sizes = [one.record_bytes for one in engine.packed.layout.by_layer]
        assert found["budget"]["slots"] == engine.info["slots"]
    unused = found["budget"]["slots"] * (max(sizes) - sum(sizes) // 2)
    assert found["budget"]["unused_bytes"] == unused > 0
    on_demand = next(row for row in found["rows"] if row["method"] == "on_demand")
    assert on_demand["link_bytes"] == found["model"]["top_k"] * sum(sizes)
    assert main(options) == 0 and "stay unused" in capsys.readouterr().out
    options[-1] = str(made(Q4_K))
    assert main(options) == 0 and "stay unused" not in capsys.readouterr().out


def test_another_vocabulary_is_another_model(made, tmp_path):
    other = make_gguf(tmp_path / "other.gguf", "minimax_m2", as_kind("Q4_K"), eos=5)
    assert identity_of(other) != identity_of(made(Q4_K)) == identity_of(made(Q4_K))


# ---- what is refused ----


def refused(path: Path, match: str, error: type[SpecMoEError] = CheckpointError) -> None:
    """In one sentence, whatever is done with it; nothing is left half written."""
    target = path.parent / "packed"
    for attempt in (specmoe.load, lambda path: pack(path, target)):
        with pytest.raises(error, match=match) as caught:
            attempt(path)
        assert "\n" not in str(caught.value)
    assert not list(path.parent.glob("packed*"))


def small(file: Path, architecture: str, tensors: dict[str, tuple[str, tuple]], **settings) -> Path:
    """A GGUF of a few tensors, by ggml type and shape."""
    writer = gguf.GGUFWriter(file, architecture)
    for name in ("context_length", "block_count", "embedding_length", "feed_forward_length"):
        getattr(writer, f"add_{name}")(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(64)
    for key, value in settings.items():
        writer.add_uint16(key.replace("_", ".", 1), value)
    random = np.random.default_rng(0)
    for name, (kind, shape) in tensors.items():
        add_blocks(writer, name, kind, shape, random)
    return written(writer, file)


EMBEDDING = {"token_embd.weight": ("F32", (64, 64))}


def test_a_dense_model_is_refused(tmp_path):
    file = small(tmp_path / "dense.gguf", "llama", EMBEDDING)
    refused(file, "model_type 'llama' is dense: it has no experts", UnsupportedModelError)
    with pytest.raises(UnsupportedModelError, match="'llama' is dense: it has no experts"):
        plan(file, "1GiB", "laptop")


def test_experts_that_transformers_does_not_look_for_are_named(tmp_path):
    """It takes a Mixtral for a Llama."""
    experts = {"blk.0.ffn_up_exps.weight": ("F32", (2, 64, 64))}
    settings = {"llama_expert_count": 8}
    file = small(tmp_path / "mixtral.gguf", "llama", EMBEDDING | experts, **settings)
    match = "transformers reads the experts of .*mixtral.gguf as 'llama', a dense model"
    refused(file, match, UnsupportedModelError)


def test_an_architecture_that_transformers_does_not_map_is_refused(tmp_path):
    file = small(tmp_path / "new.gguf", "deepseek2", EMBEDDING)
    match = "transformers does not know the model of .*new.gguf.*'deepseek2'.*safetensors"
    refused(file, match, UnsupportedModelError)


def test_a_type_that_is_not_read_is_named(tmp_path):
    odd = {"blk.0.ffn_up_exps.weight": ("NVFP4", (2, 64, 256))}
    file = small(tmp_path / "odd.gguf", "qwen3moe", odd)
    refused(file, "'blk.0.ffn_up_exps.weight' in .*odd.gguf is of the ggml type NVFP4, .*Q4_K")


@pytest.mark.parametrize("left", [3, 20, 100, 20_000, -100])
def test_a_file_that_is_cut_short_is_refused(made, tmp_path, left):
    content = made(Q4_K).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:left])
    refused(tmp_path / "cut.gguf", "cut.gguf (is cut short|does not begin)")


def test_two_files_in_a_folder_ask_for_a_name(made, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(made(Q4_K).read_bytes())
    match = r"holds 2 GGUF files \(a.gguf, b.gguf\): say which with gguf_file=, or give"
    with pytest.raises(CheckpointError, match=match):
        specmoe.load(tmp_path)


# ---- which file ----


@pytest.fixture
def several(made, tmp_path) -> Path:
    """A folder with the file of this test, ``b.gguf``, beside others."""
    shutil.copy(made(Q4_K), tmp_path / "b.gguf")
    small(tmp_path / "a.gguf", "llama", EMBEDDING)
    return tmp_path


def test_a_file_is_named_as_in_transformers(several, plain_tokens):
    assert generated(several, gguf_file="b.gguf") == plain_tokens(Q4_K)
    assert identity_of(several, gguf_file="b.gguf") == identity_of(several / "b.gguf")


@pytest.mark.parametrize(
    "where, name, error, match",
    [
        (".", "c.gguf", CheckpointError, r"no file 'c.gguf' \(gguf_file\): .* a.gguf, b.gguf$"),
        (".", "b.bin", OptionError, "gguf_file='b.bin' is no GGUF file's name"),
        ("b.gguf", "b.gguf", OptionError, "belongs to a folder or hub id"),
        ("tiny-skewed", "b.gguf", CheckpointError, "it has no GGUF"),
        (".", 7, OptionError, "gguf_file=7 must be a name"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(several, where, name, error, match):
    model = where if where == "tiny-skewed" else several / where
    with pytest.raises(error, match=match):
        specmoe.load(model, gguf_file=name)


def test_of_a_hub_id_only_that_file_is_downloaded(several, plain_tokens, monkeypatch):
    asked = []

    def download(name, **how):
        asked.append((name, how))
        return str(several)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert generated("owner/model", gguf_file="b.gguf", revision="v1") == plain_tokens(Q4_K)
    assert asked == [("owner/model", {"revision": "v1", "allow_patterns": "b.gguf"})]
    with pytest.raises(CheckpointError, match="has no file"):
        specmoe.load("owner/model", gguf_file="x-00001-of-00003.gguf")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(several / "no"))
    (several / "no").mkdir()
    with pytest.raises(CheckpointError, match="of a GGUF repository name the file: gguf_file="):
        specmoe.load("owner/model")
    assert asked[1][1]["allow_patterns"] == "x-*-of-00003.gguf"


def test_the_command_line_names_a_file_too(several, capsys):
    file = ["--gguf-file", "b.gguf"]
    machine = ["--machine", "consumer", "--fast-memory", "4MiB", "--batch", "1"]
    assert main(["plan", str(several), *machine, *file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["experts"] == 8
    assert main(["pack", str(several), str(several / "packed"), *file, "-q"]) == 0
    assert main(["generate", str(several), "-p", "the", "--max-new-tokens", "2", *file, "-q"]) == 0
    assert main(["generate", str(several), "-p", "the", "-q"]) == 2
    assert "holds 2 GGUF files (a.gguf, b.gguf): say which" in capsys.readouterr().err


# ---- a GGUF in several files ----


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> Path:
    """The first file of a GGUF like ``Q4_K``."""
    folder = tmp_path_factory.mktemp("split")
    make_gguf(folder / "model.gguf", "minimax_m2", as_kind("Q4_K"), split=12)
    first, *others = sorted(folder.glob("*.gguf"))
    assert first.name == "model-00001-of-00003.gguf" and len(others) == 2
    return first


@pytest.mark.parametrize("store", ["disk", "checkpoint"])
def test_a_split_file_is_one_model(made, split, plain_tokens, store):
    with specmoe.load(split.parent, store=store) as engine:
        output = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[])
        assert engine.tokenizer("the than")["input_ids"] == [256, 68, 220, 256, 258]
        report = engine.check_exact(PROMPTS[:1], max_new_tokens=2)
        assert report and "transformers reads no split GGUF" in report.reference
    assert tokens_of(output) == plain_tokens(Q4_K)
    assert identity_of(split) == identity_of(made(Q4_K))


def test_a_split_file_is_packed_into_one_that_loads_by_itself(split, plain_tokens, tmp_path):
    pack(split, tmp_path / "packed")
    assert generated(tmp_path / "packed") == plain_tokens(Q4_K)
    assert identity_of(tmp_path / "packed") == identity_of(split)


def test_a_file_of_several_that_changes_while_it_is_read_is_noticed(split, tmp_path):
    copy = Path(shutil.copytree(split.parent, tmp_path / "copy")) / split.name
    third = copy.with_name("model-00003-of-00003.gguf")
    with pytest.raises(CheckpointError, match="changed while it was read .*00003-of-00003.gguf"):
        with unchanged(copy):
            third.write_bytes(third.read_bytes())


def test_what_is_not_the_whole_of_a_split_file_is_refused(split, tmp_path):
    def having(*names: str, order: dict[str, str] | None = None) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name in names:
            file = f"model-0000{name}-of-00003.gguf"
            shutil.copy(split.with_name(file), folder / (order or {}).get(file, file))
        return folder

    refused(having("1", "3"), "lacks 1 of the 3 files of a split GGUF, first 'model-00002-of")
    refused(having("2", "3"), "00002-of-00003.gguf is one of the 3 files .*not .* the first")
    alone = having("1", order={"model-00001-of-00003.gguf": "model.gguf"})
    refused(
        alone, "model.gguf is one of the 3 files of a split GGUF, and not by its name the first"
    )
    swapped = {
        f"model-0000{a}-of-00003.gguf": f"model-0000{b}-of-00003.gguf" for a, b in ("23", "32")
    }
    refused(
        having("1", "2", "3", order=swapped), "00002-of-.* is not by its header the file 2 of 3"
    )
    other = having("1", "2", "3")
    second = other / "model-00002-of-00003.gguf"
    infos = gguf_header.read_gguf(split).infos
    of_second = [info.name.encode() for info in infos if info.file.name == second.name]
    of_others = [info.name.encode() for info in infos if info.file.name != second.name]
    mine, theirs = next(
        pair for pair in itertools.product(of_second, of_others) if len({*map(len, pair)}) == 1
    )
    second.write_bytes(second.read_bytes().replace(mine, theirs, 1))
    refused(other, "hold [0-9]+ tensors of [0-9]+ names, which is not what the first promises")


def test_a_type_that_takes_the_missing_package_is_named(tmp_path, monkeypatch):
    odd = {"blk.0.ffn_up_exps.weight": ("IQ2_XXS", (2, 64, 256))}
    file = small(tmp_path / "odd.gguf", "qwen3moe", odd)
    monkeypatch.setitem(sys.modules, "gguf", None)
    match = (
        r"'blk.0.ffn_up_exps.weight' in .* type IQ2_XXS, which takes .*: pip install -U 'specmoe\[g"
    )
    refused(file, match)
    with pytest.raises(CheckpointError, match="an expert is of the ggml type IQ2_XXS"):
        ggml.WIDEN["iq2_xxs"](torch.zeros(1, 66, dtype=torch.uint8))


def test_the_missing_package_is_named(made, monkeypatch):
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"takes the package gguf: pip install 'specmoe\[gguf\]'"
    ):
        specmoe.load(made(Q4_K))


def test_a_missing_tensor_of_experts_is_named(made, tmp_path):
    header = gguf_header.read_gguf(made(Q4_K))
    kept = {info.name for info in header.infos} - {"blk.1.ffn_up_exps.weight"}
    gguf_file.write_part(header, kept, tmp_path / "less.gguf")
    refused(tmp_path / "less.gguf", "has no tensors like 'blk.1.ffn_up_exps.weight' for")


def test_an_alignment_is_a_number_of_bytes(tmp_path):
    assert [gguf_header.aligned(at, 4) for at in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert gguf_header.aligned(5, 1) == 5
    file = small(tmp_path / "none.gguf", "llama", EMBEDDING, general_alignment=0)
    refused(file, "no readable GGUF header .*an alignment of 0")


def altered(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def test_a_header_that_cannot_be_is_refused(made, tmp_path):
    content, file = made(Q4_K).read_bytes(), tmp_path / "odd.gguf"
    name = b"blk.1.ffn_up_exps.weight"
    after = content.index(name) + len(name)
    many = struct.pack("<Q", 2**60)
    beyond = "cut short|is altered|lies over another|no rows of blocks"
    for at, new, match in (
        (0, b"GGML", "does not begin as a GGUF file does"),
        (4, struct.pack("<I", 1), "is GGUF of version 1"),
        (8, many, "cut short inside its header|no readable GGUF header"),
        (16, many, "cut short inside its header|no readable GGUF header"),
        (24, many, "cut short inside its header"),
        (after, struct.pack("<I", 77), "no readable GGUF header .*77 dimensions"),
        (after + 4, many, beyond),
        (after + 4, struct.pack("<Q", 255), "no rows of blocks of 256 as in Q4_K"),
        (after + 32, struct.pack("<Q", 0), "lies over another tensor"),
        (after + 32, many, "is cut short"),
        (content.index(b"blk.1.attn_q.w"), b"blk.1.attn_k.w", "names a tensor twice"),
    ):
        file.write_bytes(altered(content, at, new))
        with pytest.raises(CheckpointError, match=match):
            gguf_header.read_gguf(file)
