"""Sizes counted in transformers' own classes: every MoE family, the real models' published numbers,
bytes of quantised weights."""

from __future__ import annotations

import json

import pytest
import tiny_families
import torch
from models_table import architectures, tiny_config

from specmoe.checkpoint.model import auto_class
from specmoe.errors import CheckpointError, OptionError, UnsupportedModelError
from specmoe.lab.simulate import PAPER_SIZES, ModelSize, known_models, real_models, size_of
from specmoe.lab.simulate.parameters import count_parameters
from specmoe.lab.simulate.weights import FORMATS, format_of

# One of each mechanism (test_families has the same list).
QUICK = ("afmoe", "deepseek_v2", "gemma4_text", "gpt_oss", "lfm2_moe", "qwen3_next", "zaya")


def tiny(kind: str):
    if kind in tiny_families.FAMILIES:
        return tiny_families.make_config(kind)
    return tiny_config(kind)


# ---- every family of the installed transformers ----


@pytest.mark.parametrize("kind", [*architectures(), *tiny_families.FAMILIES])
def test_a_familys_parameters_are_those_of_the_model_itself(kind):
    config = tiny(kind)
    model = auto_class(config).from_config(config)
    own = {name: p.numel() for name, p in model.named_parameters()}
    found = count_parameters(config)
    assert found.total == sum(own.values())
    routed = sum(number for name, number in own.items() if ".experts." in name)
    layers = found.num_layers + found.num_encoded
    assert found.expert * found.num_experts * layers == found.counts["expert"] == routed
    assert found.num_experts == 8
    blocks = {name.partition(".experts.")[0] for name in own if ".experts." in name}
    assert layers == len(blocks)
    assert found.num_encoded == sum("encoder" in block for block in blocks)


@pytest.mark.parametrize("kind", [kind for kind in architectures() if kind in QUICK])
@torch.no_grad()
def test_a_familys_top_k_is_what_its_router_sends(kind):
    config = tiny(kind)
    model = auto_class(config).from_config(config, experts_implementation="eager").eval()
    sent = []
    experts = [m for name, m in model.named_modules() if name.endswith(".experts")]
    for module in experts:
        module.register_forward_pre_hook(
            lambda module, given, named: sent.append([*given, *named.values()][1].shape[-1]),
            with_kwargs=True,
        )
    model(torch.tensor([[5, 6, 7]]))
    assert set(sent) == {count_parameters(config).top_k}


def test_layers_without_experts_are_not_counted_as_moe_layers():
    fields = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "num_experts": 4}
    assert ModelSize.of(fields).num_layers == 6
    assert ModelSize.of(fields | {"decoder_sparse_step": 2}).num_layers == 3
    assert ModelSize.of(fields | {"mlp_only_layers": [0, 5]}).num_layers == 4
    found = ModelSize.of({"model_type": "deepseek_v3", "num_hidden_layers": 5})
    assert found.num_layers == 2  # the first three are dense


def test_the_head_is_counted_once_where_it_is_tied_and_multiplied_all_the_same():
    fields = {"model_type": "mixtral", "num_hidden_layers": 1, "vocab_size": 1000}
    tied = count_parameters(fields | {"tie_word_embeddings": True})
    own = count_parameters(fields | {"tie_word_embeddings": False})
    assert own.total - tied.total == tied.counts["embedding"] == 1000 * 4096
    assert own.touched == tied.touched and own.touched_bytes == tied.touched_bytes


def test_an_encoders_experts_take_no_part_in_decoding():
    size = ModelSize.of(tiny_families.make_config("nllb-moe"))
    assert size.num_layers == 2 and size.encoder_bytes == 2 * 8 * size.expert_bytes
    assert size.total > 2 * size.num_layers * size.num_experts * size.expert_bytes // 2


def test_what_was_counted_is_kept():
    fields = tiny("mixtral").to_dict()
    assert count_parameters(fields) is count_parameters(dict(fields))


# ---- the real models ----


def units(text: str) -> tuple[float, float]:
    """ "46.7B" -> its value and that of its last digit."""
    number = text.removesuffix("B")
    return float(number) * 1e9, 10.0 ** (9 - len(number.partition(".")[2]))


@pytest.mark.parametrize("name", known_models())
def test_a_real_models_parameters_are_those_its_makers_publish(name):
    row = known_models()[name]
    published, last = units(row.published["total"])
    if "besides" in row.published:
        assert 0.98 * published < row.size.total < published
    else:
        assert abs(row.size.total - published) < last, "more than the last digit"
    if row.published["active"]:
        published, last = units(row.published["active"])
        embeddings = 0
        if not row.published["active_counts_input_embeddings"]:
            embeddings = row.config["vocab_size"] * row.config["hidden_size"]
        assert abs(row.size.active - embeddings - published) < last


@pytest.mark.parametrize(
    "name",
    [
        # thousands of modules, one for each expert: seconds
        pytest.param(name, marks=pytest.mark.long if name == "nllb-moe-54b" else ())
        for name in known_models()
    ],
)
def test_the_table_of_real_models_is_what_transformers_classes_count(name):
    rows = json.loads(real_models.TABLE.read_text("utf-8"))
    assert real_models.count_again([name])[name] == rows[name]


def test_every_row_of_the_table_says_where_it_is_from():
    for name, row in known_models().items():
        assert row.source.startswith("https://"), name
        assert row.published["source"].startswith("https://"), name
        if row.title.lower().replace(" ", "-") not in row.source.lower():
            assert row.note, f"{name}: a config of another name, and no word why"


def test_the_papers_page_is_computed_with_the_sizes_that_are_counted():
    counted = {name: known_models()[name].size for name in PAPER_SIZES}
    assert len(PAPER_SIZES) == 3 and counted == PAPER_SIZES


def test_experts_have_the_bytes_that_hand_arithmetic_gives():
    sizes = {name: row.size for name, row in known_models().items()}
    assert sizes["mixtral-8x7b"].expert_bytes == 3 * 4096 * 14336 * 2
    assert sizes["qwen3-30b-a3b"].expert_bytes == 3 * 2048 * 768 * 2
    assert sizes["nllb-moe-54b"].expert_bytes == (2 * 2048 * 8192 + 8192 + 2048) * 2
    # one scale of 4 bytes for each block of 128 x 128
    assert sizes["deepseek-v3"].expert_bytes == 3 * (2048 * 7168 + 4 * 16 * 56)
    # half a byte, and a byte for every 32; biases in bf16
    weights, biases = 3 * 2880 * 2880, 3 * 2880
    assert sizes["gpt-oss-20b"].expert_bytes == weights * 17 // 32 + 2 * biases
    assert sizes["qwen3-30b-a3b"].bytes_per_token == 48 * 8 * 3 * 2048 * 768 * 2


@pytest.mark.parametrize(("name", "gibibytes"), [("gpt-oss-20b", 12.8), ("gpt-oss-120b", 60.8)])
def test_a_quantised_model_has_the_bytes_of_its_published_checkpoint(name, gibibytes):
    size = size_of(name)  # the model card of gpt-oss, arXiv 2508.10925
    assert (size.experts_bytes + size.held_bytes) / 2**30 == pytest.approx(gibibytes, abs=0.05)


# ---- bytes of a weight ----


def test_bytes_per_weight_of_every_format():
    found = {name: each.bytes_per_weight() for name, each in FORMATS.items()}
    assert found["fp32"] == 4 and found["bf16"] == 2 and found["int8"] == 1
    assert found["fp8"] == pytest.approx(1 + 4 / 128**2)
    assert found["mxfp4"] == (4 + 8 / 32) / 8
    assert found["int4"] == (4 + 20 / 128) / 8
    assert found["nf4"] == (4 + 32 / 64) / 8
    for each in FORMATS.values():
        assert each.num_bytes((3, 4096, 8192)) == pytest.approx(
            3 * 4096 * 8192 * each.bytes_per_weight(), rel=1e-3
        )


def test_blocks_that_are_not_full_have_a_scale_too():
    assert FORMATS["fp8"].num_bytes((129, 128)) == 129 * 128 + 2 * 4
    assert FORMATS["mxfp4"].num_bytes((1, 33)) == 17 + 2


def test_formats_of_published_configs():
    gptq = format_of(None, {"quant_method": "gptq", "bits": 4, "group_size": 64})
    assert gptq.bytes_per_weight() == (4 + 20 / 64) / 8
    packed = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group"}
    given = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": packed}}}
    found = format_of(None, given | {"ignore": ["lm_head", "re:.*self_attn.*"]})
    assert (found.name, found.bytes_per_weight()) == ("int4", (4 + 16 / 32) / 8)
    assert found.keeps("model.layers.3.self_attn.q_proj") and not found.keeps("model.layers.3.mlp")
    assert format_of(None, {"quant_method": "bitsandbytes", "load_in_4bit": True}).name == "nf4"
    assert format_of(None, {"quant_method": "fp8"}).num_bytes((128, 256)) == 128 * 256 + 4
    with pytest.raises(OptionError, match="quant_method='new'.*say weights="):
        format_of(None, {"quant_method": "new"})
    with pytest.raises(OptionError, match="weights='int3' is unknown: .*int4"):
        size_of("olmoe-1b-7b", "int3")


def test_quantised_are_experts_and_linear_layers_but_neither_embeddings_head_nor_router():
    fields = tiny("mixtral").to_dict()
    plain, fp8, fp4 = (count_parameters(fields, name) for name in ("bf16", "fp8", "mxfp4"))
    for kept in ("embedding", "head", "router"):
        assert fp8.stored[kept] == plain.stored[kept] == 2 * plain.counts[kept]
    assert fp8.stored["expert"] < 0.6 * plain.stored["expert"]
    assert fp8.stored["rest"] < plain.stored["rest"] == fp4.stored["rest"]
    asked = {"quantization_config": {"quant_method": "fp8", "ignore": ["self_attn", "experts"]}}
    assert count_parameters(fields | asked).stored == plain.stored


# ---- what is refused ----


def test_a_dense_or_unknown_model_is_refused_in_a_sentence():
    with pytest.raises(UnsupportedModelError, match="'llama' is dense: it has no experts"):
        ModelSize.of({"model_type": "llama", "num_hidden_layers": 2})
    dense = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0, 1]}
    with pytest.raises(UnsupportedModelError, match="'qwen3_moe' is dense"):
        ModelSize.of(dense)
    with pytest.raises(UnsupportedModelError, match="'mixtrall' is not known.*'mixtral'"):
        ModelSize.of({"model_type": "mixtrall"})
    with pytest.raises(UnsupportedModelError, match="None is not known"):
        ModelSize.of({"hidden_size": 8})
    with pytest.raises(UnsupportedModelError, match="differ from layer to layer"):
        ModelSize.of({"model_type": "jetmoe", "num_hidden_layers": 2})


def test_a_name_or_a_file_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(OptionError, match="no model of the table.*did you mean 'mixtral-8x7b'"):
        size_of("mixtral-8x7")
    (tmp_path / "config.json").write_text("[", encoding="utf-8")
    with pytest.raises(CheckpointError, match="config.json is no config"):
        size_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny("olmoe").to_dict()), encoding="utf-8")
    assert size_of(tmp_path) == size_of(tmp_path / "config.json") == ModelSize.of(tiny("olmoe"))
    assert size_of(size_of("olmoe-1b-7b")) == known_models()["olmoe-1b-7b"].size


def test_a_config_with_a_wrong_field_is_refused_in_a_sentence():
    with pytest.raises((OptionError, UnsupportedModelError), match="mixtral"):
        ModelSize.of({"model_type": "mixtral", "hidden_size": "wide"})
