"""Every method gives the tokens of transformers' own greedy decoding, whatever is set, on every
architecture."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from conftest import NEW_TOKENS, PROMPTS, reference_model, reference_tokens, tokens_of
from tiny_architectures import ARCHITECTURES

import specmoe
from specmoe.engine import run as engine_run
from specmoe.engine.exactness import compare_methods
from specmoe.offload.pool import ResidentPool
from specmoe.offload.slots import Slots

METHODS = {
    "on_demand": {},
    "overlapped": {},
    "cached": {},
    "specmoe": {"gamma": 4},
    "specmoe_router_no_prefetch": {
        "method": "specmoe",
        "gamma": 3,
        "substitute": "router",
        "prefetch": False,
    },
    "auto": {},
    "resident": {},
}
FINER = {
    **{
        f"eviction_{name}": {"method": "cached", "eviction": name}
        for name in ("lru", "lfu", "static", "temporal")
    },
    **{
        f"draft_set_{name}": {"draft_set": name}
        for name in ("random", "hot_global", "hot_temporal")
    },
    "own_draft_set": {
        "draft_set": lambda layer, counts, num_draft: [(layer + i) % 8 for i in range(num_draft)]
    },
    **{
        f"substitute_{n}": {"substitute": n}
        for n in ("affinity", "router", "random", "drop", "no_experts")
    },
    "no_prefetch": {"prefetch": False},
    "planned_gamma": {"gamma": None},
    "gamma_0": {"gamma": 0},
    "gamma_1": {"gamma": 1},
    "gamma_past_the_end": {"gamma": NEW_TOKENS + 4},
    "auto_one_row": {"method": "auto", "batch_size": 1},
    "rows_one_at_a_time": {"batch_size": 1},
    "all_rows_at_once": {"batch_size": 4},
}


def generate(engine, prompts=PROMPTS, **options) -> list[list[int]]:
    options = {
        "method": "specmoe",
        "gamma": 4,
        "batch_size": 2,
        "max_new_tokens": NEW_TOKENS,
        "eos_token_id": [],
        **options,
    }
    if options["method"] not in ("specmoe", "auto"):
        options.pop("gamma")
    if options["method"] == "auto":
        options["gamma"] = None
    return tokens_of(engine.generate(prompts, **options))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_method_gives_transformers_own_tokens(architecture, method, open_engine, plain):
    assert generate(open_engine(architecture), **{"method": method, **METHODS[method]}) == plain(
        architecture
    )


@pytest.mark.parametrize("option", FINER)
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_no_option_changes_the_tokens(architecture, option, open_engine, plain):
    assert generate(open_engine(architecture), **FINER[option]) == plain(architecture)


@pytest.mark.parametrize(
    "load_options",
    [
        {"store": "memory"},
        {"num_readers": 1},
        {"draft_experts": 1},
        {"draft_experts": 8},
        {"expert_bytes": "100KiB"},
        {"link_bytes_per_s": 2e8},
        {"trace": False},
    ],
    ids=str,
)
def test_how_the_model_is_loaded_does_not_change_the_tokens(load_options, tiny, plain):
    with specmoe.load(
        tiny("qwen3_moe"), **{"dtype": "float64", "draft_experts": 2, **load_options}
    ) as engine:
        for method in ("on_demand", "overlapped", "specmoe"):
            assert generate(engine, method=method) == plain("qwen3_moe")


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_the_smallest_fast_memory_still_gives_the_tokens(architecture, tiny, plain):
    folder = tiny(architecture)
    with pytest.raises(specmoe.FastMemoryError, match="need at least") as refusal:
        specmoe.load(folder, dtype=torch.float64, fast_memory=1)
    needed = int(str(refusal.value).rpartition("at least ")[2].split()[0])
    with specmoe.load(folder, dtype=torch.float64, fast_memory=needed) as engine:
        assert engine.memory.used_bytes == needed
        for method in ("on_demand", "overlapped", "cached", "specmoe"):
            assert generate(engine, method=method) == plain(architecture)
    with pytest.raises(specmoe.FastMemoryError):
        specmoe.load(folder, dtype=torch.float64, fast_memory=needed - 1)


@pytest.mark.parametrize(
    "architecture, config",
    [
        ("mixtral", {"sliding_window": 6}),
        ("gpt_oss", {}),  # sliding and full attention mixed, windows of 8
    ],
    ids=["all_sliding", "mixed"],
)
def test_tokens_are_right_far_past_the_sliding_window(architecture, config, open_engine, tiny):
    prompts, new_tokens = [list(range(3, 33)), [4, 5], list(range(40, 51))], 24
    want = reference_tokens(tiny(architecture, **config), prompts, new_tokens)
    engine = open_engine(architecture, config)
    for gamma in (4, 11):
        assert generate(engine, prompts, gamma=gamma, max_new_tokens=new_tokens) == want


def test_sliding_windows_matter_in_that_test(tiny):
    prompts = [list(range(3, 33))]
    narrow, wide = (
        reference_tokens(tiny("mixtral", sliding_window=w), prompts, 40) for w in (6, 200)
    )
    assert narrow != wide


def test_many_rows_give_what_one_row_gives(open_engine):
    generator = random.Random(0)
    prompts = [
        [generator.randrange(3, 97) for _ in range(generator.randrange(1, 20))] for _ in range(13)
    ]
    engine = open_engine("olmoe")
    alone = [generate(engine, [prompt], batch_size=1, method="on_demand")[0] for prompt in prompts]
    for batch_size in (3, 13):
        assert generate(engine, prompts, batch_size=batch_size) == alone


# ---- a perfect draft: nothing may ever be rejected ----


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_draft_with_all_experts_is_accepted_in_every_round(architecture, open_engine):
    engine = open_engine(architecture, draft_experts=8)
    output = engine.generate(
        PROMPTS, method="specmoe", gamma=4, max_new_tokens=31, batch_size=2, eos_token_id=[]
    )
    frame = output.trace.to_frame()
    accepts = frame[(frame.kind == "accept") & (frame["size"] > 0)]
    assert len(accepts) > 8
    assert (accepts["count"] == accepts["size"]).all()
    assert output.stats.acceptance_rate == 1.0


# ---- EOS, lengths and padding ----


@pytest.mark.parametrize("position", range(7))
def test_eos_at_every_position_of_an_accepted_block_ends_the_text_there(
    position, open_engine, plain
):
    # all experts draft: the first block is accepted whole
    engine, gamma = open_engine("mixtral", draft_experts=8), 6
    prompt, full = PROMPTS[0], plain("mixtral")[0]
    new = full[len(prompt) :]
    eos = new[position]
    want = prompt + new[: new.index(eos) + 1]
    output = engine.generate(
        [prompt], method="specmoe", gamma=gamma, max_new_tokens=NEW_TOKENS, eos_token_id=eos
    )
    assert tokens_of(output) == [want]
    assert output.stats.num_new_tokens == len(want) - len(prompt)


@pytest.mark.parametrize("draft_experts", [2, 8])
@pytest.mark.parametrize("length", range(1, 6))
def test_every_length_up_to_gamma_plus_one_is_kept_exactly(
    length, draft_experts, open_engine, plain
):
    engine = open_engine("mixtral", draft_experts=draft_experts)
    want = [full[: len(prompt) + length] for prompt, full in zip(PROMPTS, plain("mixtral"))]
    output = engine.generate(
        PROMPTS, method="specmoe", gamma=4, max_new_tokens=length, batch_size=3, eos_token_id=[]
    )
    assert tokens_of(output) == want
    assert output.stats.num_new_tokens == length * len(PROMPTS)


def padded(prompts, pad: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids, mask = (
        torch.full((len(prompts), longest), pad),
        torch.zeros(len(prompts), longest, dtype=torch.long),
    )
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place] = torch.tensor(prompt)
        mask[row, place] = 1
    return ids, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 2, 5], ids=["pad", "pad_is_eos", "pad_is_in_the_prompts"])
def test_padding_is_what_the_mask_says_not_what_the_id_says(side, pad, open_engine):
    engine, eos = open_engine("mixtral"), 2
    # EOS, and every pad, inside the prompts
    prompts = [[5, 2, 7, 2], [2], [20, 21, 2, 5, 0, 2], [0, 5, 5]]
    want = tokens_of(
        engine.generate(prompts, method="on_demand", max_new_tokens=8, eos_token_id=eos)
    )
    assert [len(tokens) > len(prompt) for tokens, prompt in zip(want, prompts)] == [True] * 4
    ids, mask = padded(prompts, pad, side)
    for given in (
        dict(prompts=ids, attention_mask=mask),
        dict(prompts={"input_ids": ids, "attention_mask": mask}),
    ):
        output = engine.generate(
            **given, method="specmoe", gamma=3, max_new_tokens=8, eos_token_id=eos, batch_size=3
        )
        assert tokens_of(output) == want


def test_eos_ends_rows_as_transformers_does(open_engine, tiny):
    # many ends: rows finish all over the place
    model, eos = reference_model(tiny("qwen2_moe")), list(range(3, 97, 6))
    engine = open_engine("qwen2_moe")
    prompts = [[n, n + 1, n + 2] for n in range(3, 60, 5)]
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": eos, "pad_token_id": 0}
    want = [model.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]
    assert len(set(map(len, want))) > 4
    for method in ("on_demand", "cached", "specmoe", "resident"):
        assert (
            generate(
                engine, prompts, method=method, max_new_tokens=20, eos_token_id=eos, batch_size=4
            )
            == want
        )


# ---- rounding ----


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_fp32_arithmetic_on_bf16_experts_is_exact(architecture, tiny):
    folder = tiny(architecture, torch.bfloat16)
    want = reference_tokens(folder, dtype=torch.float32)
    with specmoe.load(folder, draft_experts=3) as engine:
        assert engine.model.dtype == torch.float32 and engine.packed.layout.dtype == torch.bfloat16
        for method in ("on_demand", "cached", "specmoe", "resident"):
            assert generate(engine, method=method) == want
        assert engine.check_exact(PROMPTS, max_new_tokens=NEW_TOKENS)


def test_bf16_reports_where_it_diverges_and_by_how_little(tiny):
    with specmoe.load(tiny("mixtral", torch.bfloat16), dtype="bfloat16", draft_experts=3) as engine:
        report = engine.check_exact(
            PROMPTS, max_new_tokens=24, methods=("specmoe", "cached"), eos_token_id=[]
        )
    assert bool(report) == (not report.divergences)
    # a near tie: a few bf16 steps of logits of a size near 4
    for divergence in report.divergences:
        assert divergence.logit_gap < 0.25, str(report)


def test_the_first_divergence_is_named_with_its_logit_gap(open_engine):
    engine = open_engine("mixtral")

    class Wrong:
        """Decodes as ``engine`` does, but changes token 11 of prompt 2 under method "cached"."""

        def __getattr__(self, name):
            return getattr(engine, name)

        def generate(self, prompts, method, **options):
            output = engine.generate(prompts, method=method, **options)
            if method == "cached":
                output.sequences[2][11] += 1
                output.sequences[2][12] += 1
            return output

    report = compare_methods(Wrong(), PROMPTS, max_new_tokens=12, eos_token_id=[])
    assert not report and report.verdict == "differs"
    (divergence,) = report.divergences
    assert (divergence.method, divergence.prompt, divergence.position) == ("cached", 2, 11)
    assert divergence.token == divergence.plain_token + 1
    prefix = (
        engine.generate(PROMPTS, method="on_demand", max_new_tokens=12, eos_token_id=[])
        .sequences[2][:11]
        .tolist()
    )
    own = engine.next_logits(prefix)
    wanted = [float(own[divergence.plain_token]), float(own[divergence.token])]
    assert divergence.logits == pytest.approx(wanted, abs=1e-5)
    assert divergence.logit_gap == pytest.approx(wanted[0] - wanted[1], abs=1e-5)
    assert "cached: prompt 2, position 11" in str(report)


# ---- stale buffers ----


# Freed slots hold NaN.
POISONED = partial(Slots, poison=True)


class ShuffledPool(ResidentPool):
    """Takes free slots and evicts in a random order."""

    def __init__(self, *args, **kwargs):
        self._random = random.Random(7)
        super().__init__(*args, **kwargs)

    def make_room(self, *args, **kwargs):
        tier, resident = self.tier, list(self.tier.resident.items())
        self._random.shuffle(tier.slots.free)
        tier.resident = dict(self._random.sample(resident, len(resident)))
        self.check_integrity()
        return super().make_room(*args, **kwargs)


def recorded_logits(engine, monkeypatch, **options) -> list[torch.Tensor]:
    """The target's logits of every plain round."""
    logits, forward = [], engine.decoder.forward

    def record(*args):
        logits.append(forward(*args).clone())
        return logits[-1]

    monkeypatch.setattr(engine.decoder, "forward", record)
    engine.generate(PROMPTS, max_new_tokens=10, batch_size=3, eos_token_id=[], **options)
    monkeypatch.undo()
    return logits


@pytest.mark.parametrize("method", ["on_demand", "overlapped", "cached"])
@pytest.mark.parametrize("fast_memory", [7, 11, 16], ids=lambda slots: f"{slots}_slots")
def test_logits_from_a_shuffled_poisoned_pool_equal_the_resident_models(
    method, fast_memory, tiny, monkeypatch
):
    with specmoe.load(
        tiny("mixtral"), dtype="float64", draft_experts=3, fast_memory=fast_memory * 36864
    ) as engine:
        assert engine.memory.num_slots == fast_memory
        want = recorded_logits(engine, monkeypatch, method="resident")
        monkeypatch.setattr(engine_run, "ResidentPool", ShuffledPool)
        monkeypatch.setattr(engine_run, "Slots", POISONED)
        got = recorded_logits(engine, monkeypatch, method=method)
    assert len(got) == len(want)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@pytest.mark.parametrize("pool", [ResidentPool, ShuffledPool], ids=["poisoned", "shuffled"])
@pytest.mark.parametrize("slots", [7, 9, 14])
def test_speculation_over_a_poisoned_pool_gives_the_tokens(pool, slots, tiny, plain, monkeypatch):
    monkeypatch.setattr(engine_run, "ResidentPool", pool)
    monkeypatch.setattr(engine_run, "Slots", POISONED)
    with specmoe.load(
        tiny("mixtral"), dtype="float64", draft_experts=3, fast_memory=slots * 36864
    ) as engine:
        for options in ({}, {"substitute": "router"}, {"draft_set": "random"}, {"prefetch": False}):
            assert generate(engine, **options) == plain("mixtral")


def test_logits_equal_transformers_logits(open_engine, tiny):
    for architecture in ("mixtral", "deepseek_v3", "gpt_oss"):
        tokens = list(range(3, 30))
        with torch.inference_mode():
            want = reference_model(tiny(architecture))(torch.tensor([tokens])).logits[0, -1]
        # The last token runs after the others, and some models keep parts of their attention in float32.
        got = open_engine(architecture).next_logits(tokens)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
