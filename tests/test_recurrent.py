"""Models with recurrent layers: their states roll back, are never padded, follow their rows, and no
expert is touched for it."""

from __future__ import annotations

import models_table
import pytest
import torch
import transformers
from models_table import decoded, plain, reference, write_tiny
from torch import nn

import specmoe
from specmoe.errors import UnsupportedModelError
from specmoe.model.kv_cache import MIXERS
from specmoe.model.recurrent import Mixer, StateCache, appended
from specmoe.speculate.sampling import Sampler

# A convolution alone; a state and a convolution; a state of float32 that is carried by steps.
QUICK = ("lfm2_moe", "granitemoehybrid", "jamba")
# More rows than places, one of them without a prefill, two of one length.
PROMPTS = [[5, 6, 7, 8, 9], [3], [20, 21, 22], [1, 2, 3], [4, 60, 61, 62, 63, 64, 65], [9, 8]]
NEW_TOKENS = 7
METHODS = {
    "on_demand": {},
    "overlapped": {},
    "cached": {},
    "resident": {},
    "auto": {},
    "specmoe": {"gamma": 3},
}


def all_of(hybrids, methods, marks=()) -> list:
    return [pytest.param(each, m, marks=marks) for each in hybrids for m in methods]


OTHERS = [kind for kind in MIXERS if kind not in QUICK and kind in models_table.CONFIG_MAPPING]
RUNS = all_of(QUICK, METHODS) + all_of(OTHERS, ["specmoe"])
RUNS += all_of(OTHERS, [name for name in METHODS if name != "specmoe"], pytest.mark.long)
EACH = [*QUICK, *(pytest.param(kind, marks=pytest.mark.long) for kind in OTHERS)]
each_hybrid = pytest.mark.parametrize("hybrid", EACH, indirect=True)


@pytest.fixture(scope="module")
def hybrids(tmp_path_factory):
    """``hybrids(kind)``: engine, transformers' model and its tokens, made once."""
    made = {}

    def get(kind: str):
        if kind not in made:
            folder = write_tiny(kind, tmp_path_factory.mktemp(kind))
            engine = specmoe.load(folder, dtype="float64", draft_experts=3)
            model = reference(folder)
            made[kind] = engine, model, plain(model, PROMPTS, NEW_TOKENS)
        return made[kind]

    yield get
    for engine, *_ in made.values():
        engine.close()


@pytest.fixture
def hybrid(request, hybrids):
    return hybrids(request.param)


@pytest.mark.parametrize("hybrid, method", RUNS, indirect=["hybrid"])
def test_every_method_gives_each_row_what_it_gets_alone_through_refills(hybrid, method):
    engine, _, want = hybrid
    output = engine.generate(
        PROMPTS,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=[],
        batch_size=2,
        method=method,
        **METHODS[method],
    )
    assert [sequence.tolist() for sequence in output.sequences] == want
    assert output.stats.num_rounds > 10 or method in ("auto", "specmoe")


@each_hybrid
def test_each_row_alone_one_after_the_other(hybrid):
    """A prompt of one token, which has no prefill, begins where nobody is left."""
    engine, _, want = hybrid
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": [], "batch_size": 1}
    output = engine.generate(PROMPTS, method="specmoe", gamma=3, **options)
    assert [sequence.tolist() for sequence in output.sequences] == want


@each_hybrid
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@torch.no_grad()
def test_what_is_sampled_is_sampled_from_the_logits_of_the_text_before_it(
    hybrid, rule, monkeypatch
):
    """Rejected drafts leave no trace in them: they are those of transformers for the whole text, as
    far as float32 sums of chunks and of steps are alike."""
    engine, model, _ = hybrid
    seen, verify = [], Sampler.verify

    def watched(self, logits, tokens, counting, q, prompts, positions):
        verdicts = verify(self, logits, tokens, counting, q, prompts, positions)
        for row, verdict in enumerate(verdicts):
            seen.append((prompts[row], positions[row], logits[row, : verdict.accepted + 1]))
        return verdicts

    monkeypatch.setattr(Sampler, "verify", watched)
    options = {"do_sample": True, "seed": 4, "accept_rule": rule, "method": "specmoe", "gamma": 3}
    output = engine.generate(
        PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_id=[], batch_size=2, **options
    )
    whole = [model(torch.tensor([text.tolist()])).logits[0] for text in output.sequences]
    for prompt, first, logits in seen:
        want = whole[prompt][first - 1 : first - 1 + len(logits)]
        torch.testing.assert_close(logits[: len(want)], want, rtol=0, atol=1e-4)
    assert seen and 0 < output.stats.acceptance_rate < 1


@each_hybrid
def test_rows_that_leave_a_draft_early_come_back_with_their_states(hybrid, monkeypatch):
    """The planner's confidence makes rows stop at different tokens; the others are drafted on."""
    engine, *_ = hybrid
    prompts = [[3 + i, 40 - i, *range(5, 5 + i % 4)] for i in range(10)]
    left = []
    monkeypatch.setattr("specmoe.speculate.block.NARROW", 1.0)
    select = type(engine.decoder).select_rows
    monkeypatch.setattr(
        type(engine.decoder),
        "select_rows",
        lambda self, rows: (left.append(len(rows)), select(self, rows)),
    )
    lengths = [4 + 2 * (i % 5) for i in range(10)]
    each = [{"max_new_tokens": length} for length in lengths]
    options = {"eos_token_id": [], "batch_size": 10}
    plainly = engine.generate(prompts, settings=each, method="on_demand", **options)
    drafted = engine.generate(prompts, settings=each, method="specmoe", gamma=5, **options)
    assert left, "no row left a draft early"
    for one, other in zip(plainly.sequences, drafted.sequences, strict=True):
        assert one.tolist() == other.tolist()


@each_hybrid
def test_rolling_back_touches_no_expert(hybrid, monkeypatch):
    engine, _, want = hybrid
    busy = []
    settle = engine.decoder.settle

    def watched(starts):
        asked = engine.experts.modules[0].forward
        before = [m.forward for m in engine.experts.modules]
        for module in engine.experts.modules:
            module.forward = lambda *given, **more: pytest.fail("an expert ran")
        settle(starts)
        for module, forward in zip(engine.experts.modules, before, strict=True):
            module.forward = forward
        busy.append(asked)

    monkeypatch.setattr(engine.decoder, "settle", watched)
    assert decoded(engine, PROMPTS[:4], NEW_TOKENS, method="specmoe", gamma=3) == want[:4]
    assert busy


@each_hybrid
def test_what_a_compiler_cannot_follow_runs_on_the_plain_path(hybrid, caplog):
    engine, *_ = hybrid
    with caplog.at_level("WARNING", "specmoe"):
        engine.decoder.passes.compile()
    assert "recurrent layers: using the plain path" in caplog.text
    assert engine.decoder.passes.compiled is None


# ---- one layer by hand ----


class Running(nn.Module):
    """A running sum, and the mean of the last three inputs; counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, hidden_states, cache=None, attention_mask=None):
        self.calls.append(tuple(hidden_states.shape[:2]))
        seq = hidden_states.shape[1]
        window = cache.update_conv_state(hidden_states.transpose(1, 2), 0, conv_kernel_size=3)
        window = nn.functional.pad(window, (2, 0))
        means = window.unfold(-1, 3, 1).mean(-1)[..., -seq:].transpose(1, 2)
        old = cache.get_recurrent_state(0)
        sums = hidden_states.cumsum(1) + (0 if old is None else old[:, None])
        cache.update_recurrent_state(sums[:, -1], 0)
        return sums + means


def alone(row: torch.Tensor) -> torch.Tensor:
    return Running()(row[None], StateCache({}))[0]


def test_a_block_is_run_again_for_the_tokens_that_count_and_only_those():
    torch.manual_seed(0)
    texts = torch.randn(3, 9, 2, dtype=torch.float64)
    module = Running()
    mixer = Mixer(module)
    mixer.begin({})
    mixer(texts[:, :4])
    counts = torch.tensor([1, 4, 2])
    module.calls.clear()
    mixer.settle(counts)
    assert module.calls == [(3, 1)] * 4
    after = torch.stack([text[n : n + 3] for text, n in zip(texts, counts.tolist())])
    got = mixer(after)
    want = [alone(text)[n : n + 3] for text, n in zip(texts, counts.tolist())]
    torch.testing.assert_close(got, torch.stack(want))
    module.calls.clear()
    mixer.settle(torch.full((3,), 3))  # all of it counts: nothing is run again
    assert not module.calls


def test_what_was_drafted_leaves_no_trace():
    texts = torch.randn(2, 4, 2, dtype=torch.float64)
    mixer = Mixer(Running())
    mixer.begin({})
    mixer(texts[:, :2])
    mixer.settle(torch.tensor([2, 2]))
    mixer(texts[:, 3:])
    mixer.begin(mixer.base)  # as ``restore_rows`` does
    got = mixer(texts[:, 2:])
    torch.testing.assert_close(got, torch.stack([alone(text)[2:] for text in texts]))


def test_padding_enters_no_state():
    texts = torch.randn(4, 5, 2, dtype=torch.float64)
    mixer = Mixer(Running())
    mixer.lengths = [2, 5, 0, 2]
    got = mixer(texts)
    state = {}
    for row, one in enumerate(mixer.prefilled):
        state = appended(state, one, row)
    for row, length in enumerate(mixer.lengths):
        torch.testing.assert_close(got[row, :length], alone(texts[row])[:length])
        torch.testing.assert_close(state["recurrent", 0][row], texts[row, :length].sum(0))
    assert not state["conv", 0][2].any()


def test_a_state_is_a_copy_and_a_row_without_one_begins_with_zeros():
    state = {("recurrent", 0): torch.ones(1, 2)}
    StateCache(state).get_recurrent_state(0).zero_()
    assert state["recurrent", 0].all()
    assert appended({}, {}, 3) == {}
    assert appended({}, state, 2)["recurrent", 0].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert appended(state, {}, 1)["recurrent", 0].tolist() == [[1, 1], [0, 0]]
    nobody = {("recurrent", 0): torch.ones(0, 2)}  # all rows have left
    assert appended(nobody, {}, 0)["recurrent", 0].tolist() == [[0, 0]]


@pytest.mark.parametrize("name", ["cache", "past_key_values", "cache_params"])
def test_a_layer_is_given_its_state_under_the_name_that_it_knows(name):
    """transformers renames it, and swallows the names that it does not know."""

    class Named(Running):
        pass

    scope = {"run": Running.forward}
    exec(
        f"def forward(self, hidden_states, {name}=None, **_): return run(self, hidden_states, {name})",
        scope,
    )
    Named.forward = scope["forward"]
    texts = torch.randn(2, 4, 2, dtype=torch.float64)
    mixer = Mixer(Named())
    mixer.begin({})
    torch.testing.assert_close(mixer(texts), torch.stack([alone(text) for text in texts]))


def test_a_layer_whose_name_for_its_state_nobody_knows_is_refused():
    class Renamed(nn.Module):
        def forward(self, hidden_states, memory=None, **_):
            return hidden_states

    with pytest.raises(
        UnsupportedModelError, match="Renamed.forward .* takes no cache .* another version"
    ):
        Mixer(Renamed())


def test_a_transformers_that_asks_its_cache_otherwise_is_refused(tmp_path, monkeypatch):
    folder = write_tiny("qwen3_next", tmp_path)
    monkeypatch.delattr(transformers.Cache, "get_conv_state")
    with pytest.raises(
        UnsupportedModelError, match="qwen3_next has recurrent layers.* 5.21 or newer"
    ):
        specmoe.load(folder)


def test_every_recurrent_layer_of_the_list_is_one_of_its_model():
    for kind, name in MIXERS.items():
        if kind not in models_table.CONFIG_MAPPING:
            continue
        with torch.device("meta"):
            config = models_table.tiny_config(kind)
            model = models_table.auto_class(config).from_config(config)
        assert any(type(module).__name__ == name for module in model.modules()), kind
