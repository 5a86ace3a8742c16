"""Whatever drafts, the text is the target's: every draft source gives plain decoding's tokens, and
the target's distribution when sampling; a wrong answer of a user's source is one sentence."""

from __future__ import annotations

import pytest
import torch
from conftest import NEW_TOKENS, PROMPTS, tokens_of
from models_table import write_tiny
from test_sampling import ODDS, chi_square_p, sampled_texts, small_engine, text_probabilities
from tiny_families import make_family

import specmoe
from specmoe.options import DRAFTS
from specmoe.speculate import sources
from specmoe.speculate.block import Drafted
from specmoe.speculate.loop import Sequence
from specmoe.speculate.sources import DraftSource, Oracle, base, text
from specmoe.speculate.sources.resident import Resident

__all__ = ["small_engine", "text_probabilities"]  # fixtures


def last_again(texts, limits):
    """A user's source: the last token, again and again; every other row declines."""
    return [
        [tokens[-1]] * limit if row % 2 == 0 else []
        for row, (tokens, limit) in enumerate(zip(texts, limits, strict=True))
    ]


class Residents(DraftSource):
    """A user's class that wraps another source."""

    name = "residents"

    def draft(self, batch, limits):
        return Resident().draft(batch, limits)


SOURCES = {
    "resident": "resident",
    "ngram": "ngram",
    "ngram of one": "ngram:1",
    "joined": "ngram:1+resident",
    "oracle": "oracle",
    "low_bit": "low_bit:3",
    "merged": "merged:2",
    "layer_skip": "layer_skip",
    "ngram and copies": "ngram:1+low_bit:2",
    "a function": last_again,
    "a class": Residents,
}


def generate(engine, draft, prompts=PROMPTS, **options):
    options = {
        "method": "specmoe",
        "gamma": 4,
        "batch_size": 2,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": [],
        **options,
    }
    return engine.generate(prompts, draft=draft, **options)


@pytest.mark.parametrize("gamma", [4, None])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_no_source_changes_the_tokens(architecture, source, gamma, open_engine, plain):
    output = generate(open_engine(architecture), SOURCES[source], gamma=gamma)
    assert tokens_of(output) == plain(architecture)


MADE = {"lfm2_moe": write_tiny, "nllb-moe": make_family}


@pytest.mark.parametrize("kind", MADE)
def test_models_of_other_kinds_have_the_same_sources(kind, tmp_path):
    """Recurrent layers, and an encoder-decoder."""
    folder = MADE[kind](kind, tmp_path / kind)
    with specmoe.load(folder, dtype="float64", draft_experts=3) as engine:
        want = tokens_of(generate(engine, "resident", method="on_demand", gamma=None))
        for source in SOURCES.values():
            assert tokens_of(generate(engine, source)) == want, source


@pytest.mark.parametrize("source", SOURCES)
def test_sampled_texts_have_the_targets_distribution(source, small_engine, text_probabilities):
    options = {"draft": SOURCES[source], "temperature": 0.6, "accept_rule": "rejection"}
    observed, p = sampled_texts(small_engine, **options), text_probabilities(temperature=0.6)
    assert chi_square_p(observed, p) > ODDS


@pytest.mark.parametrize("source", SOURCES)
def test_coupled_texts_are_those_of_plain_sampling(source, open_engine):
    options = {"do_sample": True, "seed": 3, "temperature": 1.2}
    want = tokens_of(generate(open_engine(), "resident", method="cached", gamma=None, **options))
    assert tokens_of(generate(open_engine(), SOURCES[source], **options)) == want


def test_the_oracle_is_accepted_whole_and_says_what_it_is(open_engine, plain):
    engine = open_engine()
    stats = generate(engine, "oracle", batch_size=4).stats
    assert stats.acceptance_rate == 1.0 and stats.draft == "oracle"
    assert stats.num_rounds == -(-NEW_TOKENS // 5), "gamma 4 and the target's own each round"
    sampled = {"do_sample": True, "temperature": 1.3}  # without a seed, too
    assert generate(engine, "oracle", **sampled).stats.acceptance_rate == 1.0
    texts = [tokens[len(p) :] for tokens, p in zip(plain("mixtral"), PROMPTS, strict=True)]
    output = generate(engine, Oracle(texts))
    assert output.stats.acceptance_rate == 1.0 and tokens_of(output) == plain("mixtral")
    with pytest.raises(specmoe.OptionError, match="no text of prompt 1: give one for each"):
        generate(engine, Oracle(texts[:1]))


def test_a_source_that_declines_costs_no_byte_for_drafts(open_engine):
    stats = generate(open_engine(), lambda texts, limits: [[] for _ in texts]).stats
    assert stats.acceptance_rate == 0.0 and stats.num_plain_rounds == stats.num_rounds


# ---- the n-gram ----


def found(tokens: list[int], limit: int = 4, longest: int = 4, source=None) -> list[int]:
    row = Sequence(0, tokens, len(tokens) + 9, source=source)
    return text.Ngram(longest).find(row, limit)


def test_an_ngram_finds_the_latest_longest_match():
    assert found([1, 2, 3, 9, 1, 2]) == [3, 9, 1, 2]
    assert found([1, 2, 3, 1, 2, 4, 1, 2], limit=1) == [4], "the latest"
    assert found([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], limit=1) == [3], "the longest"
    assert found([1, 2, 3, 4]) == [] and found([5]) == [] and found([3, 1, 3]) == []
    assert found([3, 1, 3], longest=1) == [1, 3, 1, 3], "a copy goes on in what it copied"
    assert found([5, 6], source=[1, 5, 6, 7, 2], limit=2) == [7, 2], "what an encoder read"
    assert found([1, 2, 1, 2], limit=0) == []


def test_an_ngram_learns_as_its_row_grows():
    ngram, row = text.Ngram(2), Sequence(0, [1, 2, 3], 20)
    assert ngram.find(row, 2) == []
    row.tokens += [1, 2]
    assert ngram.find(row, 2) == [3, 1]
    row.tokens += [3, 4, 2, 3]
    assert ngram.find(row, 1) == [4]


def test_joined_drafts_keep_each_rows_own():
    ngram = Drafted(torch.tensor([[1, 2, 3], [0, 0, 0]]), [3, 0], steps=((2, 0.1),) * 3)
    made = Drafted(torch.tensor([[0], [5]]), [0, 1], torch.full((2, 1, 8), 1 / 8), 0.5, ((2, 1.0),))
    both = text.joined(ngram, made)
    assert both.tokens.tolist() == [[1, 2, 3], [5, 0, 0]] and both.num == [3, 1]
    assert both.q[0].argmax(-1).tolist() == [1, 2, 3] and both.q[0].sum(-1).tolist() == [1.0] * 3
    assert both.q[1, 0].tolist() == [1 / 8] * 8 and len(both.steps) == 3
    assert both.expected_rejections == 0.5


# ---- what may be named, and wrong answers ----


class Gives(DraftSource):
    def __init__(self, answer):
        self.answer = answer

    def draft(self, batch, limits):
        return self.answer


def drafted(tokens, num, q=None):
    return Gives(Drafted(torch.as_tensor(tokens), num, q))


WRONG = {
    "a number": (lambda texts, limits: 7, "return a list of token ids for each row"),
    "texts": (lambda texts, limits: ["a"] * len(texts), "return a list of token ids"),
    "too few rows": (lambda texts, limits: [[1]], "drafts for 1 of 2 rows"),
    "too long": (lambda texts, limits: [[1] * 99] * len(texts), "99 tokens for row 0: at most 4"),
    "no token": (lambda texts, limits: [[97]] * len(texts), "token 97 for row 0: ids are 0..96"),
    "negative": (lambda texts, limits: [[-1]] * len(texts), "token -1 for row 0"),
    "raises": (lambda texts, limits: 1 / 0, "raised ZeroDivisionError: division by zero"),
    "no Drafted": (Gives([[1]]), "gave list: return block.Drafted"),
    "floats": (drafted([[1.0], [2.0]], [1, 1]), "torch.float32 for num 2: return int64"),
    "one dimension": (drafted([1, 2], [1, 1]), r"tokens \[2\]"),
    "num too large": (drafted([[1], [2]], [2, 1]), "count what is there"),
    "rows missing": (drafted([[1]], [1]), "drafts for 1 of 2 rows"),
    "outside": (drafted([[1], [400]], [1, 1]), "token 400 for row 1"),
    "q": (drafted([[1], [2]], [1, 1], torch.ones(2, 3, 97)), r"return \[B, G, V\]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_answer_is_one_sentence_and_the_engine_goes_on(wrong, open_engine, plain):
    source, says = WRONG[wrong]
    with pytest.raises(specmoe.OptionError, match=says) as refusal:
        generate(open_engine(), source)
    assert str(refusal.value).startswith("draft source ")
    assert tokens_of(generate(open_engine(), "ngram")) == plain("mixtral")


@pytest.mark.parametrize(
    "draft, says",
    [
        ("ngrams", "draft='ngrams' is unknown: did you mean 'ngram'"),
        ("ngram:few", "write a whole number, as in 'ngram:3'"),
        ("ngram:0", "write a whole number"),
        ("resident:3", "resident takes nothing behind a colon"),
        ("resident+ngram", "only ngram can stand before the plus"),
        (3, "draft=3 must be a name, a function or have a method draft"),
    ],
)
def test_a_source_that_is_none_is_refused(draft, says, open_engine):
    with pytest.raises(specmoe.OptionError, match=says):
        generate(open_engine(), draft)


def test_your_own_by_name(open_engine, plain, monkeypatch):
    monkeypatch.setattr(sources, "_MAKERS", dict(sources._MAKERS))
    monkeypatch.setattr("specmoe.options.DRAFTS", DRAFTS)
    sources.register("last_again", last_again)
    try:
        output = generate(open_engine(), "last_again")
        assert tokens_of(output) == plain("mixtral") and output.stats.draft == "last_again"
        joined = generate(open_engine(), "ngram+last_again")
        assert tokens_of(joined) == plain("mixtral")
    finally:
        DRAFTS.remove("last_again")
    with pytest.raises(specmoe.OptionError, match="must be a word"):
        sources.register("a:b", last_again)
    with pytest.raises(specmoe.OptionError, match="must be a function or have a method draft"):
        sources.register("nine", 9)


def test_nothing_is_drafted_by_rows_that_decline():
    assert base.nothing(3).num == [0, 0, 0] and base.nothing(3).tokens.shape == (3, 0)
