"""The life of an engine: one call at a time, however a call ends; nothing outlives what is closed
or dropped."""

from __future__ import annotations

import _thread
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch
from conftest import PROMPTS, tokens_of

import specmoe
from specmoe import SpecMoEError
from specmoe.model import kv_cache
from specmoe.model.kernels import ExpertKernel
from specmoe.model.kv_cache import RaggedKVCache
from specmoe.offload import transfers

JOB = {"method": "specmoe", "gamma": 4, "batch_size": 2, "max_new_tokens": 16, "eos_token_id": []}


@pytest.fixture
def engine(tiny):
    with specmoe.load(tiny("mixtral"), dtype=torch.float64, draft_experts=3) as engine:
        yield engine


def readers() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("specmoe-reader")
    ]


# ---- interrupts


class Interrupts:
    """Raises ``KeyboardInterrupt`` in the main thread at chosen calls of the package's own
    functions."""

    def __init__(self, at: set[int]):
        self.at = at
        self.num_calls = 0

    def __call__(self, frame, event, arg):
        if event == "call" and f"{os.sep}specmoe{os.sep}" in frame.f_code.co_filename:
            self.num_calls += 1
            if self.num_calls in self.at:
                # As a signal does it: the exception comes at the next chance, wherever that is.
                _thread.interrupt_main()
        return None

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)


def num_calls(engine) -> int:
    with Interrupts(set()) as counting:
        engine.generate(PROMPTS, **JOB)
    return counting.num_calls


# Each way at other moments than the next.
MOMENTS = 4


# Python drops an interrupt that comes while it closes a generator, torch's too, and says that it did.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*<generator:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "again", [(), (1,), (2, 5), (1, 2, 3)], ids=["once", "twice", "three times", "four times"]
)
def test_after_interrupts_anywhere_the_next_run_has_the_right_tokens(
    engine, plain, again, monkeypatch
):
    """Further interrupts come while the first one is being cleaned up; some reads are slow and come
    back later."""
    real, late = os.preadv, threading.Event()

    def slow(*arguments):
        if arguments[2] % 7 == 3:
            late.wait(0.005)
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    total = num_calls(engine)
    num_interrupted = 0
    for first in range(1 + len(again), total, max(1, total // MOMENTS)):
        try:
            with Interrupts({first, *(first + more for more in again)}):
                engine.generate(PROMPTS, **JOB)
        except KeyboardInterrupt:
            num_interrupted += 1
        assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral"), (
            f"interrupted at call {first}"
        )
    assert engine.store.is_idle() and num_interrupted >= MOMENTS - 1


def test_reads_that_an_interrupt_left_behind_end_before_the_next_run_has_buffers(
    engine, plain, monkeypatch
):
    """The clean-up itself is cut short: nothing waits for three slow reads, which come back during
    the next run."""
    real, go, held_back = os.preadv, threading.Event(), []

    def slow(*arguments):
        if len(held_back) < 3:
            held_back.append(arguments[2])
            go.wait(10)
        return real(*arguments)

    def cut_short(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(type(engine.decoder), "forward", cut_short)
    monkeypatch.setattr(specmoe.offload.pool.ResidentPool, "reset_reads", cut_short)
    monkeypatch.setattr(specmoe.offload.transfers.Read, "wait", cut_short)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, **JOB)
    monkeypatch.undo()
    monkeypatch.setattr(os, "preadv", slow)
    threading.Timer(0.3, go.set).start()
    assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral")


# ---- errors of a user's own code


class Streamer:
    def __init__(self, at_put: int, at_end: bool):
        self.at_put = at_put
        self.at_end = at_end

    def put(self, tokens):
        self.at_put -= 1
        if self.at_put == 0:
            raise RuntimeError("in put")

    def end(self):
        if self.at_end:
            raise RuntimeError("in end")


@pytest.mark.parametrize(
    ("at_put", "at_end", "said"),
    [(1, False, "put"), (3, False, "put"), (3, True, "put"), (0, True, "end")],
)
def test_an_error_in_a_streamer_comes_out_and_leaves_a_clean_engine(
    engine, plain, at_put, at_end, said
):
    with pytest.raises(RuntimeError, match=f"in {said}"):
        engine.generate(PROMPTS[:1], streamer=Streamer(at_put, at_end), **JOB)
    assert engine.decoder.kv_cache is None and engine.store.is_idle()
    assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral")


def test_an_error_while_ending_hides_neither_the_first_one_nor_the_other_ends(
    engine, plain, monkeypatch
):
    def fails(*_):
        raise OSError("while ending")

    monkeypatch.setattr(specmoe.offload.pool.ResidentPool, "reset_reads", fails)
    with pytest.raises(RuntimeError, match="in put"):
        engine.generate(PROMPTS[:1], streamer=Streamer(2, True), **JOB)
    assert engine.decoder.kv_cache is None, "what comes after the failing end is ended too"
    monkeypatch.undo()
    assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral")


CALLS_BACK = {
    "generate": lambda engine: engine.generate(PROMPTS, **JOB),
    "start": lambda engine: engine.start(PROMPTS, **JOB),
    "calibrate": lambda engine: engine.calibrate(PROMPTS),
    "next_logits": lambda engine: engine.next_logits([5, 6]),
    "check_exact": lambda engine: engine.check_exact(PROMPTS[:1], max_new_tokens=2),
    "close": lambda engine: engine.close(),
}


@pytest.mark.parametrize("call", CALLS_BACK)
def test_a_callback_that_calls_back_is_refused_at_once(engine, plain, call):
    with pytest.raises(SpecMoEError, match="in use"):
        engine.generate(PROMPTS, progress=lambda done, total: CALLS_BACK[call](engine), **JOB)
    assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral")


# ---- threads, forks, and engines that are dropped


@pytest.mark.parametrize("call", CALLS_BACK)
def test_a_second_thread_is_refused_and_the_first_one_goes_on(engine, plain, call):
    refused = []

    def second():
        try:
            CALLS_BACK[call](engine)
        except SpecMoEError as refusal:
            refused.append(str(refusal))

    with engine.start(PROMPTS, **JOB) as run:
        next(run)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(20)
        assert not thread.is_alive() and len(refused) == 1 and "in use" in refused[0]
        assert tokens_of(run.output()) == plain("mixtral")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("call", ["generate", "next_logits", "close"])
def test_a_forked_child_hears_so_at_once(engine, call):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child():
        try:
            CALLS_BACK[call](engine)
            answers.put("done")
        except SpecMoEError as refusal:
            answers.put(str(refusal))

    process = context.Process(target=child)
    process.start()
    said = answers.get(timeout=20)
    process.join(20)
    assert said == "done" if call == "close" else "fork" in said
    assert tokens_of(engine.generate(PROMPTS[:1], **JOB)), "the parent's engine goes on"


@pytest.mark.parametrize("store", ["disk", "memory"])
def test_an_engine_dropped_without_close_frees_threads_files_and_memory(tiny, store):
    before, files = len(readers()), open_files()
    for _ in range(3):
        engine = specmoe.load(tiny("mixtral"), dtype=torch.float64, draft_experts=3, store=store)
        engine.generate(PROMPTS[:1], **JOB)
        threads = list(engine.store._queue._threads)
        del engine
        gc.collect()
        for thread in threads:
            thread.join(5)
        assert len(readers()) == before and open_files() == files


def open_files() -> set[str]:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    paths = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return (
        {os.readlink(path) for path in paths if os.path.islink(path)} - {"/proc/self/fd"}
        if paths
        else set()
    )


def test_an_engine_that_fails_to_load_leaves_nothing(tiny, monkeypatch):
    before = len(readers())
    monkeypatch.setattr(
        specmoe.offload.installed.OffloadedExperts, "install", lambda *_, **__: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        specmoe.load(tiny("mixtral"), dtype=torch.float64, draft_experts=3)
    assert len(readers()) == before


def test_the_experts_compute_only_while_a_run_goes_on(engine):
    with pytest.raises(SpecMoEError, match="offloaded"):
        engine.model(torch.tensor([[5, 6]]))


# ---- a run in the open


def test_a_run_gives_one_round_after_the_other_and_then_its_output(engine, plain):
    with engine.start(PROMPTS, **JOB) as run:
        rounds = list(run)
        output = run.output()
    assert tokens_of(output) == plain("mixtral")
    assert len(rounds) == output.stats.num_rounds and [each.index for each in rounds] == list(
        range(len(rounds))
    )
    assert sum(each.new_tokens for each in rounds) == output.stats.num_new_tokens
    assert engine.decoder.kv_cache is None and not engine.turns.is_taken()


def test_output_runs_what_is_left(engine, plain):
    with engine.start(PROMPTS, **JOB) as run:
        next(run)
        assert tokens_of(run.output()) == plain("mixtral")


def test_a_run_took_as_long_as_its_rounds_and_no_longer_than_the_clock_outside(engine):
    began_s = time.perf_counter()
    with engine.start(PROMPTS, **JOB) as run:
        rounds = list(run)
        time.sleep(0.5)  # whoever iterates takes his time: no second of the run
        stats = run.output().stats
    outside_s = time.perf_counter() - began_s - 0.5
    within_s = sum(each.draft_s + each.verify_s for each in rounds)
    assert 0 < within_s <= stats.seconds and 0 < stats.prefill_s
    assert stats.seconds + stats.prefill_s <= outside_s
    assert stats.tokens_per_second == pytest.approx(stats.num_new_tokens / stats.seconds)


def test_a_run_that_is_left_early_frees_the_engine(engine, plain):
    with engine.start(PROMPTS, **JOB) as run:
        next(run)
    assert engine.store.is_idle() and engine.decoder.kv_cache is None
    assert tokens_of(engine.generate(PROMPTS, **JOB)) == plain("mixtral")


# ---- the KV cache


def kv_bytes(cache: RaggedKVCache) -> int:
    return sum(
        layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.is_initialized
    )


@pytest.mark.parametrize("model", ["mixtral", "nllb"])
def test_memory_follows_what_is_written_not_what_might_be(tiny, open_engine, model, monkeypatch):
    if model == "nllb":
        pytest.importorskip("transformers")
        engine, options = (
            specmoe.load("tiny-translate"),
            {"source_lang": "eng_Latn", "target_lang": "fra_Latn"},
        )
        prompts = ["The red house."] * 4
        most = engine.decoder.max_positions - 2
    else:
        engine, options = (
            specmoe.load(tiny("mixtral", max_position_embeddings=10**6), dtype=torch.float64),
            {},
        )
        prompts, most = [[5, 6, 7]] * 4, 400_000
    sizes, free = [], type(engine.decoder).free

    def watch(decoder):
        if decoder.kv_cache is not None:
            sizes.append(kv_bytes(decoder.kv_cache))
        free(decoder)

    monkeypatch.setattr(type(engine.decoder), "free", watch)
    with engine:
        few = engine.generate(
            prompts, max_new_tokens=3, method="on_demand", eos_token_id=[], **options
        )
        stop = [sequence[-1].item() for sequence in few.sequences]
        engine.generate(
            prompts, max_new_tokens=most, method="on_demand", eos_token_id=stop, **options
        )
    assert len(sizes) == 2 and sizes[1] <= max(sizes[0], 0) * (kv_cache.FEWEST_POSITIONS + 1) / 4
    assert sizes[1] < 100 * 2**20


def test_a_cache_grows_and_keeps_what_was_written():
    cache = RaggedKVCache(1, num_rows=2, num_positions=1000)
    written = torch.randn(2, 3, 700, 4)
    for start in range(0, 700, 35):
        cache.place(torch.tensor([start, start]), 35)
        block = written[:, :, start : start + 35]
        keys, values = cache.layers[0].update(block, -block)
        assert torch.equal(keys, written[:, :, : start + 35]) and torch.equal(values, -keys)
    assert cache.layers[0].keys.shape[2] <= 1001


def test_a_state_longer_than_the_buffers_makes_room():
    cache = RaggedKVCache(1, num_rows=1, num_positions=2000)
    state = [(torch.randn(2, 900, 4), torch.randn(2, 900, 4))]
    cache.put_row(0, state)
    assert torch.equal(cache.take_row(0, 900)[0][0], state[0][0])


def test_a_dropped_cache_is_freed_without_the_cycle_collector():
    cache = RaggedKVCache(2, num_rows=1, num_positions=8)
    cache.place(torch.zeros(1, dtype=torch.long), 1)
    cache.layers[0].update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    gc.collect()
    gc.disable()
    try:
        layer = cache.layers[0]
        count = sys.getrefcount(layer)
        del cache
        assert sys.getrefcount(layer) == count - 1
    finally:
        gc.enable()


def test_a_cache_that_cannot_grow_says_what_to_lower(monkeypatch):
    cache = RaggedKVCache(1, num_rows=1, num_positions=1000)
    cache.place(torch.zeros(1, dtype=torch.long), 1)

    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(specmoe.FastMemoryError, match="lower batch_size or max_new_tokens"):
        cache.layers[0].update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["views", "copies"])
def test_what_a_resident_run_held_is_free_before_the_next_one_asks_for_as_much(
    dtype, tiny, monkeypatch
):
    """It is the whole model, and once more what its kernels made of it: two of them do not fit, and
    nobody collects garbage in between."""
    held, copies = [], []
    real, copy = transfers.aligned_bytes, ExpertKernel.upcast_copy

    def noted(num_bytes, pin=False, large=False):
        alive = [each for each in held + copies if each() is not None]
        assert not alive, "the memory of the run before is still there"
        pages = real(num_bytes, pin, large)
        held.append(weakref.ref(pages.untyped_storage()))
        return pages

    def copied(kernel, record):
        made = copy(kernel, record)
        copies.extend(weakref.ref(weight) for weight in made.values())
        return made

    monkeypatch.setattr(transfers, "aligned_bytes", noted)
    monkeypatch.setattr(ExpertKernel, "upcast_copy", copied)
    with specmoe.load(tiny("mixtral"), dtype=dtype) as engine:
        held.clear()  # the engine's own slots
        gc.disable()
        try:
            for _ in range(3):
                done = engine.generate(PROMPTS, method="resident", max_new_tokens=3)
        finally:
            gc.enable()
    assert len(held) == 3 and copies and done.stats.peak_fast_expert_bytes > 0


LEFT_OPEN = """
import time, specmoe
from specmoe.offload.store import DiskStore

class Memory:
    def __del__(self):
        time.sleep(0.3)  # by now Python is going, if nobody waits
        print("freed", flush=True)

DiskStore._make_reader = lambda store: Memory()
engine = specmoe.load("tiny-skewed", num_readers=3)
"""


def test_readers_of_an_engine_that_nobody_closed_end_before_python_does():
    """Else they free tensors when it is going, and the process aborts."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("freed"), done.stderr) == (0, 3, "")


@pytest.mark.parametrize("draft", ["resident", "low_bit:4"])
def test_what_an_engine_held_is_free_once_it_is_closed(draft, tiny, monkeypatch):
    """Whoever loads the next one has to have room, though runs of the last are still in hand and
    nobody collects garbage."""
    held, real = [], transfers.aligned_bytes

    def noted(*sizes, **how):
        pages = real(*sizes, **how)
        held.append(weakref.ref(pages.untyped_storage()))
        return pages

    gc.disable()
    try:
        with specmoe.load(tiny("mixtral"), dtype="float32", fast_memory=2**21) as engine:
            monkeypatch.setattr(transfers, "aligned_bytes", noted)
            engine.slots = transfers.allocate_slots(len(engine.slots), engine.store)
            runs = []
            for _ in range(2):
                with engine.start(PROMPTS, method="specmoe", draft=draft, max_new_tokens=8) as run:
                    next(run)
                runs.append(run)
            assert held[0]() is not None
        assert held[0]() is None and runs
    finally:
        gc.enable()


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_round_says_what_was_read_for_it_and_what_of_that_before_it_was_verified(prefetch):
    with specmoe.load("tiny-skewed", store="memory", draft_experts=4) as engine:
        with engine.start(["The capital", "def f(x):"], prefetch=prefetch, **JOB) as run:
            rounds, output = list(run), run.output()
    assert sum(each.num_reads for each in rounds) == output.stats.num_fetches > 0
    assert all(0 < each.named <= 1 and each.num_ahead <= each.num_reads for each in rounds)
    assert any(each.num_ahead for each in rounds) == prefetch
