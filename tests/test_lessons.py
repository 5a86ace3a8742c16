"""The notebooks' experiments: a biased sampler is caught, a sound one is not; the rest says what it
should."""

from __future__ import annotations

import pytest
import torch

import specmoe
from specmoe.errors import OptionError
from specmoe.lab import lessons
from specmoe.lab.routing import record_routing
from specmoe.options import GenerateOptions
from specmoe.speculate.sampling import Sampler

TARGET = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])
DRAFT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.0, -1.0, -0.5, 0.0])


def drawn(sampler, rule):
    return lessons.sample_first(
        sampler(GenerateOptions(do_sample=True, seed=1, accept_rule=rule)), TARGET, DRAFT
    )


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_sound_sampler_passes(rule):
    table = drawn(Sampler, rule)
    assert table.attrs["p_value"] > 1e-4 and table["observed"].sum() == 4000
    assert 0.3 < table.attrs["accepted_share"] < 0.9


def test_drawing_from_p_after_a_rejection_is_caught():
    wrong, sound = drawn(lessons.NoResidual, "rejection"), drawn(Sampler, "rejection")
    assert wrong.attrs["p_value"] < 1e-12
    assert wrong.attrs["accepted_share"] == sound.attrs["accepted_share"], (
        "it accepts alike, which is why nobody notices"
    )


def test_chi_square_has_known_values():
    shift = (10.83 / 2 * 50) ** 0.5  # 10.83 at one degree of freedom: p = 0.001
    even = torch.tensor([0.5, 0.5])
    assert lessons.chi_square_p(torch.tensor([50 + shift, 50 - shift]), even) == pytest.approx(
        0.001, rel=0.02
    )
    assert lessons.chi_square_p(torch.tensor([500, 1]), torch.tensor([1.0, 0.0])) == 0.0
    assert (
        lessons.chi_square_p(torch.tensor([500, 1, 1]), torch.tensor([0.998, 0.001, 0.001])) > 0.1
    ), "rare cells are joined"


def test_logits_of_two_vocabularies_are_refused():
    with pytest.raises(OptionError, match="one vocabulary"):
        lessons.sample_first(Sampler(GenerateOptions(do_sample=True)), TARGET, DRAFT[:3])


def test_the_planner_drafts_where_it_is_cheap_and_not_where_it_is_dear():
    cheap, dear = (
        lessons.plan_on(0.002, 0.1, acceptance=0.8),
        lessons.plan_on(0.1, 0.02, acceptance=0.3),
    )
    assert cheap["times_chosen"].idxmax() >= 5 and dear["times_chosen"].idxmax() == 0


def test_a_draft_with_all_experts_foretells_everything(tmp_path):
    lessons.random_checkpoint(tmp_path)
    with specmoe.load(tmp_path, store="memory", draft_experts=8) as engine:
        foresight = lessons.draft_foresight(
            record_routing(engine, [3, 4, 5], max_new_tokens=24, gamma=4, prefetch=False)
        )
    assert (foresight["precision"] == 1).all() and (foresight["recall"] > 0.7).all()
    assert (foresight["both"] <= foresight["needed"]).all()


@pytest.mark.parametrize("architecture", lessons.ARCHITECTURES)
def test_a_random_checkpoint_decodes_exactly(architecture, tmp_path):
    lessons.random_checkpoint(tmp_path, architecture)
    with specmoe.load(tmp_path, store="memory", dtype="float64", draft_experts=3) as engine:
        assert engine.check_exact([[3, 4, 5], [9, 8, 7, 6]], max_new_tokens=16)
        assert engine.info["architecture"] == architecture


def test_a_profiled_step_leaves_the_engine_as_it_was(tmp_path):
    lessons.random_checkpoint(tmp_path)
    with specmoe.load(tmp_path, store="memory", draft_experts=4) as engine:
        table = lessons.profile_draft_step(
            engine, [[3, 4, 5]], step=2, max_new_tokens=8, gamma=3, eos_token_id=[]
        )
        assert "aten::mm" in table.index and table["share"].sum() == pytest.approx(1)
        assert "draft_step" not in vars(engine.decoder)
        with pytest.raises(OptionError, match="was not reached"):
            lessons.profile_draft_step(engine, [[3, 4, 5]], step=999, max_new_tokens=8, gamma=3)
