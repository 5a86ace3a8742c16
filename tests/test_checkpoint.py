"""A checkpoint becomes a model without experts and one record per expert, or one clear sentence."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_architectures import ARCHITECTURES, make_checkpoint, make_config
from transformers import AutoModelForCausalLM, LlamaConfig, NemotronHConfig

from specmoe import checkpoint
from specmoe.checkpoint import (
    ExpertLayout,
    build_model,
    expert_modules,
    files,
    open_packed,
    pack,
    packing,
    resolve,
)
from specmoe.checkpoint.files import open_checkpoint
from specmoe.checkpoint.padding import ffn_axes, pad_ffn, place
from specmoe.checkpoint.plan import plan_experts
from specmoe.checkpoint.rest import rest_bytes
from specmoe.cli.copies import verify_packed
from specmoe.errors import CheckpointError, OptionError, StoreError, UnsupportedModelError

MIXTRAL_W1 = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> Path:
    """One checkpoint for all tests that only read it."""
    return make_checkpoint("mixtral", tmp_path_factory.mktemp("checkpoints") / "mixtral")


@pytest.fixture
def copy(mixtral, tmp_path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(mixtral, tmp_path / "copy"))


def expert_names(model) -> set[str]:
    return {f"{n}.{k}" for n, m in expert_modules(model).items() for k, _ in m.named_parameters()}


def records(packed) -> dict[tuple[int, int], dict[str, torch.Tensor]]:
    """All tensors of all experts, as they lie in the file."""
    data = torch.frombuffer(bytearray(packed.data_file.read_bytes()), dtype=torch.uint8)
    found = {}
    for layer in range(len(packed.layers)):
        for expert in range(packed.num_experts):
            start = packed.offset(layer, expert)
            found[layer, expert] = packed.layout.views(
                data[start : start + packed.layout.record_bytes]
            )
    return found


def assert_same_experts(packed, model) -> None:
    modules = expert_modules(model)
    assert packed.layers == tuple(modules)
    for (layer, expert), tensors in records(packed).items():
        module = modules[packed.layers[layer]]
        assert set(tensors) == {name for name, _ in module.named_parameters(recurse=False)}
        for name, tensor in tensors.items():
            assert torch.equal(tensor, getattr(module, name)[expert]), (
                packed.layers[layer],
                expert,
                name,
            )


def edit_weights(folder: Path, edit) -> None:
    """Let ``edit`` change the dict of tensors in ``model.safetensors``."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# ---- the same weights as transformers ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model_and_records_equal_from_pretrained(architecture, dtype, tmp_path):
    folder = make_checkpoint(architecture, tmp_path / architecture, dtype)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model, packed = build_model(folder, dtype), pack(folder)
    assert_same_experts(packed, reference)
    assert packed.layout.dtype == dtype and packed.widened_from is None
    experts, expected, found = expert_names(model), reference.state_dict(), model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        assert tensor.is_meta == (name in experts), name
        if name not in experts:
            assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), (
                name
            )
    buffers = dict(model.named_buffers())
    for name, buffer in reference.named_buffers():
        assert buffers[name].dtype == buffer.dtype and torch.equal(buffers[name], buffer), name
    assert (
        not model.training
        and model.generation_config.eos_token_id == reference.generation_config.eos_token_id
    )


@pytest.mark.parametrize("architecture", ["mixtral", "granitemoe", "gpt_oss"])
def test_shards_with_an_index_read_like_one_file(architecture, tmp_path):
    whole = make_checkpoint(architecture, tmp_path / "whole")
    shards = make_checkpoint(architecture, tmp_path / "shards", max_shard_size="60KB")
    assert (
        len(list(shards.glob("*.safetensors"))) > 3 and not (shards / "model.safetensors").exists()
    )
    a, b = pack(whole, tmp_path / "a"), pack(shards, tmp_path / "b")
    assert a.data_file.read_bytes() == b.data_file.read_bytes() and a.checksums == b.checksums
    found = build_model(shards).state_dict()
    assert all(
        torch.equal(t, found[k])
        for k, t in build_model(whole).state_dict().items()
        if not t.is_meta
    )


def test_experts_already_fused_in_the_checkpoint_read_the_same(mixtral, tmp_path):
    """Some tools save the fused tensors under transformers' new names."""
    folder = tmp_path / "fused"
    folder.mkdir()
    shutil.copy(mixtral / "config.json", folder)
    state = AutoModelForCausalLM.from_pretrained(mixtral).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    assert_same_experts(pack(folder), AutoModelForCausalLM.from_pretrained(mixtral))


def test_tied_embeddings_stay_tied(tmp_path):
    folder = make_checkpoint("qwen3_moe", tmp_path / "tied", tie_word_embeddings=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (a method of safe_open)
    model = build_model(folder)
    assert (
        model.lm_head.weight is model.model.embed_tokens.weight and not model.lm_head.weight.is_meta
    )


def test_default_dtype_is_float32_on_the_cpu_and_the_records_keep_their_own(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "bf16", torch.bfloat16)
    assert build_model(folder).lm_head.weight.dtype == torch.float32
    assert build_model(folder, torch.float64).lm_head.weight.dtype == torch.float64
    assert pack(folder).layout.dtype == torch.bfloat16


def test_experts_of_mixed_dtypes_are_packed_without_loss(copy):
    edit_weights(
        copy, lambda t: t.update({MIXTRAL_W1.format(0): t[MIXTRAL_W1.format(0)].to(torch.bfloat16)})
    )
    assert_same_experts(pack(copy), AutoModelForCausalLM.from_pretrained(copy))


def test_modules_are_in_order_of_depth_beyond_ten_layers(tmp_path):
    folder = make_checkpoint("mixtral", tmp_path / "deep", num_hidden_layers=12)
    packed = pack(folder)
    assert [int(name.split(".")[2]) for name in packed.layers] == list(range(12))
    assert_same_experts(packed, AutoModelForCausalLM.from_pretrained(folder))


# ---- the layout ----


def test_records_are_aligned_and_views_share_their_memory():
    layout = ExpertLayout.of({"a": (3, 5), "b": (7,), "c": (2, 2)}, torch.bfloat16)
    assert layout.offsets() == (0, 64, 128)
    assert layout.payload_bytes == 2 * (15 + 7 + 4) and layout.record_bytes == 4096
    record = torch.zeros(layout.record_bytes, dtype=torch.uint8)
    views = layout.views(record)
    for number, view in enumerate(views.values(), start=1):
        view.fill_(number)
    assert [tuple(view.shape) for view in views.values()] == [(3, 5), (7,), (2, 2)]
    assert all(view.untyped_storage().data_ptr() == record.data_ptr() for view in views.values())
    assert [float(v.sum()) for v in layout.views(record).values()] == [15, 14, 12]


def test_offsets_are_page_aligned_and_refuse_what_is_not_there(mixtral):
    packed = pack(mixtral)
    offsets = [packed.offset(layer, expert) for layer in range(2) for expert in range(8)]
    assert offsets == [i * packed.layout.record_bytes for i in range(16)]
    assert all(offset % 4096 == 0 for offset in offsets)
    assert packed.data_file.stat().st_size == 16 * packed.layout.record_bytes
    for layer, expert in [(2, 0), (0, 8), (-1, 0), (0, -1)]:
        with pytest.raises(IndexError):
            packed.offset(layer, expert)


# ---- widening ----


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "granitemoe"])
def test_widened_experts_compute_the_same(architecture, tmp_path):
    folder = make_checkpoint(architecture, tmp_path / architecture, torch.float64)
    native = pack(folder)
    wide = pack(folder, expert_bytes=native.layout.payload_bytes * 3 + 1)
    columns = wide.layout.payload_bytes - native.layout.payload_bytes * 3 - 1
    assert 0 <= columns < 3 * 32 * 8 + 2 * 8, "rounded up to whole columns, no further"
    assert wide.widened_from == native.layout.payload_bytes
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model.set_experts_implementation("eager")
    tokens = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))
    before = model(tokens).logits
    for layer, module in enumerate(expert_modules(model).values()):
        rows = [records(wide)[layer, expert] for expert in range(wide.num_experts)]
        for name in wide.layout.names:
            setattr(module, name, torch.nn.Parameter(torch.stack([row[name] for row in rows])))
        if hasattr(module, "intermediate_size"):
            module.intermediate_size = rows[0]["down_proj"].shape[0 if module.is_transposed else 1]
    torch.testing.assert_close(model(tokens).logits, before, rtol=1e-12, atol=1e-12)


def test_experts_without_a_gate_are_widened_too():
    config = NemotronHConfig(
        vocab_size=97, hidden_size=32, moe_intermediate_size=48, n_routed_experts=4
    )
    config._experts_implementation = "eager"
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    module = NemotronHExperts(config).double()
    shapes = {name: tuple(p.shape[1:]) for name, p in module.named_parameters()}
    native, axes = ExpertLayout.of(shapes, torch.float64), ffn_axes(module)
    wide = pad_ffn(native, axes, native.payload_bytes + 1)
    assert wide.payload_bytes - native.payload_bytes == 2 * 32 * 8
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    states, index, weights = (
        torch.randn(5, 32).double(),
        torch.tensor([[0, 3]] * 5),
        torch.rand(5, 2).double(),
    )
    before = module(states, index, weights)
    for name, shape in zip(wide.names, wide.shapes):
        views = torch.zeros(4, *shape, dtype=torch.float64)
        for view, expert in zip(views, getattr(module, name)):
            place(view, expert.detach(), axes.get(name))
        setattr(module, name, torch.nn.Parameter(views))
    torch.testing.assert_close(module(states, index, weights), before, rtol=1e-12, atol=1e-12)


def test_expert_bytes_below_native_is_refused_and_leaves_nothing(mixtral, tmp_path):
    native = pack(mixtral, tmp_path / "native").layout.payload_bytes
    with pytest.raises(OptionError, match=f"expert_bytes={native - 1} .*{native} bytes"):
        pack(mixtral, tmp_path / "narrow", expert_bytes=native - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "native"]
    assert pack(mixtral, tmp_path / "same", expert_bytes=native).widened_from is None


# ---- packing: reuse, interruption, space ----


def test_a_second_pack_reuses_the_first_and_a_changed_checkpoint_is_noticed(
    copy, tmp_path, monkeypatch
):
    first = pack(copy, tmp_path / "packed")
    in_cache = pack(copy)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write", None)  # would fail if it were called
        assert pack(copy, tmp_path / "packed") == first
        assert pack(shutil.move(copy, tmp_path / "renamed"), tmp_path / "packed") == first
    renamed = tmp_path / "renamed"
    edit_weights(renamed, lambda tensors: tensors[MIXTRAL_W1.format(7)][0, 0].add_(1))
    with pytest.raises(
        CheckpointError, match="another checkpoint, or of this one before it changed"
    ):
        pack(renamed, tmp_path / "packed")
    again = pack(renamed)
    assert again.directory != in_cache.directory and again.checksums != in_cache.checksums


def test_a_folder_packed_with_other_expert_bytes_is_not_reused(mixtral, tmp_path):
    pack(mixtral, tmp_path / "packed", expert_bytes=40_000)
    for expert_bytes in (None, 30_000, 50_000):
        with pytest.raises(CheckpointError, match="are asked for"):
            pack(mixtral, tmp_path / "packed", expert_bytes=expert_bytes)
    assert pack(mixtral, expert_bytes=30_000).directory != pack(mixtral).directory


def test_a_folder_with_other_files_is_left_alone(mixtral, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds no packed experts"):
        pack(mixtral, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="could not pack into"):
        pack(mixtral, tmp_path / "file" / "packed")
    with pytest.raises(CheckpointError, match="file is no folder"):
        pack(mixtral, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert pack(mixtral, tmp_path / "empty").directory == tmp_path / "empty"


def test_progress_counts_bytes_up_to_the_whole(mixtral, tmp_path):
    calls = []
    packed = pack(
        mixtral, tmp_path / "packed", progress=lambda done, total: calls.append((done, total))
    )
    assert [done for done, _ in calls] == [(i + 1) * packed.layout.record_bytes for i in range(16)]
    assert {total for _, total in calls} == {packed.data_bytes}


class Stop:
    """A progress callback that runs ``then`` at the given record."""

    def __init__(self, record: int, then):
        self.record = record
        self.then = then
        self.calls = 0

    def __call__(self, done: int, total: int) -> None:
        self.calls += 1
        if self.calls == self.record:
            self.then()


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupted_pack_goes_on_where_it_stopped(mixtral, tmp_path, monkeypatch):
    expected = pack(mixtral, tmp_path / "whole")
    monkeypatch.setattr(packing, "SYNC_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        pack(mixtral, tmp_path / "packed", progress=Stop(7, interrupt))
    assert not (tmp_path / "packed").exists()
    with pytest.raises(CheckpointError, match="holds no packed experts"):
        open_packed(tmp_path / "packed.partial")
    rest = Stop(-1, None)
    packed = pack(mixtral, tmp_path / "packed", progress=rest)
    assert rest.calls == 16 - 6, "the six journaled records are not written again"
    assert packed.data_file.read_bytes() == expected.data_file.read_bytes()
    assert packed.checksums == expected.checksums and verify_packed(packed) == []
    assert sorted(path.name for path in packed.directory.iterdir()) == [
        "experts.bin",
        "manifest.json",
        "model",
    ]
    assert not (tmp_path / "packed.partial").exists()


def killed_at(record: int, mixtral: Path, tmp_path: Path) -> Path:
    """The partial folder as a kill -9 at that record leaves it: nothing flushed, nothing closed."""
    partial, kept = tmp_path / "packed.partial", tmp_path / "kept"

    def keep():
        shutil.copytree(partial, kept)
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        pack(mixtral, tmp_path / "packed", progress=Stop(record, keep))
    shutil.rmtree(partial)
    return Path(kept.rename(partial))


def torn_journal(partial: Path) -> None:
    with open(partial / "journal", "a") as stream:
        stream.write("123")


def altered_record(partial: Path) -> None:
    with open(partial / "experts.bin", "r+b") as stream:
        stream.seek(4 * 20480 + 11)
        stream.write(b"\xff\xfe\xfd")


def half_record(partial: Path) -> None:
    with open(partial / "experts.bin", "ab") as stream:
        stream.write(b"x" * 5000)


def lost_data(partial: Path) -> None:
    with open(partial / "experts.bin", "r+b") as stream:
        stream.truncate(3 * 20480 + 100)


def other_layout(partial: Path) -> None:
    journal = (partial / "journal").read_text()
    assert '"dtype": "float32"' in journal
    (partial / "journal").write_text(journal.replace('"dtype": "float32"', '"dtype": "float64"'))


@pytest.mark.parametrize(
    "damage, num_good",
    [(torn_journal, 6), (half_record, 6), (altered_record, 5), (lost_data, 3), (other_layout, 0)],
)
def test_a_killed_and_damaged_pack_keeps_only_the_good_records(
    damage, num_good, mixtral, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "SYNC_BYTES", 1)
    damage(killed_at(7, mixtral, tmp_path))
    rest = Stop(-1, None)
    packed = pack(mixtral, tmp_path / "packed", progress=rest)
    assert rest.calls == 16 - num_good
    assert verify_packed(packed) == []
    assert_same_experts(packed, AutoModelForCausalLM.from_pretrained(mixtral))


def test_no_space_is_said_before_anything_is_written(mixtral, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda place: usage)
    needed = 327680 + rest_bytes(plan_experts(open_checkpoint(mixtral)))
    with pytest.raises(StoreError, match=f"{needed} bytes needed, 1000 available"):
        pack(mixtral, tmp_path / "deep" / "packed")
    assert list(tmp_path.iterdir()) == []


def test_a_nearly_full_disk_needs_room_only_for_what_is_not_packed_yet(
    mixtral, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "SYNC_BYTES", 1)
    partial = killed_at(7, mixtral, tmp_path)
    left = 327680 - (partial / "experts.bin").stat().st_size
    left += rest_bytes(plan_experts(open_checkpoint(mixtral)))
    usage = type("Usage", (), {"free": left - 1})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda place: usage)
    with pytest.raises(StoreError, match=rf"{left} bytes needed, {left - 1} available"):
        pack(mixtral, tmp_path / "packed")
    usage.free = left
    assert verify_packed(pack(mixtral, tmp_path / "packed")) == []


def test_space_running_out_while_packing_leaves_nothing_that_looks_complete(
    mixtral, tmp_path, monkeypatch
):
    monkeypatch.setattr(packing, "SYNC_BYTES", 1)
    forced = []

    def full(stream):
        forced.append(stream)
        if len(forced) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        stream.flush()

    with monkeypatch.context() as patch:
        patch.setattr(packing, "force", full)
        with pytest.raises(
            StoreError, match="no space left while packing into .*packed.partial.*goes on where"
        ):
            pack(mixtral, tmp_path / "packed")
    assert (
        not (tmp_path / "packed").exists()
        and not (tmp_path / "packed.partial" / "manifest.json").exists()
    )
    rest = Stop(-1, None)
    assert verify_packed(pack(mixtral, tmp_path / "packed", progress=rest)) == []
    assert 0 < rest.calls < 16


def test_a_second_packer_waits_for_the_first_and_writes_nothing(mixtral, tmp_path):
    """Locks are of open files, so two threads stand for two processes."""
    second, second_wrote = [], []

    def pack_again():
        second.append(
            pack(
                mixtral, tmp_path / "packed", progress=lambda done, total: second_wrote.append(done)
            )
        )

    thread = threading.Thread(target=pack_again)

    def start_second():
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not second

    first = pack(mixtral, tmp_path / "packed", progress=Stop(3, start_second))
    thread.join(60)
    assert second == [first] and second_wrote == [] and verify_packed(first) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "packed"]


# ---- a packed folder that is not what it was ----


def test_verify_names_exactly_the_altered_records(mixtral, tmp_path):
    packed = pack(mixtral, tmp_path / "packed")
    with open(packed.data_file, "r+b") as stream:
        for layer, expert, byte in [(0, 3, 0), (1, 7, packed.layout.record_bytes - 1)]:
            stream.seek(packed.offset(layer, expert) + byte)
            old = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([old[0] ^ 1]))
    assert verify_packed(open_packed(tmp_path / "packed")) == [(0, 3), (1, 7)]


def test_open_refuses_a_truncated_data_file(mixtral, tmp_path):
    packed = pack(mixtral, tmp_path / "packed")
    with open(packed.data_file, "r+b") as stream:
        stream.truncate(packed.data_bytes - 1)
    with pytest.raises(
        CheckpointError, match=f"{packed.data_bytes - 1} bytes instead of {packed.data_bytes}"
    ):
        open_packed(tmp_path / "packed")
    packed.data_file.unlink()
    with pytest.raises(CheckpointError, match="0 bytes instead of"):
        pack(mixtral, tmp_path / "packed")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"num_experts": 8', '"num_experts": 9', "altered or cut short"),
        ('"float32"', '"float16"', "altered or cut short"),
        ('"version": 2', '"version": 9', "another version of specmoe"),
        ("}", "", "altered or cut short"),
        ('"manifest_crc32"', '"crc"', "altered or cut short"),
    ],
)
def test_open_refuses_an_altered_manifest(mixtral, tmp_path, old, new, message):
    pack(mixtral, tmp_path / "packed")
    file = tmp_path / "packed" / "manifest.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        open_packed(tmp_path / "packed")


def test_open_says_what_a_folder_lacks(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder.*specmoe pack"):
        open_packed(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no packed experts.*specmoe pack"):
        open_packed(tmp_path)


# ---- bad checkpoints: one clear sentence, nothing written ----


def refused(folder: Path, error: type[Exception], message: str, tmp_path: Path) -> None:
    """The checkpoint is refused in one sentence, and nothing is left on the disk."""
    with pytest.raises(error, match=message):
        pack(folder, tmp_path / "out" / "packed")
    assert not (tmp_path / "out").exists()


def test_a_missing_folder(tmp_path):
    refused(
        tmp_path / "nowhere", CheckpointError, "does not exist: give a folder, a hub id", tmp_path
    )
    (tmp_path / "weights.bin").write_text("x")
    refused(
        tmp_path / "weights.bin", CheckpointError, "is a file, not a checkpoint folder", tmp_path
    )


def test_a_folder_without_config(tmp_path):
    refused(tmp_path, CheckpointError, "has no config.json", tmp_path)


def test_a_config_that_is_no_json(copy, tmp_path):
    (copy / "config.json").write_text("{oops")
    refused(copy, CheckpointError, "config.json is not readable JSON", tmp_path)


def test_an_unknown_model_type(copy, tmp_path):
    edit_json(copy / "config.json", model_type="warp_drive")
    refused(copy, UnsupportedModelError, "model_type 'warp_drive'", tmp_path)


def test_a_dense_model(tmp_path):
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(UnsupportedModelError, match="'llama' is dense: it has no experts"):
        expert_modules(model)
    with pytest.raises(UnsupportedModelError, match="'llama' is dense"):
        build_model(tmp_path / "dense")
    refused(tmp_path / "dense", UnsupportedModelError, "'llama' is dense", tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"]
)
def test_a_pickle_is_refused_with_the_way_to_convert_it(copy, tmp_path, name):
    (copy / "model.safetensors").rename(copy / name)
    refused(
        copy,
        CheckpointError,
        f"pickled weights .{name}.*from_pretrained.*save_pretrained",
        tmp_path,
    )


def test_no_weights_at_all(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    refused(copy, CheckpointError, "neither model.safetensors nor", tmp_path)


@pytest.mark.parametrize("method", ["fbgemm_fp8", "gptq", "bitsandbytes"])
def test_a_quantised_config_is_refused_by_name(copy, tmp_path, method):
    edit_json(copy / "config.json", quantization_config={"quant_method": method})
    refused(copy, CheckpointError, f"quantised .{method}", tmp_path)
    with pytest.raises(CheckpointError, match=method):
        build_model(copy)


@pytest.mark.parametrize(
    "dtype, name", [(torch.float8_e4m3fn, "F8_E4M3"), (torch.uint8, "U8"), (torch.int8, "I8")]
)
def test_a_quantised_tensor_is_refused_by_name(copy, tmp_path, dtype, name):
    edit_weights(
        copy, lambda t: t.update({MIXTRAL_W1.format(2): t[MIXTRAL_W1.format(2)].to(dtype)})
    )
    refused(copy, CheckpointError, f"experts.2.w1.weight'.*quantised format {name}", tmp_path)


def test_integer_experts_are_refused(copy, tmp_path):
    edit_weights(
        copy, lambda t: t.update({MIXTRAL_W1.format(2): t[MIXTRAL_W1.format(2)].to(torch.int32)})
    )
    refused(copy, CheckpointError, "experts.2.w1.weight'.*quantised .torch.int32", tmp_path)


@pytest.fixture
def shards(tmp_path) -> Path:
    return make_checkpoint("mixtral", tmp_path / "shards", max_shard_size="60KB")


def test_a_missing_shard(shards, tmp_path):
    sorted(shards.glob("*.safetensors"))[2].unlink()
    refused(shards, CheckpointError, r"lacks 1 of \d+ shards, first 'model-00003-of", tmp_path)


def test_a_shard_without_a_promised_tensor(shards, tmp_path):
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.ghost"] = "model-00001-of-00009.safetensors"
    first = sorted(shards.glob("*.safetensors"))[0]
    index["weight_map"]["model.ghost"] = first.name
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(shards, CheckpointError, f"{first.name} lacks the tensor 'model.ghost'", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/model.safetensors",
        "../model.safetensors",
        "C:\\model.safetensors",
        "a\\..\\..\\b.safetensors",
        "x.bin",
        7,
    ],
)
def test_an_index_that_leaves_its_folder(shards, tmp_path, name):
    index = shards / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map={**weight_map, next(iter(weight_map)): name})
    refused(
        shards, CheckpointError, "no .safetensors file inside its folder: do not trust", tmp_path
    )


def test_an_index_without_a_map(shards, tmp_path):
    edit_json(shards / "model.safetensors.index.json", weight_map={})
    refused(shards, CheckpointError, "has no weight_map", tmp_path)


@pytest.mark.parametrize("kept", [4, 300, -1])
def test_a_truncated_safetensors_file(copy, tmp_path, kept):
    """At the length, inside the header, and one byte short: mapping any of these could kill the
    process."""
    file = copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    refused(copy, CheckpointError, "cut short|readable safetensors header", tmp_path)
    with pytest.raises(CheckpointError, match="download it again"):
        build_model(copy)


def test_a_safetensors_file_with_bytes_too_many(copy, tmp_path):
    with open(copy / "model.safetensors", "ab") as stream:
        stream.write(b"x")
    refused(copy, CheckpointError, "its header says .* cut short or altered", tmp_path)


def test_a_header_that_lies_about_a_tensor(copy, tmp_path):
    file = copy / "model.safetensors"
    content = file.read_bytes()
    assert content.count(b'"shape":[97,32]') == 2
    file.write_bytes(content.replace(b'"shape":[97,32]', b'"shape":[97,33]', 1))
    refused(copy, CheckpointError, "size unlike its shape", tmp_path)


def test_a_file_cut_while_it_is_read(copy, tmp_path):
    opened = files.open_checkpoint(copy)
    with open(copy / "model.safetensors", "r+b") as stream:
        stream.truncate(2000)
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        opened.tensors["lm_head.weight"].read()


def test_an_expert_tensor_of_the_wrong_shape(copy, tmp_path):
    edit_weights(copy, lambda t: t.update({MIXTRAL_W1.format(3): torch.zeros(48, 31)}))
    message = r"experts.3.w1.weight' .* has shape \[48, 31\], expected \[48, 32\]"
    refused(copy, CheckpointError, message, tmp_path)


def test_experts_that_do_not_fit_the_config(copy, tmp_path):
    edit_json(copy / "config.json", intermediate_size=40)
    message = (
        r"layers.0.mlp.experts.gate_up_proj .*shape \[96, 32\].*config.json asks for \[80, "
        r"32\]"
    )
    refused(copy, CheckpointError, message, tmp_path)


def test_fused_experts_that_do_not_fit_the_config(tmp_path):
    folder = make_checkpoint("granitemoe", tmp_path / "granite")
    edit_json(folder / "config.json", num_local_experts=4)
    refused(
        folder,
        CheckpointError,
        r"input_linear.weight' .*shape \[8, 96, 32\], expected "
        r"4",
        tmp_path,
    )


def test_a_trunk_tensor_of_the_wrong_shape(copy):
    edit_weights(copy, lambda t: t.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(
        CheckpointError,
        match=r"'model.norm.weight' .*shape \[31\], but "
        r"config.json asks for \[32\]",
    ):
        build_model(copy)


def test_a_missing_trunk_tensor(copy):
    edit_weights(copy, lambda t: t.pop("model.layers.1.block_sparse_moe.gate.weight"))
    with pytest.raises(
        CheckpointError,
        match="lacks 1 tensors of the model, first 'model.layers.1.mlp.gate.weight'",
    ):
        build_model(copy)


def test_a_missing_expert(copy, tmp_path):
    edit_weights(copy, lambda t: t.pop(MIXTRAL_W1.format(5)))
    message = (
        "has 7 of 8 experts for model.layers.1.mlp.experts.gate_up_proj, first missing '"
    ) + MIXTRAL_W1.format(5)
    refused(copy, CheckpointError, message, tmp_path)


def test_a_missing_kind_of_expert_tensor(copy, tmp_path):
    edit_weights(copy, lambda t: [t.pop(MIXTRAL_W1.format(e)) for e in range(8)])
    refused(
        copy,
        CheckpointError,
        r"no tensors like '.experts.\*.w1.weight' for "
        r"model.layers.1.mlp.experts",
        tmp_path,
    )
    edit_weights(
        copy, lambda t: [t.pop(MIXTRAL_W1.format(e).replace("w1", "w3")) for e in range(8)]
    )
    refused(
        copy,
        CheckpointError,
        "no experts' tensor for model.layers.1.mlp.experts.gate_up_proj",
        tmp_path,
    )


def test_more_experts_than_the_config_has(copy, tmp_path):
    edit_json(copy / "config.json", num_local_experts=4)
    refused(copy, CheckpointError, "has 8 of 4 experts", tmp_path)


def test_layers_with_experts_of_different_shapes(mixtral, tmp_path, monkeypatch):
    from specmoe.checkpoint import plan

    def uneven(config, dtype):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
            experts = model.model.layers[1].mlp.experts
            experts.down_proj = torch.nn.Parameter(torch.empty(8, 32, 24))
            experts.gate_up_proj = torch.nn.Parameter(torch.empty(8, 48, 32))
        return model

    folder = Path(shutil.copytree(mixtral, tmp_path / "uneven"))

    def narrow(tensors):
        for name, tensor in tensors.items():
            if "layers.1.block_sparse_moe.experts" in name:
                tensors[name] = (tensor[:, :24] if "w2" in name else tensor[:24]).contiguous()

    edit_weights(folder, narrow)
    monkeypatch.setattr(plan, "meta_model", uneven)
    refused(folder, UnsupportedModelError, "needs the same shapes in all layers", tmp_path)


# ---- names ----


def test_resolve_takes_folders_shipped_names_and_hub_ids(mixtral, tmp_path, monkeypatch):
    import huggingface_hub

    assert resolve(mixtral) == resolve(str(mixtral)) == mixtral
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "shipped")
    shutil.copytree(mixtral, tmp_path / "shipped" / "tiny-test")
    assert resolve("tiny-test") == tmp_path / "shipped" / "tiny-test"
    with pytest.raises(
        CheckpointError, match="'tiny-tset' does not exist.*shipped model's name .tiny-test"
    ):
        resolve("tiny-tset")
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **how: asked.update(name=name, **how) or str(mixtral),
    )
    assert resolve("owner/model") == mixtral and asked["name"] == "owner/model"
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in asked["allow_patterns"])


def test_a_hub_that_does_not_answer(monkeypatch):
    import huggingface_hub

    def offline(name, **how):
        raise ConnectionError("Name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        CheckpointError,
        match="'owner/model' is no local folder.*Name or service not known.*: check",
    ):
        resolve("owner/model")


def test_the_cache_is_named_after_the_repository(mixtral, tmp_path):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    shutil.copytree(mixtral, snapshot)
    assert pack(snapshot).directory.parent == checkpoint.cache_folder() == tmp_path / "cache"
    assert pack(snapshot).directory.name.startswith("models--owner--name-")


# ---- memory ----

MEASURE = """
import json, sys
from specmoe.checkpoint import build_model, pack

def memory(line):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith(line))

def growth(function, *arguments):
    open("/proc/self/clear_refs", "w").write("5")  # the peak is now what is in use
    before = memory("VmRSS:")
    function(*arguments)
    return memory("VmHWM:") - before

small, large, out = sys.argv[1:]
pack(small, out + "-small"), build_model(small)  # what is imported late is not counted
packing, building = growth(pack, large, out), growth(build_model, large)
control = growth(lambda: bytearray(b"x") * 300_000_000)
print(json.dumps({"packing": packing, "building": building, "control": control}))
"""


def write_sparse(file: Path, tensors: dict[str, tuple[int, ...]], mark) -> None:
    """A bf16 safetensors file with holes instead of weights; ``mark(name)`` is its first number."""
    header, start = {}, 0
    for name, shape in tensors.items():
        num_bytes = 2 * torch.Size(shape).numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [start, start + num_bytes],
        }
        start += num_bytes
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + start)
        for name, entry in header.items():
            stream.seek(8 + len(text) + entry["data_offsets"][0])
            stream.write(
                bytes(torch.tensor([mark(name)], dtype=torch.bfloat16).view(torch.uint8).tolist())
            )


def write_large_checkpoint(folder: Path, num_layers: int, hidden: int, ffn: int) -> int:
    """A mixtral with published key names, one shard per layer; returns the bytes of its largest
    shard."""
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": num_layers}
    config = make_config("mixtral", **sizes, num_attention_heads=8, head_dim=8, dtype="bfloat16")
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(folder)
    weight_map = {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items() if "experts" not in n}
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        mine = {
            n.replace(".mlp.", ".block_sparse_moe."): s
            for n, s in shapes.items()
            if n.startswith(prefix)
        }
        if layer == 0:
            mine |= {n: s for n, s in shapes.items() if not n.startswith("model.layers.")}
        for expert in range(8):
            for kind in ("w1", "w2", "w3"):
                shape = (hidden, ffn) if kind == "w2" else (ffn, hidden)
                mine[f"{prefix}block_sparse_moe.experts.{expert}.{kind}.weight"] = shape
        name = f"model-{layer + 1:05}-of-{num_layers:05}.safetensors"
        write_sparse(folder / name, mine, marked)
        weight_map |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def marked(name: str) -> float:
    """A number of its own for each expert tensor, exact in bf16."""
    parts = name.split(".")
    return (
        float(int(parts[5]) * 3 + "w1 w2 w3".split().index(parts[6]) + 1)
        if "experts" in parts
        else 1.0
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.long
def test_packing_two_gigabytes_stays_within_a_shard_and_a_tenth_of_the_experts(mixtral, tmp_path):
    largest_shard = write_large_checkpoint(tmp_path / "large", num_layers=12, hidden=1024, ffn=3584)
    command = [
        sys.executable,
        "-c",
        MEASURE,
        str(mixtral),
        str(tmp_path / "large"),
        str(tmp_path / "packed"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout.strip().splitlines()[-1])
    packed = open_packed(tmp_path / "packed")
    assert packed.data_bytes >= 2 * 10**9
    print(
        f"{packed.data_bytes} bytes of experts, largest shard {largest_shard}: peak memory grew "
        f"by {grown}"
    )
    assert 290_000_000 < grown["control"] < 320_000_000, "the measurement sees what is allocated"
    assert grown["packing"] <= largest_shard + packed.data_bytes // 10, "what is allowed"
    assert grown["packing"] <= packed.data_bytes // 10, "what one expert at a time should need"
    assert grown["building"] <= packed.data_bytes // 10, "a model is built without its experts"
    with open(packed.data_file, "rb") as stream:
        for layer, expert in [(0, 0), (5, 3), (11, 7)]:
            stream.seek(packed.offset(layer, expert))
            record = torch.frombuffer(
                bytearray(stream.read(packed.layout.record_bytes)), dtype=torch.uint8
            )
            views = packed.layout.views(record)
            first = [
                views["gate_up_proj"][0, 0],
                views["down_proj"][0, 0],
                views["gate_up_proj"][3584, 0],
            ]
            assert [float(value) for value in first] == [expert * 3 + i for i in (1, 2, 3)]
    shutil.rmtree(tmp_path / "packed")
