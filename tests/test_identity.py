"""A packed copy belongs to the bytes of its checkpoint: whatever changed is noticed, and only that
is packed anew."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from conftest import reference_tokens, tokens_of
from safetensors.torch import load_file, save_file
from tiny_architectures import make_checkpoint

import specmoe
from specmoe.checkpoint import files, identity, open_packed, pack, packing
from specmoe.checkpoint.plan import ExpertPlan
from specmoe.cli import identity as job_identity
from specmoe.cli.copies import entries
from specmoe.cli.identity import identity_of
from specmoe.errors import CheckpointError, OptionError, StoreError
from specmoe.offload import store as expert_store
from specmoe.offload.store import open_store
from specmoe.offload.transfers import ExpertKey, aligned_bytes

LARGE = {"hidden_size": 128, "intermediate_size": 1024, "dtype": torch.float32}
SMALL = {"num_hidden_layers": 1, "num_local_experts": 4}
EXPERT = "model.layers.1.block_sparse_moe.experts.5.w2.weight"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been written long ago, so that its time stamps are proof."""
    monkeypatch.setattr(identity, "TICK_NS", -(10**15))


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_checkpoint("mixtral", tmp_path / "m", torch.float64)


class Written:
    """A progress callback that counts the records written."""

    def __init__(self):
        self.count = 0

    def __call__(self, done: int, total: int) -> None:
        self.count += 1


def flip(folder: Path, key: str = EXPERT) -> None:
    """One bit in the middle of one tensor, written in place."""
    info = files.open_checkpoint(folder).tensors[key]
    num_bytes = torch.Size(info.shape).numel() * info.dtype.itemsize
    with open(info.file, "r+b") as stream:
        stream.seek(info.start + num_bytes // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def copies() -> list[str]:
    return [row["state"] for row in entries()]


def assert_right(packed, folder: Path, tmp_path: Path) -> None:
    """The packed copy is what packing the checkpoint into an empty folder gives."""
    fresh = pack(folder, tmp_path / "fresh")
    assert packed.data_file.read_bytes() == fresh.data_file.read_bytes()
    assert packed.checksums == fresh.checksums and packed.records == fresh.records
    shutil.rmtree(fresh.directory)


# ---- what is noticed ----


def test_one_altered_byte_in_a_large_shard_is_noticed_and_only_that_expert_is_written(
    tmp_path, settled
):
    folder = make_checkpoint("mixtral", tmp_path / "large", **LARGE)
    assert (folder / "model.safetensors").stat().st_size > 2**24
    pack(folder)
    flip(folder)
    written = Written()
    packed = pack(folder, progress=written)
    assert written.count == 1 and copies() == ["whole"]
    assert_right(packed, folder, tmp_path)


def test_an_edit_that_keeps_size_and_modification_time_is_noticed(folder, tmp_path, settled):
    pack(folder)
    before = (folder / "model.safetensors").stat()
    flip(folder)
    os.utime(folder / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_right(pack(folder), folder, tmp_path)


def test_after_an_edit_the_tokens_are_those_of_transformers(folder, settled):
    run = {"max_new_tokens": 16, "eos_token_id": [], "method": "specmoe"}
    options = {"dtype": torch.float64, "draft_experts": 3}
    with specmoe.load(folder, **options) as engine:
        before = tokens_of(engine.generate([[5, 6, 7]], **run))
    tensors = load_file(folder / "model.safetensors")
    edited = {k: v * -3 if "experts.0." in k else v for k, v in tensors.items()}
    save_file(edited, folder / "model.safetensors", metadata={"format": "pt"})
    with specmoe.load(folder, **options) as engine:
        after = tokens_of(engine.generate([[5, 6, 7]], **run))
    assert after == reference_tokens(folder, [[5, 6, 7]]) != before


def test_nothing_is_read_while_the_time_stamps_are_the_same(folder, settled, monkeypatch):
    first = pack(folder)
    monkeypatch.setattr(ExpertPlan, "digest", None)  # would fail if it were called
    monkeypatch.setattr(ExpertPlan, "fill", None)
    assert pack(folder) == first


def test_a_stamp_as_young_as_the_clock_s_tick_is_no_proof(folder, monkeypatch):
    first, asked = pack(folder), []
    really = ExpertPlan.digest
    monkeypatch.setattr(identity, "TICK_NS", 10**15)
    monkeypatch.setattr(ExpertPlan, "digest", lambda *a: asked.append(a) or really(*a))
    assert pack(folder) == first and len(asked) == 16


def test_an_edit_of_the_config_makes_no_second_copy(folder, settled, monkeypatch):
    first = pack(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 3}))
    monkeypatch.setattr(ExpertPlan, "digest", None)
    monkeypatch.setattr(ExpertPlan, "fill", None)
    assert pack(folder) == first and copies() == ["whole"]


def test_an_edit_of_the_trunk_writes_no_expert(folder):
    first, written = pack(folder), Written()
    flip(folder, "lm_head.weight")
    assert pack(folder, progress=written) == first and written.count == 0


def test_a_copy_under_another_name_shares_the_packed_copy(folder, tmp_path):
    first, written = pack(folder), Written()
    other = shutil.copytree(folder, tmp_path / "elsewhere" / "other")
    assert pack(other, progress=written) == first and written.count == 0
    flip(other)
    assert pack(other).directory != first.directory, "the copy that two need is not taken over"
    assert pack(folder, progress=written) == first and written.count == 0


def test_a_checkpoint_that_changes_while_it_is_packed_is_refused(folder, tmp_path):
    once = [1]
    with pytest.raises(
        CheckpointError, match="changed while its experts were packed: run it again"
    ):
        pack(folder, progress=lambda done, total: once and (once.pop(), flip(folder)))
    assert_right(pack(folder), folder, tmp_path)


def replace_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v * -3 for k, v in tensors.items()}, folder / "new", metadata={"format": "pt"})
    os.replace(folder / "new", folder / "model.safetensors")


def set_top_k(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))


def take_shard_away(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")


@pytest.mark.parametrize("change", [replace_shard, flip, set_top_k, take_shard_away])
@pytest.mark.parametrize("before", ["open_experts", "load_tokenizer"])
def test_a_checkpoint_that_changes_within_one_load_is_refused_and_nothing_half_written_is_left(
    before, change, folder, monkeypatch
):
    """The backbone of one checkpoint and the experts of another would give tokens of neither."""
    place = specmoe.checkpoint if before == "open_experts" else specmoe.engine.engine
    with monkeypatch.context() as meanwhile:
        really = getattr(place, before)
        meanwhile.setattr(place, before, lambda *a, **k: change(folder) or really(*a, **k))
        name = "config.json" if change is set_top_k else "model.safetensors"
        with pytest.raises(CheckpointError, match=f"changed while it was read .{name}.: load it"):
            specmoe.load(folder, dtype=torch.float64)
    assert set(copies()) <= {"whole"}
    if change is take_shard_away:
        shutil.move(folder.parent / "model.safetensors", folder)
    with specmoe.load(folder, dtype=torch.float64) as engine:
        got = tokens_of(engine.generate([[5, 6, 7]], max_new_tokens=16, eos_token_id=[]))
    assert got == reference_tokens(folder, [[5, 6, 7]])


def test_an_error_of_a_load_during_which_nothing_changed_stays_what_it_is(folder):
    with pytest.raises(CheckpointError, match="no tensors") as failure:
        with specmoe.checkpoint.unchanged(folder):
            raise CheckpointError("no tensors")
    assert str(failure.value) == "no tensors"


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b"[" * 10_000, None])
def test_damaged_time_stamps_are_made_again(damage, folder, tmp_path, settled):
    pack(folder)
    [file] = (tmp_path / "cache" / "stamps").iterdir()
    text = file.read_bytes()
    file.write_bytes(
        text.replace(b'"records": ["', b'"records": ["0') if damage is None else damage
    )
    written = Written()
    assert_right(pack(folder, progress=written), folder, tmp_path)
    assert written.count == 0 and file.read_bytes() != damage


# ---- killed anywhere ----


class Killer:
    """Ends the process, so to speak, at the ``at``-th call that changes a file."""

    def __init__(self, monkeypatch, at: int):
        self.calls = 0
        self.at = at
        for module, name in [(os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir")]:
            monkeypatch.setattr(module, name, self._deadly(getattr(module, name)))
        monkeypatch.setattr(packing, "SYNC_BYTES", 1)

    def _deadly(self, really):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls >= self.at:  # whatever would tidy up dies as well
                raise KeyboardInterrupt
            return really(*arguments, **options)

        return call


def kill_at(step: int, folder: Path) -> bool:
    """Whether packing was killed there; False once it gets through."""
    with pytest.MonkeyPatch.context() as patch:
        Killer(patch, step)
        try:
            pack(folder)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("goes_back", [False, True], ids=["the edit stays", "the edit is undone"])
def test_a_repack_killed_at_any_step_never_leaves_a_mix(goes_back, tmp_path):
    original = make_checkpoint("mixtral", tmp_path / "original", **SMALL)
    edited = Path(shutil.copytree(original, tmp_path / "edited"))
    for expert in (1, 2):
        flip(edited, f"model.layers.0.block_sparse_moe.experts.{expert}.w1.weight")
    last = original if goes_back else edited
    place, step, killed = tmp_path / "m", 0, True
    while killed:
        step += 1
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, place)
        pack(place)
        put(edited, place)
        killed = kill_at(step, place)
        put(last, place)
        assert_right(pack(place), last, tmp_path)
        assert_right(pack(place), last, tmp_path)
    assert step > 12, "there are that many steps"


def put(source: Path, place: Path) -> None:
    shutil.copyfile(source / "model.safetensors", place / "model.safetensors")


def test_a_first_pack_killed_at_any_step_is_finished_by_the_next(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "m", **SMALL)
    step, killed = 0, True
    while killed:
        step += 1
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        killed = kill_at(step, folder)
        assert_right(pack(folder), folder, tmp_path)
        assert copies() == ["whole"], "nothing of the killed run is left"


def test_a_copy_that_an_engine_reads_is_not_taken_over(folder):
    options = {"dtype": torch.float64, "draft_experts": 3}
    run = {"max_new_tokens": 12, "eos_token_id": [], "method": "on_demand"}
    with specmoe.load(folder, **options) as old:
        before = tokens_of(old.generate([[5, 6, 7]], **run))
        for expert in range(8):
            flip(folder, EXPERT.replace(".5.", f".{expert}."))
        with specmoe.load(folder, **options):
            assert tokens_of(old.generate([[5, 6, 7]], **run)) == before
    assert copies() == ["whole", "whole"]


# ---- a record altered under a running engine ----


def test_a_record_altered_after_its_first_read_is_noticed_at_the_next(folder, monkeypatch):
    packed = pack(folder)
    monkeypatch.setattr(expert_store, "TICK_NS", -(10**15))  # every stamp is proof
    monkeypatch.setattr(expert_store, "STAMP_S", 0)
    store = open_store("disk", packed)
    try:
        read(store)
        with open(packed.data_file, "r+b") as stream:
            stream.seek(packed.offset(1, 5) + 64)
            stream.write(b"\x99\x98")
        with pytest.raises(StoreError, match="expert 5 of MoE layer 1 in .* is altered"):
            read(store)
    finally:
        store.close()


def test_a_record_is_checked_once_while_nobody_writes_into_the_file(folder, monkeypatch):
    packed, sums = pack(folder), []
    really = zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda *given: sums.append(1) or really(*given))
    for tick_ns, expected in [
        (-(10**15), 1),
        (10**15, 3),
    ]:  # stamps that are proof, and that are not
        monkeypatch.setattr(expert_store, "TICK_NS", tick_ns)
        store = open_store("disk", packed)
        try:
            sums.clear()
            for _ in range(3):
                read(store)
            assert len(sums) == expected
        finally:
            store.close()


def read(store) -> None:
    store.submit(ExpertKey(1, 5), aligned_bytes(store.record_bytes)).wait()


# ---- the identity of a whole checkpoint ----


def test_the_identity_changes_with_every_byte_that_counts_and_comes_back_with_it(folder):
    (folder / "tokenizer.json").write_text("{}")
    first = identity_of(folder)
    for key in (EXPERT, "lm_head.weight", "model.layers.0.block_sparse_moe.gate.weight"):
        flip(folder, key)
        assert identity_of(folder) != first
        flip(folder, key)
        assert identity_of(folder) == first
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text + " ")
        assert identity_of(folder) != first
        (folder / name).write_text(text)
    assert identity_of(folder) == first and len(first) == 16


def test_the_identity_does_not_hang_on_spelling_place_shards_or_notes(
    folder, tmp_path, monkeypatch
):
    first = identity_of(folder)
    monkeypatch.chdir(folder.parent)
    os.symlink(folder, tmp_path / "link")
    (folder / "README.md").write_text("notes")
    spellings = ["./m", "m/", str(folder), tmp_path / "link", shutil.copytree(folder, "other")]
    assert {identity_of(spelling) for spelling in spellings} == {first}
    shards = make_checkpoint("mixtral", tmp_path / "s", torch.float64, max_shard_size="90KB")
    assert len(list(shards.glob("*.safetensors"))) > 3 and identity_of(shards) == first


def test_the_identity_is_read_once(folder, settled, monkeypatch):
    first = identity_of(folder)
    monkeypatch.setattr(ExpertPlan, "digest", None)
    monkeypatch.setattr(job_identity, "_rest", None)
    assert identity_of(folder) == first


def test_a_cache_that_cannot_be_written_costs_only_the_reading(folder, monkeypatch):
    first = identity_of(folder)

    def read_only(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(identity, "write_whole", read_only)
    flip(folder)
    assert identity_of(folder) == identity_of(folder) != first


# ---- revision= ----


def test_a_revision_goes_to_the_hub_and_a_folder_has_none(folder, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **how: asked.append((name, how["revision"])) or str(folder),
    )
    with specmoe.load("owner/model", revision="v1.0", draft_experts=3):
        pass
    assert asked == [("owner/model", "v1.0")] and identity_of(
        "owner/model", revision="v2"
    ) == identity_of(folder)
    with pytest.raises(
        OptionError, match="revision='main' belongs to hub ids, and .* is a folder here"
    ):
        specmoe.load(folder, revision="main")
    with pytest.raises(OptionError, match="revision='main' belongs to hub ids"):
        specmoe.load("tiny-skewed", revision="main")
    with pytest.raises(OptionError, match="revision=7 must be a name"):
        specmoe.load("owner/model", revision=7)


def test_a_packed_folder_of_an_older_version_says_so(folder, tmp_path):
    packed = pack(folder)
    manifest = packed.directory / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(CheckpointError, match="another version of specmoe .1."):
        open_packed(packed.directory)
    assert_right(pack(folder), folder, tmp_path)
