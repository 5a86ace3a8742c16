"""The ragged KV cache: rows at their own positions, and models whose state cannot be rolled back
refused."""

from __future__ import annotations

from types import SimpleNamespace

import models_table
import pytest
import torch
from conftest import reference_model
from transformers import AutoConfig, AutoModelForCausalLM

import specmoe
from specmoe import UnsupportedModelError
from specmoe.engine.run import held
from specmoe.model.kv_cache import RaggedKVCache, attention_windows, check_rollback


def states(value: float, rows: int, tokens: int) -> torch.Tensor:
    """[B, H=1, T, D=2]"""
    return torch.full((rows, 1, tokens, 2), value)


def test_every_row_is_written_at_its_own_positions():
    cache = RaggedKVCache(1, 2, 8)
    assert cache.place(torch.tensor([0, 3]), 2).tolist() == [[0, 1], [3, 4]]
    keys, values = cache.update(states(1.0, 2, 2), states(2.0, 2, 2), 0)
    assert keys.shape == (2, 1, 5, 2), "the buffer up to the longest row"
    assert keys[:, 0, :, 0].tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert values[:, 0, :, 0].tolist() == [[2, 2, 0, 0, 0], [0, 0, 0, 2, 2]]


def test_rejected_tokens_are_overwritten_and_nothing_else():
    cache = RaggedKVCache(1, 1, 8)
    # tokens 2, 3, 4 were rejected; two new ones come
    for value, start, tokens in [(1.0, 0, 5), (9.0, 2, 2)]:
        cache.place(torch.tensor([start]), tokens)
        keys, _ = cache.update(states(value, 1, tokens), states(value, 1, tokens), 0)
    assert keys[0, 0, :, 0].tolist() == [1, 1, 9, 9]


def test_the_mask_hides_everything_after_the_query():
    cache = RaggedKVCache(1, 2, 8)
    cache.place(torch.tensor([0, 2]), 2)
    assert cache.mask().int().tolist() == [
        [[[1, 0, 0, 0], [1, 1, 0, 0]]],
        [[[1, 1, 1, 0], [1, 1, 1, 1]]],
    ]


def test_the_mask_of_a_sliding_window_shows_its_last_positions():
    cache = RaggedKVCache(1, 1, 8)
    cache.place(torch.tensor([4]), 2)
    assert cache.mask("sliding_attention", 3).int().tolist() == [
        [[[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]]
    ]
    assert cache.mask("chunked_attention", 4).int().tolist() == [
        [[[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]]]
    ]


def test_rows_move_and_carry_their_past():
    cache = RaggedKVCache(2, 3, 4)
    cache.place(torch.zeros(3, dtype=torch.long), 2)
    for layer in range(2):
        cache.update(torch.arange(12.0).view(3, 1, 2, 2), states(0.0, 3, 2), layer)
    taken = cache.take_row(2, 2)
    cache.move_row(2, 0)
    assert torch.equal(cache.layers[1].keys[0], cache.layers[1].keys[2])
    other = RaggedKVCache(2, 1, 6)
    other.put_row(0, taken)
    assert other.layers[0].keys[0, 0, :3].tolist() == [[8, 9], [10, 11], [0, 0]]


def test_buffers_double_when_a_row_grows_out_of_them():
    cache, capacities = RaggedKVCache(1, 1, 1500), []
    for start in range(0, 1500, 50):
        cache.place(torch.tensor([start]), 50)
        cache.update(states(1.0, 1, 50), states(1.0, 1, 50), 0)
        capacities.append(cache.layers[0].keys.shape[2] - 1)
    assert sorted(set(capacities)) == [256, 512, 1024, 1500], "and no further than they may"


def test_keys_of_an_indexer_have_layers_of_their_own_after_the_others():
    cache = RaggedKVCache(4, 2, 8)
    cache.place(torch.tensor([0, 2]), 2)
    keys = torch.arange(12.0).view(2, 2, 3)  # [B, T, D]
    for layer in range(2):
        cache.update(states(7.0, 2, 2), states(7.0, 2, 2), layer)
        seen = cache.update_indexer(keys + layer, layer)  # [B, L, D]
        assert torch.equal(seen[0, :2], keys[0] + layer) and not seen[0, 2:].any()
        assert torch.equal(seen[1, 2:], keys[1] + layer) and not seen[1, :2].any()
    assert [tuple(layer.keys.shape[1::2]) for layer in cache.layers] == [(1, 2)] * 2 + [(1, 3)] * 2


def test_positions_past_the_end_fold_onto_the_last():
    assert RaggedKVCache(1, 1, 4).place(torch.tensor([2]), 4).tolist() == [[2, 3, 3, 3]]


def test_a_model_is_given_each_rows_positions_and_mask(open_engine, monkeypatch):
    engine, seen = open_engine("mixtral"), []
    forward = engine.model.forward

    def spy(**inputs):
        seen.append((inputs["position_ids"].clone(), inputs["attention_mask"].clone()))
        return forward(**inputs)

    monkeypatch.setattr(engine.model, "forward", spy)
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12]]
    output = engine.generate(
        prompts, method="specmoe", gamma=3, max_new_tokens=9, batch_size=3, eos_token_id=[]
    )
    frame = output.trace.to_frame()
    # verifications of a full block; the first was the prefill
    blocks = [(p, m) for p, m in seen[1:] if p.shape[1] == 4]
    lengths = {row: [len(prompt)] for row, prompt in enumerate(prompts)}
    for event in frame[frame.kind == "accept"].itertuples():
        lengths[event.row].append(lengths[event.row][-1] + event.count + 1)
    assert blocks
    for positions, mask in blocks:
        assert all(
            int(positions[row, 0]) + 1 in lengths[row]
            for row in range(len(positions))
            if len(positions) == 3
        )
        keys = torch.arange(mask.shape[-1])
        assert torch.equal(mask, keys <= positions[:, None, :, None])
    assert len({int(start) for positions, _ in blocks for start in positions[:, 0]}) > 3, (
        "rows were ragged"
    )


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_block_after_a_rollback_has_the_logits_of_a_fresh_start(architecture, open_engine, tiny):
    engine, model = open_engine(architecture), reference_model(tiny(architecture))
    good, wrong = list(range(3, 25)), list(range(50, 60))
    options = specmoe.options.GenerateOptions(method="resident")
    method = specmoe.engine.methods.make_method(options, engine.memory, engine.packed, None)
    with torch.inference_mode(), held(engine, method, specmoe.trace.Trace()):
        want = model(torch.tensor([good])).logits[0]
        engine.decoder.allocate(1, 40)
        engine.decoder.forward(torch.tensor([good[:12]]), torch.tensor([0]))
        engine.decoder.forward(torch.tensor([wrong]), torch.tensor([12]))  # all rejected
        got = engine.decoder.forward(torch.tensor([good[12:]]), torch.tensor([12]))[0]
    torch.testing.assert_close(got, want[12:], rtol=0, atol=1e-10)


# ---- models that are refused ----

SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
# All that the page says are refused, where this transformers has them.
REFUSED = [kind for kind, word in models_table.read_page().items() if word == "refused"]


def saved(architecture: str, folder, **config):
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **SMALL, **config)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [each for each in REFUSED if each in models_table.CONFIG_MAPPING])
def test_state_that_cannot_be_rolled_back_is_refused_with_its_reason(kind, tmp_path, own_cache):
    folder = models_table.write_tiny(kind, tmp_path / "m")
    with pytest.raises(UnsupportedModelError, match=f"{kind}.* cannot be rolled back"):
        specmoe.load(folder, draft_experts=2)
    assert not (tmp_path / "cache").exists(), "nothing is packed"


def test_a_dense_model_is_refused(tmp_path):
    with pytest.raises(
        UnsupportedModelError, match=r"(?i)llama.*(expert|dense|MoE)|(expert|dense|MoE).*llama"
    ):
        specmoe.load(saved("llama", tmp_path))


def test_an_unknown_kind_of_attention_is_refused_by_name():
    config = AutoConfig.for_model("mixtral")
    config.layer_types = ["full_attention", "mamba"]
    with pytest.raises(UnsupportedModelError, match="mamba"):
        attention_windows(config)


@pytest.mark.parametrize("sign", [{"_is_stateful": True}, {"is_hybrid": True}], ids=str)
def test_every_sign_of_recurrent_state_is_enough(sign):
    config = SimpleNamespace(model_type="strange", is_hybrid=sign.get("is_hybrid", False))
    config.get_text_config = lambda decoder: config
    with pytest.raises(UnsupportedModelError, match="strange keeps recurrent state"):
        check_rollback(SimpleNamespace(config=config, _is_stateful=sign.get("_is_stateful", False)))


def test_a_selection_is_a_copy_of_its_rows_in_their_order():
    cache = RaggedKVCache(1, 3, 8)
    cache.place(torch.zeros(3, dtype=torch.long), 2)
    by_row = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 1, 2, 2)
    cache.update(by_row, by_row + 10, 0)
    part = cache.select(torch.tensor([2, 0, 1]))
    assert part.layers[0].keys[:3, 0, 0, 0].tolist() == [3, 1, 2]
    assert part.layers[0].values[:3, 0, 0, 0].tolist() == [13, 11, 12]
    part.layers[0].keys.zero_()
    assert cache.layers[0].keys[:3, 0, 0, 0].tolist() == [1, 2, 3], "the original stays"
