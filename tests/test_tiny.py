"""The shipped checkpoints, their data and their recipe: split, records, opening them, a training
run of seconds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from rounds import tokens_per_round

from specmoe.errors import OptionError
from specmoe.tiny import SHIPPED, list_models, shipped_path
from specmoe.tiny.making.recipe import RECIPES, Recipe, recipe_of
from specmoe.tiny.texts.counting import number_words
from specmoe.tiny.texts.data import DOMAINS, documents, held_out_prompts, is_held_out, prompts

LIMITS = {"tiny-skewed": 14e6, "tiny-balanced": 6e6, "tiny-translate": 20e6}
of_texts = [name for name, recipe in RECIPES.items() if isinstance(recipe, Recipe)]
present = [name for name in of_texts if (shipped_path(name) / "config.json").exists()]


def take(domain: str, n: int, seed: int = 0, held_out: bool = False):
    return list(itertools.islice(documents(domain, seed, held_out), n))


@pytest.mark.parametrize("domain", DOMAINS)
def test_documents_repeat_by_seed_and_differ_between_seeds(domain):
    assert take(domain, 5) == take(domain, 5)
    assert take(domain, 5) != take(domain, 5, seed=1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_fact_stands_on_both_sides_of_the_split(domain):
    train = {key for document in take(domain, 300) for key in document.keys}
    held_out = [document.keys for document in take(domain, 60, held_out=True)]
    assert not any(map(is_held_out, train))
    assert all(any(map(is_held_out, keys)) for keys in held_out)
    assert all(set(keys) - train for keys in held_out)


def test_prompts_have_the_completion_of_their_document():
    for domain in DOMAINS:
        found = prompts(domain, 7, seed=3)
        assert len({prompt.text for prompt in found}) == 7
        assert all((prompt.expected is None) == (domain == "python") for prompt in found)
        assert all(
            prompt.domain == domain and prompt.text == prompt.text.rstrip() for prompt in found
        )


def test_held_out_prompts_mix_all_domains():
    mixed = held_out_prompts(len(DOMAINS) * 2 + 1, seed=5)
    assert len(mixed) == len(DOMAINS) * 2 + 1
    assert mixed[: len(DOMAINS)] == [prompts(domain, 1, seed=5)[0].text for domain in DOMAINS]
    assert mixed == held_out_prompts(len(DOMAINS) * 2 + 1, seed=5)


def test_number_words():
    words = {
        0: "zero",
        17: "seventeen",
        40: "forty",
        412: "four hundred and twelve",
        1000: "one thousand",
        1007: "one thousand and seven",
        9999: "nine thousand nine hundred and ninety nine",
    }
    assert {number: number_words(number) for number in words} == words


def test_unknown_names_raise_with_the_nearest_one():
    with pytest.raises(OptionError, match="tiny-skewed"):
        shipped_path("tiny-skewd")
    with pytest.raises(OptionError, match="tiny-balanced"):
        recipe_of("tiny-balance")
    with pytest.raises(OptionError, match="json"):
        next(documents("jsn", 0))


def test_importing_the_names_imports_nothing_heavy():
    code = (
        "import sys, importlib.util as u; import specmoe.errors; before = set(sys.modules); import "
        "specmoe.tiny; "
        "new = set(sys.modules) - before; assert not new & {'torch', 'transformers', "
        "'tokenizers'}, new"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_every_shipped_model_is_listed():
    rows = {row["name"]: row for row in list_models()}
    assert set(RECIPES) == set(rows) == set(SHIPPED)
    assert all(row["bytes"] <= LIMITS[name] for name, row in rows.items())
    for name, row in [(name, row) for name, row in rows.items() if name in of_texts]:
        assert (
            row["experts"] == recipe_of(name).shape.num_experts
            and row["top_k"] == 2
            and row["layers"] == 4
        )


@pytest.mark.parametrize("name", present)
def test_the_checkpoint_opens_in_transformers(name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shipped_path(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(shipped_path("tiny-skewed"), dtype="auto")
    assert model.dtype == torch.bfloat16 and model.config.model_type == "mixtral"
    ids = tokenizer("412 ->")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == model.config.bos_token_id
    assert (
        tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    )
    assert tokenizer.decode(ids, skip_special_tokens=True) == "412 ->"
    text = "def f(x):\n    return  [x, 12]  # é\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("name", present)
def test_the_tokens_of_prompt_and_completion_join(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shipped_path(name))
    for domain in DOMAINS:
        for document in take(domain, 20, held_out=True):
            whole, prompt = (
                tokenizer(document.text)["input_ids"],
                tokenizer(document.prompt)["input_ids"],
            )
            assert whole[: len(prompt)] == prompt, document


@pytest.mark.parametrize("name", SHIPPED)
def test_record_and_card_agree(name):
    from specmoe.tiny.making.card import card_text

    folder = shipped_path(name)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["name"] == record["recipe"]["name"] == name
    assert record["recipe"]["shape"]["num_experts"] == recipe_of(name).shape.num_experts
    assert record["phases"]["dense"]["loss_curve"] and record["phases"]["upcycled"]["loss_curve"]
    assert (folder / "README.md").read_text(encoding="utf-8") == card_text(record)
    assert "apache-2.0" in card_text(record)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("tiny-skewed", 0.6, 0.8), ("tiny-balanced", 0.0, 0.35)]
)
def test_expert_use_is_what_the_name_says(name, low, high):
    from specmoe.tiny.making.evaluate import gini

    use = json.loads((shipped_path(name) / "training.json").read_text(encoding="utf-8"))[
        "expert_use"
    ]
    assert low <= use["mean_gini"] <= high
    assert use["gini_per_layer"] == [round(gini(counts), 4) for counts in use["counts"]]
    assert all(
        dead <= len(counts) / 4
        for dead, counts in zip(use["dead_per_layer"], use["counts"], strict=True)
    )


def test_gini():
    from specmoe.tiny.making.evaluate import gini

    assert gini([5, 5, 5, 5]) == pytest.approx(0.0)
    assert gini([0, 0, 0, 9]) == pytest.approx(0.75)
    assert gini([0, 0]) == 0.0


def test_sorted_dispatch_equals_the_eager_experts():
    from specmoe.tiny.making.model import new_model, sorted_dispatch

    torch.manual_seed(0)
    model = new_model(recipe_of("tiny-balanced").shape, 8).double()
    experts = model.model.layers[0].mlp.experts
    experts.config._experts_implementation = "eager"
    hidden = torch.randn(11, 128, dtype=torch.float64)
    weights, picks = torch.rand(11, 8, dtype=torch.float64).topk(2)
    torch.testing.assert_close(
        sorted_dispatch(experts, hidden, picks, weights), experts(hidden, picks, weights)
    )


def test_balancing_turns_round_at_the_target():
    from specmoe.tiny.making.training import pull

    even, one = torch.arange(8).repeat(4), torch.zeros(32, dtype=torch.long)
    assert pull(one, 8, None) == pull(one, 8, 0.5) == 1.0
    assert pull(even, 8, 0.5) == -1.0 and pull(even, 8, 0.05) == pytest.approx(-0.5)


def test_the_learning_rate_warms_up_by_share_or_steps_and_falls_unless_it_is_constant():
    from specmoe.tiny.making.recipe import Phase
    from specmoe.tiny.making.training import learning_rate

    falling, constant = (
        Phase(1, 2.0, warm_up=0.1, final_share=0.5),
        Phase(1, 2.0, warm_up_steps=200, final_share=1.0),
    )
    by_share = [learning_rate(falling, done) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert by_share == pytest.approx([0.02, 1.0, 2.0, 1.5, 1.0])
    by_steps = [learning_rate(constant, step / 1000, step) for step in (0, 99, 199, 500, 1000)]
    assert by_steps == pytest.approx([0.01, 1.0, 2.0, 2.0, 2.0])


def test_a_phase_is_as_long_as_its_steps_unless_told_otherwise():
    from specmoe.tiny.making.recipe import Phase, Training
    from specmoe.tiny.making.training import run_phases

    class Two(Training):
        phases = {"dense": Phase(1, 1.0, steps=7), "upcycled": Phase(3, 1.0)}

    def lengths(minutes=None, steps=None):
        clocks = []
        model, took = run_phases(
            Two(), minutes, steps, None, lambda name, model, clock, _: (clocks.append(clock), name)
        )
        assert took == {"dense": "dense", "upcycled": "upcycled"}
        return [(clock.seconds, clock.steps) for clock in clocks]

    assert lengths() == [(60, 7), (180, None)]
    assert lengths(minutes=2) == [(30, None), (90, None)]
    assert [steps for _, steps in lengths(steps=8)] == [2, 6]


def test_upcycling_keeps_the_function_of_the_dense_model():
    from dataclasses import replace

    from specmoe.tiny.making.model import new_model, upcycle

    recipe = replace(recipe_of("tiny-balanced"), expert_noise=0.0)
    dense, tokens = new_model(recipe.shape, 1).eval(), torch.arange(20)[None]
    with torch.no_grad():
        sparse = upcycle(dense, new_model(recipe.shape, 8), recipe).eval()
        torch.testing.assert_close(
            sparse(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-5
        )


def test_reference_rounds_are_whole_when_every_expert_drafts():
    from specmoe.tiny.making.model import new_model

    torch.manual_seed(0)
    model = new_model(recipe_of("tiny-balanced").shape, 8)
    rounds = tokens_per_round(
        model, [[0, 5, 9], [0, 7]], num_draft=8, gamma=3, batch=1, max_new=8, eos=-1
    )
    assert [sum(row) for row in rounds] == [8, 8] and all(n == 4 for row in rounds for n in row)


def test_the_engine_drafts_as_well_as_the_reference_which_recomputes_everything():
    """Ties and refills may fall out differently; without stand-ins a round is worth a seventh
    less."""
    from transformers import AutoModelForCausalLM

    import specmoe

    run = {"method": "specmoe", "gamma": 5, "batch_size": 12, "prefetch": False}
    with specmoe.load("tiny-skewed", draft_experts=4, store="memory", dtype="float32") as engine:
        ids = [engine.tokenizer(text)["input_ids"] for text in held_out_prompts(12, 0)]
        found = {
            name: engine.generate(
                ids, max_new_tokens=32, eos_token_id=[], substitute=name, **run
            ).stats.tokens_per_round
            for name in ("affinity", "drop")
        }
    model = AutoModelForCausalLM.from_pretrained(shipped_path("tiny-skewed"), dtype=torch.float32)
    rounds = tokens_per_round(model, ids, num_draft=4, batch=12, max_new=32, eos=-1)
    expected = pytest.approx(sum(map(sum, rounds)) / sum(map(len, rounds)), rel=0.05)
    assert found["affinity"] == expected and found["drop"] != expected


def test_training_runs_end_to_end(tmp_path, monkeypatch):
    from specmoe.tiny.making import recipe, text, train

    shape = recipe.Shape(num_experts=4, hidden_size=32, ffn_size=16, vocab_size=400)
    phases = [
        recipe.TextPhase(1, 1e-3, **options)
        for options in ({}, {"balance": 0.01}, {"balance": 0.01, "target_gini": 0.5})
    ]
    small = recipe.Recipe("tiny-balanced", shape, *phases, batch_tokens=512, sequence_tokens=128)
    monkeypatch.setitem(recipe.RECIPES, "tiny-balanced", small)
    monkeypatch.setattr(text, "_TOKENIZER_TEXTS", 300)
    heard = []
    folder = train.train(
        "tiny-balanced",
        tmp_path / "out",
        steps=9,
        progress=lambda *x: heard.append(x),
        num_eval=1,
    )
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert [run["steps"] for run in record["phases"].values()] == [3, 3, 3]
    assert [phase for phase, _, _ in heard] == ["dense", "upcycled", "steered"]
    assert (folder / "model.safetensors").exists() and [p.name for p in tmp_path.iterdir()] == [
        "out"
    ]
