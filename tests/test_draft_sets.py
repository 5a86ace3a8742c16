"""Who drafts next."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from conftest import PROMPTS

from specmoe.errors import OptionError
from specmoe.offload.stand_ins import StandIns
from specmoe.offload.transfers import ExpertKey
from specmoe.speculate.draft_sets import make_draft_set


def test_hot_temporal_takes_the_most_used_of_the_last_verification():
    policy = make_draft_set("hot_temporal", 1, 4, 2)
    assert policy.keep(0, [5, 1, 3, 0], set()) == {0, 2}
    assert policy.keep(0, [0, 1, 3, 0], {0, 2}) == {1, 2}


def test_hot_global_takes_the_hottest_of_the_calibration():
    policy = make_draft_set("hot_global", 2, 4, 2, [[9, 0, 0, 8], [0, 1, 2, 0]])
    assert policy.fixed == [{0, 3}, {1, 2}]
    assert policy.keep(1, [9, 9, 9, 9], set()) == {1, 2}


def test_a_random_set_is_fixed_and_follows_the_seed():
    sets = [make_draft_set("random", 3, 32, 4, seed=seed).fixed for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]
    assert all(len(experts) == 4 for experts in sets[0])


def test_an_own_function_is_asked_with_layer_counts_and_n():
    asked = []
    policy = make_draft_set(lambda *args: asked.append(args) or [1], 2, 4, 2)
    assert policy.keep(1, (0, 3, 0, 1), {1, 3}) == {1}
    assert asked == [(1, [0, 3, 0, 1], 2)]


@pytest.mark.parametrize("answer", [[], [0, 0], [0, 1, 2], [-1], [4]], ids=str)
def test_a_wrong_answer_of_an_own_function_is_refused(answer):
    with pytest.raises(OptionError, match="draft_set <lambda> gave"):
        make_draft_set(lambda *_: answer, 1, 4, 2).keep(0, [1, 1, 1, 1], set())


# ---- in a run ----


def run(engine, **options):
    options = {
        "method": "specmoe",
        "gamma": 3,
        "max_new_tokens": 12,
        "batch_size": 2,
        "eos_token_id": [],
        **options,
    }
    return engine.generate(PROMPTS, **options)


def test_hot_temporal_moves_no_extra_byte(open_engine):
    """Replacing the draft set fetches nothing: reads are the misses of verifications, and of
    nothing else."""
    output = run(open_engine("mixtral"), prefetch=False)
    frame = output.trace.to_frame()
    assert set(frame[frame.kind == "fetch"].phase) <= {"verify", "prefill"}
    assert output.stats.num_fetches == output.stats.num_misses


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("draft_set", ["hot_temporal", "hot_global", "random"])
def test_drafting_waits_for_nothing_and_demands_nothing(draft_set, prefetch, open_engine):
    frame = run(open_engine("mixtral"), draft_set=draft_set, prefetch=prefetch).trace.to_frame()
    drafting = set(frame[frame.phase == "draft"].kind)
    assert "draft" in drafting and not drafting & {"fetch", "wait", "hit", "route"}
    assert prefetch or "prefetch" not in drafting


def test_only_draft_experts_draft(open_engine, monkeypatch):
    engine, used = open_engine("mixtral"), set()
    kernel = engine.experts.kernel.draft

    def spy(module, record, x):
        layer = engine.experts.modules.index(module)
        slot = [
            engine.experts.run.pool.tier.slots[s].data_ptr() for s in range(len(engine.slots))
        ].index(record.data_ptr())
        used.update(key for key, s in engine.experts.run.pool.tier.resident.items() if s == slot)
        assert all(
            key.expert in engine.experts.run.pool.kept[layer] for key in used if key.layer == layer
        )
        return kernel(module, record, x)

    monkeypatch.setattr(engine.experts.kernel, "draft", spy)
    run(engine, draft_set=lambda layer, counts, n: [2, 5])
    assert used == {ExpertKey(layer, expert) for layer in (0, 1) for expert in (2, 5)}


def test_experts_that_an_own_function_names_are_fetched_and_counted(open_engine):
    rotating = iter(range(10**6))
    output = run(
        open_engine("mixtral"),
        draft_set=lambda layer, counts, n: [next(rotating) % 8],
        prefetch=False,
    )
    frame = output.trace.to_frame()
    routed = frame[(frame.kind == "route") & (frame.phase == "verify")]
    assert output.stats.num_hits + output.stats.num_misses > len(routed)


def test_a_layer_without_a_resident_expert_has_nothing_to_draft_with():
    installed = SimpleNamespace(
        draft_layers=[0, 1], num_experts=4, model=SimpleNamespace(device="cpu")
    )
    stand_ins = StandIns(installed, "drop", 0)
    assert not stand_ins.choose([{1}, set()])
    assert stand_ins.choose([{1}, {2}])


def test_without_residents_nothing_is_drafted_and_the_tokens_stay(open_engine, monkeypatch):
    engine = open_engine("mixtral")
    plain = run(engine, method="on_demand")
    monkeypatch.setattr(StandIns, "choose", lambda self, kept: False)
    output = run(engine)
    assert [row.tolist() for row in output.sequences] == [row.tolist() for row in plain.sequences]
    assert not (output.trace.to_frame().kind == "draft").any()


def test_stand_ins_follow_the_option(open_engine):
    """With one draft expert, "drop" and "no_experts" compute less than "affinity"; choices that
    share the one stand-in are computed once."""
    engine, pairs = open_engine("mixtral", draft_experts=1), {}
    kernel = engine.experts.kernel.draft
    for substitute in ("affinity", "router", "random", "drop", "no_experts"):
        seen = []
        engine.experts.kernel.draft = lambda module, record, x, seen=seen: (
            seen.append(len(x)) or kernel(module, record, x)
        )
        output = run(engine, substitute=substitute, prefetch=False)
        frame = output.trace.to_frame()
        pairs[substitute] = sum(seen) / frame[frame.kind == "draft"]["count"].sum()
    engine.experts.kernel.draft = kernel
    assert pairs["no_experts"] == 0
    assert pairs["affinity"] == pairs["random"] == 2  # layers
    assert 0 < pairs["drop"] < 2
    assert 0 < pairs["router"] <= 2  # one resident cannot be chosen twice
