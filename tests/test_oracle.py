"""``check_exact`` asks transformers, which reads the checkpoint itself: stale weights and ignored
settings differ."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROMPTS
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import specmoe
from specmoe.checkpoint import expert_modules
from specmoe.engine import exactness, ties
from specmoe.engine.exactness import (
    Divergence,
    ExactReport,
    PlainReference,
    choose_reference,
    is_tie,
)
from specmoe.engine.ties import close_choices

RUN = {"max_new_tokens": 12, "eos_token_id": [], "methods": ("on_demand", "specmoe")}


@pytest.fixture
def folder(tiny, tmp_path):
    """A checkpoint that a test may change."""
    return shutil.copytree(tiny("mixtral"), tmp_path / "model")


def load(folder, **options):
    return specmoe.load(folder, **{"dtype": torch.float64, "draft_experts": 3, **options})


def test_the_verdict_names_transformers_and_fits_on_one_line(folder):
    with load(folder) as engine:
        report = engine.check_exact(PROMPTS, **RUN)
    assert report.verdict == "exact" and "\n" not in str(report)
    assert str(report) == (
        "exact: 2 methods, 4 prompts, 48 tokens each, against transformers' generate (float64)"
    )


def test_a_stale_expert_in_the_packed_store_differs(folder):
    with load(folder) as engine:
        shard = next(folder.glob("*.safetensors"))
        tensors = load_file(shard)
        name = next(name for name in tensors if "experts" in name and tensors[name].dim() >= 2)
        save_file({**tensors, name: tensors[name] * -3}, shard, metadata={"format": "pt"})
        report = engine.check_exact(PROMPTS, **RUN)
    assert report.verdict == "differs"
    assert {d.method for d in report.divergences} == {"on_demand", "specmoe"}
    first = report.divergences[0]
    assert first.logits[0] > first.logits[1], "the reference prefers its own token"


def test_a_setting_that_the_engine_ignores_differs(folder):
    with load(folder) as engine:
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 5.0}))
        report = engine.check_exact([[5, 6, 7], [9, 9, 9, 9]], **{**RUN, "max_new_tokens": 40})
    assert report.verdict == "differs", str(report)


def test_a_model_that_does_not_fit_is_compared_with_plain_decoding_and_the_line_says_so(
    folder, monkeypatch
):
    monkeypatch.setattr(exactness, "free_bytes", lambda device="cpu": 1000)
    with load(folder) as engine:
        report = engine.check_exact(PROMPTS, **RUN)
    assert report and "against plain decoding (the whole model needs" in str(report)


def test_nllb_says_that_transformers_is_no_reference():
    with specmoe.load("tiny-translate", store="memory") as engine:
        reference = choose_reference(engine)
    assert isinstance(reference, PlainReference) and "nllb-moe" in reference.name


def test_a_tie_is_two_ulp_of_a_sixteen_bit_logit_and_nothing_else():
    for dtype, step in ((torch.bfloat16, 2**-5), (torch.float16, 2**-8)):  # steps between 4 and 8
        assert is_tie(5.0, 5.0 - 2 * step, dtype) and is_tie(5.0, 5.0, dtype)
        assert not is_tie(5.0, 5.0 - 3 * step, dtype)
        assert (
            torch.nextafter(torch.tensor(5.0, dtype=dtype), torch.tensor(9.0, dtype=dtype))
            == 5 + step
        )
    assert not is_tie(5.0, 5.0, torch.float32) and not is_tie(
        float("nan"), float("nan"), torch.bfloat16
    )


# ---- ties of routers, in bfloat16 ----

PROMPT = [5, 6, 7]


def with_weights(
    folder: Path, change, dtype: torch.dtype = torch.bfloat16
) -> exactness.TransformersReference:
    """transformers' model in ``dtype``, of the checkpoint whose tensors ``change(name, tensor)``
    gives."""
    shard = next(folder.glob("*.safetensors"))
    tensors = {name: change(name, tensor) for name, tensor in load_file(shard).items()}
    save_file(tensors, shard, metadata={"format": "pt"})
    return exactness.TransformersReference(
        SimpleNamespace(
            is_translation=False,
            model=SimpleNamespace(
                name_or_path=folder,
                dtype=dtype,
                config=AutoConfig.from_pretrained(folder),
            ),
            tokenizer=None,
            options=SimpleNamespace(device="cpu"),
        ),
        eos_token_id=[],
    )


def other_choice(reference, prompt: list[int]) -> tuple[int, int]:
    """The reference's next token, and the one that it gives when the last token's second expert of
    the last layer is another: of all experts that which changes most."""
    experts = list(expert_modules(reference.model).values())[-1]
    own = reference.logits(prompt, len(prompt))
    forced = []
    for expert in range(experts.num_experts):

        def send(_, args, expert=expert):
            index = args[1].clone()
            index[-1, 1] = expert
            return args[0], index, args[2]

        hook = experts.register_forward_pre_hook(send)
        forced.append(reference.logits(prompt, len(prompt)).argmax())
        hook.remove()
    first = int(own.argmax())
    second = int(min(forced, key=lambda token: float(own[token])))
    assert not is_tie(float(own[first]), float(own[second]), torch.bfloat16)
    return first, second


def loud(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Experts that decide the token."""
    return tensor * 8 if ".experts." in name and "w2" in name else tensor


def undecided(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """... and a router of the last layer to which all experts are the same."""
    return tensor * 0 if ".1." in name and ".gate." in name else loud(name, tensor)


def judged(reference, first: int, second: int) -> Divergence:
    at = "specmoe", 0, len(PROMPT), None
    return exactness.first_divergence(reference, at, [*PROMPT, first], [*PROMPT, second])


def test_a_token_that_hangs_on_a_tie_of_a_router_is_proved_and_the_line_names_the_layer(folder):
    reference = with_weights(folder, undecided)
    found = judged(reference, *other_choice(reference, PROMPT))
    assert found.is_tie and found.why == "router tie in layer 1"
    report = ExactReport(1, 1, ("specmoe",), (found,))
    assert report.verdict == "exact up to proved ties"
    assert str(report).endswith(", router tie in layer 1")


def test_another_expert_than_a_decided_router_chose_is_an_error(folder):
    reference = with_weights(folder, loud)
    found = judged(reference, *other_choice(reference, PROMPT))
    assert not found.is_tie and not found.why


def test_a_token_that_no_choice_gives_is_an_error_however_many_routers_tie(folder):
    reference = with_weights(folder, undecided)
    logits = reference.logits(PROMPT, len(PROMPT))
    found = judged(reference, int(logits.argmax()), int(logits.argmin()))
    assert not found.is_tie and not found.why


def test_two_wrong_tokens_are_no_tie_however_close_they_are(folder):
    reference = with_weights(folder, loud)
    order = reference.logits(PROMPT, len(PROMPT)).sort()
    gaps = order.values[:-1].diff()
    worse = int(gaps[: len(gaps) // 2].argmin())
    first, second = (int(order.indices[worse + i]) for i in (1, 0))
    found = judged(reference, first, second)
    assert is_tie(*found.logits, torch.bfloat16) and not found.is_tie


def test_a_broken_expert_differs_in_bfloat16_too(folder):
    with load(folder, dtype=torch.bfloat16) as engine:
        with_weights(folder, lambda name, t: t * -3 if ".experts.0." in name else t)
        report = engine.check_exact(PROMPTS, **RUN)
    assert report.verdict == "differs", str(report)
    assert "router tie" not in str(report)


def test_a_router_gives_its_close_choices_and_one_with_groups_gives_none():
    logits = torch.tensor([[4.0, 1.0, 0.984375, -1.0], [4.0, 2.0, 1.0, 0.0]])
    index = torch.tensor([[0, 1], [1, 0]])
    found = list(close_choices(3, logits, index, torch.bfloat16))
    assert [choice[1:] for choice in found] == [(3, 0, 1, 2)]
    assert not list(close_choices(3, logits, torch.tensor([[0, 3], [0, 2]]), torch.bfloat16))


# ---- ties of float32


def test_in_float32_a_tie_is_a_gap_that_the_order_of_sums_makes():
    assert ties.is_rounded([3e-6, 1e-6]) and ties.is_rounded([1e-6, 0.0])
    assert ties.is_rounded([0.0, 0.0])
    assert not ties.is_rounded([3e-6, 1.6e-6]) and not ties.is_rounded([1e-6, 1e-6])


@pytest.mark.parametrize("step", [0, 2**-10])
def test_in_float32_two_logits_of_one_size_are_a_tie_and_two_sizes_are_none(folder, step):
    """Each logit is one product, which has no order: the same on every processor."""

    def one_product(name, tensor):
        if name != "lm_head.weight":
            return tensor.float()
        head = torch.zeros(tensor.shape)
        head[3, 0], head[4, 0] = 8, 8 - 8 * step
        head[5], head[6] = -head[3], -head[4]
        return head

    reference = with_weights(folder, one_product, torch.float32)
    first = int(reference.logits(PROMPT, len(PROMPT)).argmax())
    assert first in (3, 5)
    run, rows = reference._run, set()
    reference._run = lambda *a: (made := run(*a)) and rows.add(len(made.sequences)) or made
    found = judged(reference, first, first + 1)
    assert rows == {1, 2, 8}
    assert found.is_tie == (step == 0)
    assert found.why == (
        "tie in float32: the order of sums puts it 0 to 0 below the first" if not step else ""
    )
    assert not judged(reference, first, 9).is_tie
    assert not judged(reference, 9, 10).is_tie, "both are wrong"


def test_the_judge_of_float32_reads_the_text_in_other_ways_and_changes_nothing(folder):
    reference = with_weights(folder, lambda name, tensor: tensor.float(), torch.float32)
    before, ways = reference.model.config._attn_implementation, []
    logits = reference.logits(PROMPT, len(PROMPT))
    token = int(logits.argsort()[-2])

    def read(copies):
        ways.append((reference.model.config._attn_implementation, copies))
        lifted = logits.clone()
        lifted[token] += 2 * (logits.max() - logits[token]) if copies == 8 else 0
        return lifted

    said = ties.tie_of_sums(reference.model, read, token, logits)
    assert ways == [(name, copies) for name in (before, "eager") for copies in (1, 2, 8)]
    assert said.startswith("tie in float32: the order of sums puts it 0 to ")
    assert reference.model.config._attn_implementation == before != "eager"


def test_in_float64_nothing_is_a_tie(folder):
    reference = with_weights(folder, lambda name, tensor: tensor.double(), torch.float64)
    order = reference.logits(PROMPT, len(PROMPT)).sort(descending=True).indices.tolist()
    assert not judged(reference, order[0], order[1]).is_tie


def test_the_report_tells_exact_from_ties_from_differs():
    tie = Divergence("cached", 0, 5, 7, 8, (5.0, 5.0), True)
    gap = Divergence("resident", 1, 6, 7, 8, (5.0, 3.0), False)
    reports = [
        ExactReport(2, 8, ("cached", "resident"), found) for found in ((), (tie,), (tie, gap))
    ]
    assert [report.verdict for report in reports] == ["exact", "exact up to proved ties", "differs"]
    assert [bool(report) for report in reports] == [True, False, False]
    assert ("resident: prompt 1, position 6: token 8 (logit 3) instead of 7 (logit 5)") in str(
        reports[2]
    )


def test_a_chunk_of_the_long_run_compares_every_method_and_judges_what_differs():
    spec = importlib.util.spec_from_file_location(
        "ties", Path(__file__).parent / "long" / "ties.py"
    )
    ties = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ties)
    with specmoe.load("tiny-balanced", dtype="bfloat16", store="memory") as engine:
        prompts, reference = (
            ties.prompts_of(engine, "tiny-balanced", 4),
            choose_reference(engine, eos_token_id=[]),
        )
        row = {"model": "tiny-balanced", "first": 0, **ties.run_chunk(engine, reference, prompts)}
    assert (row["prompts"], row["alone"], row["judged_by_transformers"]) == (4, 3, 3)
    assert row["tokens"] == 4 * ties.NEW_TOKENS * (1 + len(ties.METHODS))
    sums = ties.summary([json.loads(json.dumps(row))])
    assert sums["divergences"] == sums["proved_ties"] + sums["others"] == len(row["divergences"])


def found_in(name: str) -> list[dict]:
    rows = Path(__file__).parent / "long" / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in rows.read_text().splitlines()]


def test_the_page_says_what_the_long_run_in_float32_found():
    found = found_in("products")
    page = " ".join((Path(__file__).parents[1] / "docs" / "testing.md").read_text().split())
    prompts, tokens = (sum(row[key] for row in found) for key in ("prompts", "tokens"))
    divergences = sum(len(row["divergences"]) for row in found)
    said = (
        f"over the same {prompts:,} prompts ({tokens} tokens, 2026-11-27) {divergences} divergences"
    )
    assert said in page


def test_the_page_says_what_the_long_run_found():
    found = found_in("ties")
    page = " ".join((Path(__file__).parents[1] / "docs" / "testing.md").read_text().split())
    divergences = [d for row in found for d in row["divergences"]]
    kinds = Counter(
        "close" if is_tie(*d["logits"], torch.bfloat16) else d.get("why", "").partition(" in ")[0]
        for d in divergences
    )
    close, router, rest = kinds["close"], kinds["router tie"], kinds[""]
    in_one_go = len(divergences) - close - router - rest
    prompts, tokens = (sum(row[key] for row in found) for key in ("prompts", "tokens"))
    assert f"{prompts} of its 10,000 prompts" in page and f"({tokens} tokens" in page
    assert f"{len(divergences)} divergences, of them {close} ties" in page
    assert f"{router} router ties, {in_one_go} ties in one go and {rest} others" in page
