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
from specmoe import registry
from specmoe.errors import UnsupportedModelError
from specmoe.model import kernels
from specmoe.speculate import sources
from specmoe.speculate.block import Drafted
from specmoe.speculate.loop import Sequence
from specmoe.speculate.sources import DraftSource, Oracle, base, copies, merged, text
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


ROOM = {"fast_memory": "1MiB"}  # beside three experts per layer some copies, too


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


@pytest.mark.parametrize("source", SOURCES)
def test_no_source_changes_the_tokens(source, open_engine, plain):
    assert tokens_of(generate(open_engine(**ROOM), SOURCES[source])) == plain("mixtral")


@pytest.mark.parametrize("source", ["ngram of one", "joined", "low_bit", "layer_skip"])
def test_a_planner_may_choose_how_far(source, open_engine, plain):
    output = generate(open_engine(**ROOM), SOURCES[source], gamma=None, method="auto")
    assert tokens_of(output) == plain("mixtral")


MADE = {"lfm2_moe": write_tiny, "nllb-moe": make_family}


@pytest.mark.parametrize("kind", MADE)
def test_models_of_other_kinds_have_the_same_sources(kind, tmp_path):
    """Recurrent layers, and an encoder-decoder."""
    folder = MADE[kind](kind, tmp_path / kind)
    few = {"prompts": PROMPTS[:3], "max_new_tokens": 9}
    with specmoe.load(folder, dtype="float64", draft_experts=3, **ROOM) as engine:
        want = tokens_of(generate(engine, "resident", method="on_demand", gamma=None, **few))
        for source in ("joined", "oracle", "low_bit", "merged", "layer_skip"):
            assert tokens_of(generate(engine, SOURCES[source], **few)) == want, source


@pytest.mark.parametrize("source", ["ngram of one", "joined", "a function", "oracle"])
def test_sampled_texts_have_the_targets_distribution(source, small_engine, text_probabilities):
    rule = "block" if source == "joined" else "rejection"
    options = {"draft": SOURCES[source], "temperature": 0.6, "accept_rule": rule}
    observed, p = sampled_texts(small_engine, **options), text_probabilities(temperature=0.6)
    assert chi_square_p(observed, p) > ODDS


@pytest.mark.parametrize("source", SOURCES)
def test_coupled_texts_are_those_of_plain_sampling(source, open_engine):
    options = {"do_sample": True, "seed": 3, "temperature": 1.2}
    engine = open_engine(**ROOM)
    want = tokens_of(generate(engine, "resident", method="cached", gamma=None, **options))
    assert tokens_of(generate(engine, SOURCES[source], **options)) == want


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


# ---- copies of the experts, and layers left out ----


@pytest.mark.parametrize("bits, most", [(2, 0.5), (3, 0.2), (4, 0.1), (8, 0.007)])
def test_rounding_errs_as_little_as_its_bits_allow(bits, most):
    weights = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    codes, scales = copies.quantised(weights, bits)
    assert codes.shape == (50, 4 * bits) and codes.dtype == torch.uint8
    again = copies.widened(codes, scales.view(torch.uint8), bits)
    assert float((again - weights).norm() / weights.norm()) < most
    half_a_step = scales.float()[:, None] / 2
    assert ((again - weights).abs() <= half_a_step * 1.02).all(), "to the nearest level"
    nothing = copies.quantised(torch.zeros(1, 32), bits)
    assert copies.widened(nothing[0], nothing[1].view(torch.uint8), bits).abs().max() == 0


def test_more_bits_are_accepted_more_and_hold_more(open_engine):
    engine = open_engine(**ROOM)
    found = [generate(engine, f"low_bit:{bits}").stats for bits in (2, 8)]
    assert found[0].acceptance_rate < found[1].acceptance_rate
    assert found[1].acceptance_rate > 0.9 and found[0].draft_bytes < found[1].draft_bytes
    assert all(s.peak_fast_expert_bytes <= engine.memory.used_bytes for s in found)


@pytest.mark.usefixtures("c_compiler")
@pytest.mark.parametrize("least", [1 << 60, 0])
def test_copies_compute_as_copies_where_experts_are_multiplied_as_stored(least, monkeypatch):
    """What lies in a slot is a copy then, and no record."""
    monkeypatch.setattr(kernels, "LEAST_STORED", least)
    with specmoe.load("tiny-skewed", fast_memory="32MiB") as engine:
        stats = generate(engine, "low_bit:8").stats
    assert stats.acceptance_rate > 0.9


def test_copies_are_made_in_one_pass_over_the_store_and_kept_for_the_next_run(open_engine, plain):
    engine = open_engine(**ROOM)
    engine.generate([[1]], method="cached", max_new_tokens=1)
    everything = 2 * 8 * engine.memory.slot_bytes
    reads = [generate(engine, "ngram+low_bit:4").stats.draft_read_bytes for _ in range(2)]
    assert reads == [everything, 0]
    for between in ("low_bit:3", "resident"):  # both lie, or read, where the copies were
        generate(engine, between)
        output = generate(engine, "low_bit:4")
        assert output.stats.draft_read_bytes == everything, between
        assert tokens_of(output) == plain("mixtral") and output.stats.draft_made_s > 0


def test_a_store_that_fails_while_copies_are_made_leaves_the_engine_usable(
    open_engine, plain, monkeypatch
):
    engine = open_engine(**ROOM)
    generate(engine, "resident")

    def broken(read, reader):
        raise OSError("no such disk")

    with monkeypatch.context() as patch:
        patch.setattr(engine.store, "_copy", broken)
        with pytest.raises(specmoe.StoreError, match="no such disk"):
            generate(engine, "low_bit:4")
    assert tokens_of(generate(engine, "low_bit:4")) == plain("mixtral")


def test_copies_that_do_not_fit_say_what_would(tiny):
    with specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=1) as engine:
        with pytest.raises(specmoe.FastMemoryError, match="load with fast_memory=") as refusal:
            generate(engine, "merged:4")
    needed = int(str(refusal.value).partition("fast_memory=")[2].split()[0])
    with specmoe.load(
        tiny("mixtral"), dtype="float64", draft_experts=1, fast_memory=needed
    ) as engine:
        assert generate(engine, "merged:4", max_new_tokens=3).stats.draft == "merged:4"


def test_clusters_bring_what_is_used_near_to_its_own():
    places = torch.tensor([0.0, 1.0, 10.0, 11.0, 30.0])
    distances = (places[:, None] - places[None]).abs()
    use = torch.tensor([1.0, 9.0, 9.0, 1.0, 1.0])
    assert merged.clusters(distances, use, 2).tolist() == [1, 1, 2, 2, 2]
    assert merged.clusters(distances, use, 5).tolist() == [0, 1, 2, 3, 4]


def test_all_experts_merged_with_themselves_draft_what_the_target_says(open_engine):
    assert generate(open_engine(fast_memory="2MiB"), "merged:8").stats.acceptance_rate == 1.0


@pytest.mark.parametrize("kind", ["glm_moe_dsa", "mistral_large4"])
def test_a_skipped_layer_hands_on_what_an_indexer_chose(kind, tmp_path):
    with specmoe.load(write_tiny(kind, tmp_path), dtype="float64", draft_experts=3) as engine:
        want = tokens_of(generate(engine, "resident"))
        output = generate(engine, "layer_skip")
        assert tokens_of(output) == want and output.stats.num_plain_rounds < output.stats.num_rounds
        with pytest.raises(UnsupportedModelError, match="layer 0 hands more than hidden states"):
            generate(engine, "layer_skip:0")
        assert tokens_of(generate(engine, "resident")) == want, "all layers run again"


def test_layers_that_are_skipped_do_not_run_and_come_back(open_engine, plain):
    engine = open_engine()
    layers = engine.model.model.layers
    seen = []
    hooks = [
        layer.mlp.register_forward_hook(lambda m, i, o, n=n: seen.append((n, len(i[0]))))
        for n, layer in enumerate(layers)
    ]
    assert tokens_of(generate(engine, "layer_skip:0", batch_size=4)) == plain("mixtral")
    for hook in hooks:
        hook.remove()
    runs = [sum(number == n for number, _ in seen) for n in (0, 1)]
    assert runs[0] < runs[1], "the draft's passes left layer 0 out"
    assert not any("forward" in vars(layer) for layer in layers)
    with pytest.raises(specmoe.OptionError, match="layers are 0..1, and one must be left"):
        generate(engine, "layer_skip:0,1")
    with pytest.raises(specmoe.OptionError, match="layers are 0..1"):
        generate(engine, "layer_skip:7")


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
    assert str(refusal.value).startswith("draft ")
    assert tokens_of(generate(open_engine(), "ngram")) == plain("mixtral")


@pytest.mark.parametrize(
    "draft, says",
    [
        ("ngrams", "draft='ngrams' is unknown: did you mean 'ngram'"),
        ("ngram:few", "write a whole number, as in 'ngram:3'"),
        ("ngram:0", "write a whole number"),
        ("low_bit:5", "bits are 2, 3, 4, 8"),
        ("mtp", "draft='mtp': a checkpoint's own prediction heads are a model beside it"),
        ("resident:3", "resident takes nothing behind a colon"),
        ("resident+ngram", "only ngram can stand before the plus"),
        (3, "draft=3 must be a name, a function or have a method draft"),
    ],
)
def test_a_source_that_is_none_is_refused(draft, says, open_engine):
    with pytest.raises(specmoe.OptionError, match=says):
        generate(open_engine(), draft)


def test_your_own_by_name(open_engine, plain):
    sources.register("last_again", last_again)
    try:
        output = generate(open_engine(), "last_again")
        assert tokens_of(output) == plain("mixtral") and output.stats.draft == "last_again"
        joined = generate(open_engine(), "ngram+last_again")
        assert tokens_of(joined) == plain("mixtral")
        with pytest.raises(specmoe.OptionError, match="takes nothing behind a colon"):
            generate(open_engine(), "last_again:3")
    finally:
        registry.forget("draft", "last_again")


def test_nothing_is_drafted_by_rows_that_decline():
    assert base.nothing(3).num == [0, 0, 0] and base.nothing(3).tokens.shape == (3, 0)
