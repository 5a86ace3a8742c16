"""``store="checkpoint"``: experts are read from the published shards where they lie, and nothing is
written."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import tiny_low_bit
import torch
from conftest import PROMPTS, tokens_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import specmoe
from specmoe.checkpoint import in_place, pack
from specmoe.checkpoint.identity import stamp_of
from specmoe.cli.copies import entries
from specmoe.errors import CheckpointError, StoreError
from specmoe.offload import affinity, shards
from specmoe.offload.store import open_store
from specmoe.offload.transfers import ExpertKey, aligned_bytes

ARCHITECTURES = ["mixtral", "qwen2_moe", "gpt_oss", "granitemoe"]
SHARD = "model.safetensors"


pytestmark = pytest.mark.usefixtures("own_cache")


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
    buffer = aligned_bytes(store.record_bytes)
    store.submit(ExpertKey(*key), buffer).wait()
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


def test_so_are_low_bit_ones(tiny, tmp_path):
    source = tiny("gpt_oss", torch.bfloat16, hidden_size=64, intermediate_size=64)
    low = tmp_path / "low"
    shutil.copytree(source, low)
    tensors = load_file(low / SHARD)
    config = json.loads((low / "config.json").read_text())
    config["quantization_config"] = tiny_low_bit.mxfp4(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, low / SHARD, {"format": "pt"})
    (low / "config.json").write_text(json.dumps(config))
    assert_same_records(low, tmp_path / "packed")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_are_the_same_and_nothing_is_written(architecture, tiny, tmp_path):
    folder = tiny(architecture)
    before = {file: stamp_of(file) for file in folder.iterdir()}
    found, _ = decoded(folder, "checkpoint")
    assert {file: stamp_of(file) for file in folder.iterdir()} == before and entries() == []
    written = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in written) < 4096, "distances, and nothing else"
    assert found == decoded(folder, "disk")[0]


def test_an_expert_may_lie_in_several_shards(tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny("mixtral"), dtype=torch.float64)
    model.save_pretrained(tmp_path / "split", max_shard_size="15KB")
    placed = in_place(tmp_path / "split")
    files = {run[0].file for run in placed.runs(1, 3)}
    assert len(files) > 1
    assert decoded(tmp_path / "split", "checkpoint")[0] == decoded(tiny("mixtral"), "disk")[0]


@pytest.mark.parametrize("shift", [0, 8, 4088])
def test_blocks_around_a_record_cost_at_most_one_percent(tiny, tmp_path, shift):
    """Even of three tensors apart from each other, where the disk asks for 4096 bytes."""
    source = tiny("mixtral", torch.bfloat16, hidden_size=128, intermediate_size=2048)
    tensors = load_file(source / SHARD)
    apart = sorted(tensors, key=lambda name: (name.split(".")[-2], name))
    folder = shutil.copytree(source, tmp_path / "m")
    body, header, at = bytearray(), {"__metadata__": {"shift": "x" * shift}}, 0
    for name in apart:
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape)}
        header[name]["data_offsets"] = [at, at + len(raw)]
        body, at = body + raw, at + len(raw)
    text = json.dumps(header).encode()
    (folder / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + body)
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
