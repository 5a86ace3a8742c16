"""``check_exact`` asks transformers, which reads the checkpoint itself: stale weights and ignored
settings differ."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.engine import exactness
from specmoe.engine.exactness import (
    Divergence,
    ExactReport,
    PlainReference,
    choose_reference,
    is_tie,
)

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


def test_the_page_says_what_the_long_run_found():
    rows = Path(__file__).parent / "long" / "results" / "ties.jsonl"
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    page = " ".join((Path(__file__).parents[1] / "docs" / "testing.md").read_text().split())
    divergences = [d for row in found for d in row["divergences"]]
    ties = sum(is_tie(*d["logits"], torch.bfloat16) for d in divergences)
    prompts, tokens = (sum(row[key] for row in found) for key in ("prompts", "tokens"))
    assert f"{prompts} of its 10,000 prompts" in page and f"({tokens} tokens)" in page
    assert f"{len(divergences)} divergences, of them {ties} proved ties" in page
    assert f"and {len(divergences) - ties} other" in page
