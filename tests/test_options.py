"""Bad input gets one clear sentence and nothing half done."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import PROMPTS, reference_tokens, tokens_of

import specmoe
from specmoe import FastMemoryError, OptionError, SpecMoEError
from specmoe.engine.settings import PROCESSED
from specmoe.offload.budget import plan_memory
from specmoe.options import GenerateOptions, LoadOptions, parse_bytes, torch_dtype


@pytest.fixture(scope="module")
def engine(open_engine):
    return open_engine("mixtral")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"method": "specmo"}, r"method='specmo' is unknown: did you mean 'specmoe'\? .*on_demand"),
        ({"method": "ondemand"}, "did you mean 'on_demand'"),
        ({"method": None}, "method=None is unknown"),
        ({"eviction": "zzz"}, r"^eviction='zzz' is unknown: use one of decayed, .*, temporal$"),
        ({"eviction": "lfru"}, "eviction='lfru'.*did you mean 'l[rf]u'"),
        ({"draft_set": "hot_tmporal"}, "draft_set='hot_tmporal'.*did you mean 'hot_temporal'"),
        ({"draft_set": 3}, "draft_set=3 is unknown"),
        ({"substitute": "afinity"}, "substitute='afinity'.*did you mean 'affinity'"),
        ({"accept_rule": "coupling"}, "accept_rule='coupling'.*did you mean 'coupled'"),
        ({"max_new_token": 3}, "unknown option 'max_new_token': did you mean 'max_new_tokens'"),
        ({"num_beams": 4}, "num_beams=4 cannot be followed"),
        ({"gamma": -1}, "gamma=-1 must be at least 0"),
        ({"gamma": 2.5}, "gamma=2.5 must be a whole number"),
        ({"gamma": True}, "gamma=True must be"),
        ({"gamma": "4"}, "gamma='4' must be"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": None}, "max_new_tokens=None must be"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"temperature": -1}, "temperature=-1 must be at least 0"),
        ({"temperature": float("nan"), "do_sample": True}, "temperature=nan must be"),
        ({"temperature": 0, "do_sample": True}, "use do_sample=False"),
        ({"top_p": 0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.2}, "top_p=1.2 must be"),
        ({"top_k": -2}, "top_k=-2 must be at least 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        (
            {"streamer": SimpleNamespace(put=print, end=print)},
            "streamer shows one prompt, and 4 were given",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options_of_generate_are_named_with_the_way_out(options, sentence, engine):
    with pytest.raises(OptionError, match=sentence):
        engine.generate(PROMPTS, **options)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"stor": "disk"}, "unknown option 'stor': did you mean 'store'"),
        ({"store": "dsk"}, "store='dsk' is unknown: did you mean 'disk'"),
        ({"dtype": "float31"}, "dtype='float31' is unknown: use 'float32'"),
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
        ({"dtype": "nn"}, "dtype='nn' is unknown"),
        ({"draft_experts": 0}, "draft_experts=0 must be at least 1"),
        ({"draft_experts": 9}, "draft_experts=9 is more than the 8 experts"),
        ({"draft_experts": 1.5}, "draft_experts=1.5 must be a whole number"),
        ({"num_readers": 0}, "num_readers=0 must be at least 1"),
        ({"link_bytes_per_s": 0}, "link_bytes_per_s=0 must be"),
        ({"link_bytes_per_s": "fast"}, "link_bytes_per_s='fast' must be a number"),
        *(
            ({name: value}, f"{name}=.* is not a size: write bytes or e.g. '2GiB'")
            for name in ("fast_memory", "expert_bytes")
            for value in ("2 apples", "-1", "", "GiB", "1..2", ".", "1e999", True)
        ),
        ({"fast_memory": "0"}, "fast_memory='0' must be more than zero"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_options_of_load_are_named_with_the_way_out(options, sentence, tiny):
    with pytest.raises(OptionError, match=sentence):
        specmoe.load(tiny("mixtral"), **options)


@pytest.mark.parametrize(
    "prompts, sentence",
    [
        ([], "prompts is empty: pass at least one"),
        (torch.zeros(0, 4, dtype=torch.long), "prompts is empty"),
        ([[1, 2], []], "prompt 1 is empty"),
        ([[1], ""], "prompt 1 is a text, but the checkpoint has no tokenizer"),
        ("text", "prompts is one string: pass a list"),
        ([[1, 2], [97]], "prompt 1 holds token id 97, outside the vocabulary of 97"),
        ([[-1]], "prompt 0 holds token id -1"),
        ([[1.5]], "prompt 0 is neither a text, a chat nor a list of token ids"),
        ([[True]], "prompt 0 is neither"),
        ([[[1, 2]]], "prompt 0 is neither"),
        ([3, 4], "prompt 0 is neither"),
        ([[5] * 256], "prompt 0 has 256 tokens; the model has 256 positions: shorten it"),
        (
            [[5], [5] * 200],
            "prompt 1 has 200 tokens, and max_new_tokens=64 would pass .* at most 56 "
            "new tokens fit",
        ),
        (torch.zeros(3, dtype=torch.long), "expected integer ids"),
        (torch.zeros(1, 3), "expected integer ids"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_prompts_are_named_by_their_number(prompts, sentence, engine):
    with pytest.raises(OptionError, match=sentence):
        engine.generate(prompts, max_new_tokens=64)


def test_a_mask_must_fit_and_leave_something(engine):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(
        OptionError,
        match="attention_mask has another shape than prompts, whose rows have .3, 3. tokens",
    ):
        engine.generate(ids, attention_mask=torch.ones(2, 2))
    with pytest.raises(OptionError, match="prompt 1 is empty"):
        engine.generate(ids, attention_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))


def test_a_prompt_may_fill_every_position(engine, tiny):
    prompt = [5 + i % 80 for i in range(250)]
    want = reference_tokens(tiny("mixtral"), [prompt], 6)
    assert (
        tokens_of(
            engine.generate([prompt], method="specmoe", gamma=4, max_new_tokens=6, eos_token_id=[])
        )
        == want
    )


def test_nothing_is_left_half_done_by_bad_input(engine):
    before = tokens_of(
        engine.generate(PROMPTS, method="on_demand", max_new_tokens=4, eos_token_id=[])
    )
    for bad in (
        {"prompts": [[1], []]},
        {"prompts": PROMPTS, "gamma": -1},
        {"prompts": PROMPTS, "streamer": object()},
    ):
        with pytest.raises(OptionError):
            engine.generate(**bad)
        assert engine.store.is_idle() and engine.decoder.kv_cache is None
    assert (
        tokens_of(engine.generate(PROMPTS, method="specmoe", max_new_tokens=4, eos_token_id=[]))
        == before
    )


def test_a_wrong_own_draft_set_stops_the_run_and_the_engine_goes_on(engine):
    with pytest.raises(OptionError, match="draft_set <lambda> gave"):
        engine.generate(PROMPTS, method="specmoe", gamma=2, draft_set=lambda *_: [99])
    assert engine.generate(PROMPTS, method="specmoe", gamma=2, max_new_tokens=3).sequences


def test_a_closed_engine_says_so(tiny):
    with specmoe.load(tiny("mixtral"), dtype="float64") as engine:
        pass
    for call in (
        lambda: engine.generate([[1]]),
        lambda: engine.check_exact([[1]]),
        lambda: engine.next_logits([1]),
    ):
        with pytest.raises(SpecMoEError, match="the engine is closed: load it again"):
            call()


# ---- sizes ----


@pytest.mark.parametrize(
    "text, num_bytes",
    [
        (4096, 4096),
        ("4096", 4096),
        ("2GiB", 2 * 2**30),
        ("1.5 MB", 1_500_000),
        ("3k", 3000),
        ("1e9", 10**9),
        (2e9, 2 * 10**9),
        ("0.5gib", 2**29),
        (".5 kB", 500),
        (1e20, 10**20),
        (None, None),
    ],
)
def test_sizes_are_read_as_people_write_them(text, num_bytes):
    assert parse_bytes("fast_memory", text) == num_bytes


def plan(**options):
    return plan_memory(100, 30, (3, 8), LoadOptions(**options))


@pytest.mark.parametrize("draft_experts", [1, 2, 5, 8])
def test_too_little_memory_names_the_bytes_and_exactly_these_work(draft_experts):
    with pytest.raises(FastMemoryError, match="need at least") as refusal:
        plan(draft_experts=draft_experts, fast_memory=50)
    needed = int(str(refusal.value).rpartition("at least ")[2].split()[0])
    assert needed == (3 * draft_experts + 1) * 100 + 30
    assert plan(draft_experts=draft_experts, fast_memory=needed).used_bytes == needed
    with pytest.raises(FastMemoryError):
        plan(draft_experts=draft_experts, fast_memory=needed - 1)


@pytest.mark.parametrize("fast_memory", range(430, 4000, 170))
def test_a_plan_never_uses_more_than_was_given(fast_memory):
    memory = plan(fast_memory=fast_memory)
    assert memory.used_bytes <= fast_memory == memory.fast_memory_bytes
    assert 1 <= memory.draft_experts <= 8 and 0 <= memory.cached_experts <= 8
    assert memory.num_slots > 3 * max(memory.draft_experts, memory.cached_experts)


@pytest.mark.parametrize("draft_experts", [None, 1, 8])
def test_n_alone_says_what_it_costs(draft_experts):
    memory = plan(draft_experts=draft_experts)
    assert memory.used_bytes == memory.fast_memory_bytes
    assert memory.draft_experts == (draft_experts or 4)


def test_given_both_n_drafts_and_the_rest_is_buffers():
    memory = plan(draft_experts=2, fast_memory=2000)
    assert (memory.draft_experts, memory.num_slots) == (2, 19)


def test_options_are_frozen():
    for options in (LoadOptions(), GenerateOptions()):
        with pytest.raises(AttributeError):
            options.seed = 3


def test_dtypes_by_name_or_as_they_are():
    assert (
        torch_dtype("bfloat16") is torch_dtype(torch.bfloat16) is torch.bfloat16
        and torch_dtype(None) is None
    )


def test_a_device_that_is_not_here_is_named(tiny):
    with pytest.raises(OptionError, match="device='nowhere'.*device='cpu'"):
        specmoe.load(str(tiny("mixtral")), device="nowhere")


@pytest.mark.parametrize("prompts", [None, 7])
def test_prompts_of_no_known_form_are_named(open_engine, prompts):
    with pytest.raises(OptionError, match="pass a list of texts|give them once"):
        open_engine("mixtral").generate(prompts)


# ---- every option with every kind of value: used, or refused in one sentence before anything is
# done

ODD = {
    "None": None,
    "True": True,
    "False": False,
    "-1": -1,
    "0": 0,
    "1": 1,
    "3": 3,
    "2**80": 2**80,
    "1.5": 1.5,
    "NaN": float("nan"),
    "Inf": float("inf"),
    "empty": "",
    "digits": "7",
    "word": "word",
    "list": [],
    "[1]": [1],
    "dict": {},
    "numpy's 2": np.int64(2),
    "torch's 2": torch.tensor(2),
    "an array": np.ones(2),
    "an object": object(),
    "a function": lambda *_: None,
    "bytes": b"x",
    "a type": int,
}
GENERATE = sorted({f.name for f in dataclasses.fields(GenerateOptions)} - {"own"}) + list(PROCESSED)
LOAD = sorted(f.name for f in dataclasses.fields(LoadOptions))


@pytest.mark.parametrize("name", GENERATE)
def test_an_option_of_generate_takes_any_value_or_refuses_it(name, engine):
    for value in ODD.values():
        options = {"max_new_tokens": 2, "method": "specmoe", "gamma": 2, name: value}
        if name == "progress" and callable(value):
            continue  # a user's own function is called as it is
        try:
            engine.generate(PROMPTS[:2], **options)
        except SpecMoEError as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 600, (name, value)
    assert engine.store.is_idle() and not engine.turns.is_taken()


@pytest.mark.parametrize("name", LOAD)
def test_an_option_of_load_takes_any_value_or_refuses_it(name, tiny):
    for value in ODD.values():
        try:
            specmoe.load(tiny("mixtral"), **{name: value}).close()
        except SpecMoEError as refusal:
            assert "\n" not in str(refusal) and len(str(refusal)) < 600, (name, value)


@pytest.mark.parametrize("value", [np.int64(2), torch.tensor(2), np.int32(2)])
def test_scalars_of_other_libraries_count_as_numbers(value, engine):
    want = tokens_of(engine.generate(PROMPTS, max_new_tokens=2, gamma=2, method="specmoe"))
    assert (
        tokens_of(
            engine.generate(
                PROMPTS, max_new_tokens=value, gamma=value, method="specmoe", batch_size=value
            )
        )
        == want
    )
