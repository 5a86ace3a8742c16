"""A translation model is one more model: for the command line, files of prompts, the bench, and the
list of shipped ones."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

import specmoe
from specmoe import load, tiny
from specmoe.cli import parser as cli
from specmoe.errors import OptionError
from specmoe.lab.bench import methods as bench
from specmoe.lab.bench.methods import run_bench
from specmoe.tiny.making.recipe import TRANSLATE, TranslationRecipe, TranslationShape
from specmoe.tiny.making.train import finish, train
from specmoe.tiny.making.translate import Translations
from specmoe.tiny.making.translate_model import new_translation_tokenizer
from specmoe.tiny.texts.translate_data import held_out_pairs, sentence_pairs

SHAPE = TranslationShape(
    num_experts=4, num_layers=2, hidden_size=16, ffn_size=8, num_heads=2, max_positions=64
)
FRENCH = "fra_Latn"


def recipe() -> TranslationRecipe:
    return dataclasses.replace(TRANSLATE, shape=SHAPE)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random translator as ``specmoe train tiny-translate`` would leave it."""
    torch.manual_seed(3)
    pairs = itertools.islice(sentence_pairs(1), 500)
    tokenizer = new_translation_tokenizer(
        (text for pair in pairs for text in (pair.english, pair.french)), SHAPE
    )
    run = {"steps": 1, "target_tokens": 9, "seconds": 1.0, "loss_curve": [[1, 6.0]]}
    folder = tmp_path_factory.mktemp("translator") / "m"
    family = Translations(recipe(), tokenizer)
    return finish(family, family.sparse(), {"dense": run, "upcycled": run}, folder, 2)


@pytest.fixture(scope="module")
def without_forced_token(checkpoint, tmp_path_factory):
    """The same checkpoint, but nothing in it says which language to write."""
    folder = tmp_path_factory.mktemp("bare") / "m"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    said = json.loads((folder / "generation_config.json").read_text())
    del said["forced_bos_token_id"]
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def specmoe_says(capsys):
    def run(*words) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


# generate


def test_without_languages_the_checkpoints_own_are_used(checkpoint, specmoe_says):
    words = ["generate", checkpoint, "-p", "I see the apple.", "--max-new-tokens", "6", "--json"]
    code, out, err = specmoe_says(*words)
    assert code == 0, err
    plain = json.loads(out)["outputs"]
    named = json.loads(
        specmoe_says(*words, "--source-lang", "eng_Latn", "--target-lang", FRENCH)[1]
    )["outputs"]
    assert plain == named and 1 <= len(plain[0]["tokens"]) <= 6
    with load(str(checkpoint)) as engine:  # the decoder begins with </s> and the language
        for options, code in (({}, FRENCH), ({"target_lang": "eng_Latn"}, "eng_Latn")):
            [sequence] = engine.generate(
                ["I see the apple."], max_new_tokens=4, **options
            ).sequences
            assert engine.tokenizer.convert_ids_to_tokens(sequence[:2].tolist()) == ["</s>", code]


def test_a_translation_stands_below_its_source(checkpoint, specmoe_says):
    code, out, _ = specmoe_says("generate", checkpoint, "-p", "I see.", "--max-new-tokens", "4")
    assert code == 0 and out.startswith("I see.\n") and out.count("\n") == 2


def test_a_file_of_sentences_becomes_a_file_of_translations(checkpoint, specmoe_says, tmp_path):
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    english = [pair.english for pair in held_out_pairs(3)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in english))
    words = ["generate", checkpoint, "--prompts", prompts, "--out", out, "--max-new-tokens", "5"]
    assert specmoe_says(*words, "--target-lang", FRENCH)[0] == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    with load(str(checkpoint)) as engine:
        assert [one["text"] for one in found] == engine.generate(
            english, max_new_tokens=5
        ).new_texts
    code, _, err = specmoe_says(*words, "--target-lang", "eng_Latn", "--resume")
    assert code == 2 and "other options" in err


LONG = "I see the apple. " * 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", LONG], "the encoder has 64 positions: shorten it"),
        (["-p", "I see.", "--target-lang", "fra_Lat"], "did you mean 'fra_Latn'?"),
        (["-p", "I see.", "--source-lang", "deu_Latn"], "source_lang='deu_Latn' is unknown"),
        (["-p", "I see.", "--max-new-tokens", "64"], "the decoder's 64 positions"),
        (["-p", "I see.", "--max-new-tokens", "1"], "filled by the language token"),
    ],
)
def test_a_bad_source_or_language_is_one_sentence_and_exit_code_2(
    words, said, checkpoint, specmoe_says
):
    code, out, err = specmoe_says("generate", checkpoint, *words)
    assert (code, out) == (2, "") and said in err
    assert err.startswith("specmoe: error: ") and err.count("\n") == 1


def test_without_a_target_language_the_way_out_is_said(without_forced_token, specmoe_says):
    for command in (["generate", "-p", "I see."], ["bench", "--batch", "1", "--repeats", "1"]):
        code, out, err = specmoe_says(command[0], without_forced_token, *command[1:])
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "no target language" in err and FRENCH in err
    words = ["-p", "I see.", "--target-lang", FRENCH, "--max-new-tokens", "4"]
    assert specmoe_says("generate", without_forced_token, *words)[0] == 0


def test_chat_is_refused_in_python_and_in_a_file(checkpoint, specmoe_says, tmp_path):
    chat = [{"role": "user", "content": "I see."}]
    with (
        load(str(checkpoint)) as engine,
        pytest.raises(OptionError, match="chat messages: an encoder-decoder translates"),
    ):
        engine.generate([chat])
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps({"prompt": chat}) + "\n" + json.dumps({"prompt": LONG}) + "\n")
    code, _, err = specmoe_says("generate", checkpoint, "--prompts", prompts, "--out", out)
    chat_line, long_line = (json.loads(line)["error"] for line in out.read_text().splitlines())
    assert code == 1 and "chat messages" in chat_line and "shorten it" in long_line
    assert f"{prompts} line 1: " in err and f"{prompts} line 2: " in err


def test_a_decoder_only_model_has_no_languages(specmoe_says):
    for words in (
        ["generate", "tiny-balanced", "-p", "x"],
        ["bench", "tiny-balanced", "--batch", "1", "--repeats", "1"],
    ):
        code, _, err = specmoe_says(*words, "--target-lang", FRENCH)
        assert (
            code == 2
            and err.count("\n") == 1
            and ("target_lang='fra_Latn' is for translation models") in err
        )


# bench


def test_a_bench_translates_held_out_sentences_and_every_method_agrees(checkpoint, monkeypatch):
    monkeypatch.setattr(bench.doctor, "examine", lambda **options: {})
    with load(str(checkpoint), draft_experts=2) as engine:
        asked, real = [], engine.generate

        def generate(prompts, **options):
            asked.append((list(prompts), options))
            return real(prompts, **options)

        monkeypatch.setattr(engine, "generate", generate)
        options = {"max_new_tokens": 12, "gamma": 3, "seed": 5, "target_lang": FRENCH}
        options["eviction"] = "static"
        methods = ["on_demand", "specmoe", "cached", "auto"]
        result = run_bench(engine, methods, [2], generate=options, repeats=1)
    english = [pair.english for pair in held_out_pairs(6, 5)]
    timed = [prompts for prompts, _ in asked if len(prompts) > 2 and "auto" not in prompts]
    assert timed.count(english) == 4, (
        "every method on three batches: sentences end at different lengths"
    )
    assert all(
        options["target_lang"] == FRENCH
        for _, options in asked
        if "method" in options and "seed" in options
    )
    assert [row["same_tokens_as_plain"] for row in result.rows] == [True] * 4
    assert all(row["kept_full"] and row["num_prompts"] == 6 for row in result.rows)


# shipped


def test_the_list_of_models_counts_the_decoder(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "_CHECKPOINTS", tmp_path)
    monkeypatch.setattr(tiny, "SHIPPED", {"tiny-translate": tiny.SHIPPED["tiny-translate"]})
    (tmp_path / "tiny-translate").mkdir()
    for file in checkpoint.iterdir():
        (tmp_path / "tiny-translate" / file.name).write_bytes(file.read_bytes())
    [row] = tiny.list_models()
    use = json.loads((checkpoint / "training.json").read_text())["expert_use"]
    assert (row["name"], row["layers"], row["experts"], row["top_k"]) == ("tiny-translate", 1, 4, 2)
    assert row["mean_gini"] == use["mean_gini_decoder"] and "English to French" in row["summary"]


def test_the_shipped_record_is_of_the_recipe():
    folder = tiny.shipped_path("tiny-translate")
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["recipe"] == json.loads(json.dumps(dataclasses.asdict(TRANSLATE)))
    assert (
        record["exact_match"]["share"] >= 0.95 and record["expert_use"]["mean_gini_decoder"] > 0.7
    )


def test_the_shipped_model_translates_drafts_well_and_every_method_agrees():
    """The claims of its card, on fewer sentences and with room: 99.8 % right, 7.6 tokens per round,
    a third of the loads."""
    pairs, job, found = (
        held_out_pairs(96, 11),
        {"gamma": 10, "batch_size": 32, "prefetch": False},
        {},
    )
    with load("tiny-translate", draft_experts=4, store="memory") as engine:
        for method in ("on_demand", "specmoe"):
            found[method] = engine.generate(
                [p.english for p in pairs], method=method, max_new_tokens=96, **job
            )
    plain, ours = found["on_demand"], found["specmoe"]
    assert ours.new_texts == plain.new_texts
    assert sum(
        text == pair.french for text, pair in zip(ours.new_texts, pairs, strict=True)
    ) >= 0.95 * len(pairs)
    assert (
        ours.stats.tokens_per_round > 7.0
        and ours.stats.fetched_bytes < 0.5 * plain.stats.fetched_bytes
    )


def test_training_leaves_a_checkpoint_that_translates(tmp_path):
    small, heard = recipe(), []
    folder = train(
        small, tmp_path / "out", steps=4, progress=lambda *x: heard.append(x[0]), num_eval=2
    )
    record = json.loads((folder / "training.json").read_text())
    assert [run["steps"] for run in record["phases"].values()] == [1, 4] and heard == [
        "dense",
        "upcycled",
    ]
    assert "more even than a Gini of 0.74" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with load(str(folder)) as engine:
        assert len(engine.generate(["I see."], max_new_tokens=4).sequences[0]) > 2


def test_the_target_turns_the_balancing_of_a_translator_round(tmp_path):
    """A target above what any batch reaches turns the term round: use ends less even than with
    plain balancing."""
    ginis = {}
    for target in (None, 1.0):
        phase = dataclasses.replace(
            TRANSLATE.upcycled, balance=5.0, peak_learning_rate=0.02, target_gini=target
        )
        small = dataclasses.replace(recipe(), upcycled=phase)
        folder = train(small, tmp_path / str(target), steps=20, num_eval=8)
        ginis[target] = json.loads((folder / "training.json").read_text())["expert_use"][
            "mean_gini"
        ]
    assert ginis[1.0] > ginis[None]


def test_an_encoders_experts_pass_through_a_pool_that_keeps_all_of_the_decoders():
    # enough to use every slot more than once
    sentences = [pair.english for pair in held_out_pairs(40)]
    with load("tiny-translate", store="memory", fast_memory="1GiB") as engine:
        assert engine.memory.cached_experts == engine.info["experts"]
        found = [
            engine.generate(sentences, method=name, max_new_tokens=12).sequences
            for name in ("cached", "resident")
        ]
    assert [row.tolist() for row in found[0]] == [row.tolist() for row in found[1]]


def test_what_was_much_used_lingers_through_the_prefills_between_rounds(monkeypatch):
    """An encoder's experts and a prompt's first token pass through the pool: neither drives out
    what decoding uses most."""
    job = {
        "prompts": [pair.english for pair in held_out_pairs(40)],
        "batch_size": 4,
        "gamma": 4,
        "prefetch": False,
    }
    with load("tiny-translate", store="memory", fast_memory="30MiB") as engine:
        wise = engine.generate(max_new_tokens=24, **job).stats.num_fetches
        monkeypatch.setattr("specmoe.offload.policies.RunPolicy.priority", lambda policy, key: 0)
        assert wise < 0.7 * engine.generate(max_new_tokens=24, **job).stats.num_fetches


def test_a_forced_language_alone_gives_no_row_rules():
    """Its token stands in the row already; asked again it cost a tenth of the time at 16 rows."""
    with specmoe.load("tiny-translate") as engine:
        languages = {"source_lang": "eng_Latn", "target_lang": "fra_Latn"}
        run = engine.start(["The house is red."], max_new_tokens=4, **languages)
    assert len(run.plan.rows[0].tokens) == 2 and run.plan.rows[0].rules is None
