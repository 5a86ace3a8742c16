"""Prompts in every form that people hold them in, and texts that survive their way in and out."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROMPTS, tokens_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from transformers import PreTrainedTokenizerFast

import specmoe
from specmoe import CheckpointError, OptionError
from specmoe.model.texts import new_texts, to_texts

JOB = {"method": "on_demand", "max_new_tokens": 6, "eos_token_id": []}
PADDED, MASK = [[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
PLAIN = [[5, 6, 7], [8, 9, 10, 11, 12]]
WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "▁a",
    "▁b",
    "c",
    "▁",
    "<|user|>",
    "<|bot|>",
    *map(chr, range(100, 123)),
]
TEMPLATE = (
    "<s>{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|bot|>' }}{{ m.content "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


@pytest.fixture(scope="module")
def engine(open_engine):
    return open_engine("mixtral")


def metaspace(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """As SentencePiece's: a space belongs to the word that follows, and the first one goes when
    text is decoded."""
    vocabulary = [(word, -float(index)) for index, word in enumerate(WORDS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = token_decoders.Sequence([decoders.Metaspace()])
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True) for word in ("<s>", "</s>", "<pad>", "<|user|>", "<|bot|>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    wrapped.chat_template = template
    return wrapped


@pytest.fixture(scope="module")
def talking(tiny, tmp_path_factory):
    """An engine whose checkpoint has that tokenizer."""
    import shutil

    folder = tmp_path_factory.mktemp("talking") / "mixtral"
    shutil.copytree(tiny("mixtral"), folder)
    metaspace().save_pretrained(folder)
    with specmoe.load(folder, dtype=torch.float64, draft_experts=3) as engine:
        yield engine


# ---- forms


FORMS = {
    "lists of ids": (PLAIN, None),
    "tuples": (tuple(map(tuple, PLAIN)), None),
    "tensors": ([torch.tensor(row) for row in PLAIN], None),
    "arrays": ([np.array(row) for row in PLAIN], None),
    "lists of numpy's integers": ([[np.int64(token) for token in row] for row in PLAIN], None),
    "a generator": ((row for row in PLAIN), None),
    "a column": (pd.Series(PLAIN), None),
    "padded lists": (PADDED, MASK),
    "a padded tensor": (torch.tensor(PADDED), torch.tensor(MASK)),
    "a padded array": (np.array(PADDED), np.array(MASK)),
    "padded on the right": ([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]], [[1, 1, 1, 0, 0], [1] * 5]),
    "a mask of ragged lists": (PLAIN, [[1, 1, 1], [1] * 5]),
    "a dict of lists": ({"input_ids": PADDED, "attention_mask": MASK}, None),
    "a dict of tensors": (
        {"input_ids": torch.tensor(PADDED), "attention_mask": torch.tensor(MASK)},
        None,
    ),
    "a dict of arrays": ({"input_ids": np.array(PADDED), "attention_mask": np.array(MASK)}, None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_prompts_gives_the_same_tokens(form, engine):
    prompts, mask = FORMS[form]
    got = tokens_of(engine.generate(prompts, attention_mask=mask, **JOB))
    assert got == tokens_of(engine.generate(PLAIN, **JOB))


@pytest.mark.parametrize("name", ["prompts", "input_ids", "inputs"])
def test_prompts_may_be_given_by_name(name, engine):
    got = tokens_of(engine.generate(**{name: PADDED}, attention_mask=MASK, **JOB))
    assert got == tokens_of(engine.generate(PLAIN, **JOB))


@pytest.mark.parametrize("kind", [None, "pt", "np"])
def test_what_a_tokenizer_returns_can_be_passed_on(kind, talking):
    texts = ["a b", "b a b a c"]
    for padded in ({}, {"padding": True}) if kind is None else ({"padding": True},):
        found = talking.tokenizer(texts, return_tensors=kind, **padded)
        want = tokens_of(talking.generate(texts, **JOB))
        assert (
            tokens_of(talking.generate(found, **JOB))
            == want
            == tokens_of(talking.generate(**found, **JOB))
        )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "given as none: give them once"),
        ({"prompts": PLAIN, "input_ids": PLAIN}, "given as prompts and input_ids: give them once"),
        ({"prompts": {"attention_mask": MASK}}, "a dict without input_ids"),
        ({"prompts": {"input_ids": PLAIN, "pixel_values": MASK}}, "hold pixel_values, and specmoe"),
        ({"prompts": pd.DataFrame({"a": ["x"], "b": ["y"]})}, "pass one column"),
        ({"prompts": b"bytes"}, "prompts is a bytes"),
        ({"prompts": 5}, "prompts is a int"),
        ({"prompts": np.array([1, 2])}, "expected integer ids"),
        ({"prompts": PLAIN, "attention_mask": MASK}, "another shape"),
        (
            {"prompts": PADDED, "attention_mask": [[0, 0, 1, 1, 7], [1] * 5]},
            "values other than 0 and 1",
        ),
        ({"prompts": PADDED, "attention_mask": [1, 1]}, "another shape"),
        (
            {"prompts": [[{"role": "user", "content": "a"}]]},
            "a chat, but the checkpoint has no tokenizer",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(given, sentence, engine):
    with pytest.raises(OptionError, match=sentence):
        engine.generate(**given, **JOB)


def test_padding_without_a_mask_is_warned_of(talking, caplog):
    pad = talking.tokenizer.pad_token_id
    with caplog.at_level(logging.WARNING, logger="specmoe"):
        talking.generate(torch.tensor([[5, 6, 5], [5, 6, pad]]), **JOB)
    assert "no attention_mask" in caplog.text


# ---- chats and texts


def test_a_chat_goes_through_the_template_with_one_first_token(talking):
    chat, tokenizer = [{"role": "user", "content": "a b"}], talking.tokenizer
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    want = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert want.count(tokenizer.bos_token_id) == 1 and want[-1] == tokenizer.convert_tokens_to_ids(
        "<|bot|>"
    )
    for prompts in ([chat], chat, [rendered], [chat, rendered]):
        output = talking.generate(prompts, **JOB)
        for tokens, length in zip(output.sequences, output.num_prompt_tokens):
            assert tokens[:length].tolist() == want


def test_a_chat_without_a_template_or_that_it_refuses_is_an_option_error(talking, monkeypatch):
    chat = [{"role": "user", "content": "a"}]
    monkeypatch.setattr(
        talking.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}"
    )
    with pytest.raises(OptionError, match="roles must alternate"):
        talking.generate([chat], **JOB)
    monkeypatch.setattr(talking.tokenizer, "chat_template", None)
    with pytest.raises(OptionError, match="no chat template"):
        talking.generate([chat], **JOB)


def test_half_a_surrogate_is_named(talking):
    with pytest.raises(OptionError, match="prompt 1 holds half a surrogate pair at character 1"):
        talking.generate(["a", "b\ud800"], **JOB)


def test_prompt_and_new_text_are_the_text_with_a_sentencepiece_tokenizer():
    tokenizer, tokens = metaspace(), [1, 4, 5, 6, 4, 5]
    for length in range(1, len(tokens)):
        (text,) = to_texts(tokenizer, [tokens])
        (new,) = new_texts(tokenizer, [tokens], [length], [text])
        assert to_texts(tokenizer, [tokens[:length]])[0] + new == text
    assert new_texts(tokenizer, [tokens], [2], [text]) == [" bc a b"], "the space is not lost"


def test_prompt_and_new_text_are_the_text_with_a_byte_level_tokenizer():
    with specmoe.load("tiny-skewed") as engine:
        output = engine.generate(["SELECT name FROM", "né"], max_new_tokens=8, eos_token_id=[])
    for prompt, text, new in zip(["SELECT name FROM", "né"], output.texts, output.new_texts):
        assert prompt + new == text


# ---- tokenizers that cannot be used


@pytest.mark.parametrize("content", ["{}", "[]", "{", json.dumps({"model": {"type": "nope"}})])
def test_a_broken_tokenizer_is_no_matter_for_token_ids(content, tiny, tmp_path):
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(tiny("mixtral"), folder)
    (folder / "tokenizer.json").write_text(content)
    with specmoe.load(folder, dtype=torch.float64, draft_experts=3) as engine:
        output = engine.generate(PROMPTS, **JOB)
        assert len(output.sequences) == 4 and output.texts == []
        with pytest.raises(
            CheckpointError,
            match="prompt 0 is a text, and the tokenizer files in .* cannot be used",
        ):
            engine.generate(["text"], **JOB)


def test_no_code_of_a_tokenizer_runs_and_nothing_is_asked(tiny, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(tiny("mixtral"), folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    (folder / "evil.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil: pass\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with specmoe.load(folder, dtype=torch.float64, draft_experts=3) as engine:
        engine.generate(PROMPTS[:1], **JOB)
    assert not (folder / "ran").exists()


# ---- several texts per prompt


def test_several_texts_per_prompt_share_one_prefill_and_have_noise_of_their_own(engine):
    job = {
        "do_sample": True,
        "seed": 5,
        "max_new_tokens": 8,
        "eos_token_id": [],
        "method": "specmoe",
        "gamma": 3,
    }
    one = engine.generate(PROMPTS, batch_size=4, **job)
    three = engine.generate(PROMPTS, num_return_sequences=3, batch_size=12, **job)
    assert three.stats.prefill_bytes == one.stats.prefill_bytes
    assert three.num_prompt_tokens == [len(prompt) for prompt in PROMPTS for _ in range(3)]
    for index, prompt in enumerate(PROMPTS):
        texts = [tuple(tokens.tolist()) for tokens in three.sequences[3 * index : 3 * index + 3]]
        assert all(list(text[: len(prompt)]) == prompt for text in texts) and len(set(texts)) == 3
        for copy, text in enumerate(texts):  # the noise is that of its own number
            alone = engine.generate([prompt], first_prompt=3 * index + copy, **job)
            assert tuple(alone.sequences[0].tolist()) == text


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_several_texts_are_the_same_however_rows_are_refilled(engine, batch_size):
    job = {
        "do_sample": True,
        "seed": 5,
        "max_new_tokens": 6,
        "eos_token_id": [],
        "method": "specmoe",
        "gamma": 2,
    }
    want = engine.generate(PROMPTS, num_return_sequences=3, batch_size=12, **job)
    got = engine.generate(PROMPTS, num_return_sequences=3, batch_size=batch_size, **job)
    assert tokens_of(got) == tokens_of(want)


def test_several_translations_share_one_encoder_pass():
    job = {
        "do_sample": True,
        "seed": 1,
        "max_new_tokens": 8,
        "target_lang": "fra_Latn",
        "source_lang": "eng_Latn",
    }
    with specmoe.load("tiny-translate") as engine:
        one = engine.generate(["The red house."], **job)
        two = engine.generate(["The red house."], num_return_sequences=2, **job)
    assert len(two.sequences) == 2 and two.stats.prefill_bytes == one.stats.prefill_bytes
    assert two.sequences[0].tolist() == one.sequences[0].tolist()


def test_several_greedy_texts_are_refused(engine):
    with pytest.raises(OptionError, match="num_return_sequences=2 without do_sample=True"):
        engine.generate(PROMPTS, num_return_sequences=2, **JOB)
