"""The settings that published checkpoints of every family use: tokens of ``generate`` for each row
alone, or a refusal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import models_table
import pytest
import torch
import transformers
from conftest import tokens_of
from models_table import architectures, decoded, plain, reference, write_tiny
from packaging.version import Version
from tiny_architectures import ARCHITECTURES, make_checkpoint, randomise_
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import specmoe
from specmoe.checkpoint.adapters.rotary import DYNAMIC_SINCE
from specmoe.checkpoint.adapters.switch import OLDEST_TRANSFORMERS
from specmoe.model.kv_cache import STATES_SINCE

# ---- every architecture of the installed transformers ----

# One of each mechanism: plain, latent attention, indexers, windows, sinks, per-layer ropes, shared
# experts, recurrent state.
QUICK = (
    "afmoe",
    "axk2",
    "cohere2_moe",
    "deepseek_v2",
    "gemma4_text",
    "granitemoehybrid",
    "laguna",
    "lfm2_moe",
    "mimo_v2_flash",
    "mistral_large4",
    "qwen3_vl_moe",
)


def judged(kind: str) -> None:
    verdict, committed = models_table.judge(kind), models_table.read_page().get(kind)
    assert verdict.word in models_table.WORDS, f"{kind}: {verdict.word} ({verdict.why})"
    assert committed == verdict.word, (
        f"docs/models.md says {committed!r} of {kind}, and it is {verdict}: write it again"
    )


@pytest.mark.parametrize("kind", [kind for kind in QUICK if kind in architectures()])
def test_the_page_of_models_says_what_runs(kind):
    judged(kind)


@pytest.mark.long
@pytest.mark.parametrize("kind", [kind for kind in architectures() if kind not in QUICK])
def test_the_page_of_models_says_what_runs_for_all_others(kind):
    judged(kind)


# One row at a time (a prompt of one token begins where nobody is left), few, and all at once.
WAYS = [
    {"batch_size": 1, "gamma": 2},
    {"batch_size": 7, "gamma": 7},
    {"batch_size": 3, "method": "cached"},
    {"batch_size": 3, "method": "overlapped"},
    {"batch_size": 2, "method": "auto"},
    {"batch_size": 7, "method": "resident"},
    *({"draft": draft} for draft in ("layer_skip", "merged:2", "low_bit:4", "ngram:1+resident")),
    *({"substitute": name} for name in ("affinity", "router", "random", "drop", "no_experts")),
]


@pytest.mark.long
@pytest.mark.parametrize("kind", architectures())
def test_every_way_to_decode_gives_the_tokens_of_generate(kind, tmp_path):
    prompts = [*models_table.PROMPTS, [9, 8], [4], [4]]
    try:
        folder = write_tiny(kind, tmp_path)
        want = plain(reference(folder), prompts, 11)
        engine = specmoe.load(folder, dtype=torch.float64, draft_experts=3, fast_memory="4MiB")
    except Exception as error:
        pytest.skip(f"refused, or transformers does not run it: {error}")
    with engine:
        for way in WAYS:
            got = decoded(engine, prompts, 11, **{"method": "specmoe", "batch_size": 2} | way)
            assert got == want, way


@pytest.mark.long
@pytest.mark.parametrize("version", models_table.OLDER)
def test_no_architecture_gives_other_tokens_with_an_older_transformers(tmp_path, version):
    """What the package may be installed with. Arguments are renamed and swallowed in silence."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(tmp_path)]
    if subprocess.run([*pip, f"transformers=={version}"]).returncode:
        pytest.skip(f"transformers {version} cannot be installed here")
    told = subprocess.run(
        [sys.executable, models_table.__file__, "--tell"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    words = re.findall(r"word='([^']+)'", told.stdout)
    assert words.count("exact") >= 19 and set(words) <= set(models_table.WORDS), told.stdout


def test_the_page_of_models_names_every_architecture_of_the_registry():
    if models_table.page_version() != models_table.VERSION:
        pytest.skip("the page is of another transformers")
    assert set(models_table.read_page()) == {
        *architectures(),
        *models_table.unserved(),
        *models_table.ADAPTED,
    }


# ---- rotary embeddings ----

LONG = {
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 8.0, 16.0],
    "original_max_position_embeddings": 16,
}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 8.0},
    "longrope": {**LONG, "factor": 16.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
PHI_ROPE = {"rope_type": "longrope", **LONG, "short_mscale": 1.0, "long_mscale": 1.5}
# Rows that stay short, cross 16 while decoding, begin at 15 and 16, and began beyond it.
LENGTHS = (2, 11, 15, 16, 30)


def rope_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]


def rope_checkpoint(folder, architecture: str, rope: dict, **config):
    return make_checkpoint(
        architecture, folder, torch.float64, rope_parameters={"rope_theta": 100.0, **rope}, **config
    )


def alone(folder, prompts, new_tokens: int) -> list[list[int]]:
    """A model of its own for every row: dynamic frequencies outlive a call of ``generate``."""
    return [plain(reference(folder), [prompt], new_tokens)[0] for prompt in prompts]


def agree(folder, prompts, new_tokens: int, **load) -> None:
    want = alone(folder, prompts, new_tokens)
    with specmoe.load(folder, dtype="float64", draft_experts=3, **load) as engine:
        assert decoded(engine, prompts, new_tokens, method="on_demand") == want
        assert decoded(engine, prompts, new_tokens, method="specmoe", gamma=4) == want
        logits = reference(folder)(torch.tensor(prompts[-1:])).logits[0, -1]
        torch.testing.assert_close(engine.next_logits(prompts[-1]), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["default", *ROPE_INIT_FUNCTIONS])
@torch.no_grad()
def test_every_rope_type_gives_each_row_what_it_gets_alone(kind, tmp_path):
    assert kind in ROPES, f"transformers has a new rope type, {kind}: add it"
    if kind == "dynamic" and Version(transformers.__version__) < DYNAMIC_SINCE:
        pytest.skip("dynamic rope is refused on this transformers")
    positions = 16 if kind == "dynamic" else 256
    agree(
        rope_checkpoint(
            tmp_path,
            "mixtral",
            {"rope_type": kind, **ROPES[kind]},
            max_position_embeddings=positions,
        ),
        rope_prompts(),
        20,
    )


@torch.no_grad()
def test_the_scale_of_phimoe_follows_each_rows_own_length(tmp_path):
    folder = rope_checkpoint(tmp_path, "phimoe", PHI_ROPE, original_max_position_embeddings=16)
    prompts = rope_prompts()
    # 17 = 4 + 13: the last is not fed
    agree(folder, [prompts[0], prompts[0] * 2, prompts[-1], prompts[-1][:17]], 13)
    with specmoe.load(folder, dtype="float64", draft_experts=3) as engine:
        with pytest.raises(
            specmoe.OptionError,
            match="prompt 1 has 11 tokens and may grow to 18.* max_new_tokens=6",
        ):
            decoded(engine, [prompts[0], prompts[1]], 7, method="on_demand")


@torch.no_grad()
def test_a_rope_for_each_kind_of_layer_follows_each_rows_own_length(tmp_path):
    if "laguna" not in architectures():
        pytest.skip("this transformers has no laguna")
    long = {"rope_type": "longrope", "rope_theta": 100.0, "factor": 16.0, **LONG}
    short = {"rope_type": "default", "rope_theta": 100.0}
    ropes = {"full_attention": long, "sliding_attention": short}
    agree(write_tiny("laguna", tmp_path, rope_parameters=ropes), rope_prompts(), 20)


@torch.no_grad()
@pytest.mark.long
def test_ropes_that_depend_on_length_are_right_when_compiled(tmp_path):
    rope = {"rope_type": "longrope", "factor": 16.0, **LONG}
    agree(rope_checkpoint(tmp_path, "mixtral", rope), rope_prompts()[1:4], 8, compile=True)


# ---- settings ----

DENSE_FIRST = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [0],
    "intermediate_size": 40,
    "num_hidden_layers": 3,
}
SETTINGS = [
    ("mixtral", {"sliding_window": 5}),
    ("mixtral", {"tie_word_embeddings": True}),
    ("mixtral", {"num_key_value_heads": 4}),
    ("mixtral", {"num_key_value_heads": 1}),
    ("qwen2_moe", {"norm_topk_prob": True, **DENSE_FIRST}),
    ("qwen2_moe", {"qkv_bias": False}),
    ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3_moe", {"norm_topk_prob": False, "attention_bias": True, **DENSE_FIRST}),
    ("qwen3_moe", {"tie_word_embeddings": True, "num_experts_per_tok": 8}),
    ("olmoe", {"clip_qkv": 0.3, "norm_topk_prob": True, "attention_bias": True}),
    ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True, "norm_topk_prob": False}),
    (
        "deepseek_v3",
        {"first_k_dense_replace": 0, "n_shared_experts": 2, "routed_scaling_factor": 1.0},
    ),
    ("glm4_moe", {"use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": True}),
    ("phimoe", {"attention_bias": True, "lm_head_bias": True, "sliding_window": 5}),
    (
        "granitemoe",
        {
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "attention_bias": True,
        },
    ),
    ("ernie4_5_moe", {"use_bias": True, "moe_num_shared_experts": 2, "tie_word_embeddings": True}),
    ("gpt_oss", {"sliding_window": 3, "tie_word_embeddings": True}),
]


@pytest.mark.parametrize(
    "architecture, config",
    [each for each in SETTINGS if each[0] in ARCHITECTURES],
    ids=lambda part: re.sub(r"\W+", "_", str(part))[:60],
)
def test_settings_of_published_checkpoints_do_not_matter(architecture, config, tmp_path):
    same_as_transformers(make_checkpoint(architecture, tmp_path, torch.float64, **config))


@pytest.mark.parametrize(
    "kind, config",
    [("cohere2_moe", {"logit_scale": 3.0}), ("gemma4_text", {"final_logit_softcapping": 2.0})],
)
def test_logits_that_are_scaled_or_capped_give_the_tokens(kind, config, tmp_path):
    if kind not in architectures():
        pytest.skip(f"this transformers has no {kind}")
    same_as_transformers(write_tiny(kind, tmp_path, **config))


@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_half_precision_checkpoints_run_in_float32_as_in_transformers(
    architecture, saved, tmp_path
):
    same_as_transformers(make_checkpoint(architecture, tmp_path, saved), dtype=torch.float32)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_fused_and_single_expert_tensors_give_the_same_tokens(architecture, tmp_path):
    from safetensors.torch import load_file, save_file

    single = make_checkpoint(architecture, tmp_path / "single", torch.float64)
    fused = make_checkpoint(architecture, tmp_path / "fused", torch.float64)
    model = reference(fused)
    names = set(load_file(fused / "model.safetensors"))
    save_file(
        {k: v.clone() for k, v in model.state_dict().items()},
        fused / "model.safetensors",
        {"format": "pt"},
    )
    assert names != set(load_file(fused / "model.safetensors"))
    want = plain(reference(single))
    for folder in (single, fused):
        with specmoe.load(folder, dtype="float64", draft_experts=3) as engine:
            assert decoded(engine, method="specmoe", gamma=4) == want


def same_as_transformers(folder, dtype: torch.dtype = torch.float64, want=None) -> None:
    want = want or plain(reference(folder, dtype))
    with specmoe.load(folder, dtype=dtype, draft_experts=3) as engine:
        for method in ("on_demand", "specmoe"):
            assert decoded(engine, method=method, **models_table.METHODS[method]) == want


# ---- flags that training leaves behind ----

FLAGS = {
    "output_router_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "return_dict": False,
    "use_cache": False,
    "torchscript": True,
    "attention_dropout": 0.5,
    "router_jitter_noise": 0.5,
    "hidden_dropout": 0.5,
    "input_jitter_noise": 0.5,
    "resid_pdrop": 0.5,
    "gradient_checkpointing": True,
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "flash_attention_2",
    "torch_dtype": "float16",
    "_attn_implementation_internal": "flash_attention_3",
    "experts_implementation": "deepgemm",
    "pretraining_tp": 2,
    "_experts_implementation": "sonicmoe",
    "router_aux_loss_coef": 9.0,
    "aux_loss_alpha": 9.0,
    "dtype": "bfloat16",
    "num_labels": 7,
    "problem_type": "regression",
    "is_decoder": True,
    "chunk_size_feed_forward": 4,
    "use_bfloat16": True,
    "pruned_heads": {},
    "tokenizer_class": "Nonesuch",
    "transformers_version": "9.9",
    "auto_map": {"AutoConfig": "x.Y"},
    "_name_or_path": "/nowhere",
    "architectures": ["SomethingElse"],
    "num_nextn_predict_layers": 2,
}


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_all_flags_left_by_training_together_never_change_a_run(architecture, tmp_path):
    # transformers refuses both
    flash = {name: value for name, value in FLAGS.items() if name != "output_attentions"}
    plain_attention = {name: value for name, value in FLAGS.items() if "attn" not in name}
    assert not flags_that_matter(architecture, tmp_path, [flash, plain_attention])


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_no_single_flag_left_by_training_changes_a_run(architecture, tmp_path):
    assert not flags_that_matter(
        architecture, tmp_path, [{name: value} for name, value in FLAGS.items()]
    )


def refused_by_transformers(folder) -> bool:
    try:
        transformers.AutoConfig.from_pretrained(folder)
    except ValueError:
        return True
    return False


def flags_that_matter(architecture, tmp_path, tried) -> list:
    folder = make_checkpoint(architecture, tmp_path, torch.float64)
    config, file = json.loads((folder / "config.json").read_text()), folder / "config.json"
    want = plain(reference(folder))
    failures = []
    for flags in tried:
        file.write_text(json.dumps({**config, **flags}))
        try:
            with specmoe.load(folder, dtype="float64", draft_experts=3) as engine:
                output = engine.generate(
                    models_table.PROMPTS,
                    method="specmoe",
                    gamma=4,
                    max_new_tokens=models_table.NEW_TOKENS,
                    eos_token_id=[],
                )
            failures += [list(flags)] if tokens_of(output) != want else []
        except Exception as error:
            if refused_by_transformers(folder):  # some versions do not read some flags themselves
                continue
            failures.append((list(flags)[:1], type(error).__name__, str(error)[:200]))
    return failures


def test_the_flags_of_an_encoder_decoder_never_change_a_run(tmp_path):
    from tiny_families import make_family

    if Version(transformers.__version__) < OLDEST_TRANSFORMERS:
        pytest.skip("the routers of this transformers do not return their scores")
    folder = make_family("switch_transformers", tmp_path)
    config, file, runs = (
        json.loads((folder / "config.json").read_text()),
        folder / "config.json",
        [],
    )
    flags = (
        "output_router_logits",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "use_cache",
    )
    for changed in (
        {},
        {name: FLAGS[name] for name in flags},
        {"dropout_rate": 0.5, "router_jitter_noise": 0.0},
    ):
        file.write_text(json.dumps({**config, **changed}))
        with specmoe.load(folder, dtype="float64", draft_experts=3) as engine:
            runs.append(
                tokens_of(engine.generate([[5, 6, 7], [8, 9]], max_new_tokens=6, eos_token_id=[]))
            )
    assert runs[0] == runs[1] == runs[2]


def test_all_architectures_of_the_everyday_tests_are_in_the_table():
    assert set(ARCHITECTURES) <= set(architectures())


def test_dynamic_rope_is_refused_on_a_transformers_where_it_was_not_found_exact(
    monkeypatch, tmp_path
):
    from specmoe import UnsupportedModelError, load

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    folder = make_checkpoint("mixtral", tmp_path / "m", rope_parameters=rope)
    monkeypatch.setattr("transformers.__version__", "5.2.0")
    with pytest.raises(
        UnsupportedModelError,
        match="dynamic rope, whose rows are exact from transformers 5.24.0 on",
    ):
        load(folder, draft_experts=2)


# ---- indexers of sparse attention ----


@torch.no_grad()
def indexed(folder, heads: int, mirrored: bool = False):
    """DeepSeek V3.2 with ``heads`` heads of its indexer; mirrored, the second half has the queries
    of the first with the other sign, so that no score is cut to zero by all of them."""
    config = models_table.tiny_config("deepseek_v32", index_n_heads=heads)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise_(model, torch.Generator().manual_seed(1))
    for name, queries in model.named_parameters():
        if mirrored and name.endswith("indexer.wq_b.weight"):
            queries[len(queries) // 2 :] = -queries[: len(queries) // 2]
    model.to(torch.float64).save_pretrained(folder)
    return folder


has_indexers = pytest.mark.skipif(
    "deepseek_v32" not in architectures(), reason="this transformers has no deepseek_v32"
)


@has_indexers
def test_an_indexer_of_few_heads_without_ties_is_exact(monkeypatch, tmp_path):
    monkeypatch.setattr("specmoe.model.decoder.FEWEST_INDEX_HEADS", 1)
    same_as_transformers(indexed(tmp_path, heads=2, mirrored=True))


@has_indexers
def test_an_indexer_of_the_fewest_heads_is_exact_and_of_fewer_is_refused(tmp_path):
    same_as_transformers(indexed(tmp_path / "8", heads=8))
    with pytest.raises(specmoe.UnsupportedModelError, match="index_n_heads=7, whose scores tie"):
        specmoe.load(indexed(tmp_path / "7", heads=7), draft_experts=3)


def test_the_page_of_models_says_from_which_versions_what_is_exact():
    page = models_table.PAGE.read_text("utf-8")
    assert re.search(rf"`dynamic`\)\s+are refused below\s+transformers {DYNAMIC_SINCE} ", page)
    assert f"are refused below transformers {STATES_SINCE}." in page
