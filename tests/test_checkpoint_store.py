"""``store="checkpoint"``: experts are read from the published shards where they lie, and nothing is
written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partial
from itertools import product

import pytest
import tiny_low_bit
import torch
from conftest import PROMPTS, tokens_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import specmoe
from specmoe.checkpoint import (
    InPlaceExperts,
    KeptSums,
    PackedExperts,
    cache,
    open_experts,
    opening,
    pack,
)
from specmoe.checkpoint import in_place as in_place_file
from specmoe.checkpoint.identity import stamp_of
from specmoe.cli.copies import entries
from specmoe.errors import CheckpointError, StoreError
from specmoe.offload import affinity, shards
from specmoe.offload.slots import Slots
from specmoe.offload.store import open_store
from specmoe.offload.transfers import ExpertKey, Read, allocate_slots

in_place = partial(open_experts, store="checkpoint")

ARCHITECTURES = ["mixtral", "qwen2_moe", "gpt_oss", "granitemoe"]
SHARD = "model.safetensors"


pytestmark = pytest.mark.usefixtures("own_cache", "blocks")


@pytest.fixture(params=["large", "any"], ids="straight-{}".format)
def blocks(request, monkeypatch):
    """Which extents are read right into the slot: large ones, as for a user, or all that can be."""
    if request.param == "any":
        monkeypatch.setattr(in_place_file, "LEAST_SHIFTED", 0)
        monkeypatch.setattr(shards, "LEAST_STRAIGHT", 0)
    return request.param


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny("mixtral"), tmp_path / "m")


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written long ago, so that its time stamps are proof."""
    monkeypatch.setattr(shards, "TICK_NS", -(10**15))


def decoded(folder, store, **options):
    options = {"dtype": "float64", "draft_experts": 3, **options}
    with specmoe.load(folder, store=store, **options) as engine:
        return tokens_of(engine.generate(PROMPTS, max_new_tokens=8)), engine.store_info


def record(store, key, read=None):
    """The parts of one record as ``store`` reads it, without what lies between them."""
    slots, key = Slots(allocate_slots(1, store)), ExpertKey(*key)
    buffer = slots.buffer(0, store.begin_of(key))
    store.submit(key, buffer).wait()
    return {name: part.clone() for name, part in store.layout.views(buffer).items()}


def assert_same_records(folder, packed_folder):
    packed, placed = pack(folder, packed_folder), in_place(folder)
    with_copy, without = open_store("disk", packed), open_store("checkpoint", placed)
    for key in [(0, 0), (1, 3), (len(packed.layers) - 1, packed.num_experts - 1)]:
        expected, found = record(with_copy, key), record(without, key)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.equal(expected[name].view(torch.uint8), found[name].view(torch.uint8))
    with_copy.close()
    without.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_records_are_those_of_the_packed_copy(architecture, tiny, tmp_path):
    assert_same_records(tiny(architecture, torch.bfloat16), tmp_path / "packed")


@pytest.mark.parametrize("piece", [1000, 4096])
def test_a_reader_needs_memory_for_a_piece_only(piece, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PIECE", piece)
    folder = tiny("mixtral", torch.bfloat16)
    assert_same_records(folder, tmp_path / "packed")
    store = open_store("checkpoint", in_place(folder))
    bounce, _ = store._make_reader()
    assert store.record_bytes > piece and len(bounce) == piece + 2 * 4096
    assert (
        max(sum(e.num_bytes for e in run) for run in shards._pieces(store.packed.runs(0, 0)))
        <= piece
    )
    store.close()


def low_bit(tiny, tmp_path):
    """An MXFP4 checkpoint."""
    source = tiny("gpt_oss", torch.bfloat16, hidden_size=64, intermediate_size=64)
    low = shutil.copytree(source, tmp_path / "low")
    tensors = load_file(low / SHARD)
    config = json.loads((low / "config.json").read_text())
    config["quantization_config"] = tiny_low_bit.mxfp4(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, low / SHARD, {"format": "pt"})
    (low / "config.json").write_text(json.dumps(config))
    return low


def test_so_are_low_bit_ones(tiny, tmp_path):
    assert_same_records(low_bit(tiny, tmp_path), tmp_path / "packed")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_the_same_and_nothing_is_written(architecture, tiny, tmp_path):
    folder = tiny(architecture)
    before = {file: stamp_of(file) for file in folder.iterdir()}
    found, _ = decoded(folder, "checkpoint")
    assert {file: stamp_of(file) for file in folder.iterdir()} == before and entries() == []
    written = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in written) < 4096, (
        "distances and checksums, and nothing else"
    )
    assert found == decoded(folder, "disk")[0]


def test_an_expert_may_lie_in_several_shards(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny("mixtral"), dtype=torch.float64)
    model.save_pretrained(tmp_path / "split", max_shard_size="15KB")
    placed = in_place(tmp_path / "split")
    files = {run[0].file for run in placed.runs(1, 3)}
    assert len(files) > 1
    assert decoded(tmp_path / "split", "checkpoint")[0] == decoded(tiny("mixtral"), "disk")[0]


def write_apart(folder, tensors, shift: int = 0, to: int = 1) -> None:
    """One shard whose experts' tensors of one name lie together, so none beside its siblings, from
    a byte on that no block begins with, a multiple of ``to``."""
    body, header, at = bytearray(), {"__metadata__": {"shift": "x" * shift}}, 0
    for name in sorted(tensors, key=lambda name: (name.split(".")[-2], name)):
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape)}
        header[name]["data_offsets"] = [at, at + len(raw)]
        body, at = body + raw, at + len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % to)
    (folder / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.fixture(scope="module")
def wide(tiny):
    """A checkpoint whose experts have 1.5 MiB each."""
    return tiny("mixtral", torch.bfloat16, hidden_size=128, intermediate_size=2048)


@pytest.mark.parametrize("shift", [0, 8, 4088])
def test_blocks_around_a_record_cost_at_most_one_percent(wide, tmp_path, shift):
    """Even of three tensors apart from each other, where the disk asks for 4096 bytes."""
    folder = shutil.copytree(wide, tmp_path / "m")
    write_apart(folder, load_file(wide / SHARD), shift)
    placed = in_place(folder)
    assert placed.layout.payload_bytes >= 2**20 and len(placed.runs(0, 1)) == 3
    with_copy = open_store("disk", pack(folder, tmp_path / "packed"))
    store = open_store("checkpoint", placed)
    for key in [(0, 0), (0, 5), (1, 7)]:
        expected, found = record(with_copy, key), record(store, key)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert 1 <= store.info()["read_amplification"] <= 1.01
    store.close()
    with_copy.close()


@pytest.mark.parametrize(("shift", "to"), [(0, 8), (8, 8), (4088, 8), (0, 1), (4, 1)])
def test_a_large_record_is_not_copied_but_for_the_ends_of_its_tensors(wide, tmp_path, shift, to):
    """As safetensors writes headers. Of others numbers may begin at any byte: those are copied."""
    folder = shutil.copytree(wide, tmp_path / "m")
    write_apart(folder, load_file(wide / SHARD), shift, to)
    store, key = open_store("checkpoint", in_place(folder)), ExpertKey(1, 7)
    slots, reader = Slots(allocate_slots(2, store)), store._make_reader()
    buffer = slots.buffer(1, store.begin_of(key))
    store._copy(Read(key, buffer), reader)
    runs = store.packed.runs(*key)
    if store.how == "direct" and to == shards.ALIGNED:
        by_way = sum(bool(block.any()) for block in reader[0].split(store._block))
        assert by_way <= 2 * len(runs) and slots.memory[0].sum() == 0
    for extent in (extent for run in runs for extent in run):
        with open(extent.file, "rb") as stream:
            stream.seek(extent.start)
            expected = stream.read(extent.num_bytes)
        assert bytes(buffer[extent.begin : extent.begin + extent.num_bytes].numpy()) == expected
    store.close()


def flip(placed, key):
    """Change one bit of an expert in its file, and leave no older time stamp."""
    extent = placed.runs(*key)[0][0]
    with open(extent.file, "r+b") as stream:
        stream.seek(extent.start + extent.num_bytes // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("was_read", [True, False])
def test_a_changed_byte_is_noticed(folder, was_read, is_settled, request):
    if is_settled:
        request.getfixturevalue("settled")
    placed = in_place(folder)
    store = open_store("checkpoint", placed)
    if was_read:
        record(store, (1, 3))
    flip(placed, (1, 3))
    with pytest.raises(StoreError, match="expert 3 of MoE layer 1: .* was altered after it was"):
        record(store, (1, 3))
    store.close()


def test_a_touched_file_is_the_same_for_what_was_read(folder, settled):
    placed = in_place(folder)
    store = open_store("checkpoint", placed)
    expected = record(store, (1, 3))
    os.utime(folder / SHARD)
    found = record(store, (1, 3))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    with pytest.raises(StoreError, match="altered after it was loaded"):
        record(store, (1, 4))
    store.close()


def test_a_file_cut_short_is_an_error_not_a_wait(folder):
    placed = in_place(folder)
    store = open_store("checkpoint", placed)
    record(store, (1, 7))
    os.truncate(folder / SHARD, 4096)
    with pytest.raises(StoreError, match="cut short"):
        record(store, (1, 7))
    store.close()


def test_where_there_is_no_direct_io_the_bytes_are_the_same(folder, tmp_path, monkeypatch):
    def plain(path):
        return os.open(path, os.O_RDONLY), "page cache dropped"

    monkeypatch.setattr(shards, "open_around_page_cache", plain)
    assert_same_records(folder, tmp_path / "packed")


def test_distances_are_the_same_and_kept_in_the_cache(folder, monkeypatch):
    placed = in_place(folder)
    found = affinity.expert_distances(placed)
    assert torch.equal(found, affinity.expert_distances(pack(folder)))
    assert placed.affinity_file.is_file() and not (folder / "affinity.npy").exists()
    monkeypatch.setattr(affinity, "_layer_distances", None)  # would fail if it were called
    assert torch.equal(affinity.expert_distances(in_place(folder)), found)
    flip(placed, (1, 3))
    with pytest.raises(TypeError):
        affinity.expert_distances(in_place(folder))


def test_what_has_to_be_packed_is_said_in_one_sentence(folder):
    with pytest.raises(CheckpointError, match=r"in place .expert_bytes widens them.: leave store="):
        specmoe.load(folder, store="checkpoint", expert_bytes=10**6)
    tensors = load_file(folder / SHARD)
    name = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
    save_file(tensors | {name: tensors[name].float()}, folder / SHARD, {"format": "pt"})
    with pytest.raises(CheckpointError, match="in several dtypes"):
        specmoe.load(folder, store="checkpoint")


def test_elements_in_another_order_have_to_be_packed(folder, monkeypatch):
    from specmoe.checkpoint.layout import Weight

    turned = Weight.place
    monkeypatch.setattr(Weight, "place", lambda self, target: turned(self, target).T)
    monkeypatch.setattr("specmoe.checkpoint.placing._prove", lambda *_: None)
    with pytest.raises(CheckpointError, match="lie in another order there.: leave store="):
        in_place(folder)


def test_of_a_packed_folder_it_means_its_records(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    found, info = decoded(tmp_path / "packed", "checkpoint")
    assert found == decoded(folder, "disk")[0] and info["store"] == "disk"


# ---- what is chosen where nothing is asked for ----


def test_large_experts_are_read_in_place_and_nothing_is_written(wide, tmp_path):
    before = {file: stamp_of(file) for file in wide.iterdir()}
    found, info = decoded(wide, None, dtype="float32")
    assert info["store"] == "checkpoint" and info["read_amplification"] <= 1.01
    assert entries() == [] and {file: stamp_of(file) for file in wide.iterdir()} == before
    written = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert {file.suffix for file in written} <= {".npy", ".sums"}, "distances and checksums"
    assert found == decoded(wide, "disk", dtype="float32")[0]
    # and now that there is a copy, it is read
    assert decoded(wide, None, dtype="float32")[1]["store"] == "disk"


def test_small_ones_are_packed(folder):
    assert in_place(folder).layout.payload_bytes < opening.LEAST_BYTES
    assert isinstance(open_experts(folder), PackedExperts)


def test_so_are_those_that_cannot_be_read_well_where_they_lie(wide, tmp_path, monkeypatch):
    assert isinstance(open_experts(wide), InPlaceExperts)
    widened = open_experts(wide, expert_bytes=2**21)
    assert isinstance(widened, PackedExperts) and widened.widened_from
    cache.remove_packed(widened.directory)

    def kind_of(why: str, value) -> type:
        with monkeypatch.context() as patch:
            patch.setattr(opening, why, value)
            found = open_experts(wide)
        if isinstance(found, PackedExperts):
            cache.remove_packed(found.directory)
        return type(found)

    mounts = tmp_path / "mountinfo"
    number = os.stat(wide).st_dev
    for system, kind in [("ext4", InPlaceExperts), ("nfs4", PackedExperts)]:
        mounts.write_text(
            f"21 1 {os.major(number)}:{os.minor(number)} / /home rw - {system} server:/ rw\n"
        )
        assert kind_of("MOUNTS", mounts) is kind
    assert kind_of("MOUNTS", tmp_path / "none") is InPlaceExperts
    assert kind_of("MOST_AMPLIFICATION", 1.0) is PackedExperts
    assert kind_of("LEAST_BYTES", 2**30) is PackedExperts
    monkeypatch.setattr(InPlaceExperts, "amplification", None)  # not asked of what has to be packed
    tensors = load_file(wide / SHARD)
    name = "model.layers.1.block_sparse_moe.experts.5.w2.weight"
    odd = shutil.copytree(wide, tmp_path / "odd")
    save_file(tensors | {name: tensors[name].float()}, odd / SHARD, {"format": "pt"})
    assert isinstance(open_experts(odd), PackedExperts)


def test_the_blocks_around_records_are_foreseen(wide, tmp_path):
    folder = shutil.copytree(wide, tmp_path / "m")
    write_apart(folder, load_file(wide / SHARD), shift=8)
    placed = in_place(folder)
    store = open_store("checkpoint", placed)
    store._block = in_place_file.LARGEST_BLOCK
    for key in product(range(len(placed.layers)), range(placed.num_experts)):
        record(store, key)
    # but for the last block of a file, which may be cut short
    assert 0 <= placed.amplification() - store.info()["read_amplification"] < 1e-3
    assert 1.004 < placed.amplification() < 1.01
    store.close()


# ---- from one session to the next ----


def once(placed, key):
    store = open_store("checkpoint", placed)
    try:
        return record(store, key)
    finally:
        store.close()


def sums_of(placed):
    return placed.affinity_file.with_suffix("").with_suffix(".sums")


def test_a_disk_that_gives_other_bytes_in_a_later_session_is_noticed(folder, settled, monkeypatch):
    before = in_place(folder)
    once(before, (1, 3))
    once(in_place(folder), (0, 2))  # adds to what is known
    flip(before, (1, 3))
    # as if nobody had written: the time stamps are those of before
    old = {file: tuple(stamp) for file, stamp in before.stamps.items()}
    monkeypatch.setattr("specmoe.checkpoint.in_place.stamp_of", lambda file: list(old[file]))
    monkeypatch.setattr(
        shards.CheckpointStore, "_stamp", lambda self, key, runs: tuple(old.values())
    )
    with pytest.raises(
        StoreError, match="layer 1: .* holds other bytes than in an earlier session"
    ):
        once(in_place(folder), (1, 3))
    once(in_place(folder), (0, 2))


def test_an_altered_checkpoint_is_another_one_in_the_next_session(folder, settled):
    once(in_place(folder), (1, 3))
    assert sums_of(in_place(folder)).is_file()
    flip(in_place(folder), (1, 3))
    once(in_place(folder), (1, 3))
    assert KeptSums(in_place(folder)).before.keys() == {11}


def test_sums_of_a_file_written_just_now_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(shards, "TICK_NS", 10**15)
    once(in_place(folder), (1, 3))
    assert not sums_of(in_place(folder)).exists()


def test_a_record_altered_while_it_is_read_for_the_first_time_is_noticed(
    folder, settled, monkeypatch
):
    placed, read = in_place(folder), shards.CheckpointStore._read
    store = open_store("checkpoint", placed)

    def written_meanwhile(self, *how):
        flip(placed, (1, 3))
        return read(self, *how)

    monkeypatch.setattr(shards.CheckpointStore, "_read", written_meanwhile)
    with pytest.raises(StoreError, match="altered after it was loaded"):
        record(store, (1, 3))
    store.close()


def test_two_sessions_at_once_keep_what_both_read(folder, settled):
    one, other = (open_store("checkpoint", in_place(folder)) for _ in range(2))
    record(one, (0, 1))
    record(other, (1, 2))
    one.close()
    other.close()
    assert KeptSums(in_place(folder)).before.keys() == {1, 10}


# ---- broken files, and a cache that cannot be used ----


@pytest.mark.parametrize("store", ["checkpoint", None])
def test_broken_shards_are_refused_in_one_sentence_before_anything_is_read(
    store, wide, tmp_path, monkeypatch
):
    model = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.bfloat16)
    folder = tmp_path / "m"
    model.save_pretrained(folder, max_shard_size="4MB")
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    monkeypatch.setattr("specmoe.checkpoint.header.read_into", None)  # no byte of a weight
    last = (folder / names[-1]).read_bytes()
    broken = {
        "cut short or altered": last[:-4096],
        "cut short inside its header": last[:6],
        "lacks 1 of": None,
    }
    for said, content in broken.items():
        (folder / names[-1]).unlink()
        if content is not None:
            (folder / names[-1]).write_bytes(content)
        with pytest.raises(CheckpointError, match=said) as refusal:
            specmoe.load(folder, store=store)
        assert "\n" not in str(refusal.value) and names[-1] in str(refusal.value)
    assert not (tmp_path / "cache").exists()


def test_a_missing_scale_is_refused_by_name(tiny, tmp_path):
    low = low_bit(tiny, tmp_path)
    tensors = load_file(low / SHARD)
    lost = next(name for name in tensors if name.endswith("down_proj_scales"))
    del tensors[lost]
    save_file(tensors, low / SHARD, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{lost}.* is missing: download it again"):
        specmoe.load(low, store="checkpoint")
    assert not (tmp_path / "cache").exists()


def test_scales_may_lie_in_another_shard(tiny, tmp_path):
    low = low_bit(tiny, tmp_path)
    pack(low, tmp_path / "packed")
    tensors = load_file(low / SHARD)
    (low / SHARD).unlink()
    files = {
        name: f"{'scales' if name.endswith('_scales') else 'rest'}.safetensors" for name in tensors
    }
    for file in set(files.values()):
        there = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(there, low / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (low / f"{SHARD}.index.json").write_text(json.dumps(index))
    placed, packed = in_place(low), open_experts(tmp_path / "packed" / "model")
    assert len({run[0].file for run in placed.runs(0, 1)}) == 2
    with_copy = open_store("disk", packed)
    expected, found = record(with_copy, (0, 1)), once(placed, (0, 1))
    for name in expected:
        assert torch.equal(expected[name].view(torch.uint8), found[name].view(torch.uint8))
    with_copy.close()


@pytest.mark.parametrize("when", ["before it is opened", "before it is read"])
def test_a_shard_replaced_after_loading_is_noticed_or_read_as_it_was(
    folder, tmp_path, when, settled
):
    """Whoever has opened a file reads that one, whatever takes its name."""
    placed = in_place(folder)
    expected = once(placed, (1, 3))
    store = open_store("checkpoint", placed) if when == "before it is read" else None
    other = shutil.copy(folder / SHARD, tmp_path / "other")
    os.replace(other, folder / SHARD)
    if store is None:
        with pytest.raises(StoreError, match="altered after it was loaded"):
            once(placed, (1, 3))
        return
    try:
        found = record(store, (1, 3))
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    except StoreError as error:
        assert "altered after it was loaded" in str(error)
    store.close()


def no_home(tmp_path, monkeypatch):
    for name in ("SPECMOE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)


def no_folder(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in its place")


def no_space(tmp_path, monkeypatch):
    def full(stream):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "force", full)


@pytest.mark.parametrize("trouble", [no_home, no_folder, no_space])
def test_where_the_cache_cannot_be_used_experts_are_read_in_place_all_the_same(
    trouble, wide, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trouble(tmp_path, monkeypatch)
    before = sorted(file.name for file in tmp_path.iterdir())
    tokens, info = decoded(wide, None, dtype="float32")
    assert info["store"] == "checkpoint" and len(tokens[0]) > len(PROMPTS[0])
    left = {*tmp_path.rglob("*")} - {tmp_path / name for name in before}
    assert not [path for path in left if path.is_file()], "nothing half written"
    if trouble is not no_space:
        with pytest.raises(StoreError) as refusal:
            specmoe.load(wide, store="disk")
        assert "\n" not in str(refusal.value)


def test_a_disk_may_give_less_at_once_than_was_asked_for(folder, tmp_path, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, parts, at: whole(file, [memoryview(parts[0])[:1024]], at)
    )
    assert_same_records(folder, tmp_path / "packed")


def test_what_a_slot_holds_beside_its_record_counts(wide):
    with specmoe.load(wide, store="checkpoint", fast_memory="24MiB") as engine:
        memory, held = engine.memory, engine.slots.nbytes
        assert held == memory.num_slots * memory.slot_bytes > memory.num_slots * 3 * 2**19
        assert held + memory.scratch_bytes == memory.used_bytes <= 24 * 2**20
