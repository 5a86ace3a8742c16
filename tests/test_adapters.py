"""NLLB-MoE, Switch Transformers and Llama 4: exact in float64 by every method; published names
load; refusals are clear."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import (
    FAMILIES,
    make_config,
    make_family,
    plain_greedy,
    ragged_prompts,
    reference_model,
)
from torch import nn

import specmoe
from specmoe import OptionError, UnsupportedModelError, checkpoint
from specmoe.checkpoint import adapters
from specmoe.checkpoint.adapters import llama4, nllb, switch
from specmoe.cli.copies import verify_packed

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "resident")
NEW = 20
LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPECMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's folder, its prompts, transformers' greedy output, and an engine."""
    folder = make_family(request.param, tmp_path_factory.mktemp(request.param))
    model = reference_model(request.param, folder)
    with specmoe.load(str(folder), dtype="float64", draft_experts=3) as engine:
        yield request.param, model, engine


def load(folder, **options):
    return specmoe.load(str(folder), **{"dtype": "float64", "draft_experts": 3, **options})


def generated(engine, prompts, **options) -> list[list[int]]:
    options = {"max_new_tokens": NEW, "eos_token_id": [], "batch_size": 4, **options}
    return [sequence.tolist() for sequence in engine.generate(prompts, **options).sequences]


# ---- exact ----


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_reference_tokens_with_ragged_prompts_and_refills(family, method):
    _, model, engine = family
    prompts = ragged_prompts()
    gamma = 4 if method == "specmoe" else None
    assert generated(engine, prompts, method=method, gamma=gamma) == plain_greedy(
        model, prompts, NEW
    )


WAYS_OF_DRAFTING = [
    {"gamma": 1},
    {"gamma": 7},
    {"substitute": "router"},
    {"substitute": "random"},
    {"substitute": "no_experts"},
    {"draft_set": "hot_global"},
    {"draft_set": "random"},
]


@pytest.mark.parametrize("options", WAYS_OF_DRAFTING, ids=str)
def test_no_way_of_drafting_changes_a_token(family, options):
    _, model, engine = family
    prompts = ragged_prompts(seed=1)
    expected = plain_greedy(model, prompts, NEW)
    assert generated(engine, prompts, method="specmoe", **{"gamma": 4, **options}) == expected


def test_rows_end_at_their_end_of_sequence_wherever_it_falls_in_a_block(family):
    _, model, engine = family
    prompts = ragged_prompts(seed=3)
    free = plain_greedy(model, prompts, NEW)
    for position in range(2, 7):
        eos = free[0][-NEW + position]
        expected = plain_greedy(model, prompts, NEW, eos_token_id=eos)
        assert any(len(short) < len(long) for short, long in zip(expected, free, strict=True))
        assert generated(engine, prompts, method="specmoe", gamma=4, eos_token_id=eos) == expected


def test_the_output_does_not_depend_on_the_batch_or_on_earlier_runs(family):
    _, _, engine = family
    prompts = ragged_prompts((5, 1, 11, 7))
    alone = [generated(engine, [prompt], method="specmoe", gamma=3)[0] for prompt in prompts]
    for batch_size in (2, 3):
        assert generated(engine, prompts, method="specmoe", gamma=3, batch_size=batch_size) == alone


def test_check_exact_reports_all_methods_equal(family):
    _, _, engine = family
    report = engine.check_exact(ragged_prompts((4, 6)), max_new_tokens=6)
    assert report, str(report)


def test_next_logits_are_those_of_the_reference(family):
    name, model, engine = family
    source, tokens = (
        [7, 8, 9],
        [engine.decoder.start_token, 5, 6] if name != "llama4_text" else [7, 8, 9, 5],
    )
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([tokens])}
        expected = model(
            **inputs if name != "llama4_text" else {"input_ids": torch.tensor([tokens])}
        ).logits[0, -1]
    got = engine.next_logits(tokens, source if name != "llama4_text" else None)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "nllb-moe",
            {"normalize_router_prob_before_dropping": True, "batch_prioritized_routing": True},
        ),
        (
            "nllb-moe",
            {
                "moe_token_dropout": 0.0,
                "router_bias": True,
                "tie_word_embeddings": True,
                "scale_embedding": False,
            },
        ),
        ("nllb-moe", {"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 64}),
        ("switch_transformers", {"tie_word_embeddings": True}),
        # the encoder drops tokens of long sources, always the same
        ("switch_transformers", {"expert_capacity": 5}),
        ("llama4_text", {"num_experts_per_tok": 2}),
        (
            "llama4_text",
            {
                "interleave_moe_layer_step": 1,
                "attn_temperature_tuning": False,
                "use_qk_norm": False,
            },
        ),
        ("llama4_text", {"moe_layers": [1, 2], "no_rope_layers": [1, 1, 1, 1]}),
    ],
)
def test_settings_of_the_config_are_followed(name, overrides, tmp_path):
    folder = make_family(name, tmp_path, **overrides)
    prompts = ragged_prompts((3, 12, 6, 9), seed=5)
    expected = plain_greedy(reference_model(name, folder), prompts, NEW)
    with load(folder) as engine:
        for method in ("on_demand", "overlapped", "specmoe"):
            gamma = 4 if method == "specmoe" else None
            assert generated(engine, prompts, method=method, gamma=gamma) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_dtypes_run_and_widened_experts_change_nothing(name, dtype, tmp_path):
    folder = make_family(name, tmp_path)
    prompts = ragged_prompts((3, 5))
    with (
        load(folder, dtype=dtype) as engine,
        load(folder, dtype=dtype, expert_bytes="32KiB") as wide,
    ):
        plain = generated(engine, prompts, method="on_demand")
        assert engine.info["expert_bytes"] < 32 * 1024 <= wide.info["expert_bytes"]
        if dtype == "float32":
            assert generated(wide, prompts, method="specmoe", gamma=3) == plain


# ---- the encoder: chunks, counts, no draft experts ----


@pytest.mark.parametrize(("name", "top_k"), [("nllb-moe", 2), ("switch_transformers", 1)])
def test_the_encoder_counts_real_tokens_only_and_keeps_nothing(name, top_k, tmp_path):
    prompts = ragged_prompts()
    with load(make_family(name, tmp_path, expert_capacity=64)) as engine:
        assert engine.info["layers"] == 4 and engine.info["top_k"] == top_k
        assert list(engine.experts.draft_layers) == [2, 3]
        options = {"method": "specmoe", "gamma": 4, "batch_size": 4, "eos_token_id": []}
        with engine.start(prompts, max_new_tokens=NEW, **options) as run:
            output, pool = run.output(), run.batch.experts.pool
            pool.check_integrity()
        assert pool.kept[:2] == [set(), set()] and all(pool.kept[2:])
    frame = output.trace.to_frame()
    routes = frame[frame["kind"] == "route"]
    for layer in (0, 1):
        of_layer = routes[routes["layer"] == layer]
        assert of_layer["count"].sum() == top_k * sum(map(len, prompts))
        assert set(of_layer["phase"]) == {"prefill"}
    prefills = frame[frame["kind"] == "prefill"]
    assert list(prefills["size"]) == [4, 2], "the encoder runs in chunks of a batch"
    assert prefills["count"].sum() == sum(map(len, prompts))
    assert output.stats.prefill_bytes > 0


def test_slots_are_for_the_decoders_layers(tmp_path):
    with load(make_family("nllb-moe", tmp_path), draft_experts=4, num_readers=2) as engine:
        memory = engine.memory
        assert (memory.num_layers, memory.num_slots) == (2, 2 * 4 + 4)
        assert memory.cached_experts == (memory.num_slots - 2) // 2
        output = engine.generate([[5, 6]], max_new_tokens=4, method="resident")
        assert output.stats.prefill_bytes == 0, "resident means the encoder's experts too"


def test_sequences_are_the_decoders_tokens_start_included(tmp_path):
    with load(make_family("switch_transformers", tmp_path)) as engine:
        output = engine.generate([[5, 6, 7]], max_new_tokens=6, eos_token_id=[])
    assert output.sources == [[5, 6, 7]] and output.num_prompt_tokens == [1]
    assert output.sequences[0][0] == 0 and len(output.sequences[0]) == 7
    assert output.stats.num_new_tokens == 6


# ---- routing by hand ----


class Recorder(nn.Module):
    """In place of experts: expert e gives (e + 1) times its input."""

    def __init__(self, num_experts):
        super().__init__()
        self.num_experts = num_experts

    def forward(self, hidden, index, weights):
        self.hidden = hidden
        self.index = index
        self.weights = weights
        here = (index < self.num_experts).to(hidden.dtype)
        return (hidden[:, None] * ((index + 1) * weights * here)[..., None]).sum(1)


def block_with_identity_router(module, config):
    """The family's sparse block on the CPU, whose router's logits are its input; experts replaced
    by a Recorder."""
    block = module
    linear = block.router if isinstance(block.router, nn.Linear) else block.router.classifier
    linear.weight.data = torch.eye(config.hidden_size)
    block.experts = Recorder(config.hidden_size)
    return block


def test_nllb_by_hand():
    """Probabilities 0.6, 0.3, 0.1: experts 0 and 1 with 2/3 and 1/3, all of it times 1 - 0.2."""
    config = make_config(
        "nllb-moe", d_model=3, num_experts=3, encoder_attention_heads=1, decoder_attention_heads=1
    )
    router = nllb.theirs.NllbMoeTop2Router(config)
    block = block_with_identity_router(nllb.SparseBlock(router, config, 4), config)
    x = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]).log()
    out = block.eval()(x[None])
    assert block.experts.index.tolist() == [[0, 1], [2, 1]]
    expected = torch.tensor([[2 / 3, 1 / 3], [7 / 9, 2 / 9]]) * 0.8
    torch.testing.assert_close(block.experts.weights, expected)
    torch.testing.assert_close(out[0, 0], x[0] * (2 / 3 * 1 + 1 / 3 * 2) * 0.8)
    torch.testing.assert_close(out[0, 1], x[1] * (7 / 9 * 3 + 2 / 9 * 2) * 0.8)


def test_transformers_own_nllb_experts_are_no_reference():
    """When this fails, transformers has mended its forward (feasibility.md), and it can be the
    reference."""
    config = make_config(
        "nllb-moe", d_model=4, num_experts=4, encoder_attention_heads=1, decoder_attention_heads=1
    )
    theirs = nllb.theirs.NllbMoeSparseMLP(config, 8).eval()
    x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
    used = []
    for expert in range(4):
        theirs.experts[f"expert_{expert}"].register_forward_hook(
            lambda *_, e=expert: used.append(e)
        )
    with torch.no_grad():
        theirs(x)
    assert set(used) == {0, 1}


def test_switch_by_hand():
    """Expert 1 has room for one token of each row: the row's second one gets no expert."""
    config = make_config("switch_transformers", d_model=3, num_experts=3, expert_capacity=1)
    block = block_with_identity_router(
        switch.SparseBlock(switch.theirs.SwitchTransformersTop1Router(config), config), config
    )
    likes_one, likes_two = (
        [math.log(p) for p in (0.2, 0.7, 0.1)],
        [math.log(p) for p in (0.2, 0.3, 0.5)],
    )
    x = torch.tensor([[likes_one, likes_one, likes_two], [likes_one, likes_two, likes_two]])
    out = block.eval()(x)
    assert block.experts.index.view(2, 3).tolist() == [[1, 3, 2], [1, 2, 3]], "3 means no expert"
    torch.testing.assert_close(out[0, 0], x[0, 0] * 0.7 * 2)
    torch.testing.assert_close(out[0, 2], x[0, 2] * 0.5 * 3)
    assert not out[0, 1].any() and not out[1, 2].any()


@pytest.mark.parametrize("top_k", [1, 2])
def test_llama4_by_hand_and_against_the_dense_block(top_k):
    """The chosen experts get sigmoid(logit) times the token; a shared expert is added."""
    config = make_config(
        "llama4_text",
        hidden_size=3,
        num_local_experts=3,
        num_experts_per_tok=top_k,
        intermediate_size=5,
    )
    torch.manual_seed(0)
    theirs = llama4.theirs.Llama4TextMoe(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 6, 3)
    with torch.no_grad():
        expected, _ = theirs(x)
        weights = theirs.experts
        block = llama4.SparseBlock(theirs, config)
        block.experts.load_state_dict(weights.state_dict())
        config._experts_implementation = "batched_mm"
        torch.testing.assert_close(block(x)[0], expected)
        block = block_with_identity_router(block, config)
        block(torch.tensor([[[0.0, 2.0, 1.0]]]))
    chosen = [(1, 2.0), (2, 1.0)][:top_k]
    assert block.experts.index.flatten().tolist() == [expert for expert, _ in chosen]
    for row, (_, logit) in zip(block.experts.hidden, chosen):
        torch.testing.assert_close(row, torch.tensor([0.0, 2.0, 1.0]) / (1 + math.exp(-logit)))
    assert block.experts.weights.unique().tolist() == [1.0]


# ---- checkpoints at published names ----


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "nllb-moe",
            [
                "model.encoder.layers.1.ffn.experts.expert_7.fc1.weight",
                "model.shared.weight",
                "model.decoder.layers.3.ffn.experts.expert_0.fc2.bias",
                "model.decoder.layers.1.ffn.router.classifier.weight",
            ],
        ),
        (
            "switch_transformers",
            [
                "encoder.block.1.layer.1.mlp.experts.expert_7.wi.weight",
                "decoder.block.3.layer.2.mlp.experts.expert_0.wo.weight",
                "decoder.block.1.layer.2.mlp.router.classifier.weight",
            ],
        ),
        (
            "llama4_text",
            [
                "model.layers.1.feed_forward.experts.gate_up_proj",
                "model.layers.0.feed_forward.up_proj.weight",
                "model.layers.3.feed_forward.shared_expert.down_proj.weight",
            ],
        ),
    ],
)
def test_sharded_checkpoints_at_published_names_load_and_pack(name, published, tmp_path):
    folder = make_family(name, tmp_path / "sharded", max_shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(published) <= set(index["weight_map"]) and len(set(index["weight_map"].values())) > 3
    packed = checkpoint.pack(folder, tmp_path / "packed")
    assert verify_packed(packed) == []
    assert packed.num_experts == 8 and packed.layout.shapes[0] == (
        (32, 96) if name == "llama4_text" else (48, 32)
    )
    assert len(packed.layers) == (2 if name == "llama4_text" else 4)
    whole = reference_model(name, folder).state_dict()
    record = torch.from_file(str(packed.data_file), size=packed.data_bytes, dtype=torch.uint8)
    for layer, module in enumerate(packed.layers):
        start = packed.offset(layer, 5)
        views = packed.layout.views(record[start : start + packed.layout.record_bytes])
        key = {"nllb-moe": "expert_5.fc2.weight", "switch_transformers": "expert_5.wo.weight"}.get(
            name, "down_proj"
        )
        original = whole[f"{module}.{key}"]
        assert torch.equal(
            views["down_proj"].double(), original[5] if name == "llama4_text" else original
        )


def rewrite(folder, rename, config=None) -> None:
    """The single file of ``folder`` with every tensor renamed (``rename`` gives a dict), and
    perhaps another config."""
    tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        tensors |= rename(key, tensor)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def test_the_language_part_of_a_multimodal_llama4_checkpoint_is_loaded(tmp_path):
    folder = make_family("llama4_text", tmp_path)
    prompts = ragged_prompts((4, 7))
    expected = plain_greedy(reference_model("llama4_text", folder), prompts, NEW)
    text = json.loads((folder / "config.json").read_text())
    config = {
        "model_type": "llama4",
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "llama4_vision_model"},
    }
    picture = {
        "vision_model.patch_embedding.linear.weight": torch.zeros(3, 3),
        "multi_modal_projector.linear_1.weight": torch.zeros(3, 3),
    }
    extra = iter([picture])
    rewrite(
        folder, lambda key, tensor: {f"language_model.{key}": tensor, **next(extra, {})}, config
    )
    with load(folder) as engine:
        assert generated(engine, prompts, method="specmoe", gamma=3) == expected


def test_llama4_with_one_tensor_per_expert_is_the_same_model(tmp_path):
    folder = make_family("llama4_text", tmp_path)
    prompts = ragged_prompts((4, 7))
    expected = plain_greedy(reference_model("llama4_text", folder), prompts, NEW)

    def split(key, tensor):
        if not key.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            return {key: tensor}
        base, _, leaf = key.rpartition(".")
        parts = (
            {"gate_proj": tensor[..., :48], "up_proj": tensor[..., 48:]}
            if leaf == "gate_up_proj"
            else {leaf: tensor}
        )
        return {
            f"{base}.{expert}.{part}.weight": values[expert].T.contiguous()
            for part, values in parts.items()
            for expert in range(8)
        }

    rewrite(folder, split)
    with load(folder) as engine:
        assert generated(engine, prompts, method="specmoe", gamma=3) == expected


@pytest.mark.parametrize(
    ("name", "published", "num_layers", "num_experts", "expert", "billions"),
    [
        # facebook/nllb-moe-54b: a sparse layer in every fourth of 24 + 24
        (
            "nllb-moe",
            {
                "vocab_size": 256206,
                "d_model": 2048,
                "max_position_embeddings": 1024,
                "num_experts": 128,
                "encoder_layers": 24,
                "encoder_ffn_dim": 8192,
                "encoder_attention_heads": 16,
                "decoder_layers": 24,
                "decoder_ffn_dim": 8192,
                "decoder_attention_heads": 16,
                "encoder_sparse_step": 4,
                "decoder_sparse_step": 4,
                "tie_word_embeddings": True,
            },
            12,
            128,
            {
                "up_proj": (8192, 2048),
                "up_proj_bias": (8192,),
                "down_proj": (2048, 8192),
                "down_proj_bias": (2048,),
            },
            (54.0, 55.0),
        ),
        # google/switch-base-8
        (
            "switch_transformers",
            {
                "vocab_size": 32128,
                "d_model": 768,
                "d_kv": 64,
                "d_ff": 3072,
                "num_heads": 12,
                "num_layers": 12,
                "num_decoder_layers": 12,
                "num_sparse_encoder_layers": 6,
                "num_sparse_decoder_layers": 6,
                "num_experts": 8,
                "expert_capacity": 64,
            },
            12,
            8,
            {"up_proj": (3072, 768), "down_proj": (768, 3072)},
            (0.5, 0.7),
        ),
        # meta-llama/Llama-4-Scout-17B-16E, the language part
        (
            "llama4_text",
            {
                "vocab_size": 202048,
                "hidden_size": 5120,
                "intermediate_size": 8192,
                "num_hidden_layers": 48,
                "intermediate_size_mlp": 16384,
                "num_attention_heads": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "num_local_experts": 16,
                "interleave_moe_layer_step": 1,
                "no_rope_layer_interval": 4,
                "attention_chunk_size": 8192,
                "floor_scale": 8192,
            },
            48,
            16,
            {"gate_up_proj": (5120, 16384), "down_proj": (8192, 5120)},
            (105.0, 110.0),
        ),
    ],
)
def test_shapes_of_the_published_models(name, published, num_layers, num_experts, expert, billions):
    from specmoe.checkpoint.model import expert_parameters, meta_model

    model = meta_model(make_config(name, **published), torch.bfloat16)
    modules = checkpoint.expert_modules(model)
    assert len(modules) == num_layers
    for module in modules.values():
        assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {
            n: (num_experts, *shape) for n, shape in expert.items()
        }
    assert billions[0] < sum(p.numel() for p in model.parameters()) / 1e9 < billions[1]
    assert all(model.get_parameter(name).is_meta for name in expert_parameters(model))


# ---- languages ----


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    """A tiny NLLB-MoE with an NLLB tokenizer of three languages."""
    from transformers import NllbTokenizer

    folder = make_family("nllb-moe", tmp_path_factory.mktemp("translator"))
    vocab = {
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        "▁": 4,
        **{letter: 5 + i for i, letter in enumerate("abcdefgh")},
    }
    tokenizer = NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=LANGUAGES)
    tokenizer.save_pretrained(folder)
    model = reference_model("nllb-moe", folder)
    with load(folder) as engine:
        yield engine, model, tokenizer


def test_the_target_language_is_forced_and_the_source_language_marks_the_source(translator):
    engine, model, tokenizer = translator
    texts = ["abc", "a deed", "bad cafe hedge"]
    expected = []
    tokenizer.src_lang = "deu_Latn"
    forced = tokenizer.convert_tokens_to_ids("fra_Latn")
    for text in texts:
        expected += plain_greedy(
            model, [tokenizer(text)["input_ids"]], NEW, forced_bos_token_id=forced
        )
    languages = {"source_lang": "deu_Latn", "target_lang": "fra_Latn"}
    for method in ("on_demand", "specmoe"):
        assert generated(engine, texts, method=method, **languages) == expected
    output = engine.generate(texts, max_new_tokens=NEW, eos_token_id=[], **languages)
    assert output.sources[0][0] == tokenizer.convert_tokens_to_ids("deu_Latn")
    assert output.num_prompt_tokens == [2, 2, 2] and len(output.texts) == 3
    assert engine.tokenizer.src_lang == "eng_Latn", "the tokenizer is left as it was"
    assert engine.check_exact(texts, max_new_tokens=8, target_lang="fra_Latn")


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (["abc"], {}, "no target language: pass target_lang=, one of the tokenizer's 3 codes"),
        (
            ["abc"],
            {"target_lang": "fra_latn"},
            "target_lang='fra_latn' is unknown: did you mean 'fra_Latn'",
        ),
        (
            ["abc"],
            {"target_lang": "fra_Latn", "source_lang": "english"},
            "source_lang='english' is unknown",
        ),
        ([[{"role": "user", "content": "abc"}]], {"target_lang": "fra_Latn"}, "chat messages"),
        ([{"role": "user", "content": "abc"}], {"target_lang": "fra_Latn"}, "chat messages"),
        (
            ["abc" * 30],
            {"target_lang": "fra_Latn"},
            "prompt 0 has 9[0-9] tokens; the encoder has 64 positions: shorten it",
        ),
        (
            ["abc"],
            {"target_lang": "fra_Latn", "max_new_tokens": 64},
            "max_new_tokens=64 passes the decoder's 64 positions",
        ),
        (
            ["abc"],
            {"target_lang": "fra_Latn", "max_new_tokens": 1},
            "filled by the language token: use at least 2",
        ),
        ([""], {"target_lang": "fra_Latn"}, "prompt 0 is empty"),
        (
            ["abc", [500]],
            {"target_lang": "fra_Latn"},
            "prompt 1 holds token id 500, outside the vocabulary of 97",
        ),
    ],
)
def test_bad_input_of_a_translation_is_one_clear_sentence(translator, prompts, options, message):
    engine, _, _ = translator
    with pytest.raises(OptionError, match=message):
        engine.generate(prompts, **{"max_new_tokens": 8, **options})


def test_languages_without_a_tokenizer_that_knows_them_or_without_an_encoder_are_refused(tmp_path):
    with load(make_family("switch_transformers", tmp_path / "switch")) as engine:
        with pytest.raises(
            OptionError,
            match="target_lang='fra_Latn': the checkpoint's tokenizer knows no languages",
        ):
            engine.generate([[5, 6]], target_lang="fra_Latn")
    with load(make_family("llama4_text", tmp_path / "llama4")) as engine:
        with pytest.raises(OptionError, match="source_lang='eng_Latn' is for translation models"):
            engine.generate([[5, 6]], source_lang="eng_Latn")


# ---- refused settings ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"second_expert_policy": "sampling"},
            "second_expert_policy='sampling' draws its second expert at random",
        ),
        (
            {"second_expert_policy": "random"},
            "second_expert_policy='random' draws its second expert at random",
        ),
        (
            {"moe_eval_capacity_token_fraction": 0.25},
            "moe_eval_capacity_token_fraction=0.25 drops tokens",
        ),
    ],
)
def test_routing_by_chance_or_by_company_is_refused_when_loading(overrides, message, tmp_path):
    folder = make_family("nllb-moe", tmp_path, **overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


def test_switch_on_an_old_transformers_is_refused_by_version(tmp_path, monkeypatch):
    folder = make_family("switch_transformers", tmp_path)
    monkeypatch.setattr(switch.transformers, "__version__", "5.17.0")
    with pytest.raises(
        UnsupportedModelError,
        match=r"needs transformers 5.18 or newer \(here: "
        r"5.17.0\)",
    ):
        load(folder)
    monkeypatch.setattr(switch.transformers, "__version__", "5.18.0")
    load(folder).close()


def test_blocks_that_could_exceed_a_capacity_are_refused_with_numbers(tmp_path):
    fixed = {"moe_eval_capacity_token_fraction": 0.0, "expert_capacity": 20}
    with load(make_family("nllb-moe", tmp_path / "nllb", **fixed)) as engine:
        with pytest.raises(
            OptionError, match="4 rows x 6 tokens are verified at once, but expert_capacity=20"
        ):
            engine.generate([[5, 6]] * 4, method="specmoe", gamma=5, max_new_tokens=8)
        with pytest.raises(
            OptionError, match="2 rows x 11 tokens are encoded at once.*batch_size=1"
        ):
            engine.generate([[5] * 11] * 2, method="on_demand", max_new_tokens=8)
        assert len(generated(engine, [[5, 6]] * 4, method="specmoe", gamma=4)) == 4
    with load(make_family("switch_transformers", tmp_path / "switch", expert_capacity=5)) as engine:
        with pytest.raises(
            OptionError, match="6 tokens of a row.*expert_capacity=5.*use gamma=4 or less"
        ):
            engine.generate([[5, 6]], method="specmoe", gamma=5, max_new_tokens=8)
        assert len(generated(engine, [[5] * 30], method="specmoe", gamma=4)) == 1


def test_other_families_come_back_as_they_are():
    from tiny_architectures import make_model

    model = make_model("mixtral")
    before = list(map(type, model.modules()))
    assert adapters.adapt(model) is model and list(map(type, model.modules())) == before
    assert adapters.conversions(model) == [] and adapters.position_modules(model) == []


@pytest.mark.parametrize("before_dropping", [True, False])
def test_nllb_router_without_a_capacity_chooses_as_the_original(before_dropping):
    """The short way (``_choose_freely``) against transformers' own counting of places, on random
    logits."""
    sizes = {
        "d_model": 16,
        "num_experts": 12,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
    }
    settings = {
        "normalize_router_prob_before_dropping": before_dropping,
        "moe_eval_capacity_token_fraction": 1.0,
    }
    config = make_config("nllb-moe", **sizes, **settings, router_bias=True)
    torch.manual_seed(0)
    original = nllb.theirs.NllbMoeTop2Router(config).eval()
    x = torch.randn(64, 16)
    with torch.no_grad():
        _, probabilities, logits = original(x)
        original.__class__ = nllb.Router
        ours_logits, weights, index = original(x)
    torch.testing.assert_close(ours_logits, logits)
    torch.testing.assert_close(torch.zeros(64, 12).scatter(1, index, weights), probabilities)
