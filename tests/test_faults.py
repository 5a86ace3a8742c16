"""Faults of disk and memory: the run ends with a typed error that names what failed, and the engine
can be used again."""

from __future__ import annotations

import gc
import os
import threading
import time

import pytest
import torch
from conftest import tokens_of
from torch.multiprocessing.reductions import StorageWeakRef

import specmoe
from specmoe import FastMemoryError, SpecMoEError, StoreError
from specmoe.offload import base_store, transfers
from specmoe.offload.transfers import ExpertKey

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [3], [20, 21, 22], [1, 2, 3, 4, 5]]
JOB = {"max_new_tokens": 16, "batch_size": 2, "eos_token_id": []}


class Stalling:
    """The reader of the ``at``-th record from now on stands still until ``go``."""

    def __init__(self, store, monkeypatch, at: int):
        self.go = threading.Event()
        self.key = None
        self.copy = store._copy
        self.left = at
        self.lock = threading.Lock()
        monkeypatch.setattr(store, "_copy", self.serve)

    def serve(self, read, reader) -> None:
        with self.lock:
            self.left -= 1
            stalls = self.left == 0
        if stalls:
            self.key = read.key
            assert self.go.wait(120)
        self.copy(read, reader)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(transfers, "STALL_S", 1.0)


@pytest.mark.parametrize("method", ["on_demand", "overlapped", "cached", "specmoe"])
@pytest.mark.parametrize("at", [3, 25])
def test_a_reader_that_stalls_mid_round_ends_the_run_naming_the_record_and_the_engine_goes_on(
    method, at, open_engine, plain, monkeypatch, impatient
):
    engine = open_engine("mixtral", draft_experts=2)
    stalling = Stalling(engine.store, monkeypatch, at)
    with pytest.raises(StoreError, match="has stalled for") as failure:
        engine.generate(PROMPTS, method=method, **JOB)
    key = stalling.key
    assert f"expert {key.expert} of MoE layer {key.layer}" in str(failure.value)
    with pytest.raises(
        StoreError,
        match=f"expert {key.expert} of MoE layer {key.layer} has stalled and not come back",
    ):
        # its reader could still write over another record
        engine.generate(PROMPTS, method=method, **JOB)
    stalling.go.set()
    wait_until_idle(engine.store)
    assert tokens_of(engine.generate(PROMPTS, method=method, **JOB)) == plain("mixtral")


def wait_until_idle(store) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if store.is_idle():
            return
        pause.wait(0.01)
    raise AssertionError("the reader never came back")


def test_a_read_that_ends_in_time_is_not_given_up():
    read = transfers.Read(ExpertKey(0, 1), torch.zeros(1, dtype=torch.uint8))
    read.finish()
    read.wait_released()
    assert not read.abandoned


# ---- closing while a disk hangs


def files_open(path) -> int:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.islink(link) and os.readlink(link) == str(path) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_closing_while_a_disk_hangs_ends_in_time_and_what_the_read_holds_is_freed_when_it_returns(
    kind, tiny, monkeypatch, impatient
):
    monkeypatch.setattr(base_store, "CLOSE_S", 0.5)
    engine = specmoe.load(tiny("mixtral"), dtype=torch.float64, draft_experts=2, store=kind)
    store, threads = engine.store, engine.store._queue._threads
    others = files_open(store.packed.data_file) - (kind == "disk")  # of other tests' engines
    stalling = Stalling(store, monkeypatch, 3)
    with pytest.raises(StoreError, match="has stalled for"):
        engine.generate(PROMPTS, method="cached", **JOB)
    slots = StorageWeakRef(engine.slots.untyped_storage())
    key, began_s = stalling.key, time.monotonic()
    with pytest.warns(
        RuntimeWarning, match=f"expert {key.expert} of MoE layer {key.layer} .* has not ended in"
    ):
        engine.close()
    # the read would be held for 120 s
    assert time.monotonic() - began_s < 60
    with pytest.raises(SpecMoEError, match="the engine is closed"):
        engine.generate(PROMPTS, **JOB)
    engine.close()
    gc.collect()
    assert sum(thread.is_alive() for thread in threads) == 1, "the others have ended"
    assert files_open(store.packed.data_file) - others == (kind == "disk")
    assert not slots.expired(), "the reader may still write there"
    stalling.go.set()
    for thread in threads:
        thread.join(60)
    gc.collect()
    assert not any(thread.is_alive() for thread in threads)
    assert files_open(store.packed.data_file) == others and slots.expired()
    assert kind == "disk" or store._records is None


def test_a_store_that_is_closed_in_time_warns_of_nothing(tiny, recwarn):
    specmoe.load(tiny("mixtral"), dtype=torch.float64, draft_experts=2).close()
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_a_read_once_given_up_is_not_waited_for_again(monkeypatch):
    read = transfers.Read(ExpertKey(0, 1), torch.zeros(1, dtype=torch.uint8))
    monkeypatch.setattr(transfers, "STALL_S", 0.01)
    read.wait_released()
    monkeypatch.setattr(transfers, "STALL_S", 20.0)
    began_s = time.monotonic()
    read.wait_released()
    assert read.abandoned and time.monotonic() - began_s < 10
    read.finish()
    read.wait_released()
    assert not read.abandoned


# ---- memory of a GPU, imagined


def full(*_, **__):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class OnGpu:
    """What ``allocate_slots`` asks of a store."""

    device, slot_bytes = torch.device("cuda"), 2**20


def no_room(num_slots: int, _store):
    """``allocate_slots`` on a GPU that is full."""
    with pytest.MonkeyPatch.context() as gpu:
        gpu.setattr(torch, "empty", full)
        return transfers.allocate_slots(num_slots, OnGpu())


def test_a_gpu_without_room_for_the_slots_is_a_fast_memory_error_that_says_how_much():
    with pytest.raises(
        FastMemoryError,
        match=r"4194304 bytes for experts do not fit on cuda: "
        r"lower fast_memory",
    ):
        no_room(4, None)


def test_an_engine_whose_resident_buffers_do_not_fit_can_decode_by_other_methods(
    open_engine, plain, monkeypatch
):
    engine = open_engine("mixtral", draft_experts=2)
    with monkeypatch.context() as gpu:
        gpu.setattr("specmoe.engine.run.allocate_slots", no_room)
        with pytest.raises(FastMemoryError, match="do not fit on cuda"):
            # the one method that needs more slots than are there
            engine.generate(PROMPTS, method="resident", **JOB)
    assert tokens_of(engine.generate(PROMPTS, method="specmoe", **JOB)) == plain("mixtral")


def test_a_load_whose_slots_do_not_fit_leaves_no_reader_behind(tiny, monkeypatch):
    before = threading.active_count()
    monkeypatch.setattr("specmoe.engine.engine.allocate_slots", no_room)
    with pytest.raises(FastMemoryError, match="do not fit on cuda"):
        specmoe.load(tiny("mixtral"), dtype="float64", draft_experts=2)
    assert threading.active_count() == before
