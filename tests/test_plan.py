"""``specmoe plan``: its bytes are the engine's, its assumption holds where it was counted, and what it
cannot say it refuses in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import matplotlib
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from models_table import tiny_config
from tiny_architectures import make_checkpoint

import specmoe
from specmoe.cli.parser import main
from specmoe.errors import FastMemoryError, OptionError, SpecMoEError, UnsupportedModelError
from specmoe.lab.simulate import Hardware, ModelSize, known_models, plan, preset, recordings
from specmoe.lab.simulate.costs import Layer
from specmoe.lab.simulate.engine_parts import EngineParts, cut, probe_parts
from specmoe.lab.simulate.expectation import even_counts
from specmoe.lab.simulate.plan import kv_bytes_per_token
from specmoe.lab.simulate.shipped import prompts_for
from specmoe.lab.simulate.timed import seconds_per_token

# Nothing of this machine is asked.
MACHINE = Hardware("by hand", 1e9, 0.0, 1e12, 1e10, fast_memory_bytes=1e9)
MODELS = ("tiny-balanced", "tiny-skewed", "tiny-translate")


def rows_of(found) -> dict:
    return {(row.method, row.batch): row for row in found.rows}


@pytest.mark.parametrize("model", MODELS)
def test_slots_and_bytes_are_those_of_the_engine(model):
    fast_memory = 2**21
    found = plan(model, fast_memory, MACHINE)
    with specmoe.load(model, fast_memory=fast_memory, store="memory") as engine:
        info = engine.info
    assert found.model.expert_bytes == info["expert_bytes"]
    assert (found.slots, found.draft_experts, found.cached_experts) == tuple(
        info[name] for name in ("slots", "draft_experts", "cached_experts")
    )
    # the engine holds the trunk in float32
    assert 2 * found.model.held_bytes == info["trunk_bytes"]
    layers = found.model.num_layers
    need = layers * info["top_k"] * info["record_bytes"]
    assert rows_of(found)["on_demand", 1].link_bytes == need


@pytest.mark.parametrize(
    "model, batch", [("tiny-balanced", 1), ("tiny-skewed", 1), ("tiny-skewed", 16)]
)
def test_bytes_per_token_are_those_that_a_run_counts(model, batch):
    """On texts that no recording was made of; the routing assumed is the model's own."""
    recorded = recordings(model, batch=batch, method="cached")[0].info
    found = rows_of(plan(model, recorded["fast_memory_bytes"], MACHINE, batch=[batch]))
    load = {"fast_memory": recorded["fast_memory_bytes"], "store": "memory"}
    with specmoe.load(model, draft_experts=recorded["draft_experts"], **load) as engine:
        prompts = prompts_for(engine, max(4, 2 * batch), seed=7)
        for method, more in {
            "on_demand": {},
            "cached": {},
            "specmoe": {"gamma": 4, "prefetch": False},
        }.items():
            stats = engine.generate(
                prompts, method=method, batch_size=batch, max_new_tokens=48, **more
            ).stats
            counted = stats.fetched_bytes / stats.num_new_tokens
            assert found[method, batch].link_bytes == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_the_kv_cache_takes_what_the_engine_allocates(architecture, tmp_path):
    folder = make_checkpoint(architecture, tmp_path)
    found = plan(folder, "1MiB", MACHINE)
    with specmoe.load(folder, dtype="bfloat16", store="memory", draft_experts=2) as engine:
        with engine.start([[5, 6, 7]], max_new_tokens=4) as run:
            next(iter(run))
            layers = engine.decoder.kv_cache.layers
            states = [state for layer in layers for state in (layer.keys, layer.values)]
            per_token = sum(state[0, :, 0].nbytes for state in states)
    assert found.kv_bytes_per_token == per_token > 0


def test_the_kv_cache_of_an_encoder_decoder_is_not_counted():
    assert plan("nllb-moe-54b", machine="h100-ssd").kv_bytes_per_token is None
    assert kv_bytes_per_token(known_models()["mixtral-8x7b"].config) == 2 * 2 * 32 * 8 * 128


def test_of_a_hybrid_only_attention_grows_with_the_text():
    # two attention layers of two heads of 8, keys and values, in bf16
    assert kv_bytes_per_token(tiny_config("granitemoehybrid")) == 2 * 2 * 2 * 8 * 2
    assert kv_bytes_per_token(tiny_config("zaya")) is None  # refused


def test_headers_say_in_what_the_experts_are_stored(tmp_path):
    import torch

    wide = plan(make_checkpoint("mixtral", tmp_path / "a", torch.float32), "1MiB", MACHINE)
    half = plan(make_checkpoint("mixtral", tmp_path / "b", torch.bfloat16), "1MiB", MACHINE)
    assert wide.model.expert_bytes == 2 * half.model.expert_bytes
    (tmp_path / "a/model.safetensors").unlink()
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["dtype"] == "float32"
    assert plan(tmp_path / "a", "1MiB", MACHINE).model == wide.model


def test_a_hub_id_whose_config_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(known_models()["olmoe-1b-7b"].config))
    refs = tmp_path / "models--some--model/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found, table = (plan(name, "3GiB", "laptop") for name in ("some/model", "olmoe-1b-7b"))
    assert found.model.experts_bytes == table.model.experts_bytes
    assert found.rows[1].link_bytes == table.rows[1].link_bytes


def test_more_memory_a_faster_link_and_a_larger_batch_need_less_time():
    small, large = (plan("olmoe-1b-7b", size, "laptop") for size in ("2GiB", "8GiB"))
    fast = plan("olmoe-1b-7b", "2GiB", "laptop", link_bytes_per_s=1e11)
    for key, row in rows_of(small).items():
        assert rows_of(large)[key].seconds <= row.seconds
        assert rows_of(fast)[key].seconds <= row.seconds
    for method in ("on_demand", "cached", "specmoe"):
        need = [rows_of(small)[method, batch].link_bytes for batch in (1, 16, 64)]
        assert need == sorted(need, reverse=True)
    assert "with given rates" in fast.machine.name


def test_without_a_budget_the_machines_memory_holds_what_it_can():
    found = plan("mixtral-8x7b", machine="consumer")
    left = preset("consumer").fast_memory_bytes - found.model.held_bytes
    assert found.fast_memory_bytes == int(left)
    assert not rows_of(found)["resident", 1].fits and rows_of(found)["cached", 1].fits


def test_this_machine_is_probed_only_for_what_is_not_said(monkeypatch):
    def refuse(*given):
        raise AssertionError("probed")

    for name in ("disk_rates", "memory_copy_rate", "compute_rates"):
        monkeypatch.setattr(f"specmoe.lab.machine.probes.{name}", refuse)
    rates = {"link_bytes_per_s": 1e9, "memory_bytes_per_s": 1e10, "flop_per_s": 1e11}
    assert plan("tiny-skewed", "2MiB", **rates).machine.flop_per_s == 1e11
    with pytest.raises(AssertionError, match="probed"):
        plan("tiny-skewed", "2MiB", **dict(list(rates.items())[:2]))


def test_a_disk_that_cannot_be_probed_is_a_sentence(monkeypatch):
    def full(*given):
        raise OSError("no space")

    monkeypatch.setattr("specmoe.lab.machine.probes.disk_rates", full)
    with pytest.raises(SpecMoEError, match="could not be probed .no space.: give its rate"):
        plan("tiny-skewed", "2MiB")


def test_what_cannot_be_planned_is_refused_in_a_sentence(tmp_path):
    dense = tmp_path / "config.json"
    dense.write_text('{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}')
    with pytest.raises(UnsupportedModelError, match="'llama' is dense: it has no experts"):
        plan(dense, "1GiB", "laptop")
    dense.write_text("{")
    with pytest.raises(SpecMoEError, match="is no config"):
        plan(tmp_path, "1GiB", "laptop")
    with pytest.raises(OptionError, match="'olmo' is no folder, no hub id .*'olmoe-1b-7b'"):
        plan("olmo", "1GiB", "laptop")
    with pytest.raises(FastMemoryError, match="holds 0 experts .* need at least"):
        plan("mixtral-8x7b", "1MiB", "laptop")
    with pytest.raises(FastMemoryError, match="cannot hold the trunk of .*: say fast_memory"):
        plan("deepseek-v3", machine=MACHINE)
    with pytest.raises(OptionError, match="batch=3 was not recorded: one of 1, 4, 16"):
        plan("mixtral-8x7b", "16GiB", "laptop", batch=[3])


def test_the_figure_has_a_panel_for_each_batch_and_says_that_it_is_simulated():
    found = plan("olmoe-1b-7b", "3GiB", "laptop", batch=[1, 64])
    panels = found.figure()
    assert [panel.get_title() for panel in panels] == ["one text", "64 texts"]
    assert "simulated" in panels[0].get_ylabel()
    assert "OLMoE" in panels[0].figure.get_suptitle()
    drawn = {line.get_label(): line for line in panels[0].get_lines()}
    curve = [row.tokens_per_second for _, row in found.curve if row.method == "cached"]
    assert any(list(line.get_ydata()) == curve[::2] for line in drawn.values())
    plt.close("all")


def test_the_command_prints_a_table_or_one_object(capsys):
    words = ["plan", "olmoe-1b-7b", "--machine", "laptop", "--fast-memory", "3GiB"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "Simulated, nothing was run" in text and "assumed: the pool's misses" in text
    assert main([*words, "--json", "--batch", "1", "--link", "1e9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated"] and found["machine"]["link_bytes_per_s"] == 1e9
    assert {row["method"] for row in found["rows"]} == {
        "on_demand",
        "cached",
        "specmoe",
        "resident",
    }
    assert main([*words, "--link", "0"]) == 2
    assert "--link 0 must be above zero" in capsys.readouterr().err


# ---- by the engine's own parts

PARTS = EngineParts(
    expert_bytes=100,
    trunk_bytes=250,  # half of SIZE's
    passes=[[1, 1, 2.0], [1, 5, 6.0], [16, 1, 8.0], [16, 5, 24.0]],
    steps=[[1, 1.5], [16, 7.5]],
    layer=Layer(0.5, (1.0,), (0.25,)),
    drafts=[[1, 0.75], [16, 3.75]],
    draft_experts=2,
)
# 4 layers of 10 experts, top 2; an expert has 100 bytes, the trunk 500
SIZE = ModelSize("by hand", 100, 4, 10, 2, 100.0, 500.0, 500, held_bytes=600)


def test_seconds_by_hand():
    """Each expert one row, so a layer takes 0.5 + 0.25 each; a trunk twice that of the parts; a read
    10 seconds, or 0.01."""
    counts = even_counts(SIZE, 0.5)
    assert (counts.pass_experts, counts.pool_reads) == (pytest.approx(1), pytest.approx(0.5))

    def seconds(method, link):
        return seconds_per_token(method, SIZE, link, PARTS, counts)

    assert seconds("resident", 10.0) == pytest.approx(2 * 2.0 + 4 * (0.5 + 2 * 0.25))
    assert seconds("on_demand", 10.0) == pytest.approx(2 * 2.0 + 4 * (1.0 + 2 * 10))
    # one read of two experts hides the other's work, and is computed last
    assert seconds("cached", 10.0) == pytest.approx(4 + 4 * (0.5 + 10 + 0.25))
    assert seconds("cached", 1e4) == pytest.approx(4 + 4 * (0.5 + 2 * 0.25))


def test_a_round_by_hand():
    counts = replace(even_counts(SIZE, 0.5, gamma=4), round_tokens=3.0)
    experts = 10 * (1 - 0.8**5)
    found = seconds_per_token("specmoe", SIZE, 10.0, PARTS, counts)
    drafted = 4 * (2 * 1.5 + 4 * 0.75)  # 2.5 residents, two of them asked for, as in the parts
    # drafting reads as many of the missing ones ahead as there is time for
    reads = experts * 0.75 - drafted / 10 / 4
    verified = 2 * 6.0 + 4 * (0.5 + reads * 10 + 0.25)
    assert found == pytest.approx((drafted + verified) / 3)


def test_even_use_misses_what_does_not_fit():
    for batch, needed in ((1, 2.0), (16, 10 * (1 - 0.8**16))):
        counts = even_counts(SIZE, 0.25, batch=batch)
        assert counts.pass_experts * 2 == pytest.approx(needed)
        assert counts.pool_reads == pytest.approx(0.75 * counts.pass_experts)
        assert counts.round_reads == pytest.approx(0.875 * counts.round_experts)
        for share in (0.95, 1.0):  # half an expert of a layer is missing, none
            most = even_counts(SIZE, share, batch=batch)
            assert most.round_reads == pytest.approx((1 - share) * most.round_experts)
    rows = rows_of(plan("olmoe-1b-7b", "3GiB", "laptop", like="even"))
    share = plan("olmoe-1b-7b", "3GiB", "laptop").share
    ratio = rows["cached", 1].link_bytes / rows["on_demand", 1].link_bytes
    assert ratio == pytest.approx(1 - share)
    assert (
        "every expert is as likely" in plan("olmoe-1b-7b", "3GiB", "laptop", like="even").assumption
    )


def test_with_parts_the_plan_gives_their_seconds_and_says_so():
    machine = replace(MACHINE, engine=PARTS)
    found, ceiling = (plan("olmoe-1b-7b", "3GiB", each) for each in (machine, MACHINE))
    assert "the engine's own parts" in found.assumption and "ceilings" in ceiling.assumption
    for key, row in rows_of(found).items():
        assert row.seconds == row.parts_s != rows_of(ceiling)[key].seconds
        assert row.link_bytes == rows_of(ceiling)[key].link_bytes
    assert EngineParts.of_json(json.loads(json.dumps(PARTS.to_json()))).layer == PARTS.layer


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "qwen3_next"])
def test_a_cut_keeps_experts_and_layers_as_they_are(architecture):
    config = tiny_config(architecture)
    fields = cut(config)
    found, whole = ModelSize.of(fields), ModelSize.of(config)
    assert found.num_layers == 1 and found.num_experts >= found.top_k
    assert (found.expert_bytes, found.top_k) == (whole.expert_bytes, whole.top_k)


def test_the_parts_of_a_cut_are_timed_on_the_engine_itself():
    parts = probe_parts(tiny_config("mixtral"))
    assert parts.expert_bytes == ModelSize.of(tiny_config("mixtral")).expert_bytes
    assert all(seconds > 0 for *_, seconds in [*parts.passes, *parts.steps, *parts.drafts])
    assert parts.layer(8, 8) > parts.layer(0, 0) >= 0


def test_what_cannot_be_cut_has_ceilings():
    assert cut(known_models()["nllb-moe-54b"].config) is None
    assert cut(known_models()["gpt-oss-20b"].config) is None  # low-bit
    assert probe_parts({"model_type": "llama"}) is None
