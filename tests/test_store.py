"""The slow tier: right bytes, demand first, an honest link rate, clear errors, nothing left
behind."""

from __future__ import annotations

import os
import shutil
import threading
import time

import pytest
import torch

from specmoe.checkpoint import open_packed, pack
from specmoe.errors import OptionError, StoreError
from specmoe.offload import store as store_module
from specmoe.offload import transfers
from specmoe.offload.read_queue import DEMAND, PREFETCH, ReadQueue
from specmoe.offload.store import open_store
from specmoe.offload.transfers import ExpertKey, Link, Read, aligned_bytes, memory_of

KINDS = ("disk", "memory")


@pytest.fixture
def packed(tiny, tmp_path):
    """A packed folder that a test may break."""
    source = pack(tiny("mixtral", torch.bfloat16))
    return open_packed(shutil.copytree(source.directory, tmp_path / "packed"))


@pytest.fixture
def opened(packed):
    """``opened(kind, ...)``: a store that is closed afterwards."""
    stores = []

    def get(kind="disk", **options):
        stores.append(open_store(kind, packed, **options))
        return stores[-1]

    yield get
    for store in stores:
        store.close()


def buffer_for(store) -> torch.Tensor:
    return aligned_bytes(store.record_bytes)


def all_keys(store) -> list[ExpertKey]:
    return [
        ExpertKey(layer, expert) for layer in range(2) for expert in range(store.packed.num_experts)
    ]


def read_all(store, keys=None) -> list[Read]:
    reads = [store.submit(key, buffer_for(store)) for key in keys or all_keys(store)]
    for read in reads:
        read.wait()
    return reads


def reader_threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("specmoe-reader")
    ]


def open_files(name: str) -> list[str]:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [
        target
        for link in links
        if os.path.islink(link)
        for target in [os.readlink(link)]
        if name in target
    ]


class Gate:
    """Holds a store's reads back until opened; remembers their order."""

    def __init__(self, store, monkeypatch):
        self.gate, self.order, self.entered, copy = (
            threading.Event(),
            [],
            threading.Event(),
            store._copy,
        )

        def held(read, reader):
            self.order.append(read.key)
            self.entered.set()
            assert self.gate.wait(120)
            copy(read, reader)

        monkeypatch.setattr(store, "_copy", held)


@pytest.mark.parametrize("kind", KINDS)
def test_every_record_arrives_as_it_lies_in_the_file(kind, opened, packed):
    content = packed.data_file.read_bytes()
    store = opened(kind)
    for read in read_all(store):
        begin = packed.offset(*read.key)
        assert bytes(memory_of(read.buffer)) == content[begin : begin + store.record_bytes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_says_how_it_reads(kind, opened):
    info = opened(kind, link_bytes_per_s=5e6, num_readers=2).info()
    assert info["store"] == kind and info["num_readers"] == 2 and info["link_bytes_per_s"] == 5e6
    assert (
        info["reads"]
        in {"disk": ("direct", "page cache dropped"), "memory": ("host memory",)}[kind]
    )


def test_what_compute_waits_for_goes_before_prefetches(opened, monkeypatch):
    store = opened(num_readers=1)
    gate, keys = Gate(store, monkeypatch), all_keys(store)
    first = store.submit(keys[0], buffer_for(store), PREFETCH)
    assert gate.entered.wait(60)
    reads = [store.submit(key, buffer_for(store), PREFETCH) for key in keys[1:4]]
    reads += [store.submit(key, buffer_for(store), DEMAND) for key in keys[4:7]]
    store.promote(reads[2])  # a prefetch that compute waits for now
    gate.gate.set()
    for read in [first, *reads]:
        read.wait()
    assert gate.order == [keys[0], *keys[4:7], keys[3], keys[1], keys[2]]


def test_a_queued_read_can_be_taken_back_and_a_started_one_cannot(opened, monkeypatch):
    store = opened(num_readers=1)
    gate, keys = Gate(store, monkeypatch), all_keys(store)
    started = store.submit(keys[0], buffer_for(store))
    assert gate.entered.wait(60)
    queued = store.submit(keys[1], buffer_for(store))
    queued.buffer.fill_(7)
    assert not store.cancel(started) and store.cancel(queued)
    assert queued.done() and queued.cancelled
    last = store.submit(keys[2], buffer_for(store))
    gate.gate.set()
    last.wait()
    assert gate.order == [keys[0], keys[2]] and (queued.buffer == 7).all()


# ---- the link ----


def seconds_for(store, num_rounds: int = 2) -> float:
    began_s = time.perf_counter()
    for _ in range(num_rounds):
        read_all(store)
    return time.perf_counter() - began_s


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_readers", [1, 8])
def test_a_link_never_carries_more_than_its_rate_however_many_read(kind, num_readers, opened):
    for least_s in (0.05, 0.25):
        rate = 32 * opened(kind).record_bytes / least_s
        took = seconds_for(opened(kind, link_bytes_per_s=rate, num_readers=num_readers))
        assert took > 0.9 * least_s, "a busy machine makes it longer, nothing makes it shorter"


def test_a_link_carries_one_transfer_after_the_other():
    link = Link(1000.0)
    ends = [link.reserve(100) for _ in range(5)]
    assert [round(b - a, 6) for a, b in zip(ends, ends[1:])] == [0.1] * 4
    assert Link(None).reserve(10**12) == 0.0


@pytest.mark.parametrize("rate", [0, -5.0])
def test_a_link_needs_a_rate_above_zero(rate):
    with pytest.raises(OptionError, match="above zero"):
        Link(rate)


# ---- things that go wrong ----


def alter(packed, layer: int, expert: int) -> None:
    with open(packed.data_file, "r+b") as file:
        file.seek(packed.offset(layer, expert) + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("often_s", [10**6, 0], ids=["seldom", "always"])
def test_the_file_is_asked_for_its_stamp_only_once_in_a_while(often_s, opened, monkeypatch):
    asked, stamp_of = [], store_module._stamp_of
    monkeypatch.setattr(store_module, "_stamp_of", lambda file: asked.append(1) or stamp_of(file))
    monkeypatch.setattr(store_module, "STAMP_S", often_s)
    store = opened("disk", num_readers=1)
    read_all(store, all_keys(store)[:3])
    assert len(asked) == (1 if often_s else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_altered_record_is_named_and_the_others_can_be_read(kind, opened, packed):
    alter(packed, 1, 5)
    store = opened(kind)
    read = store.submit(ExpertKey(1, 5), buffer_for(store))
    with pytest.raises(StoreError, match="expert 5 of MoE layer 1.*altered"):
        read.wait()
    read_all(store, [key for key in all_keys(store) if key != (1, 5)])


def test_a_file_that_ends_early_is_named(opened, packed):
    store = opened()
    os.truncate(packed.data_file, packed.offset(1, 6) + 100)
    with pytest.raises(StoreError, match="expert 6 of MoE layer 1|ends inside"):
        read_all(store, [ExpertKey(1, 6)])
    read_all(store, [ExpertKey(1, 5)])


def test_an_error_of_the_system_names_the_record(opened, monkeypatch):
    store = opened()
    monkeypatch.setattr(
        store, "_copy", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(
        StoreError, match="cannot read expert 2 of MoE layer 0 from .*Input/output error"
    ):
        read_all(store, [ExpertKey(0, 2)])


def test_a_stalled_read_is_reported():
    read = Read(ExpertKey(3, 4), torch.zeros(1, dtype=torch.uint8))
    with pytest.raises(StoreError, match="expert 4 of MoE layer 3 has stalled"):
        read.wait(0.01)


def test_until_a_stalled_read_comes_back_nothing_is_read_and_nothing_is_drained(
    opened, monkeypatch
):
    """Its reader may still write into a buffer that another record has by then."""
    store = opened(num_readers=2)
    gate, keys = Gate(store, monkeypatch), all_keys(store)
    stalled = store.submit(keys[1], buffer_for(store))
    assert gate.entered.wait(60)
    monkeypatch.setattr(transfers, "STALL_S", 0.01)
    stalled.wait_released()
    for use in (lambda: store.submit(keys[2], buffer_for(store)), store.drain):
        with pytest.raises(
            StoreError, match="expert 1 of MoE layer 0 has stalled and not come back"
        ):
            use()
    monkeypatch.setattr(transfers, "STALL_S", 60)
    gate.gate.set()
    stalled.wait()
    store.drain()
    read_all(store, keys[2:4])


# ---- the end ----


@pytest.mark.parametrize("kind", KINDS)
def test_closing_leaves_no_thread_and_no_open_file(kind, packed):
    before = len(reader_threads())
    store = open_store(kind, packed)
    read_all(store)
    assert len(reader_threads()) == before + 4
    assert len(open_files(str(packed.data_file))) == (kind == "disk")
    store.close()
    assert len(reader_threads()) == before and not open_files(str(packed.data_file))
    if kind == "memory":
        assert store._records is None


def test_closing_answers_everybody_who_waits(packed, monkeypatch):
    store = open_store("disk", packed, num_readers=1)
    gate = Gate(store, monkeypatch)
    reads = [store.submit(key, buffer_for(store)) for key in all_keys(store)[:3]]
    assert gate.entered.wait(60)
    closer = threading.Thread(target=store.close)
    closer.start()
    with pytest.raises(StoreError, match="closed"):
        reads[2].wait()
    gate.gate.set()
    closer.join(10)
    assert not closer.is_alive() and all(read.done() for read in reads)
    with pytest.raises(StoreError, match="closed"):
        store.submit(ExpertKey(0, 0), buffer_for(store))


def test_what_a_queue_holds_is_freed_once_and_only_when_its_last_thread_has_ended():
    """Two threads: one ends at once, one is in a read that takes its time."""
    queue, freed, may_end = ReadQueue(), [], threading.Event()

    class Store:
        def serve(self, read, reader):
            may_end.wait(20)

        def make_reader(self):
            return None

    store = Store()
    queue.start(store.serve, store.make_reader, 2)
    read = Read(ExpertKey(0, 0), torch.zeros(1))
    queue.submit(read, DEMAND)
    while queue.first_under_way() is not read:
        time.sleep(0.01)
    queue.close()
    queue.at_the_end(lambda: freed.append("freed"))
    assert not queue.join(0.5) and freed == []
    may_end.set()
    assert queue.join(20) and freed == ["freed"]
