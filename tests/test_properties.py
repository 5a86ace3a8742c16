"""Any job, with anything failing in its middle: tokens, order, bytes, counts and the pool's own
rules.

Hypothesis draws the job. Every run here goes through a pool whose freed slots are filled with NaN
and whose integrity is checked around each request; the readers serve in a drawn order.
"""

from __future__ import annotations

import itertools
import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import tiny_families
import torch
from conftest import reference_model
from hypothesis import given, settings
from hypothesis import strategies as st

import specmoe
from specmoe.errors import OptionError, StoreError
from specmoe.offload.pool import ResidentPool
from specmoe.offload.slots import Slots
from specmoe.options import DRAFT_SETS, EVICTIONS, SUBSTITUTES

LONGEST = 12
SLOT = 36864  # bytes of a record of the tiny float64 mixtral
ENGINES = {
    "mixtral, N=1, smallest pool": ("mixtral", {"draft_experts": 1, "fast_memory": 3 * SLOT}),
    "mixtral, N=2, spare slots": ("mixtral", {"draft_experts": 2, "fast_memory": 9 * SLOT}),
    "mixtral, N=3, in memory": ("mixtral", {"draft_experts": 3, "store": "memory"}),
    "qwen2_moe, N=3, one reader": ("qwen2_moe", {"draft_experts": 3, "num_readers": 1}),
    "nllb-moe, N=2": ("nllb-moe", {"draft_experts": 2}),
}
POOL = tiny_families.ragged_prompts((5, 1, 11, 7, 3, 9, 2, 14), seed=2)
PER_ROW = (
    None,
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 1, "suppress_tokens": [5, 50]},
)


def by_rotation(layer: int, counts: list[int], n: int) -> list[int]:
    """A draft set of somebody's own: the least used experts, for a change."""
    ranked = sorted(range(len(counts)), key=lambda expert: (counts[expert], (expert + layer) % 3))
    return ranked[:n]


# ---- what is drawn


@dataclass(frozen=True)
class DrawnJob:
    """``options`` of ``generate``; reads are served in an order drawn from ``arrivals``; None: as
    they came."""

    engine: str
    prompts: list
    lengths: list
    own: list
    options: dict = field(default_factory=dict)
    sampling: dict = field(default_factory=dict)
    eos: tuple = ()
    arrivals: int | None = None


METHODS = st.sampled_from(["specmoe"] * 5 + ["auto", "cached", "overlapped", "on_demand"])
PROMPT = st.one_of(st.sampled_from(POOL), st.lists(st.integers(3, 96), min_size=1, max_size=8))
SAMPLING = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "do_sample": st.just(True),
            "seed": st.integers(0, 3),
            "temperature": st.sampled_from([0.7, 1.0, 1.5]),
            "top_p": st.sampled_from([0.8, 1.0]),
        }
    ),
)
OPTIONS = st.fixed_dictionaries(
    {
        "method": METHODS,
        "gamma": st.integers(0, 6),
        "draft_set": st.sampled_from([*DRAFT_SETS, by_rotation]),
        "substitute": st.sampled_from(SUBSTITUTES),
        "eviction": st.sampled_from(EVICTIONS),
        "prefetch": st.booleans(),
        "draft_top_k": st.sampled_from([None, 1, 2]),
        "batch_size": st.integers(1, 5),
    }
)


@st.composite
def jobs(draw) -> DrawnJob:
    prompts = draw(st.lists(PROMPT, min_size=1, max_size=4))
    one_each = {"min_size": len(prompts), "max_size": len(prompts)}
    return DrawnJob(
        draw(st.sampled_from(sorted(ENGINES))),
        prompts,
        draw(st.lists(st.integers(1, LONGEST), **one_each)),
        draw(st.lists(st.sampled_from(PER_ROW), **one_each)),
        draw(OPTIONS),
        draw(SAMPLING),
        draw(st.sampled_from([(), (), tuple(range(3, 97, 9))])),
        draw(st.one_of(st.none(), st.integers(0, 99))),
    )


# ---- engines and what is right


@pytest.fixture(scope="module", autouse=True)
def _strict_pools():
    """Freed slots hold NaN, and the pool's rules hold before, while and after it serves a
    request."""
    real = ResidentPool.request

    def checked(pool, *arguments, **options):
        pool.check_integrity()
        arrivals = real(pool, *arguments, **options)
        pool.check_integrity()
        for arrived in arrivals:
            pool.check_integrity()
            yield arrived
        pool.check_integrity()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResidentPool, "request", lambda *a, **k: _begun(checked(*a, **k)))
        patch.setattr("specmoe.engine.run.Slots", partial(Slots, poison=True))
        yield


def _begun(iterator):
    """``request`` starts its reads when it is called, not when the first record is taken."""
    first = list(itertools.islice(iterator, 1))
    return itertools.chain(first, iterator)


@pytest.fixture(scope="module")
def case(tiny, tmp_path_factory):
    """``case(name)``: an engine of ``ENGINES`` with what plain decoding gives, remembered."""
    folder, opened = tmp_path_factory.mktemp("nllb"), {}
    tiny_families.make_family("nllb-moe", folder)

    def get(name: str) -> Case:
        if name not in opened:
            family, options = ENGINES[name]
            path = folder if family == "nllb-moe" else tiny(family)
            opened[name] = Case(path, family, specmoe.load(path, dtype=torch.float64, **options))
        return opened[name]

    yield get
    for found in opened.values():
        found.engine.close()


class Case:
    def __init__(self, folder, family: str, engine: specmoe.Engine):
        self.folder = folder
        self.family = family
        self.engine = engine
        self.known: dict[str, list[int]] = {}
        self.model = None

    def plainly(self, job: DrawnJob) -> list[list[int]]:
        """Each row alone, decoded on demand; greedy rows without processors by transformers."""
        return [self._row(job, index) for index in range(len(job.prompts))]

    def _row(self, job: DrawnJob, index: int) -> list[int]:
        prompt, own = job.prompts[index], job.own[index]
        place = index if job.sampling else 0
        key = str((prompt, own, job.sampling, place))
        if key not in self.known:
            if own is None and not job.sampling:
                self.known[key] = self._by_transformers(prompt)
            else:
                options = {
                    "method": "on_demand",
                    "batch_size": 1,
                    "eos_token_id": [],
                    **job.sampling,
                }
                options |= {"max_new_tokens": LONGEST, "first_prompt": place, "settings": [own]}
                self.known[key] = tokens_of(self.engine.generate([prompt], **options))[0]
        start = 1 if self.family == "nllb-moe" else len(prompt)
        return cut(self.known[key], start, job.lengths[index], job.eos)

    def _by_transformers(self, prompt: list[int]) -> list[int]:
        if self.model is None:
            own = tiny_families.reference_model
            self.model = (
                own(self.family, self.folder)
                if self.family == "nllb-moe"
                else reference_model(self.folder)
            )
            self.model.known_outputs = {}
        options = {"eos_token_id": None, "pad_token_id": 0}
        return tiny_families.plain_greedy(self.model, [prompt], LONGEST, **options)[0]


def tokens_of(output) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]


def cut(tokens: list[int], start: int, length: int, eos: tuple) -> list[int]:
    """A longest text -> the one that ends after ``length`` new tokens or at its first end token."""
    ends = [place for place in range(start, len(tokens)) if tokens[place] in eos]
    return tokens[: min([start + length, *(place + 1 for place in ends)])]


def run(engine, job: DrawnJob, **more):
    own = [
        {**(own or {}), "max_new_tokens": length}
        for own, length in zip(job.own, job.lengths, strict=True)
    ]
    options = {**job.options, **job.sampling, "settings": own, "eos_token_id": list(job.eos)}
    options |= {"max_new_tokens": LONGEST}
    with shuffled_reads(engine, job.arrivals):
        return engine.generate(job.prompts, **{**options, **more})


@contextmanager
def shuffled_reads(engine, seed: int | None):
    """Among reads of one priority the order in which readers take them is drawn."""
    queue, order = engine.store._queue, engine.store._queue._order
    if seed is not None:
        drawn = random.Random(seed)
        queue._order = (drawn.randrange(99) * 10**12 + number for number in order)
    try:
        yield
    finally:
        queue._order = order


# ---- the properties


@settings(max_examples=50)
@given(job=jobs())
def test_any_job_gives_the_tokens_of_plain_decoding_and_books_that_balance(job, case):
    found = case(job.engine)
    output = run(found.engine, job)
    assert tokens_of(output) == found.plainly(job), "tokens, in the order of the prompts"
    assert_books_balance(output, found, job)
    assert found.engine.store.is_idle()


def assert_books_balance(output, found: Case, job: DrawnJob) -> None:
    """Bytes, tokens, hits and misses of ``stats`` are those of the trace."""
    frame, stats = output.trace.to_frame(), output.stats
    record = found.engine.packed.layout.record_bytes
    moved = frame[frame.kind.isin(["fetch", "prefetch"])]
    assert stats.fetched_bytes == stats.num_fetches * record
    assert moved["size"].sum() == len(moved) * record == stats.fetched_bytes + stats.prefill_bytes
    verified = frame[frame.phase == "verify"]
    asked = verified[verified.kind == "route"]
    assert not asked.duplicated(["round", "layer", "expert"]).any()
    drafts = job.options["method"] in ("specmoe", "auto")
    requests = stats.num_hits + stats.num_misses
    named_by_a_set = job.options["draft_set"] != "hot_temporal" and drafts
    # What a fixed or own draft set names and no router did is fetched and counted as well.
    assert requests >= len(asked) if named_by_a_set else requests == len(asked)
    assert stats.num_hits == (verified.kind == "hit").sum()
    starts = [1 if found.family == "nllb-moe" else len(prompt) for prompt in job.prompts]
    new = sum(map(len, output.sequences)) - sum(starts)
    assert stats.num_new_tokens == new == frame[frame.kind == "round"]["count"].sum()
    assert stats.num_rounds == (frame.kind == "round").sum()
    assert stats.peak_fast_expert_bytes <= found.engine.memory.used_bytes


class FailsAt:
    """Calls ``real``, but the n-th call raises."""

    def __init__(self, n: int, error: BaseException, real=lambda *arguments: None):
        self.left = n
        self.error = error
        self.real = real

    def __call__(self, *arguments):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.real(*arguments)


def read_fails(engine, job: DrawnJob, n: int):
    if engine.store.kind == "memory":
        owner, name = engine.store, "_copy"
    else:
        owner, name = os, "preadv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            owner, name, FailsAt(n, OSError(5, "Input/output error"), getattr(owner, name))
        )
        return run(engine, job)


def processor_fails(engine, job: DrawnJob, n: int):
    failing = FailsAt(n, ZeroDivisionError("by a processor"), lambda ids, scores: scores)
    return run(engine, job, logits_processor=[failing])


def callback_fails(engine, job: DrawnJob, n: int):
    error = KeyboardInterrupt() if n % 2 else LookupError("by a callback")
    return run(engine, job, progress=FailsAt(n, error))


FAILURES = {
    read_fails: (StoreError,),
    processor_fails: (OptionError,),
    callback_fails: (LookupError, KeyboardInterrupt),
}


@settings(max_examples=30)
@given(job=jobs(), failure=st.sampled_from(list(FAILURES)), n=st.integers(1, 40))
def test_after_a_failure_anywhere_the_engine_is_idle_and_the_next_run_is_right(
    job, failure, n, case
):
    """A failure that the run survives (a prefetch that nobody wanted, a rejected draft) changes no
    token."""
    found = case(job.engine)
    n = n if failure is read_fails else 1 + n % 6
    try:
        assert tokens_of(failure(found.engine, job, n)) == found.plainly(job)
    except FAILURES[failure]:
        pass
    assert found.engine.store.is_idle() and not found.engine.turns.is_taken()
    assert tokens_of(run(found.engine, job)) == found.plainly(job)
