"""The round, driven by a fake model whose next token is a checksum of everything its KV cache holds
up to there.

A stale, missing or misplaced token changes every later one, so the tokens alone show whether
positions, masks and KV stay together. Which drafted tokens are wrong is set by hand.
"""

from __future__ import annotations

import zlib
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import SpecMoEError
from specmoe.options import GenerateOptions
from specmoe.speculate import loop
from specmoe.speculate.loop import Batch, Sequence, decode
from specmoe.speculate.planner import FixedGamma
from specmoe.speculate.sampling import Sampler
from specmoe.trace import PoolCounts, Trace

VOCAB = 50


def next_token(tokens: list[int]) -> int:
    return zlib.crc32(bytes(tokens)) % VOCAB


def plain_tokens(prompt: list[int], new_tokens: int, eos=frozenset()) -> list[int]:
    """What plain decoding gives."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + new_tokens and not (
        len(tokens) > len(prompt) and tokens[-1] in eos
    ):
        tokens.append(next_token(tokens))
    return tokens


@dataclass
class FakeRow:
    prompt: int
    memory: dict[int, int]  # position -> token whose keys and values lie there


@dataclass
class FakeModel:
    """Decoder and experts in one. ``wrong`` holds the (prompt, position) whose drafted token the
    target refuses; ``live`` records, per step, mode and live mask."""

    wrong: set[tuple[int, int]] = field(default_factory=set)
    cold: int = 0  # rounds that begin without any draft expert
    rows: list[FakeRow] = field(default_factory=list)
    log: list[tuple] = field(default_factory=list)
    num_prompts: int = 0
    is_drafting: bool = False
    is_prefilling: bool = False
    all_rows: list[FakeRow] | None = None
    pool = type("Pool", (), {"counts": PoolCounts()})()
    installed = type("Installed", (), {"draft_layers": range(1), "num_experts": 1})()

    # the decoder
    def prefill(self, rows, set_live):
        lengths = torch.tensor([len(row.tokens) - 1 for row in rows])
        set_live(torch.arange(int(lengths.max())) < lengths[:, None])
        states = [
            FakeRow(self.num_prompts + i, dict(enumerate(row.tokens[:-1])))
            for i, row in enumerate(rows)
        ]
        self.num_prompts += len(rows)
        return states

    def add_row(self, row, state):
        assert row == len(self.rows), "rows in use must stay together"
        self.rows.append(state)

    def remove_row(self, row, last):
        assert last == len(self.rows) - 1
        self.rows[row] = self.rows[last]
        self.rows.pop()

    def forward(self, tokens, starts):
        assert tokens.shape[0] == len(self.rows) == len(starts)
        self.log.append(
            (
                "draft" if self.is_drafting else "target",
                tokens.tolist(),
                starts.tolist(),
                self.live.clone(),
            )
        )
        logits = torch.zeros(*tokens.shape, VOCAB)
        for index, row in enumerate(self.rows):
            for offset, token in enumerate(tokens[index].tolist()):
                position = int(starts[index]) + offset
                row.memory[position] = token
                seen = [row.memory[p] for p in range(position + 1)]  # a hole raises KeyError
                refused = self.is_drafting and (row.prompt, position + 1) in self.wrong
                logits[index, offset, (next_token(seen) + refused) % VOCAB] = 1
        return logits

    def select_rows(self, rows):
        self.all_rows = self.all_rows or self.rows
        self.rows = [
            FakeRow(self.rows[row].prompt, dict(self.rows[row].memory)) for row in rows.tolist()
        ]

    def restore_rows(self):
        self.rows = self.all_rows or self.rows
        self.all_rows = None

    def settle(self, starts):
        assert len(starts) == len(self.rows)

    # the experts
    @contextmanager
    def drafting(self):
        self.cold -= 1
        self.is_drafting = self.cold < 0
        yield self.is_drafting
        self.is_drafting = False

    @contextmanager
    def verifying(self, live):
        assert not self.is_drafting
        self.live = live
        yield

    @contextmanager
    def prefilling(self):
        self.is_prefilling = True
        yield
        self.is_prefilling = False

    def set_live(self, live):
        self.live = live
        if self.is_prefilling:
            self.log.append(("prefill", None, None, live.clone()))


def run(prompts, gamma=4, new_tokens=12, batch_size=2, eos=(), wrong=(), model=None, **options):
    """-> tokens per prompt, the job, the model. ``new_tokens``: of all prompts, or one each."""
    model = model or FakeModel(set(wrong))
    limits = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else new_tokens
    rows = deque(
        Sequence(i, list(prompt), len(prompt) + limits[i]) for i, prompt in enumerate(prompts)
    )
    batch = Batch(
        model,
        model,
        Sampler(GenerateOptions(**options)),
        FixedGamma(gamma),
        rows,
        batch_size,
        frozenset(eos),
        Trace(),
    )
    tokens = {}
    for done in decode(batch):
        assert len(batch.rows) == len(done.prompts) <= batch_size
        assert len(batch.rounds) < 1000, "rows that have finished stay in flight"
        tokens.update({row.prompt: list(row.tokens) for row in batch.rows if row.finished})
    return [tokens[i] for i in range(len(prompts))], batch, model


prompt_lists = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6), min_size=1, max_size=6
)


@settings(max_examples=60)
@given(
    prompts=prompt_lists,
    wrong=st.sets(st.tuples(st.integers(0, 5), st.integers(1, 18))),
    gamma=st.integers(0, 7),
    batch_size=st.integers(1, 4),
    new_tokens=st.integers(1, 14),
    eos=st.sets(st.integers(0, VOCAB - 1), max_size=5),
    cold=st.integers(0, 2),
)
def test_ragged_acceptance_never_changes_a_token(
    prompts, wrong, gamma, batch_size, new_tokens, eos, cold
):
    got, batch, model = run(
        prompts, gamma, new_tokens, batch_size, eos, model=FakeModel(wrong, cold)
    )
    want = [plain_tokens(prompt, new_tokens, eos) for prompt in prompts]
    assert got == want
    assert sum(each.new_tokens for each in batch.rounds) == sum(
        len(w) - len(p) for w, p in zip(want, prompts)
    )
    frame = batch.trace.to_frame()
    assert frame[frame.kind == "round"]["count"].sum() == sum(
        each.new_tokens for each in batch.rounds
    )
    assert not model.rows and not batch.waiting and not batch.queue


@settings(max_examples=30)
@given(
    prompts=prompt_lists,
    wrong=st.sets(st.tuples(st.integers(0, 5), st.integers(1, 18))),
    gamma=st.integers(1, 6),
)
def test_exactly_the_tokens_before_the_first_wrong_one_are_accepted(prompts, wrong, gamma):
    _, batch, _ = run(prompts, gamma, batch_size=3, wrong=wrong)
    length = {i: len(prompt) for i, prompt in enumerate(prompts)}
    frame = batch.trace.to_frame()
    for event in frame[frame.kind == "accept"].itertuples():
        first_wrong = next(
            (i for i in range(event.size) if (event.row, length[event.row] + i) in wrong),
            event.size,
        )
        assert event.count == first_wrong
        length[event.row] += event.count + 1


def test_blocks_begin_at_each_rows_own_last_token():
    _, _, model = run([[1], [2, 3, 4, 5, 6]], gamma=3, new_tokens=9, wrong={(0, 2), (1, 7)})
    targets = [entry for entry in model.log if entry[0] == "target"]
    # row 0 takes 2, row 1 takes 3, ...
    assert [starts for _, _, starts, _ in targets] == [[0, 4], [2, 7], [6, 11]]
    for _, tokens, _, live in targets:
        assert live.shape == (2, len(tokens[0]))


def test_after_a_fully_accepted_round_no_position_is_missing():
    got, batch, _ = run([[1, 2], [3]], gamma=4, new_tokens=25)
    assert (
        all(list(each.accepted) == list(each.drafted) for each in batch.rounds)
        and sum(batch.rounds[0].drafted) > 0
    )
    assert got == [plain_tokens([1, 2], 25), plain_tokens([3], 25)]
    assert len(batch.rounds) == 5  # every round gives gamma + 1


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("wrong", [set(), {(0, 4)}], ids=["all_accepted", "one_refused"])
def test_a_row_ends_at_its_first_eos_wherever_in_the_block(position, wrong):
    prompt = [7, 8]
    eos = plain_tokens(prompt, 12)[2 + position]
    want = plain_tokens(prompt, 12, {eos})
    got, batch, _ = run([prompt, [9]], gamma=5, eos=[eos], wrong=wrong)
    assert got[0] == want and got[1] == plain_tokens([9], 12, {eos})
    accepts = batch.trace.to_frame().query("kind == 'accept' and row == 0")
    committed = accepts["count"].sum() + len(accepts)
    assert committed - (len(want) - 2) in (0, 1)  # an accepted EOS leaves no room for the bonus


def test_eos_inside_a_prompt_ends_nothing():
    eos = 33
    got, _, _ = run([[eos, 1, eos], [eos]], gamma=3, eos=[eos])
    assert got == [plain_tokens([eos, 1, eos], 12, {eos}), plain_tokens([eos], 12, {eos})]
    assert all(len(tokens) > 3 for tokens in got)


@pytest.mark.parametrize("length", range(1, 7))
def test_lengths_one_to_gamma_plus_one_stop_exactly(length):
    got, batch, model = run([[1, 2, 3], [4]], gamma=5, new_tokens=length)
    assert got == [plain_tokens([1, 2, 3], length), plain_tokens([4], length)]
    assert len(batch.rounds) == 1
    drafted = max(len(tokens[0]) for kind, tokens, *_ in model.log if kind == "target") - 1
    assert drafted == length - 1  # nothing is drafted that could not be kept


def test_finished_rows_take_no_part_in_any_later_step():
    prompts, eos = [[7, 8], [9], [10, 11, 12]], None
    eos = plain_tokens(prompts[0], 12)[4]
    _, _, together = run(prompts, gamma=0, batch_size=3, eos=[eos])
    rows_in_step = [len(tokens) for kind, tokens, *_ in together.log if kind == "target"]
    lengths = sorted(len(plain_tokens(prompt, 12, {eos})) - len(prompt) for prompt in prompts)
    assert rows_in_step == [
        sum(length > forward for length in lengths) for forward in range(max(lengths))
    ]


def test_tokens_after_a_drafted_eos_or_the_limit_are_not_live():
    prompt = [7, 8]
    eos = plain_tokens(prompt, 20)[4]  # the third new token
    _, batch, model = run([prompt, [1]], gamma=6, eos=[eos], new_tokens=20)
    first = next(live for kind, _, _, live in model.log if kind == "target")
    # last token, two drafts, the drafted EOS
    assert first[0].tolist() == [True] * 4 + [False] * (first.shape[1] - 4)
    assert batch.trace.to_frame().query("kind == 'verify'")["count"].iloc[0] == int(first.sum())


def test_finished_rows_are_replaced_from_the_queue_at_once():
    prompts = [[n] for n in range(9)]
    _, batch, model = run(prompts, gamma=0, new_tokens=4, batch_size=3)
    assert [len(tokens) for kind, tokens, *_ in model.log if kind == "target"] == [3] * 12
    assert sum(len(each.prompts) for each in batch.rounds) == 36


def test_rows_left_out_of_late_draft_steps_are_verified_with_the_others():
    """Ten rows, six of which may draft one token only: the steps after it compute four rows, the
    verification all ten."""
    prompts, lengths = [[i, i + 1] for i in range(10)], [2] * 6 + [9] * 4
    tokens, _, model = run(prompts, gamma=5, new_tokens=lengths, batch_size=10)
    assert tokens == [plain_tokens(p, n) for p, n in zip(prompts, lengths)]
    widths = [(mode, len(fed)) for mode, fed, *_ in model.log if mode != "prefill"]
    assert widths[:6] == [("draft", 10)] + [("draft", 4)] * 4 + [("target", 10)]


def test_a_cold_start_decodes_plainly():
    got, batch, model = run([[1, 2, 3]], gamma=4, model=FakeModel(cold=3))
    assert got == [plain_tokens([1, 2, 3], 12)]
    assert [each.gamma for each in batch.rounds[:4]] == [0, 0, 0, 4]
    assert [kind for kind, *_ in model.log[1:4]] == ["target"] * 3


def test_prefill_leaves_out_the_last_token_and_masks_the_padding():
    _, _, model = run([[1, 2, 3, 4], [5], [6, 7]], batch_size=3)
    kind, _, _, live = model.log[0]
    assert kind == "prefill"
    assert live.tolist() == [[True] * 3, [False] * 3, [True, False, False]]


@pytest.mark.parametrize(("lengths", "chunks"), [((10, 2, 2, 2), [2, 2]), ((2, 2, 2, 10), [3, 1])])
def test_a_chunk_of_prompts_holds_no_more_padded_tokens_than_it_may(lengths, chunks, monkeypatch):
    monkeypatch.setattr(loop, "PREFILL_TOKENS", 20)
    prompts = [[n] * length for n, length in enumerate(lengths)]
    _, _, model = run(prompts, batch_size=4)
    assert [len(live) for kind, _, _, live in model.log if kind == "prefill"] == chunks


def test_twins_are_prefilled_together_however_many_they_are_and_nobody_else_with_them():
    queue = deque(
        loop.Sequence(prompt, [1, 2], 9, twin=twin)
        for prompt, twin in enumerate([7, 7, 7, 7, 8, 8])
    )
    batch = SimpleNamespace(queue=queue, batch_size=2)
    chunks = [loop.next_chunk(batch) for _ in range(2)]
    assert [[row.prompt for row in group] for [group] in chunks] == [[0, 1, 2, 3], [4, 5]]
    assert not queue


def test_draft_and_target_draw_the_same_token_of_the_same_probabilities():
    """The fake draft is the target itself: coupled, it can only be rejected where the two draw for
    different positions."""
    prompts, sampled = [[1, 2, 3], [4], [5, 6]], {"do_sample": True, "seed": 5}
    tokens, job, _ = run(prompts, gamma=4, new_tokens=15, **sampled)
    assert all(done.accepted == done.drafted for done in job.rounds)
    assert max(map(max, (done.drafted for done in job.rounds))) == 4
    assert tokens == run(prompts, gamma=0, new_tokens=15, **sampled)[0]
    assert tokens != run(prompts, gamma=0, new_tokens=15, do_sample=True, seed=6)[0]


def test_nan_logits_stop_the_round_with_one_sentence():
    model = FakeModel()
    model.forward = lambda tokens, starts: torch.full((*tokens.shape, VOCAB), float("nan"))
    with pytest.raises(SpecMoEError, match="logits are NaN"):
        run([[1]], gamma=0, model=model)


def test_the_fake_model_would_notice_a_skipped_position():
    """The instrument itself: a row that starts one too late has a hole."""
    model = FakeModel()
    model.add_row(0, FakeRow(0, {0: 1}))
    model.set_live(torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(KeyError):
        model.forward(torch.tensor([[5]]), torch.tensor([2]))
