"""Distances between experts, and who stands in for whom."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
from conftest import reference_model

from specmoe.checkpoint import open_packed, pack
from specmoe.offload import affinity
from specmoe.offload.affinity import (
    expert_distances,
    nearest_resident,
    no_substitute,
    random_resident,
)

DISTANCES = torch.tensor([[0.0, 1, 2, 9], [1, 0, 5, 9], [2, 5, 0, 3], [9, 9, 3, 0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_distances_are_l2_between_all_weights_of_two_experts(dtype, tiny):
    distances = expert_distances(pack(tiny("mixtral", dtype)))
    experts = reference_model(tiny("mixtral", dtype)).model.layers[1].mlp.experts
    # [E, everything]
    weights = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], dim=1)
    torch.testing.assert_close(
        distances[1].double(), torch.cdist(weights, weights), rtol=1e-5, atol=1e-4
    )
    assert distances.shape == (2, 8, 8) and (distances.diagonal(dim1=1, dim2=2) == 0).all()


def test_distances_need_nothing_that_windows_lacks(own, monkeypatch):
    import os

    monkeypatch.delattr(os, "pread")
    assert (affinity._layer_distances(own, 1).diagonal() == 0).all()


def test_distances_are_computed_once_and_kept_beside_the_store(own, monkeypatch):
    first = expert_distances(own)
    monkeypatch.setattr(affinity, "_layer_distances", None)  # would fail if it were called
    assert torch.equal(expert_distances(own), first)


@pytest.fixture
def own(tiny, tmp_path):
    """A packed folder that a test may break."""
    return open_packed(shutil.copytree(pack(tiny("mixtral")).directory, tmp_path / "packed"))


def altered(content: bytes) -> bytes:
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b"x",
        altered,
        lambda content: saved(np.zeros((2, 8, 8), np.float64)),
        lambda content: saved(np.zeros((2, 8, 7), np.float32)),
        lambda content: saved(np.full((2, 8, 8), np.nan, np.float32)),
        lambda content: saved(np.array([{}], dtype=object)),
        lambda content: b"x" * 2**20,
    ],
)
def test_a_damaged_table_is_made_again(damage, own):
    first, file = expert_distances(own), own.directory / "affinity.npy"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert torch.equal(expert_distances(own), first)
    assert file.read_bytes() == content and len(list(own.directory.iterdir())) == 3


def test_the_table_of_another_model_is_made_again(own, tiny, tmp_path):
    other = pack(tiny("mixtral", initializer_range=0.2), tmp_path / "other")
    expert_distances(other)
    shutil.copy(other.directory / "affinity.npy", own.directory)
    assert torch.equal(expert_distances(own), expert_distances(pack(tiny("mixtral"))))


def test_a_folder_that_cannot_be_written_is_used_all_the_same(own, monkeypatch):
    first = expert_distances(own)
    (own.directory / "affinity.npy").write_bytes(b"")

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(affinity, "write_whole", read_only)
    assert torch.equal(expert_distances(own), first)


def test_the_nearest_resident_stands_in_and_residents_stand_for_themselves():
    assert nearest_resident(DISTANCES, [2, 1]).tolist() == [1, 1, 2, 2, 4]
    assert nearest_resident(DISTANCES, [3]).tolist() == [3, 3, 3, 3, 4]


def test_a_resident_stands_for_itself_even_when_two_are_equal():
    assert nearest_resident(torch.zeros(3, 3), [0, 2]).tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(
    "table",
    [
        lambda: nearest_resident(DISTANCES, []),
        lambda: random_resident(4, [], torch.Generator()),
        lambda: no_substitute(4, []),
    ],
)
def test_without_residents_nobody_stands_in(table):
    assert table().tolist() == [4] * 5


def test_random_stand_ins_are_residents_drawn_from_the_generator():
    tables = [
        random_resident(40, [3, 17], torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert set(tables[0][:40].tolist()) == {3, 17} and tables[0][40] == 40
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])
    assert tables[0][3] == 3 and tables[0][17] == 17


def test_no_substitute_leaves_the_missing_out():
    assert no_substitute(4, [1]).tolist() == [4, 1, 4, 4, 4]
