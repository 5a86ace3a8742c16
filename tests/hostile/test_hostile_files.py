"""Every file of a checkpoint may lie: one typed sentence, soon, without much memory, and before a
weight is used."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import fuzz
import pytest
import torch
from hostile_cases import (
    COUNTS,
    HEADERS,
    INDICES,
    JSON_FILES,
    PLACES,
    WEIGHT_VALUES,
    setting,
    text,
    weights,
)
from hostile_limits import copy, good, limits  # noqa: F401 (fixtures)
from tiny_architectures import make_checkpoint
from transformers import GenerationConfig

import specmoe
from specmoe import checkpoint
from specmoe.checkpoint import packed as packed_folder
from specmoe.cli import copies, job_lines, jobs
from specmoe.errors import CheckpointError, SpecMoEError, UnsupportedModelError

FILES = {**HEADERS, **JSON_FILES, **PLACES, **INDICES, **COUNTS}
OPTIONS = {"draft_experts": 2, "dtype": torch.float32, "store": "memory"}


pytestmark = pytest.mark.usefixtures("own_cache")


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


# ---- every setting of config.json ----

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


EVERYDAY = (
    "hidden_act",
    "num_experts_per_tok",
    "rms_norm_eps",
    "rope_parameters",
    "vocab_size",
    "dtype",
    "architectures",
)


def wrong_outcomes(
    folder: Path, file: str, base: dict, settings: list[tuple[str, object]], limits
) -> dict:
    wrong = {}
    for name, value in settings:
        (folder / file).write_text(json.dumps({**base, name: value}))
        with limits():
            said = outcome(folder)
        if said:
            wrong[name, repr(value)] = said
    return wrong


def test_the_settings_that_are_spoilt_most_often_may_hold_anything(copy, limits):
    """A few settings with all odd values; all settings of two families are for the long run."""
    config = json.loads((copy / "config.json").read_text())
    cases = [(name, value) for name in EVERYDAY for value in (*ODD, "nope") if name in config]
    assert wrong_outcomes(copy, "config.json", config, cases, limits) == {}


# The settings and inputs teams mend these; here they are only told.
KNOWN = {("output_router_logits", "True"), ("eos_token_id", "1e+308"), ("eos_token_id", "nan")}


@pytest.mark.long
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_each_setting_of_a_config_may_hold_anything(value, family, tmp_path, limits):
    folder = Path(shutil.copytree(family, tmp_path / "copy"))
    config = json.loads((family / "config.json").read_text())
    wrong = wrong_outcomes(
        folder, "config.json", config, [(name, value) for name in config], limits
    )
    assert wrong.keys() <= KNOWN, wrong


@pytest.mark.long
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_each_setting_of_a_generation_config_may_hold_anything(value, good, tmp_path, limits):
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    cases = [(name, value) for name in GenerationConfig().to_dict()]
    wrong = wrong_outcomes(folder, "generation_config.json", {}, cases, limits)
    assert wrong.keys() <= KNOWN, wrong


CONTRADICTIONS = {
    "`output_attentions` attribute is not supported .* flash_attention_2.* 'eager'": {
        "output_attentions": True,
        "_attn_implementation": "flash_attention_2",
    },
    "Field 'hidden_act' expected str, got int": {"hidden_act": 7},
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
@pytest.mark.parametrize("door", [run, checkpoint.pack, checkpoint.build_model])
def test_a_config_that_transformers_refuses_is_refused_with_the_reason(said, door, copy):
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **CONTRADICTIONS[said]}))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=said) as caught:
        door(copy)
    assert is_sentence(caught.value) and "StrictDataclass" not in str(caught.value)
    assert "correct config.json" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["a\0b", "x" * 5000, "~nobody-of-this-name/x", "a\nb", "", "/dev/zero", "\ud800"],
    ids=ascii,
)
def test_a_name_that_is_no_path_is_refused_in_one_sentence(name):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.resolve(name)
    assert is_sentence(caught.value)


# ---- what must still work ----


def test_links_into_a_folder_of_blobs_work_as_the_hub_lays_them_out(good, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    shutil.copytree(good, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert run(snapshot) == run(good)


ODD_TENSORS = {
    "mask": torch.ones(7, dtype=torch.uint8),
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "model.rotary_emb.inv_freq": torch.full((3,), torch.nan, dtype=torch.float64),
    "model.layers.0.seen": torch.ones(2, 2, dtype=torch.bool),
    # a layer past the last, as models that predict several tokens have one
    "model.layers.9.self_attn.q_proj.weight": torch.ones(32, 32, dtype=torch.bfloat16),
    "model.layers.9.mlp.experts.0.gate_proj.weight": torch.ones(3, 5),
}
ODD_FAMILIES = ("mixtral", "qwen2_moe", "olmoe", "gpt_oss", "deepseek_v3", "glm4_moe", "phimoe")


@pytest.mark.parametrize("family", ODD_FAMILIES)
def test_an_odd_tensor_that_nothing_reads_does_not_matter(family, tmp_path):
    folder = make_checkpoint(family, tmp_path / family)
    want = run(folder)
    weights(lambda tensors: tensors.update(ODD_TENSORS))(folder)
    assert run(folder) == want


def test_quantised_tensors_in_place_of_the_experts_are_named(copy):
    def pack_up(tensors):
        for name in [name for name in tensors if ".w1." in name]:
            tensors[f"{name}_packed"] = tensors.pop(name).to(torch.uint8)

    weights(pack_up)(copy)
    with pytest.raises(
        CheckpointError, match="w1.weight_packed'.*quantised format U8 .packed integers"
    ):
        run(copy)


def test_a_checkpoint_above_the_counts_of_its_weights_says_which_setting(copy):
    COUNTS["num_hidden_layers = 1e+09"](copy)
    with pytest.raises(
        CheckpointError, match="config.json says num_hidden_layers=1000000000, more than the"
    ):
        run(copy)


# ---- packed folders ----


@pytest.fixture(scope="module")
def packed(good, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "experts"
    checkpoint.pack(good, folder)
    return folder


FIELDS = ("format", "version", "layers", "num_experts", "names", "shapes", "dtype", "record_bytes")
FIELDS += ("widened_from", "source", "checksums", "manifest_crc32")
TAMPERED = (None, -1, 0, 10**12, 0.5, "x", [], ["x", "x"], [[-1]], [[2**63, 2**63]], {}, True, ...)


@pytest.mark.parametrize("field", FIELDS)
def test_a_manifest_altered_in_any_field_is_refused_though_its_checksum_fits(
    field, packed, good, tmp_path, limits
):
    folder = Path(shutil.copytree(packed, tmp_path / "altered"))
    honest = json.loads((packed / "manifest.json").read_text())
    honest.pop("manifest_crc32")
    for value in TAMPERED:
        if field in honest and honest[field] == value:
            continue
        made = {key: item for key, item in {**honest, field: value}.items() if item is not ...}
        text = packed_folder.seal(made) if field != "manifest_crc32" else json.dumps(made)
        (folder / "manifest.json").write_text(text)
        with limits(), pytest.raises(SpecMoEError) as caught:
            # opens what is there, and compares it with the checkpoint
            checkpoint.pack(good, folder)
        assert is_sentence(caught.value) and re.search("altered|another", str(caught.value)), (
            field,
            value,
        )


@pytest.mark.parametrize("source", [{"name": 7}, {"name": ...}, {"records": "x" * 16}])
def test_a_manifest_whose_source_is_not_ours_is_refused_and_can_be_listed(source, packed, tmp_path):
    """``specmoe cache`` shows the name, and takes whatever was refused for an unusable copy."""
    root = Path(os.environ["SPECMOE_CACHE"])
    folder = Path(shutil.copytree(packed, root / "m-0123456789ab"))
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest.pop("manifest_crc32")
    made = {
        key: value for key, value in {**manifest["source"], **source}.items() if value is not ...
    }
    (folder / "manifest.json").write_text(packed_folder.seal({**manifest, "source": made}))
    with pytest.raises(CheckpointError, match="altered or cut short"):
        checkpoint.open_packed(folder)
    assert [row["state"] for row in copies.entries()] == ["unusable"]


def test_a_journal_with_an_endless_number_is_not_believed(good, tmp_path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.pack(good, tmp_path / "m", progress=stop)
    with open(tmp_path / "m.partial" / "journal", "a") as journal:
        journal.write(f"{'9' * 5000} 1 abc\n0 {'9' * 5000} abc\n")
    assert checkpoint.pack(good, tmp_path / "m").checksums == checkpoint.pack(good).checksums


NO_MANIFESTS = ("", "[]", "null", "7", "{", "[" * 100_000, '{"manifest_crc32": 0}')


@pytest.mark.parametrize("content", NO_MANIFESTS, ids=lambda content: content[:9])
def test_a_manifest_that_is_none_is_refused(content, packed, tmp_path):
    folder = Path(shutil.copytree(packed, tmp_path / "altered"))
    (folder / "manifest.json").write_text(content)
    with pytest.raises(
        CheckpointError, match="altered or cut short.*pack the checkpoint again"
    ) as caught:
        checkpoint.open_packed(folder)
    assert is_sentence(caught.value)


# ---- tokenizers ----

TOKENIZERS = {
    "an empty object": ("tokenizer.json", "{}"),
    "a list": ("tokenizer.json", "[]"),
    "no JSON": ("tokenizer.json", "{oops"),
    "no UTF-8": ("tokenizer.json", b"\xff\xfe"),
    "a config that is a list": ("tokenizer_config.json", "[1]"),
    "a class that is a number": ("tokenizer_config.json", '{"tokenizer_class": 7}'),
    "code to run": (
        "tokenizer_config.json",
        '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}',
    ),
    "an empty model": ("tokenizer.model", ""),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_hostile_tokenizer_runs_no_code_asks_nothing_and_is_refused_in_one_sentence(
    name, copy, monkeypatch
):
    file, content = TOKENIZERS[name]
    text(file, content)(copy)
    (copy / "evil.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    )

    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    try:
        run(copy)
    except SpecMoEError as error:
        assert is_sentence(error) and copy.name in str(error)
    assert asked == [] and not (copy / "ran").exists()


def test_code_named_in_a_config_is_never_run(copy):
    setting(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(copy)
    (copy / "evil.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    )
    assert outcome(copy) == ""
    setting(model_type="evil")(copy)
    with pytest.raises(UnsupportedModelError, match="model_type 'evil'"):
        run(copy)
    assert not (copy / "ran").exists()


# ---- affinity and prompts ----


SPOILT = [b"", b"\x93NUMPY", b"PK\x03\x04", bytes(4096), b"\x80\x04N."]


@pytest.mark.parametrize("content", SPOILT, ids=lambda content: ascii(content[:8]))
def test_a_spoilt_affinity_file_is_made_again(content, good, tmp_path, monkeypatch):
    want = run(good)
    (spoilt,) = Path(os.environ["SPECMOE_CACHE"]).rglob("affinity.npy")
    spoilt.write_bytes(content)
    assert run(good) == want


def test_a_prompt_file_with_lines_of_ten_megabytes_keeps_them_apart(tmp_path, limits):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        json.dumps({"prompt": "x" * 10**7})
        + "\n"
        + "[" * 10**7
        + "\n"
        + json.dumps({"prompt": [5]})
        + "\n"
    )
    with limits():
        with open(file, "rb") as stream:
            first, second, third = job_lines.read_items(stream, "prompts")
    assert third.prompt == [5] and first.prompt is None is second.prompt
    assert all("8388608 bytes" in each.error and len(each.error) < 300 for each in (first, second))


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["folder", "broken link"]
)
def test_a_prompt_file_that_is_no_file_is_refused(make, tmp_path):
    make(tmp_path / "prompts.jsonl")
    with pytest.raises(SpecMoEError, match="prompts.jsonl") as caught:
        jobs.read_prompts(tmp_path / "prompts.jsonl")
    assert is_sentence(caught.value)


# ---- the fuzzer ----


@pytest.mark.parametrize(
    "name, num_cases", [("header", 400), ("manifest", 300), ("journal", 15), ("lines", 400)]
)
def test_a_short_pass_of_the_fuzzer_crashes_nothing(name, num_cases, tmp_path):
    seen = Counter(
        what for _, what in fuzz.fuzz(name, 7, tmp_path, lambda count: count >= num_cases)
    )
    assert sum(seen.values()) == num_cases
    assert not [what for what in seen if what.startswith("crash")], seen
