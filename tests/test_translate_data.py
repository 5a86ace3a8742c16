"""The translation model's sentences are exact French, deterministic, and never on both sides of the
split."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from specmoe.tiny.making.model import upcycle
from specmoe.tiny.making.recipe import TRANSLATE, TranslationShape
from specmoe.tiny.making.translate_model import (
    SortedMoe,
    live_tokens,
    new_translation_tokenizer,
    new_translator,
    published_state,
    sparse_layers,
    translation_config,
    use_sorted_experts,
)
from specmoe.tiny.texts import translate_grammar as grammar
from specmoe.tiny.texts.translate_data import held_out_pairs, sentence, sentence_pairs
from specmoe.tiny.texts.translate_lexicon import (
    AFTER_THINGS,
    BEFORE_THINGS,
    FAMILY,
    PLACES,
    THINGS,
    VERBS,
)

SMALL = TranslationShape(num_experts=5, num_layers=2, hidden_size=16, ffn_size=8, num_heads=2)


def noun(words, english):
    return next(one for one in words if one.singular == english)


def adjective(words, english):
    return next(one for one in words if one.english == english)


@pytest.mark.parametrize(
    ("number", "feminine", "words"),
    [
        (1, True, "une"),
        (11, True, "onze"),
        (21, False, "vingt et un"),
        (31, True, "trente et une"),
        (70, False, "soixante-dix"),
        (71, True, "soixante et onze"),
        (80, False, "quatre-vingts"),
        (81, True, "quatre-vingt-une"),
        (91, True, "quatre-vingt-onze"),
        (99, False, "quatre-vingt-dix-neuf"),
        (200, False, "deux cents"),
        (201, True, "deux cent une"),
        (1980, False, "mille neuf cent quatre-vingts"),
        (2021, False, "deux mille vingt et un"),
    ],
)
def test_french_numbers(number, feminine, words):
    assert grammar.french_number(number, feminine) == words


def test_every_number_has_its_own_words():
    assert len({grammar.french_number(n) for n in range(10_000)}) == 10_000
    assert len({grammar.english_number(n) for n in range(10_000)}) == 10_000
    assert grammar.english_number(942) == "nine hundred and forty-two"


def test_noun_phrases_agree():
    old, red = adjective(BEFORE_THINGS, "old"), adjective(AFTER_THINGS, "red")
    expensive = adjective(AFTER_THINGS, "expensive")
    apple, tree, horse = noun(THINGS, "apple"), noun(THINGS, "tree"), noun(THINGS, "horse")
    assert grammar.the(grammar.bare_phrase(apple, True, old, red))[1] == (
        "les vieilles pommes rouges"
    )
    assert grammar.this(grammar.bare_phrase(tree, False, old)) == (
        "this old tree",
        "ce vieil arbre",
    )
    assert grammar.this(grammar.bare_phrase(tree, False)) == ("this tree", "cet arbre")
    assert grammar.the(grammar.bare_phrase(tree, False)) == ("the tree", "l'arbre")
    assert grammar.some(grammar.bare_phrase(horse, True, old)) == (
        "some old horses",
        "de vieux chevaux",
    )
    assert grammar.some(grammar.bare_phrase(apple, True, None, expensive))[1] == "des pommes chères"
    assert (
        grammar.owned("my", grammar.bare_phrase(noun(THINGS, "plate"), False))[1] == "mon assiette"
    )
    assert grammar.owned("her", grammar.bare_phrase(noun(FAMILY, "sister"), False))[1] == "sa sœur"
    assert grammar.counted(81, grammar.bare_phrase(apple, True))[1] == "quatre-vingt-une pommes"
    assert [grammar.at_the(noun(PLACES, p)) for p in ("market", "station", "hotel")] == [
        "au marché",
        "à la gare",
        "à l'hôtel",
    ]


@pytest.mark.parametrize(
    ("person", "base", "tense", "negated", "expected"),
    [
        (0, "forget", "present", False, ("I forget", "j'oublie")),
        (0, "forget", "present", True, ("I do not forget", "je n'oublie pas")),
        (3, "see", "future", True, ("he will not see", "il ne verra pas")),
        (3, "see", "present", False, ("he sees", "il voit")),
        (1, "buy", "past", True, ("we did not buy", "nous n'avons pas acheté")),
        (0, "lose", "past", False, ("I lost", "j'ai perdu")),
        (2, "look for", "present", False, ("you look for", "vous cherchez")),
    ],
)
def test_verbs(person, base, tense, negated, expected):
    verb = next(one for one in VERBS if one.base == base)
    assert grammar.predicate(grammar.PRONOUNS[person], verb, tense, negated) == expected


def test_the_stream_is_deterministic_and_the_sides_are_disjoint():
    def first(seed, held_out):
        return list(itertools.islice(sentence_pairs(seed, held_out), 3000))

    assert first(1, False) == first(1, False)
    assert first(1, False) != first(2, False)
    trained = {pair.english for seed in (1, 2) for pair in first(seed, False)}
    assert not trained & {pair.english for seed in (1, 2) for pair in first(seed, True)}
    assert len({pair.english for pair in held_out_pairs(500)}) == 500


def test_one_english_sentence_has_one_translation():
    rng, found = random.Random(3), {}
    for pair in (sentence(rng) for _ in range(20_000)):
        assert found.setdefault(pair.english, pair.french) == pair.french
        assert "  " not in pair.english + pair.french and pair.french.endswith(".")
        for wrong in ("le a", "le e", "le o", "de le ", "à le ", " je a", " ne a", "la é", "la a"):
            assert f" {wrong}" not in pair.french.replace("le onze", ""), pair.french


@pytest.fixture(scope="module")
def tokenizer():
    pairs = itertools.islice(sentence_pairs(1), 3000)
    return new_translation_tokenizer(
        (text for pair in pairs for text in (pair.english, pair.french)), TRANSLATE.shape
    )


def test_the_tokenizer_is_nllbs_and_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert type(read).__name__ == "NllbTokenizer" and len(read) == TRANSLATE.shape.vocab_size
    for pair in held_out_pairs(200):
        both = read(pair.english, text_target=pair.french)
        assert both == tokenizer(pair.english, text_target=pair.french)
        assert read.convert_ids_to_tokens(both["labels"])[0] == "fra_Latn"
        assert read.decode(both["labels"], skip_special_tokens=True) == pair.french
        assert read.decode(both["input_ids"], skip_special_tokens=True) == pair.english
        assert read.unk_token_id not in both["input_ids"] + both["labels"]


@torch.no_grad()
def test_routing_runs_the_picked_experts_with_their_own_gates():
    torch.manual_seed(0)
    layer = SortedMoe(SMALL)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    hidden = torch.randn(2, 3, 16)
    got = layer(hidden).reshape(-1, 16)
    for token, value in zip(hidden.reshape(-1, 16), got, strict=True):
        best = layer.router.classifier(token).softmax(-1).topk(2)
        expected = 0
        for gate, e in zip(best.values / best.values.sum(), best.indices.tolist(), strict=True):
            inner = (layer.fc1_weight[e] @ token + layer.fc1_bias[e]).relu()
            expected = expected + gate * (layer.fc2_weight[e] @ inner + layer.fc2_bias[e])
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_routing_is_the_one_of_transformers_router():
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeTop2Router

    layer, theirs = SortedMoe(SMALL), NllbMoeTop2Router(translation_config(SMALL)).eval()
    layer.router.classifier.weight.copy_(torch.randn(5, 16))
    theirs.classifier.load_state_dict(layer.router.classifier.state_dict())
    hidden = torch.randn(40, 16)
    _, gates, picks = layer.router(hidden)
    top1, probabilities, _ = theirs(hidden)
    assert torch.equal(top1.argmax(-1), picks[:, 0])
    torch.testing.assert_close(torch.zeros(40, 5).scatter(1, picks, gates), probabilities)


def test_padding_goes_to_no_expert():
    low = torch.finfo(torch.float32).min
    mask = torch.zeros(2, 1, 3, 3)
    mask[1, ..., 2] = low
    assert live_tokens(mask, 6).tolist() == [True, True, True, True, True, False]
    assert live_tokens(None, 6) is None


def test_upcycling_without_noise_keeps_the_dense_models_output():
    import dataclasses

    torch.manual_seed(0)
    recipe = dataclasses.replace(TRANSLATE, shape=SMALL, expert_noise=0.0)
    dense = new_translator(SMALL, sparse=False).eval()
    sparse = upcycle(dense, new_translator(SMALL, sparse=True), recipe).eval()
    inputs = {
        "input_ids": torch.randint(7, 400, (2, 6)),
        "decoder_input_ids": torch.randint(7, 400, (2, 5)),
    }
    with torch.no_grad():
        torch.testing.assert_close(
            sparse(**inputs).logits, dense(**inputs).logits, atol=1e-5, rtol=1e-5
        )


def test_the_published_names_load_into_transformers_and_come_back():
    from transformers import NllbMoeForConditionalGeneration

    torch.manual_seed(0)
    model = new_translator(SMALL, sparse=True)
    state = published_state(model)
    assert "model.decoder.layers.1.ffn.experts.expert_4.fc1.weight" in state
    real = NllbMoeForConditionalGeneration(translation_config(SMALL))
    real.load_state_dict(state)
    back = use_sorted_experts(real, SMALL)
    assert list(sparse_layers(back)) == ["model.encoder.layers.1.ffn", "model.decoder.layers.1.ffn"]
    for name, value in back.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
