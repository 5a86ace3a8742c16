"""Who comes from transformers finds the same calls: what they give equals transformers' own greedy
tokens, and what cannot be followed says why."""

from __future__ import annotations

import inspect
import re
import threading
from pathlib import Path

import pytest
import torch
from conftest import tokens_of
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)
from transformers.generation.stopping_criteria import MaxLengthCriteria

import specmoe
from specmoe.checkpoint import expert_modules
from specmoe.engine.settings import INSTEAD
from specmoe.errors import OptionError
from specmoe.options import ELSEWHERE, LoadOptions

TEXTS = ["The ", "SELECT name FROM", "A small "]
NEW = 10
RUNS = [{"method": "on_demand"}, {"method": "specmoe", "gamma": 4, "batch_size": 2}]


@pytest.fixture(scope="module")
def engine():
    with specmoe.load("tiny-skewed", draft_experts=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(engine):
    model = AutoModelForCausalLM.from_pretrained(engine.model.name_or_path, dtype=torch.float32)
    return model.eval()


def encoded(engine, texts=TEXTS, side="left"):
    engine.tokenizer.padding_side = side
    return engine.tokenizer(texts, return_tensors="pt", padding=True)


def alone(engine, reference, texts=TEXTS, **settings) -> list[list[int]]:
    """transformers' greedy tokens of each text by itself."""
    settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
    return [
        reference.generate(**engine.tokenizer([text], return_tensors="pt"), **settings)[0].tolist()
        for text in texts
    ]


def no_e(ids, scores):
    """Depends on the whole context, so a pad that is missing or too many changes it."""
    return scores.masked_fill(torch.arange(scores.shape[-1]) % 5 == ids.shape[-1] % 5, -torch.inf)


# ---- calls


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_tokenizer_pads_on_either_side_gives_each_texts_own_tokens(engine, reference, side):
    inputs, want = encoded(engine, side=side), alone(engine, reference)
    assert (inputs["attention_mask"] == 0).any()
    for run in RUNS:
        assert tokens_of(engine.generate(**inputs, max_new_tokens=NEW, **run)) == want
        got = engine.generate(
            inputs=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW,
            pad_token_id=engine.tokenizer.pad_token_id,
            use_cache=True,
            num_beams=1,
            return_dict_in_generate=False,
            **run,
        )
        assert tokens_of(got) == want


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 16},
        {"max_length": 3, "max_new_tokens": NEW},
        {"max_length": 18, "min_new_tokens": 4, "repetition_penalty": 1.4},
        {"max_new_tokens": NEW, "suppress_tokens": [40, 41], "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_a_generation_config_and_its_names_mean_what_they_mean_there(engine, reference, settings):
    want = alone(engine, reference, **{"max_new_tokens": None, **settings})
    config = GenerationConfig(**settings)
    for run in RUNS:
        assert tokens_of(engine.generate(TEXTS, generation_config=config, **run)) == want
        assert tokens_of(engine.generate(TEXTS, **settings, **run)) == want
        assert tokens_of(engine.generate(TEXTS, settings=[settings] * 3, **run)) == want


def test_max_length_counts_the_prompt_and_leaves_room_or_is_refused(engine):
    with pytest.raises(OptionError, match="max_length=2 is filled by a prompt of"):
        engine.generate(TEXTS, max_length=2)
    with pytest.raises(OptionError, match="max_length=100000 passes the model's .* positions"):
        engine.generate(TEXTS, max_length=100_000)
    with pytest.raises(OptionError, match="max_length='9' must be a whole number"):
        engine.generate(TEXTS, max_length="9")
    one = engine.generate(
        TEXTS, max_length=30, settings=[None, {"max_new_tokens": 2}, None], eos_token_id=[]
    )
    assert [len(each) for each in one.sequences] == [30, one.num_prompt_tokens[1] + 2, 30]


# ---- streamers


def test_transformers_text_streamer_prints_the_text(engine, capsys):
    for run in RUNS:
        output = engine.generate(
            TEXTS[:1],
            max_new_tokens=NEW,
            streamer=TextStreamer(engine.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **run,
        )
        assert capsys.readouterr().out == output.new_texts[0] + "\n" != "\n"


def test_transformers_iterator_streamer_gives_the_text_to_another_thread(engine):
    streamer = TextIteratorStreamer(engine.tokenizer, skip_special_tokens=True, timeout=60)
    found = []
    call = {"max_new_tokens": NEW, "streamer": streamer}
    thread = threading.Thread(target=lambda: found.append(engine.generate(TEXTS[:1], **call)))
    thread.start()
    parts = list(streamer)
    thread.join()
    assert "".join(parts) == found[0].texts[0] and len(parts) > 1


# ---- a pipeline


def test_a_pipeline_decodes_with_the_engine(engine, reference):
    ours = pipeline("text-generation", model=engine.model, tokenizer=engine.tokenizer)
    theirs = pipeline("text-generation", model=reference, tokenizer=engine.tokenizer)
    engine.tokenizer.padding_side = "left"
    call = {"max_new_tokens": NEW, "do_sample": False}
    for run in RUNS:
        decode = specmoe.custom_generate(engine, **run)
        assert ours(TEXTS, custom_generate=decode, **call) == theirs(TEXTS, **call)
        got = ours(TEXTS, custom_generate=decode, batch_size=3, **call)
        assert got == theirs(TEXTS, **call)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"repetition_penalty": 1.5, "min_new_tokens": 4, "eos_token_id": 40},
        {"logits_processor": LogitsProcessorList([no_e])},
        {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(14)])},
        {"max_new_tokens": None, "max_length": 16},
    ],
    ids=lambda given: "+".join(given) or "plain",
)
def test_generate_of_the_engines_model_gives_transformers_tokens_batch_and_pads_included(
    engine, reference, settings
):
    inputs = encoded(engine)
    call = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **settings}
    want = reference.generate(**inputs, **call)
    for run in RUNS:
        decode = specmoe.custom_generate(engine, **run)
        assert engine.model.generate(**inputs, custom_generate=decode, **call).equal(want)


def odd_or_even_by_place(batch, ids):
    """Tokens allowed to a text by its number in the batch."""
    return range(3 + batch % 2, 2000, 2)


def test_a_function_of_a_rows_number_gets_its_number(engine, reference):
    inputs = encoded(engine)
    call = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    call["prefix_allowed_tokens_fn"] = odd_or_even_by_place
    decode = specmoe.custom_generate(engine, **RUNS[1])
    got = engine.model.generate(**inputs, custom_generate=decode, **call)
    assert got.equal(reference.generate(**inputs, **call))


def test_custom_generate_streams_samples_and_refuses(engine, reference, capsys):
    inputs, streamer = encoded(engine, TEXTS[:1]), TextStreamer(engine.tokenizer)
    decode = specmoe.custom_generate(engine, seed=1)
    call = {"custom_generate": decode, "max_new_tokens": NEW, "pad_token_id": 0}
    got = engine.model.generate(**inputs, **call)
    streaming = {"custom_generate": specmoe.custom_generate(engine, streamer=streamer)}
    assert engine.model.generate(**inputs, **{**call, **streaming}).equal(got)
    assert capsys.readouterr().out == engine.tokenizer.decode(got[0]) + "\n"
    hot = {"do_sample": True, "temperature": 2.0, "top_k": 50}
    drawn = engine.model.generate(**inputs, **call, **hot)
    assert drawn.equal(engine.model.generate(**inputs, **call, **hot)) and not drawn.equal(got)
    with pytest.raises(OptionError, match="another model than engine.model"):
        reference.generate(**inputs, **call)
    with pytest.raises(OptionError, match="num_beams=2 cannot be followed"):
        engine.model.generate(**inputs, **call, num_beams=2)
    with pytest.raises(OptionError, match="leave return_dict_in_generate out"):
        engine.model.generate(**inputs, **call, return_dict_in_generate=True)
    with pytest.raises(OptionError, match="streamer belongs to specmoe.custom_generate"):
        decode(engine.model, None, None, None, GenerationConfig(), streamer=streamer)


def test_several_texts_are_asked_for_in_a_config_or_of_transformers_own_generate(
    engine, monkeypatch
):
    hot = {"do_sample": True, "temperature": 2.0, "top_k": 50, "seed": 1}
    hot |= {"max_new_tokens": NEW, "eos_token_id": []}
    wanted = engine.generate(TEXTS, num_return_sequences=2, **hot).sequences
    config = GenerationConfig(num_return_sequences=2, do_sample=True)
    got = engine.generate(TEXTS, generation_config=config, **hot).sequences
    assert len(got) == 2 * len(TEXTS) and [*map(list, got)] == [*map(list, wanted)]
    once = engine.generate(TEXTS, generation_config=config, num_return_sequences=1, **hot)
    assert len(once.sequences) == len(TEXTS)  # what a call says goes before its config
    with pytest.raises(
        OptionError, match=r"settings\[0\]: num_return_sequences cannot be followed"
    ):
        engine.generate(TEXTS[:1], settings=[{"num_return_sequences": 2}])

    # transformers makes the rows before it hands over
    decode, inputs = (
        specmoe.custom_generate(engine, seed=1, eos_token_id=[]),
        encoded(engine, TEXTS),
    )
    call = {name: value for name, value in hot.items() if name not in ("seed", "eos_token_id")}
    call |= {"custom_generate": decode, "pad_token_id": 0, "num_return_sequences": 2}
    theirs = engine.model.generate(**inputs, **call)
    assert theirs[:, -NEW:].tolist() == [row[-NEW:].tolist() for row in wanted]

    # a checkpoint that asks for several is refused, and runs as the sentence says
    monkeypatch.setattr(engine.model.generation_config, "num_return_sequences", 2)
    with pytest.raises(OptionError, match="pass num_return_sequences=1"):
        engine.generate(TEXTS, max_new_tokens=1)
    assert len(engine.generate(TEXTS, max_new_tokens=1, num_return_sequences=1).sequences) == 3


# ---- docs/generation.md


def pieces() -> list[str]:
    page = Path(__file__).parents[1].joinpath("docs/generation.md").read_text(encoding="utf-8")
    return re.findall("```python\n(.*?)```", page, re.DOTALL)


def test_the_pages_pipeline_runs(engine):
    known = {"specmoe": specmoe, "engine": engine}
    exec(pieces()[0], known)
    assert [each[0]["generated_text"][:4] for each in known["answers"]] == ["The ", "A sm"]


def test_the_pages_hook_sees_the_hidden_states_of_transformers(engine, reference):
    ids = engine.tokenizer(TEXTS[1])["input_ids"]
    known = {"engine": engine, "torch": torch, "ids": ids}
    exec(pieces()[1], known)
    text = known["output"].sequences[0]
    states = reference(text[None, :-1], output_hidden_states=True).hidden_states
    assert len(ids) < len(text) and known["hidden"].shape == states[2][0].shape
    torch.testing.assert_close(known["hidden"], states[2][0], atol=1e-4, rtol=1e-4)
    assert not engine.model.model.layers[1]._forward_hooks


def test_a_hook_that_steers_acts_on_drafts_too_and_gives_transformers_tokens(engine, reference):
    direction = torch.randn(128, generator=torch.Generator().manual_seed(1)) * 2

    def steer(module, given, hidden):
        return hidden + direction

    hooks = [
        model.model.layers[0].register_forward_hook(steer) for model in (engine.model, reference)
    ]
    try:
        want = alone(engine, reference)
        got = [tokens_of(engine.generate(TEXTS, max_new_tokens=NEW, **run)) for run in RUNS]
    finally:
        for hook in hooks:
            hook.remove()
    assert got == [want] * 2 and want != alone(engine, reference)


def test_experts_show_what_was_routed_and_the_model_alone_is_refused(engine):
    seen = []
    experts = expert_modules(engine.model)
    hook = next(iter(experts.values())).register_forward_pre_hook(
        lambda _, given: seen.append(given)
    )
    try:
        engine.generate([[5, 6, 7]], method="on_demand", max_new_tokens=2, eos_token_id=[])
    finally:
        hook.remove()
    assert [tuple(index.shape) for _, index, _ in seen] == [(2, 2), (1, 2), (1, 2)]
    with pytest.raises(specmoe.SpecMoEError):
        engine.model(torch.tensor([[5]]))


# ---- what cannot be followed


def test_every_argument_of_transformers_generate_is_taken_or_has_a_reason(engine):
    """None of them gets the hint for a misspelling."""
    theirs = {*inspect.signature(engine.model.generate).parameters}
    names = {*theirs, *vars(GenerationConfig()), *INSTEAD} - {"self", "kwargs"}
    for name in sorted(name for name in names if not name.startswith("_")):
        with pytest.raises((OptionError, AssertionError)) as refusal:
            engine.generate(**{"prompts": [[1]], "max_new_tokens": 1} | {name: object()})
            raise AssertionError("taken")
        assert "unknown" not in str(refusal.value), name


@pytest.mark.parametrize("name", INSTEAD)
def test_an_argument_that_is_not_followed_has_its_own_reason(engine, name):
    neutral, why = INSTEAD[name]
    for value in [None] if neutral is ... else [None, *neutral]:
        engine.generate([[5]], max_new_tokens=1, **{name: value})
    if neutral is not ...:
        with pytest.raises(OptionError) as refusal:
            engine.generate([[5]], **{name: 7})
        assert str(refusal.value) == f"{name}=7 is not an option here: {why}; leave it out"


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"use_cache": False}, "use_cache=False is not an option here: there is always a KV cache"),
        ({"output_scores": True}, "scores are not kept; engine.next_logits"),
        ({"return_dict_in_generate": True}, "an Output is returned"),
        ({"num_beams": 4}, "num_beams=4 cannot be followed"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 cannot be followed"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 without do_sample=True"),
    ],
    ids=str,
)
def test_a_generation_config_with_what_cannot_be_followed_is_refused(engine, settings, sentence):
    config = GenerationConfig()
    vars(config).update(settings)
    with pytest.raises(OptionError, match=sentence) as refusal:
        engine.generate(TEXTS, generation_config=config)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_argument_of_from_pretrained_says_what_is_in_its_place(name):
    with pytest.raises(OptionError, match=f"^{name} is not an option here: "):
        specmoe.load("tiny-skewed", **{name: 1})


# ---- load


def test_a_token_and_a_cache_folder_go_to_the_hub_and_the_token_is_in_no_message(
    engine, monkeypatch, tmp_path
):
    asked = []
    folder = engine.model.name_or_path
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **how: asked.append((name, how)) or folder,
    )
    own = {"token": "hf_secret", "cache_dir": tmp_path, "revision": "v1"}
    with specmoe.load("owner/model", draft_experts=4, **own) as loaded:
        assert "secret" not in repr(loaded.options)
    name, how = asked[0]
    assert name == "owner/model"
    assert {key: how[key] for key in own} == {**own, "cache_dir": str(tmp_path)}
    with pytest.raises(OptionError, match="^token belongs to hub ids, and .*") as refusal:
        specmoe.load(folder, token="hf_secret")
    assert "secret" not in str(refusal.value)
    for wrong in (7, ""):
        with pytest.raises(OptionError, match="token must be a text, True or False"):
            LoadOptions(token=wrong)


def test_dtype_auto_is_the_checkpoints_own():
    with specmoe.load("tiny-skewed", dtype="auto", draft_experts=4) as loaded:
        stored = loaded.model.config.dtype
        assert loaded.info["dtype"] == str(stored).removeprefix("torch.")
        reference = AutoModelForCausalLM.from_pretrained(loaded.model.name_or_path, dtype="auto")
        assert loaded.model.dtype == reference.dtype
        assert len(loaded.generate(TEXTS, max_new_tokens=2).sequences) == 3


def test_the_module_shows_what_it_offers():
    assert {"load", "Engine", "custom_generate", "plan", "sweep"} <= {*specmoe.__all__}
    assert {*dir(specmoe)} == {*specmoe.__all__, "__version__"}
    for name in specmoe.__all__:
        assert getattr(specmoe, name) is not None
    assert Path(specmoe.__file__).with_name("py.typed").exists()
