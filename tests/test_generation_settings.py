"""A checkpoint's generation settings, and those given by hand, mean what they mean in
transformers' own ``generate``.

Each setting: every row alone is the reference, batches are ragged, drafts are taken and rejected,
and a control shows that the setting changes the text.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter

import pytest
import torch
from conftest import reference_model as causal_reference
from conftest import tokens_of
from test_sampling import chi_square_p
from tiny_families import make_family
from tiny_families import reference_model as family_reference
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    WatermarkingConfig,
)
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList

import specmoe
from specmoe.errors import CheckpointError, OptionError

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3], [20, 21, 22], [1, 2, 3, 4, 5]]
NEW, EOS = 12, 94
RUNS = [{"method": "on_demand"}, {"method": "specmoe", "gamma": 4, "batch_size": 3}]


class Case:
    """A tiny checkpoint of one family, transformers' own model of it, and an engine."""

    def __init__(self, folder, model, **options):
        self.folder = folder
        self.model = model
        self.options = options
        model.generation_config = GenerationConfig(
            pad_token_id=0, decoder_start_token_id=self.start(model)
        )
        self.engine = specmoe.load(folder, draft_experts=3, dtype=torch.float64)
        self.engine.model.generation_config = model.generation_config

    @staticmethod
    def start(model):
        return getattr(model.config, "decoder_start_token_id", None)

    def alone(self, prompts=PROMPTS, **settings) -> list[list[int]]:
        """transformers' greedy text of each prompt alone."""
        settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            found.append(
                self.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[
                    0
                ].tolist()
            )
        return found

    def ours(self, run, prompts=PROMPTS, **settings) -> list[list[int]]:
        return tokens_of(
            self.engine.generate(prompts, **{"max_new_tokens": NEW, **run, **settings})
        )


@pytest.fixture(scope="module")
def case(tiny, tmp_path_factory):
    made: dict[str, Case] = {}

    def get(family: str) -> Case:
        if family not in made:
            if family == "qwen2_moe":
                folder = tiny(family)
                made[family] = Case(folder, causal_reference(folder))
            else:
                folder = make_family(family, tmp_path_factory.mktemp(family))
                made[family] = Case(folder, family_reference(family, folder))
        return made[family]

    yield get
    for each in made.values():
        each.engine.close()


def commonest(texts: list[list[int]], num: int = 3) -> list[int]:
    """Tokens that the plain texts hold most often: forbidding them changes something."""
    counts = Counter(
        token for prompt, text in zip(PROMPTS, texts) for token in text[len(prompt) :] or text[2:]
    )
    return [token for token, _ in counts.most_common(num)]


def pairs(texts: list[list[int]]) -> list[list[int]]:
    return [text[-3:-1] for text in texts]


SETTINGS = {
    "repetition_penalty": lambda texts: {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": lambda texts: {"no_repeat_ngram_size": 1},
    "bad_words_ids": lambda texts: {"bad_words_ids": [[commonest(texts)[0]], *pairs(texts)]},
    "sequence_bias": lambda texts: {
        "sequence_bias": [[[commonest(texts)[0]], -9.0], [pairs(texts)[0], 4.0]]
    },
    "suppress_tokens": lambda texts: {"suppress_tokens": commonest(texts)},
    "begin_suppress_tokens": lambda texts: {
        "begin_suppress_tokens": [
            t for p, text in zip(PROMPTS, texts) for t in (text[len(p)], text[1])
        ]
    },
    "eos_list": lambda texts: {"eos_token_id": commonest(texts)},
    "min_new_tokens": lambda texts: {"eos_token_id": commonest(texts), "min_new_tokens": 7},
    "min_length": lambda texts: {"eos_token_id": commonest(texts), "min_length": 9},
    "forced_eos_token_id": lambda texts: {"forced_eos_token_id": EOS},
    "forced_bos_token_id": lambda texts: {"forced_bos_token_id": 33},
    "exponential_decay": lambda texts: {
        "eos_token_id": EOS,
        "exponential_decay_length_penalty": (2, 3.0),
    },
    "encoder_repetition_penalty": lambda texts: {"encoder_repetition_penalty": 6.0},
    "encoder_no_repeat_ngram_size": lambda texts: {"encoder_no_repeat_ngram_size": 1},
    "watermarking_config": lambda texts: {"watermarking_config": WatermarkingConfig(bias=4.0)},
    "together": lambda texts: {
        "repetition_penalty": 1.4,
        "no_repeat_ngram_size": 2,
        "suppress_tokens": commonest(texts),
        "eos_token_id": [EOS, 40, 41, 42],
        "min_new_tokens": 5,
        "renormalize_logits": True,
        "remove_invalid_values": True,
    },
}


# Switch: where an encoder or the decoder's start token make a difference
OF_SWITCH = """encoder_repetition_penalty encoder_no_repeat_ngram_size forced_bos_token_id
    min_length begin_suppress_tokens together""".split()
FAMILY_AND_SETTING = [
    *itertools.product(["qwen2_moe", "nllb-moe"], SETTINGS),
    *itertools.product(["switch_transformers"], OF_SWITCH),
]


@pytest.mark.parametrize("family, name", FAMILY_AND_SETTING)
def test_a_setting_gives_transformers_tokens_as_option_and_as_the_checkpoints_own(
    case, family, name
):
    case, prompts = case(family), PROMPTS
    before = case.alone()
    settings = SETTINGS[name](before)
    if name.startswith("encoder_"):
        # what the text would hold is in the prompt, so that there is something to repeat
        prompts = [prompt + text[-6:] for prompt, text in zip(PROMPTS, before)]
        before = case.alone(prompts)
    want = case.alone(prompts, **settings)
    assert want != before, "the setting changes the text"
    for run in RUNS:
        assert case.ours(run, prompts, **settings) == want
    own = GenerationConfig(**{**case.model.generation_config.to_dict(), **settings})
    plain, case.engine.model.generation_config = case.engine.model.generation_config, own
    try:
        assert case.ours(RUNS[1], prompts) == want
    finally:
        case.engine.model.generation_config = plain


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_what_lies_on_disk_counts(tiny, tmp_path, file):
    folder = shutil.copytree(tiny("qwen2_moe"), tmp_path / "m")
    (folder / "generation_config.json").unlink(missing_ok=True)
    found = json.loads((folder / file).read_text()) if file == "config.json" else {}
    (folder / file).write_text(
        json.dumps({**found, "repetition_penalty": 1.8, "pad_token_id": 0, "use_cache": True})
    )
    model = causal_reference(folder)
    want = [
        model.generate(torch.tensor([p]), max_new_tokens=NEW, do_sample=False)[0].tolist()
        for p in PROMPTS
    ]
    with specmoe.load(folder, draft_experts=3, dtype=torch.float64) as engine:
        assert tokens_of(engine.generate(PROMPTS, max_new_tokens=NEW, **RUNS[1])) == want
        assert (
            tokens_of(
                engine.generate(PROMPTS, max_new_tokens=NEW, repetition_penalty=1.0, **RUNS[1])
            )
            != want
        )


def test_drafts_are_still_taken_and_still_rejected_under_processors(case):
    """Without processors on the draft's side hardly any token of a changed text would be taken."""
    engine = case("qwen2_moe").engine
    stats = engine.generate(
        PROMPTS, max_new_tokens=40, repetition_penalty=1.8, eos_token_id=[], **RUNS[1]
    ).stats
    assert 0.1 < stats.acceptance_rate < 1


def test_each_prompt_has_its_own_settings(case):
    case = case("qwen2_moe")
    own = [
        {"repetition_penalty": 1.8},
        None,
        {"max_new_tokens": 3},
        {"suppress_tokens": list(range(3, 40)), "min_length": 2},
    ]
    want = [case.alone([prompt], **(each or {}))[0] for prompt, each in zip(PROMPTS, own)]
    for run in RUNS:
        assert case.ours(run, settings=own) == want
        assert case.ours(run, settings=[None] * 4) == case.alone()
        longer = case.ours(run, settings=[None, {"max_new_tokens": 20}, None, None])
        assert longer == [
            case.alone([prompt], max_new_tokens=20 if i == 1 else NEW)[0]
            for i, prompt in enumerate(PROMPTS)
        ]


def test_a_prompt_may_be_greedy_among_sampled_ones_and_the_other_way_round(case):
    case = case("qwen2_moe")
    sampled = case.ours(RUNS[0], do_sample=True, seed=3)
    for run in RUNS:
        for rule in ("coupled", "rejection"):
            mixed = case.ours(
                run,
                do_sample=True,
                seed=3,
                accept_rule=rule,
                settings=[{"temperature": 0}, {}, {}, {}],
            )
            assert mixed[0] == case.alone()[0]
        assert (
            case.ours(run, seed=3, settings=[None, {"do_sample": True}, None, None])[1]
            == sampled[1]
        )
    assert sampled[1] != case.alone()[1]


def test_options_win_over_generation_config_and_that_over_the_checkpoint(case):
    case = case("qwen2_moe")
    for given in ({"repetition_penalty": 1.8}, GenerationConfig(repetition_penalty=1.8)):
        assert case.ours(RUNS[1], generation_config=given) == case.alone(repetition_penalty=1.8)
        assert case.ours(RUNS[1], generation_config=given, repetition_penalty=1.0) == case.alone()
    assert case.ours({}, generation_config={"max_new_tokens": 2}, max_new_tokens=3) == case.alone(
        max_new_tokens=3
    )


# ---- functions of the user ----


def only_multiples_of_the_length(ids, scores):
    """Looks at the whole context: wrong for any position but its own."""
    allowed = torch.arange(scores.shape[-1]) % 7 == (ids.sum() + ids.shape[-1]) % 7
    return scores.masked_fill(~allowed, -torch.inf)


@pytest.mark.parametrize("family", ["qwen2_moe", "switch_transformers"])
def test_a_logits_processor_sees_every_position_as_if_decoded_alone(case, family):
    case = case(family)
    for given in (
        [only_multiples_of_the_length],
        LogitsProcessorList([only_multiples_of_the_length]),
    ):
        want = case.alone(logits_processor=LogitsProcessorList([only_multiples_of_the_length]))
        assert want != case.alone()
        for run in RUNS:
            assert case.ours(run, logits_processor=given) == want
    assert case.ours(RUNS[1], logits_processor=only_multiples_of_the_length) == want


def test_a_processor_of_the_users_takes_the_place_of_one_of_its_kind_as_in_transformers(case):
    case = case("qwen2_moe")
    eos = commonest(case.alone())
    own = LogitsProcessorList([MinLengthLogitsProcessor(11, eos)])
    assert case.ours(RUNS[1], logits_processor=own, min_length=3, eos_token_id=eos) == case.alone(
        logits_processor=own, min_length=3, eos_token_id=eos
    )


def raises(ids, scores):
    return scores if ids.shape[-1] < 4 else 1 / 0


WRONG = {
    "raises": raises,
    "returns": lambda ids, scores: None,
    "shape": lambda ids, scores: scores[0],
    "NaN": lambda ids, scores: scores * torch.nan,
    "no token": lambda ids, scores: scores - torch.inf,
}


def test_a_prompts_own_length_takes_the_place_of_the_default(case):
    """64 more tokens would not fit; the 4 that the prompt asks for do."""
    case = case("qwen2_moe")
    prompt = [3 + place % 90 for place in range(230)]
    output = case.engine.generate([prompt], settings=[{"max_new_tokens": 4}], eos_token_id=[])
    assert output.sequences[0].tolist() == case.alone([prompt], max_new_tokens=4)[0]
    with pytest.raises(OptionError, match="64"):
        case.engine.generate([prompt, prompt], settings=[{"max_new_tokens": 4}, None])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("what", WRONG)
def test_a_processor_that_fails_is_named_and_the_engine_goes_on(case, what, run):
    case = case("qwen2_moe")
    with pytest.raises(
        OptionError,
        match="logits processor (raises|<lambda>) (raised ZeroDivisionError|returned|left no)",
    ):
        case.ours(run, logits_processor=[WRONG[what]])
    assert case.ours(run) == case.alone()


def test_a_processor_that_fails_only_on_rejected_drafts_stops_nothing(case):
    """It knows the prefixes of the row's own text, and refuses those that only drafts come to."""
    case = case("qwen2_moe")
    want, asked = case.alone(), []

    def knows_only_the_text(ids, scores):
        asked.append(any(text[: ids.shape[-1]] == ids[0].tolist() for text in want))
        if not asked[-1]:
            raise LookupError("never seen")
        return scores

    assert (
        case.ours({"method": "specmoe", "gamma": 4}, logits_processor=[knows_only_the_text]) == want
    )
    assert not all(asked), "a draft went astray and was refused"


def ends_after_a_multiple_of_five(ids, scores, **kwargs):
    return torch.tensor([bool(row[-1] % 5 == 0) for row in ids])


def test_stopping_criteria_end_each_row_at_its_first_match(case):
    case = case("qwen2_moe")
    for criteria in ([ends_after_a_multiple_of_five], [MaxLengthCriteria(9)]):
        want = case.alone(stopping_criteria=StoppingCriteriaList(criteria))
        assert want != case.alone()
        for run in RUNS:
            assert case.ours(run, stopping_criteria=StoppingCriteriaList(criteria)) == want
    with pytest.raises(OptionError, match="stopping criterion raises raised ZeroDivisionError"):
        case.ours(RUNS[1], stopping_criteria=[raises])


def test_stop_strings_end_the_text_as_in_transformers():
    from transformers import AutoModelForCausalLM

    with specmoe.load("tiny-skewed", draft_experts=4) as engine:
        model = AutoModelForCausalLM.from_pretrained(engine.model.name_or_path, dtype=torch.float32)
        prompts = ["The ", "A small "]
        free = engine.generate(prompts, max_new_tokens=24, method="on_demand").new_texts
        stops = [text[len(text) // 2 :][:2] for text in free if text]
        want = []
        for prompt in prompts:
            ids = engine.tokenizer(prompt, return_tensors="pt")
            out = model.generate(
                **ids,
                max_new_tokens=24,
                do_sample=False,
                stop_strings=stops,
                tokenizer=engine.tokenizer,
            )
            want.append(out[0].tolist())
        for run in RUNS:
            output = engine.generate(prompts, max_new_tokens=24, stop_strings=stops, **run)
            assert tokens_of(output) == want and output.new_texts != free


# ---- sampling ----

SAMPLED = {
    "repetition_penalty": 1.5,
    "temperature": 1.3,
    "top_k": 30,
    "min_p": 0.001,
    "suppress_tokens": [40, 41],
}


def test_coupled_sampling_gives_one_text_whatever_method_gamma_and_batch(case):
    case = case("qwen2_moe")
    want = case.ours(RUNS[0], do_sample=True, seed=5, **SAMPLED)
    assert want != case.ours(RUNS[0], do_sample=True, seed=5)
    for run in ({"gamma": 1}, {"gamma": 4, "batch_size": 1}, {"gamma": 6, "batch_size": 3}):
        assert case.ours({"method": "specmoe", **run}, do_sample=True, seed=5, **SAMPLED) == want
    own = [SAMPLED] * len(PROMPTS)
    assert case.ours(RUNS[1], do_sample=True, seed=5, settings=own) == want


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_sampled_tokens_have_the_processed_distribution(case, rule):
    """Two tokens of one prompt, sampled 2000 times, against transformers' own processors."""
    case, num, prompt = case("qwen2_moe"), 2000, [5, 6, 7]
    settings = {"repetition_penalty": 2.5, "top_k": 4}
    texts = case.ours(
        {"method": "specmoe", "gamma": 3, "batch_size": 500},
        [prompt] * num,
        do_sample=True,
        seed=7,
        accept_rule=rule,
        max_new_tokens=2,
        **settings,
    )
    processors = case.model._get_logits_processor(
        GenerationConfig(do_sample=True, **settings), input_ids_seq_length=3
    )

    def distribution(context, processed=True):
        logits = case.model(torch.tensor([context])).logits[:, -1].float()
        return (
            (processors(torch.tensor([context]), logits) if processed else logits)[0]
            .softmax(-1)
            .double()
        )

    def second(processed):
        p = distribution(prompt, processed)
        return sum(
            p[token] * distribution([*prompt, token], processed)
            for token in p.topk(4).indices.tolist()
        )

    with torch.no_grad():
        for place, p in ((3, distribution(prompt)), (4, second(True))):
            counts = torch.bincount(torch.tensor([text[place] for text in texts]), minlength=97)
            assert chi_square_p(counts, p) > 1e-6
            assert (
                chi_square_p(counts, distribution(prompt, False) if place == 3 else second(False))
                < 1e-12
            )


def test_the_checkpoints_sampling_settings_are_the_defaults_once_sampling_is_asked_for(case):
    case = case("qwen2_moe")
    plain = case.engine.model.generation_config
    case.engine.model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=9, top_p=0.9, min_p=0.01
    )
    try:
        assert case.ours(RUNS[1]) == case.alone(), "its do_sample alone is not followed"
        own = case.ours(RUNS[1], do_sample=True, seed=1)
        cold = case.ours(RUNS[1], do_sample=True, seed=1, temperature=0.1)
    finally:
        case.engine.model.generation_config = plain
    assert (
        own
        == case.ours(
            RUNS[0], do_sample=True, seed=1, temperature=2.0, top_k=9, top_p=0.9, min_p=0.01
        )
        != cold
    )
    assert cold == case.ours(
        RUNS[0], do_sample=True, seed=1, temperature=0.1, top_k=9, top_p=0.9, min_p=0.01
    )


def test_a_sampled_run_can_be_repeated_from_the_seed_in_its_stats(case):
    engine = case("qwen2_moe").engine
    first = engine.generate(PROMPTS, do_sample=True, max_new_tokens=NEW)
    again = engine.generate(PROMPTS, do_sample=True, max_new_tokens=NEW, seed=first.stats.seed)
    assert tokens_of(first) == tokens_of(again) and again.stats.seed == first.stats.seed
    assert engine.generate(PROMPTS, max_new_tokens=1).stats.seed is None


# ---- refused ----

REFUSED = {
    "num_beams": 2,
    "num_beam_groups": 2,
    "guidance_scale": 1.5,
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "token_healing": True,
    "max_time": 1.0,
    "prompt_lookup_num_tokens": 3,
    "diversity_penalty": 0.5,
    "force_words_ids": [[5]],
    "assistant_early_exit": 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name_wherever_it_stands(case, name):
    case = case("qwen2_moe")
    plain = case.engine.model.generation_config
    with pytest.raises(OptionError, match=f"{name}=.* cannot be followed"):
        case.ours(RUNS[1], **{name: REFUSED[name]})
    with pytest.raises(OptionError, match=f"settings.0.: {name} cannot be followed"):
        case.ours(RUNS[1], settings=[{name: REFUSED[name]}, None, None, None])
    own = GenerationConfig()
    setattr(own, name, REFUSED[name])
    case.engine.model.generation_config = own
    try:
        with pytest.raises(OptionError, match=f"{name}=.* cannot be followed"):
            case.ours(RUNS[1])
        if name == "num_beams":
            assert case.ours(RUNS[1], num_beams=1) == case.alone()
    finally:
        case.engine.model.generation_config = plain


BAD = [
    ({"temperature": 0.8}, "no effect without do_sample"),
    ({"min_p": 0.1}, "no effect without do_sample"),
    ({"do_sample": "no"}, "do_sample='no' must be True or False"),
    ({"max_length": 0}, "max_length=0 must be a whole number of at least 1"),
    ({"output_scores": True}, "output_scores=True is not an option here"),
    ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0 cannot be used"),
    ({"suppress_tokens": "x"}, "suppress_tokens='x' cannot be used"),
    ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size='3' cannot be used"),
    ({"bad_words_ids": [[1000]]}, "NoBadWordsLogitsProcessor raised ValueError"),
    ({"stop_strings": "a"}, "stop_strings need a tokenizer"),
    ({"stop_strings": [""]}, "must be a text or a list of texts"),
    ({"logits_processor": 3}, "logits_processor holds 3"),
    ({"stopping_criteria": [None]}, "stopping_criteria holds None"),
    ({"eos_token_id": "x"}, "must be a token id or a list"),
    ({"eos_token_id": [-5]}, "must be a token id or a list"),
    ({"generation_config": 3}, "must be a GenerationConfig or a dict"),
    (
        {"generation_config": {"repetition_penalti": 2.0}},
        "unknown setting 'repetition_penalti': did you mean",
    ),
    ({"settings": {}}, "a list with a dict or None per prompt"),
    ({"settings": [None]}, "1 entries for 4 prompts"),
    ({"settings": [3, None, None, None]}, r"settings\[0\] must be a dict or None"),
    ({"settings": [None, {"sed": 1}, None, None]}, r"settings\[1\]: unknown setting 'sed'"),
    ({"settings": [None, {"max_new_tokens": 0}, None, None]}, r"settings\[1\]: max_new_tokens"),
    ({"settings": [None, {"top_k": 5}, None, None]}, r"settings\[1\]: top_k=5 has no effect"),
    ({"own": {}}, "unknown option 'own'"),
]


@pytest.mark.parametrize("options, words", BAD, ids=lambda value: str(value)[:40])
def test_bad_settings_get_one_sentence(case, options, words):
    with pytest.raises(OptionError, match=words) as refusal:
        case("qwen2_moe").ours(RUNS[1], **options)
    assert "\n" not in str(refusal.value)


def test_end_tokens_may_be_a_tensor(case):
    case = case("qwen2_moe")
    eos = commonest(case.alone())
    for given in (torch.tensor(eos), tuple(eos), torch.tensor(eos).numpy()):
        assert case.ours(RUNS[1], eos_token_id=given) == case.alone(eos_token_id=eos)
    assert case.ours(RUNS[1], eos_token_id=torch.tensor(eos[0])) == case.alone(eos_token_id=eos[0])


def test_a_watermark_may_be_a_dict_as_in_a_json_line(case):
    case = case("qwen2_moe")
    want = case.ours(RUNS[0], watermarking_config=WatermarkingConfig(bias=4.0))
    assert case.ours(RUNS[1], settings=[{"watermarking_config": {"bias": 4.0}}] * 4) == want


def test_without_settings_no_row_has_rules(case, monkeypatch):
    """The fast path: nothing is asked per token, and logits go to the sampler as they are."""
    from specmoe.speculate import processors

    def never(*args):
        raise AssertionError("a row was processed")

    monkeypatch.setattr(processors.RowRules, "scores", never)
    monkeypatch.setattr(processors.RowRules, "end", never)
    case = case("qwen2_moe")
    assert case.ours(RUNS[1]) == case.alone()
    case.ours(RUNS[1], do_sample=True, temperature=0.7, top_k=5, top_p=0.9)


def test_an_adapter_is_refused_alone_and_beside_a_model(tiny, tmp_path):
    beside = shutil.copytree(tiny("qwen2_moe"), tmp_path / "beside")
    (tmp_path / "alone").mkdir()
    for folder in (beside, tmp_path / "alone"):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            specmoe.load(folder, draft_experts=3)
