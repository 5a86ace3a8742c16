"""The cache of packed copies: where it is, what is in it, and that only what specmoe wrote is
touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_architectures import make_checkpoint

from specmoe.checkpoint import cache_folder, pack, packing
from specmoe.cli import copies
from specmoe.cli.identity import identity_of
from specmoe.cli.parser import main
from specmoe.errors import CheckpointError, StoreError
from specmoe.lab.machine import doctor, probes


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> Path:
    return make_checkpoint("mixtral", tmp_path_factory.mktemp("checkpoints") / "mixtral")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The cache folder of one test."""
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def says(capsys, *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(list(words))
    output = capsys.readouterr()
    return code, output.out + output.err


# ---- where it is ----


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SPECMOE_CACHE")
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/specmoe")
    for ignored in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path("/somebody/.cache/specmoe")
    monkeypatch.setenv("SPECMOE_CACHE", "~/mine")
    assert cache_folder() == Path("/somebody/mine")


def test_without_a_home_one_sentence_names_the_variable(mixtral, monkeypatch, tmp_path):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPECMOE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(
        Path, "expanduser", lambda self: no_home(self) if "~" in str(self) else self
    )
    with pytest.raises(StoreError, match=r"no home folder .*: set \$SPECMOE_CACHE"):
        pack(mixtral)
    assert pack(mixtral, tmp_path / "packed").num_experts == 8, "named by hand it needs no cache"
    assert identity_of(mixtral) == identity_of(mixtral)


def test_a_read_only_cache_is_used_and_packing_into_it_is_one_sentence(
    mixtral, monkeypatch, tmp_path
):
    first = pack(mixtral)
    other = make_checkpoint("mixtral", tmp_path / "other", num_hidden_layers=1)

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    monkeypatch.setattr("specmoe.checkpoint.identity.write_whole", read_only)
    assert pack(mixtral) == first
    with pytest.raises(StoreError, match=r"could not pack into .*Read-only.*set \$SPECMOE_CACHE"):
        pack(other)


# ---- listing and removing ----


def test_the_list_names_size_model_experts_use_and_path(mixtral, capsys):
    packed = pack(mixtral)
    os.utime(packed.directory, (0, 0))
    os.utime(packed.directory / "manifest.json", (0, 0))
    [row] = copies.entries()
    used = row.pop("last_used")
    assert used < "1970-01-03"
    assert row.pop("bytes") >= packed.data_bytes
    assert row == {
        "name": packed.directory.name,
        "model": "mixtral",
        "layers": 2,
        "experts": 8,
        "state": "whole",
        "path": str(packed.directory),
    }
    pack(mixtral)
    assert copies.entries()[0]["last_used"] > "2001", "a load is a use"
    code, text = says(capsys, "cache")
    assert (
        code == 0 and packed.directory.name in text and says(capsys, "cache", "list") == (0, text)
    )
    code, text = says(capsys, "cache", "list", "--json")
    assert json.loads(text)["copies"][0]["experts"] == 8


def test_an_empty_cache_lists_nothing_and_is_not_made(root, capsys):
    code, text = says(capsys, "cache", "--json")
    assert code == 0 and json.loads(text) == {"folder": str(root), "bytes": 0, "copies": []}
    assert says(capsys, "cache", "remove", "--all")[0] == 0 and not root.exists()
    assert "it is empty" in says(capsys, "cache", "remove", "m")[1]


def test_removing_by_name_leaves_the_others(mixtral, capsys):
    one, two = pack(mixtral), pack(mixtral, expert_bytes=30_000)
    code, text = says(capsys, "cache", "remove", one.directory.name, "--json")
    assert code == 0 and [row["name"] for row in json.loads(text)["removed"]] == [
        one.directory.name
    ]
    assert not one.directory.exists() and two.directory.exists()
    assert pack(mixtral).checksums == one.checksums
    assert says(capsys, "cache", "remove", "--all")[0] == 0 and copies.entries() == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["remove"], "needs the names of packed copies, or --all"),
        (["remove", "m", "--all"], "needs the names of packed copies, or --all"),
        (["list", "--all"], "belong to `specmoe cache remove`"),
        (["remove", "no-such"], "'no-such' is no packed copy in"),
        (["remove", "../../etc"], "'../../etc' is no packed copy in"),
        (["remove", "mine"], "'mine' is no packed copy in"),
    ],
)
def test_what_cannot_be_removed_is_one_sentence_and_removes_nothing(
    words, message, mixtral, root, capsys
):
    packed = pack(mixtral)
    (root / "mine").mkdir()
    code, text = says(capsys, "cache", *words)
    assert code == 2 and message in text
    assert packed.directory.exists() and (root / "mine").exists()


def test_only_what_specmoe_wrote_is_listed_and_removed(mixtral, root, tmp_path):
    packed = pack(mixtral)
    (packed.directory / "notes.txt").write_text("mine")
    outside = pack(mixtral, tmp_path / "outside")
    (root / "mine-0123456789ab").mkdir()
    (root / "mine-0123456789ab" / "thesis.txt").write_text("mine")
    (root / "file-0123456789ab").write_text("mine")
    os.symlink(outside.directory, root / "link-0123456789ab")
    assert [row["name"] for row in copies.entries()] == [packed.directory.name]
    copies.remove()
    assert [path.name for path in packed.directory.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in outside.directory.iterdir()) == [
        "experts.bin",
        "manifest.json",
        "model",
    ]
    assert len(list(root.iterdir())) == 5


def test_what_a_killed_run_left_is_listed_and_removed(mixtral, root):
    def kill(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(mixtral, progress=kill)
    [row] = copies.entries()
    assert row["state"] == "unfinished" and row["name"].endswith(".partial")
    copies.remove([row["name"]])
    assert copies.entries() == []


def test_a_removal_killed_at_any_step_can_be_finished(mixtral, root, monkeypatch):
    for step in range(1, 4):
        pack(mixtral)
        calls, really = [], Path.unlink

        def deadly(path, *arguments, step=step, calls=calls, really=really, **options):
            calls.append(path)
            if len(calls) >= step:
                raise KeyboardInterrupt
            really(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", deadly)
            with pytest.raises(KeyboardInterrupt):
                copies.remove()
        if step < 3:
            assert len(copies.entries()) == 1
        copies.remove()
        assert copies.entries() == []


@pytest.mark.parametrize("damage", ["manifest.json", "experts.bin"])
def test_a_damaged_copy_in_the_cache_is_packed_again(damage, mixtral):
    first = pack(mixtral)
    content = first.data_file.read_bytes()
    (first.directory / damage).write_bytes(b"")
    assert copies.entries()[0]["state"] == "unusable"
    assert pack(mixtral).data_file.read_bytes() == content
    assert [row["state"] for row in copies.entries()] == ["whole"]


# ---- what is somebody's own ----


@pytest.mark.parametrize(
    "files",
    [
        {"experts.bin": "mine"},
        {"journal": "dear diary"},
        {"journal": '{"format": "specmoe-experts"}', "notes.txt": "mine"},
        {"notes.txt": "mine"},
    ],
)
def test_a_folder_called_partial_is_not_adopted(files, mixtral, tmp_path, capsys):
    partial = tmp_path / "q.partial"
    partial.mkdir()
    for name, text in files.items():
        (partial / name).write_text(text)
    with pytest.raises(
        CheckpointError, match="q.partial is not specmoe's, and packing needs that name"
    ):
        pack(mixtral, tmp_path / "q")
    assert {path.name: path.read_text() for path in partial.iterdir()} == files
    assert not (tmp_path / "q").exists()
    assert says(capsys, "pack", str(mixtral), str(tmp_path / "q"))[0] == 2


def test_the_doctor_makes_no_folder(tmp_path, monkeypatch):
    for probe in ("compute_rates", "memory_copy_rate", "link_rates"):
        monkeypatch.setattr(probes, probe, lambda *_: {})
    found = doctor.examine(directory=tmp_path / "nope" / "deeper")
    assert "failed" not in found["disk"] and list(tmp_path.iterdir()) == []


# ---- the disk fails ----


@pytest.mark.parametrize("number, message", [(28, "no space left"), (5, "could not pack into")])
def test_a_disk_that_fails_is_one_sentence_and_the_next_run_finishes(
    number, message, mixtral, monkeypatch
):
    expected = shutil.copytree(pack(mixtral).directory, cache_folder().parent / "expected")
    for at in range(1, 8):
        copies.remove()
        with monkeypatch.context() as patch:
            patch.setattr(packing, "SYNC_BYTES", 100_000)
            failing(patch, at, OSError(number, os.strerror(number)))
            with pytest.raises(StoreError, match=message):
                pack(mixtral)
        packed = pack(mixtral)
        assert packed.data_file.read_bytes() == (expected / "experts.bin").read_bytes()
        assert [row["state"] for row in copies.entries()] == ["whole"]


def failing(patch, at: int, error: OSError) -> None:
    """Every fsync from the ``at``-th on fails."""
    calls, really = [], os.fsync

    def fsync(file):
        calls.append(file)
        if len(calls) >= at:
            raise error
        really(file)

    patch.setattr(os, "fsync", fsync)
