"""Every decoder-only MoE architecture of the installed transformers, made tiny and decoded by
specmoe beside ``generate``.

Comes in: nothing; the architectures are those that ``AutoModelForCausalLM`` serves and whose
modelling file goes through the experts registry. Goes out: one ``Verdict`` each, exact, refused
(why) or not configurable (why), and ``docs/models.md``: ``python tests/models_table.py`` writes it,
``test_families`` compares it with what runs.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import transformers
from tiny_architectures import randomise_
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import specmoe
from specmoe.checkpoint.model import WITH_IMAGES, auto_class
from specmoe.errors import SpecMoEError
from specmoe.model.decoder import UNCUT_SCORES
from specmoe.model.kv_cache import MIXERS, STATES_SINCE

# What a field is made, wherever a config has it. Windows are narrower than the prompts; experts'
# widths differ from D.
SHRUNK = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "model_max_length": 256,
    "intermediate_size": 48,
    "moe_intermediate_size": 40,
    "dense_intermediate_size": 48,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_end_index": 3,
    "sliding_window": 5,
    "sliding_window_size": 5,
    "attention_chunk_size": 5,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "index_topk": 6,
    "index_n_heads": 16,
    "index_head_dim": 12,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "linear_num_heads": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What the rules above cannot know.
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_dt_rank": 4}
_NGRAM = {
    "head_dim": 8,
    "intermediate_size": 48,
    "ngram_vocab_size_base": 50,
    "ple_embed_dim": 16,
    "hc_lowrank": 8,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
# Queries are scaled by their position from 8 on.
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 8,
    "max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
    "partial_rotary_factor": 0.5,
}
# A rotary frequency of time, height and width for every pair of a head's 8.
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
ALSO: dict[str, dict] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
        "head_dim": 8,
        "global_head_dim": 8,
        "per_layer_config": {"01": {"head_dim": 16}, "03": {"head_dim": 16}},
    },
    "glm4v_moe_text": {"rope_parameters": {**_MROPE, "partial_rotary_factor": 1.0}},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "hy_v4_vl_text": {"rope_parameters": _MROPE},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling2_loop_text": {
        "unpadded_vocab_size": 97,
        "n_layers_per_attn_res_block": 1,
        "loop_layer_index_start": 1,
        "loop_layer_index_end": 3,
    },
    "inkling2_text": {"unpadded_vocab_size": 97},
    "jamba": {**_MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mistral4": {"head_dim": 16, "rope_parameters": _YARN},
    "qwen3_vl_moe_text": {"rope_parameters": _MROPE},
    "qwen4_exp_text": _NGRAM,
    "zaya": {"num_experts_per_tok": 1},
}
# A vision tower, which is loaded and never runs.
VISION = {
    "depth": 1,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "out_hidden_size": 32,
    "patch_size": 4,
    "image_size": 8,
    "max_image_size": 8,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
LAYER_KINDS = ("layer_types", "mlp_layer_types")

PROMPTS = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13],
    [3],
    [20, 21, 22],
    [1, 2, 3, 4, 5, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69],
]
NEW_TOKENS = 14
METHODS = {"on_demand": {}, "overlapped": {}, "specmoe": {"gamma": 4}}


@dataclass(frozen=True)
class Verdict:
    kind: str
    word: str
    why: str = ""


def architectures() -> list[str]:
    """Every ``model_type`` of the table that one of transformers' classes serves, in order."""
    kinds = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *WITH_IMAGES} & set(CONFIG_MAPPING.keys())
    return sorted(kind for kind in kinds if _folder_of(kind) in registered_folders())


@cache
def registered_folders() -> frozenset[str]:
    """Folders of ``transformers.models`` whose experts go through the registry."""
    root = Path(transformers.__file__).parent / "models"
    files = root.glob("*/modeling_*.py")
    return frozenset(
        file.parent.name
        for file in files
        if "@use_experts_implementation" in file.read_text("utf-8")
    )


def _folder_of(kind: str) -> str:
    return CONFIG_MAPPING[kind].__module__.split(".")[2]


def tiny_config(kind: str, **overrides):
    """The configuration of ``kind`` with every known size made small. Of a multimodal one it is
    the text part, unless ``kind`` runs in its whole form only."""
    full = AutoConfig.for_model(kind)
    text = full.get_text_config(decoder=True)
    if text is full:
        return AutoConfig.for_model(kind, **shrunk(full, kind, overrides))
    if kind not in WITH_IMAGES:
        return tiny_config(text.model_type, **overrides)
    return AutoConfig.for_model(
        kind,
        text_config={"model_type": text.model_type, **shrunk(text, text.model_type, overrides)},
        vision_config=shrunk_vision(full.vision_config.to_dict()),
    )


def shrunk(default, kind: str, overrides: dict) -> dict:
    fields = default.to_dict()
    small = {name: size for name, size in SHRUNK.items() if _is_number(fields.get(name))}
    if "kv_lora_rank" in fields:  # latent attention has a key for every query head
        small["num_key_value_heads"] = 4
    for name in LAYER_KINDS:
        kinds = list(dict.fromkeys(fields.get(name) or []))
        if kinds:
            small[name] = [
                kinds[min(i, len(kinds) - 1)] if name != "layer_types" else kinds[i % len(kinds)]
                for i in range(4)
            ]
    return {**small, "tie_word_embeddings": False, **ALSO.get(kind, {}), **overrides}


def shrunk_vision(fields: dict) -> dict:
    small = {name: size for name, size in VISION.items() if fields.get(name) is not None}
    return {"model_type": fields["model_type"], **small}


def _is_number(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@torch.no_grad()
def write_tiny(kind: str, folder: Path, dtype: torch.dtype = torch.float64, **overrides) -> Path:
    """A random tiny checkpoint of ``kind`` in ``folder``."""
    config = tiny_config(kind, **overrides)
    model = auto_class(config).from_config(config, dtype=torch.float32)
    randomise_(model, torch.Generator().manual_seed(0))
    model.to(dtype).save_pretrained(folder)
    return folder


def reference(folder: Path, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """transformers' own model, with its plain loop over experts (its other kernels know no
    float64)."""
    auto = auto_class(AutoConfig.from_pretrained(folder))
    model = auto.from_pretrained(folder, dtype=dtype, experts_implementation="eager")
    model.generation_config.eos_token_id = None
    return model


@torch.no_grad()
def plain(model: PreTrainedModel, prompts=PROMPTS, new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """``generate`` of each prompt alone."""
    options = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    return [model.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]


def decoded(engine, prompts=PROMPTS, new_tokens: int = NEW_TOKENS, **options) -> list[list[int]]:
    given = {"max_new_tokens": new_tokens, "eos_token_id": [], "batch_size": 4, **options}
    output = engine.generate(prompts, **given)
    return [sequence.tolist() for sequence in output.sequences]


def judge(kind: str, device: str = "cpu") -> Verdict:
    """Make ``kind`` tiny, and compare: specmoe on ``device``, transformers on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        try:
            folder = write_tiny(kind, Path(name))
        except Exception as error:  # whatever transformers says of its own model
            return Verdict(kind, "not configurable", sentence(error))
        try:
            options = {"dtype": torch.float64, "draft_experts": 3, "device": device}
            with specmoe.load(folder, **options) as engine:
                return Verdict(kind, *compare(engine, folder))
        except SpecMoEError as refusal:
            return Verdict(
                kind, "refused", sentence(refusal).replace(str(folder), "the checkpoint")
            )


@torch.no_grad()
def compare(engine, folder: Path) -> tuple[str, str]:
    """Tokens of every method and the logits of a second token, beside those of ``generate`` -> word
    and why. Not of a prompt's: there a recurrent layer works in chunks, whose float32 sums differ
    from those of its steps by 1e-5, in transformers too."""
    try:
        model = reference(folder)
        want = plain(model)
    except Exception as error:  # whatever transformers says of its own model
        return "not configurable", sentence(error)
    wrong = [
        name for name, options in METHODS.items() if decoded(engine, method=name, **options) != want
    ]
    options = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    text = model.generate(torch.tensor(PROMPTS[:1]), **options)
    found = engine.next_logits(text.sequences[0, :-1].tolist())
    if not torch.allclose(found.float().cpu(), text.logits[1][0], rtol=0, atol=1e-5):
        wrong.append("logits")
    return ("WRONG" if wrong else "exact"), ", ".join(wrong)


def sentence(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)) or type(error).__name__
    return text[:300]


# ---- the page ----

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
WORDS = ("exact", "refused", "not configurable")
VERSION = transformers.__version__
OLDER = ("5.2.0", "5.8.0", "5.12.0", "5.17.0", "5.20.0", "5.21.0", "5.22.0", "5.23.0")
# Outside the registry, brought into it by ``specmoe.checkpoint.adapters``; each has an exactness
# test of its own.
ADAPTED = {
    "llama4_text": "tests/test_adapters.py",
    "nllb-moe": "encoder-decoder; tests/test_translation.py",
    "switch_transformers": "encoder-decoder; tests/test_adapters.py",
}
HEAD = """# Models

Written by `python tests/models_table.py` with transformers {version}; `tests/test_families.py` compares it with what runs.

The list: every architecture that goes through transformers' experts registry. Each was made tiny, with random weights and
with windows and indexers narrower than the prompts, and decoded in float64: four ragged prompts at once, methods `on_demand`,
`overlapped` and `specmoe` (gamma 4, three draft experts).

- **exact**: the tokens are those of transformers' own `generate` for each prompt alone, and the logits of a second token agree within 1e-5.
- **exact, by an adapter**: not in the registry; the named file of tests compares tokens and logits, with a model of its own.
- **refused**: `specmoe.load` raises `UnsupportedModelError` with this sentence.
- **not configurable**: transformers itself does not build or run it as a causal language model.

{counts}; no architecture gives other tokens, nor does one with transformers {older}
(`tests/test_families.py`, part of `make test-long`).

Layers with a recurrent state are refused below transformers {states_since}. Ropes whose frequencies follow the length (`dynamic`)
are refused below transformers 5.24.0 in every architecture: they were found exact there, and wrong in 5.2.0.

| Architecture | Verdict | Why |
|---|---|---|
"""


# What was shown of an indexer that cuts scores at zero; see ``model.decoder.check_indexer``.
INDEXED = "indexer of 16 heads (8 and 32 tried with deepseek_v32); under 8 refused: its scores tie"


def note_of(kind: str) -> str:
    """What an exact row shows, where it is less than the whole architecture."""
    full = AutoConfig.for_model(kind)
    text = full.get_text_config(decoder=True)
    notes = []
    if kind in WITH_IMAGES:
        notes.append("texts only" if text is not full else "by the class for images and texts")
    elif text is not full:
        notes.append(f"run as `{text.model_type}`, its text part")
    if hasattr(text, "index_n_heads") and text.model_type not in UNCUT_SCORES:
        notes.append(INDEXED)
    if text.model_type in MIXERS:
        notes.append("recurrent layers; refills and sampling too: tests/test_recurrent.py")
    return "; ".join(notes)


def unserved() -> dict[str, str]:
    """Folders of the registry that ``AutoModelForCausalLM`` serves in no form."""
    served = {_folder_of(kind) for kind in architectures()}
    why = "AutoModelForCausalLM does not serve it in this transformers"
    return dict.fromkeys(sorted(registered_folders() - served), why)


def page(verdicts: list[Verdict]) -> str:
    """``docs/models.md``."""
    rows = [replace(row, why=note_of(row.kind)) if row.word == "exact" else row for row in verdicts]
    rows += [Verdict(kind, "not configurable", why) for kind, why in unserved().items()]
    rows += [Verdict(kind, "exact", f"by an adapter: {why}") for kind, why in ADAPTED.items()]
    counts = ", ".join(f"{sum(row.word == word for row in rows)} {word}" for word in WORDS)
    lines = [
        f"| `{row.kind}` | {row.word} | {row.why.replace('|', '/')} |"
        for row in sorted(rows, key=lambda r: r.kind)
    ]
    return (
        HEAD.format(
            version=VERSION,
            counts=counts,
            older=f"{', '.join(OLDER[:-1])} and {OLDER[-1]}",
            states_since=STATES_SINCE,
        )
        + "\n".join(lines)
        + "\n"
    )


def read_page() -> dict[str, str]:
    """Architecture -> verdict, as the committed page has it."""
    return dict(
        re.findall(
            r"^\| `([^`]+)` \| ([a-z ]+) "
            r"\|",
            PAGE.read_text("utf-8"),
            flags=re.MULTILINE,
        )
    )


def page_rows() -> dict[str, Verdict]:
    rows = re.findall(
        r"^\| `([^`]+)` \| ([a-z ]+) \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    return {kind: Verdict(kind, word, why.strip()) for kind, word, why in rows}


def page_version() -> str:
    return re.search(r"transformers (\S+);", PAGE.read_text("utf-8"))[1]


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    # With names: only these are judged, the others stay as the page has them. ``--tell`` writes
    # nothing.
    verdicts = {kind: row for kind, row in page_rows().items() if kind in architectures()}
    if sys.argv[1:] == ["--tell"]:
        return print(*map(judge, architectures()), sep="\n")
    for kind in sys.argv[1:] or architectures():
        verdicts[kind] = judge(kind)
        print(verdicts[kind], flush=True)
    PAGE.write_text(page(list(verdicts.values())), "utf-8")


if __name__ == "__main__":
    main()
