"""``device="cuda"`` where there is no GPU: whole engines on ``fake_gpu``, whose tensors lie in host
memory but refuse what a GPU would, and the stores on streams that note what they are asked. What
is marked ``gpu`` runs on a real one, where one is."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from fake_gpu import CUDA, FakeCuda, Mode, OnGpu, is_pinned
from models_table import WORDS, architectures, judge, write_tiny
from tiny_architectures import make_checkpoint
from tiny_gguf import as_kind, make_gguf
from tiny_low_bit import fp8, int4, make_low_bit, mxfp4

import specmoe
from specmoe.checkpoint import open_experts
from specmoe.checkpoint.formats import WIDEN
from specmoe.errors import FastMemoryError
from specmoe.model.stored import StoredMatrix
from specmoe.offload import read_queue, shards, transfers
from specmoe.offload.slots import Slots
from specmoe.offload.store import open_store
from specmoe.offload.transfers import ExpertKey, allocate_slots

PROMPTS = [[5, 6, 7, 8], [3]]
JOB = {"max_new_tokens": 4, "eos_token_id": [], "batch_size": 2}
BF16 = torch.bfloat16
LOW_BIT = {
    "mxfp4": ("gpt_oss", mxfp4, {"intermediate_size": 96}),
    "fp8": ("qwen3_moe", fp8, {"moe_intermediate_size": 96}),
    "int4": ("qwen3_moe", int4, {"moe_intermediate_size": 96}),
}
LONG = partial(pytest.param, marks=pytest.mark.long)
SPECMOE = {"method": "specmoe", "gamma": 2}


@pytest.fixture
def cuda(monkeypatch):
    """A GPU that is not there; whatever the test makes with ``device="cuda"`` is on it."""
    found = FakeCuda()
    found.install(monkeypatch)
    with Mode():
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by name, each made once."""
    root = tmp_path_factory.mktemp("gpu")

    def make(name: str):
        folder = root / name
        if name == "gguf":
            return make_gguf(folder / "model.gguf", "qwen3_moe", as_kind("Q4_K_M"))
        if not folder.exists() and name in LOW_BIT:
            architecture, change, sizes = LOW_BIT[name]
            sizes = {"hidden_size": 64, "num_hidden_layers": 1, **sizes}
            plain = make_checkpoint(architecture, root / f"{name} plain", dtype=BF16, **sizes)
            return make_low_bit(plain, folder, change)
        if not folder.exists():
            make_checkpoint(name, folder, dtype=torch.float32, num_hidden_layers=1)
        return folder

    return make


def tokens(folder, device, ways=(SPECMOE,), loaded=lambda: None, **options):
    with specmoe.load(str(folder), device=device, draft_experts=2, **options) as engine:
        loaded()
        outputs = [engine.generate(PROMPTS, **JOB, **way) for way in ways]
        assert engine.slots.device.type == engine.model.device.type == device
        return [[row.tolist() for row in output.sequences] for output in outputs]


# ---- the fake itself


def test_what_a_gpu_refuses_the_fake_refuses_too(cuda):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert (there * 2).device == CUDA and (there + torch.tensor(1.0)).sum().item() == 6
    assert there.cpu().device.type == "cpu" and here.to("cuda").device == CUDA
    for mixed in (
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there.long() > 0],
        lambda: torch.where(there > 0, there, here),
        lambda: there.index_copy_(0, torch.tensor([0]), there[:1]),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(AssertionError, match="memory of the GPU"):
        transfers.memory_of(there)
    with pytest.raises(AssertionError, match="memory of the GPU"):
        StoredMatrix(1, specmoe.model.native.Pieces([]), [0], [1]).product(there[None])


# ---- whole engines


@pytest.mark.parametrize("store", ["memory", LONG("disk"), "checkpoint"])
def test_an_engine_gives_the_cpus_tokens(models, cuda, store):
    ways = (SPECMOE, {"method": "on_demand"}) if store == "memory" else (SPECMOE,)
    options = {"store": store, "dtype": "float32", "ways": ways}
    expected = tokens(models("mixtral"), "cpu", **options)
    del cuda.notes[:]
    assert tokens(models("mixtral"), "cuda", **options) == expected
    moved = [note for note in cuda.notes if note[0] == "copy" and note[1] is not cuda.compute]
    assert moved and all(isinstance(target, OnGpu) for _, _, target, _ in moved)


@pytest.mark.parametrize("name", ["mxfp4", "int4", *map(LONG, ["fp8", "gguf"])])
def test_low_bits_cross_the_link_as_they_are_stored_and_are_widened_there(
    models, cuda, name, monkeypatch
):
    expected, widened = tokens(models(name), "cpu", dtype="float32"), {}
    for kind, widen in WIDEN.items():

        def noted(*parts, widen=widen, kind=kind):
            widened.setdefault(kind, []).extend(map(type, filter(torch.is_tensor, parts)))
            return widen(*parts)

        monkeypatch.setitem(WIDEN, kind, noted)
    del cuda.notes[:]
    # until it is loaded, what computes distances and opens the rest widens on the CPU
    loaded = widened.clear
    assert tokens(models(name), "cuda", dtype="float32", loaded=loaded) == expected
    low = [types for kind, types in widened.items() if kind != "plain"]
    assert low and all(set(types) == {OnGpu} for types in low)
    layout = open_experts(models(name), "disk").layout
    copies = [note for note in cuda.notes if note[0] == "copy" and note[1] is not cuda.compute]
    assert max(note[3].numel() for note in copies) == layout.record_bytes < 2 * layout.elements


@pytest.mark.long
def test_recurrent_layers_give_the_cpus_tokens(cuda, tmp_path):
    folder, options = write_tiny("qwen3_next", tmp_path), {"dtype": "float32"}
    assert tokens(folder, "cuda", **options) == tokens(folder, "cpu", **options)


# ---- copies


@contextmanager
def store_of(folder, kind, num_slots: int = 2):
    store = open_store(kind, open_experts(folder, kind), "cuda", num_readers=1)
    try:
        yield store, Slots(allocate_slots(num_slots, store))
    finally:
        store.close()


def plain(tensor) -> torch.Tensor:
    return tensor.cpu().clone()


@pytest.mark.parametrize("kind", ["memory", "disk", "checkpoint"])
def test_a_copy_waits_for_its_slots_last_use_on_its_own_stream(models, cuda, kind, monkeypatch):
    monkeypatch.setattr(shards, "PIECE", 2**12)
    packed = open_experts(models("mixtral"), "disk")
    with store_of(models("mixtral"), kind) as (store, slots):
        slots.mark_used(1)
        assert cuda.notes[-1][:2] == ("event", cuda.compute)
        used = slots.last_use[1]
        del cuda.notes[:]
        store.submit(ExpertKey(0, 3), slots[1], after=used).wait()
    with packed.opened() as file:
        file.seek(packed.offset(0, 3))
        content = file.read(packed.layout.payload_bytes)
    assert bytes(plain(slots[1]).numpy())[: len(content)] == content
    streams = {note[1] for note in cuda.notes}
    assert len(streams) == 1 and cuda.compute not in streams
    whats = [note[0] for note in cuda.notes]
    pieces = whats.count("copy")
    assert whats == ["wait", "copy", "done"] * pieces
    assert pieces > 1 if kind == "checkpoint" else pieces == 1
    assert {note[2] for note in cuda.notes if note[0] == "wait"} == {used}
    copies = [note[2:] for note in cuda.notes if note[0] == "copy"]
    assert all(isinstance(target, OnGpu) and is_pinned(source) for target, source in copies)
    assert sum(source.numel() for _, source in copies) >= len(content)


def test_a_slot_that_nobody_used_is_not_waited_for(models, cuda):
    with store_of(models("mixtral"), "memory") as (store, slots):
        store.submit(ExpertKey(0, 0), slots[0], after=slots.last_use[0]).wait()
    assert [note[0] for note in cuda.notes] == ["copy", "done"]


def test_a_read_is_done_only_when_its_copy_is(models, cuda, monkeypatch):
    seen = []
    finish = read_queue.Read.finish
    with store_of(models("mixtral"), "disk") as (store, slots):

        def noted(read, error=None):
            seen.append([note[0] for note in cuda.notes])
            finish(read, error)

        monkeypatch.setattr(read_queue.Read, "finish", noted)
        store.submit(ExpertKey(0, 0), slots[0]).wait()
    assert seen[0] == ["copy", "done"]


# ---- page-locked memory


def test_memory_for_direct_reads_begins_with_a_page_however_it_is_allocated(monkeypatch):
    empty = torch.empty

    def shifted(size, pin_memory=False, **more):
        made = empty(size + 4096 + 64, **more)
        return made[(-made.data_ptr()) % 4096 + 64 :][:size]

    monkeypatch.setattr(torch, "empty", shifted)
    found = transfers.aligned_bytes(10_000, pin=True)
    assert found.numel() == 10_000 and found.data_ptr() % 4096 == 0


@pytest.mark.parametrize("store", ["memory", "disk", "checkpoint"])
def test_without_page_locked_memory_loading_says_so_at_once(models, cuda, store, monkeypatch):
    empty = torch.empty

    def none_left(*args, pin_memory=False, **more):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*args, **more)

    monkeypatch.setattr(torch, "empty", none_left)
    with pytest.raises(FastMemoryError, match="cannot be page-locked.*out of memory"):
        specmoe.load(str(models("mixtral")), device="cuda", store=store, draft_experts=2)


# ---- a real one, where one is


REAL = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


def on_a_gpu(test):
    for mark in REAL:
        test = mark(test)
    return test


@on_a_gpu
@pytest.mark.parametrize("store", ["memory", "disk", "checkpoint"])
@pytest.mark.parametrize("name", ["mixtral", *LOW_BIT, "gguf"])
def test_a_real_gpu_gives_the_cpus_tokens(models, name, store):
    """In float64: no sum's order decides."""
    if name == "gguf":
        pytest.importorskip("gguf")
    ways = (SPECMOE, {"method": "on_demand"}, {"method": "cached"}, {"method": "overlapped"})
    options = {"store": store, "dtype": "float64", "ways": ways}
    assert tokens(models(name), "cuda", **options) == tokens(models(name), "cpu", **options)


@on_a_gpu
@pytest.mark.long
@pytest.mark.parametrize("kind", architectures())
def test_a_real_gpu_gives_the_tokens_of_generate(kind):
    verdict = judge(kind, "cuda")
    print(verdict)
    assert verdict.word in WORDS
