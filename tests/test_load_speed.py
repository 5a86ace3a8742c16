"""What loading a model of real size costs: a packed folder opens by itself, and distances between
large experts come from a sample of their weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import PROMPTS, tokens_of
from safetensors.torch import load_file

import specmoe
from specmoe.checkpoint import ExpertLayout, build_model, open_packed, pack, packing
from specmoe.checkpoint.files import open_checkpoint
from specmoe.checkpoint.packed import VERSION, PackedExperts
from specmoe.checkpoint.plan import plan_experts
from specmoe.cli.copies import entries, remove
from specmoe.cli.identity import identity_of
from specmoe.cli.parser import main
from specmoe.errors import CheckpointError
from specmoe.offload import affinity

OPTIONS = {"dtype": "float64", "draft_experts": 3}


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def source(tiny, tmp_path):
    """A checkpoint that a test may take away."""
    return shutil.copytree(tiny("mixtral"), tmp_path / "source")


def decoded(folder, **options):
    with specmoe.load(folder, **OPTIONS, **options) as engine:
        return tokens_of(engine.generate(PROMPTS, max_new_tokens=8)), engine.info


# ---- a packed folder opens by itself ----


@pytest.mark.parametrize("expert_bytes", [None, 100_000])
def test_a_packed_folder_loads_where_its_checkpoint_is_gone(source, tmp_path, expert_bytes):
    expected, _ = decoded(source)
    packed = pack(source, tmp_path / "packed", expert_bytes)
    source.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "cache")
    found, info = decoded(tmp_path / "packed")
    assert found == expected and info["name"] == "packed"
    assert info["expert_bytes"] == packed.layout.payload_bytes
    assert entries() == [], "nothing is packed a second time"


def test_it_has_the_identity_of_its_checkpoint(tiny, tmp_path):
    source = shutil.copytree(specmoe_folder("tiny-skewed"), tmp_path / "source")
    pack(source, tmp_path / "packed")
    assert identity_of(tmp_path / "packed") == identity_of(source)
    whole, rest = (
        load_file(at / "model.safetensors") for at in (source, tmp_path / "packed/model")
    )
    assert rest.keys() < whole.keys() and not any(".experts." in name for name in rest)
    settings = tmp_path / "packed/model/generation_config.json"
    settings.write_text(settings.read_text().replace("{", '{"max_length": 7,', 1))
    assert identity_of(tmp_path / "packed") != identity_of(source)


def specmoe_folder(name):
    from specmoe.checkpoint import resolve

    return resolve(name)


def test_check_exact_says_that_transformers_cannot_read_it(source, tmp_path):
    pack(source, tmp_path / "packed")
    with specmoe.load(tmp_path / "packed", **OPTIONS) as engine:
        report = engine.check_exact(PROMPTS[:2], 4)
    assert report and report.reference == "plain decoding (transformers reads no packed folder)"


def test_every_command_takes_it(source, tmp_path, capsys):
    assert main(["pack", str(source), str(tmp_path / "packed")]) == 0
    there = str(tmp_path / "packed")
    assert main(["verify", there]) == 0
    assert (
        main(["bench", there, "--methods", "on_demand", "--batch", "1", "--new-tokens", "2"]) == 0
    )
    assert "on_demand" in capsys.readouterr().out
    assert main(["pack", there, str(tmp_path / "again")]) == 2
    assert "packed already: copy the folder" in capsys.readouterr().err


def test_packing_again_renews_the_rest(source, tmp_path):
    packed = pack(source, tmp_path / "packed")
    config = source / "config.json"
    config.write_text(config.read_text().replace("{", '{"marked": 1,', 1))
    pack(source, tmp_path / "packed")
    assert (packed.directory / "model/config.json").read_text() == config.read_text()


def test_it_is_as_wide_as_it_was_packed(source, tmp_path):
    packed = pack(source, tmp_path / "packed", expert_bytes=100_000)
    assert pack(tmp_path / "packed", None, 90_000) == packed == pack(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="are asked for .expert_bytes.: pack the checkpoint"):
        pack(tmp_path / "packed", None, 10**6)


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda at: shutil.rmtree(at / "model"),
            "not the rest of the model .model/config.json.: lo",
        ),
        (lambda at: (at / "model/config.json").unlink(), "not the rest of the model"),
        (lambda at: (at / "model/model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda at: (at / "experts.bin").unlink(), "0 bytes instead of"),
        (lambda at: (at / "manifest.json").write_text("{}"), "no config.json"),
        (
            lambda at: (at / "manifest.json").write_text(
                (at / "manifest.json").read_text().replace(f'"version": {VERSION}', '"version": 1')
            ),
            "is of another version of specmoe",
        ),
    ],
    ids=["no rest", "no config", "no weights", "no records", "no manifest", "version"],
)
def test_what_it_lacks_is_said_in_one_sentence(source, tmp_path, damage, said):
    pack(source, tmp_path / "packed")
    damage(tmp_path / "packed")
    with pytest.raises(CheckpointError, match=said):
        specmoe.load(tmp_path / "packed", **OPTIONS)


def test_a_copy_in_the_cache_is_told_from_a_packed_folder(source, tmp_path):
    cached = pack(source)
    with pytest.raises(CheckpointError, match="load the checkpoint it was packed from"):
        build_model(specmoe_folder(cached.directory))


def test_one_that_lies_in_the_cache_is_listed_and_removed_whole(source, tmp_path):
    packed = pack(source, tmp_path / "cache" / "mine")
    [row] = entries()
    files = [file for file in packed.directory.rglob("*") if file.is_file()]
    assert row["bytes"] == sum(file.stat().st_size for file in files) > packed.data_bytes
    remove()
    assert not packed.directory.exists()


def test_an_interrupted_packing_goes_on_with_the_rest(source, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "packed", progress=stop)
    assert not (tmp_path / "packed").exists()
    pack(source, tmp_path / "packed")
    assert open_packed(tmp_path / "packed") and decoded(tmp_path / "packed")[0]


# ---- distances between large experts come from a sample ----


@pytest.fixture
def sampled(tiny, monkeypatch):
    """Experts of nine pages, of which two are read."""
    packed = pack(tiny("mixtral"))
    assert packed.layout.record_bytes == 9 * 4096
    monkeypatch.setattr(affinity, "LARGEST_WHOLE", packed.layout.payload_bytes - 1)
    monkeypatch.setattr(affinity, "PIECES", 2)
    monkeypatch.setattr(affinity, "PIECE_BYTES", 4096)
    return packed


def test_distances_of_large_experts_are_near_those_of_all_weights(sampled, monkeypatch):
    found = affinity.expert_distances(sampled)
    (sampled.directory / "affinity.npy").unlink()
    monkeypatch.setattr(affinity, "LARGEST_WHOLE", 2**40)
    whole = affinity.expert_distances(sampled)
    assert not torch.equal(found, whole)
    torch.testing.assert_close(found, whole, rtol=0.15, atol=0)


def test_they_are_never_read_whole(sampled):
    places = affinity._places(sampled, 0)
    pieces = list(affinity._weights(sampled, 1, places))
    assert sum(piece.numel() for piece in pieces) * 8 == 2 * 4096 * sampled.num_experts
    assert max(begin + size for begin, size in places) <= sampled.layout.record_bytes
    assert places[1][0] >= sampled.layout.record_bytes // 4, "not only the first tensor"


@pytest.mark.parametrize("expert_bytes", [None, 3 * 2**20, 24 * 2**20])
def test_shipped_experts_are_compared_whole_however_wide(expert_bytes):
    plan = plan_experts(open_checkpoint(specmoe_folder("tiny-skewed")), expert_bytes)
    layers, num_experts, layout, widened = packing._shape_of(plan)
    packed = PackedExperts(Path(), layers, num_experts, layout, (), {}, widened)
    assert sum(size for _, size in affinity._places(packed, 0)) == layout.record_bytes


def test_an_expert_of_real_size_costs_half_a_mebibyte():
    layout = ExpertLayout.of(
        {"gate_up_proj": (2048, 2048), "down_proj": (2048, 1024)}, torch.bfloat16
    )
    packed = PackedExperts(Path(), ("a",), 64, layout, (), {}, None)
    places = affinity._places(packed, 0)
    assert sum(size for _, size in places) == 2**19 and places[-1][0] > 0.8 * layout.record_bytes
