"""A doctor that measures what is there, says how, and does not die of what it finds. No speed is
asserted."""

from __future__ import annotations

import ctypes
import json
import os
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from specmoe.lab.machine import doctor, probes

SMALL = {"file_bytes": 2**20, "record_bytes": 2**16, "seconds": 0.02}


@pytest.fixture
def known_file(tmp_path):
    path = tmp_path / "known"
    path.write_bytes(os.urandom(2**16))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Whole examinations without the seconds."""
    rates = probes.disk_rates
    monkeypatch.setattr(probes, "disk_rates", lambda folder, *_: rates(folder, **SMALL))
    monkeypatch.setattr(
        probes, "compute_rates", lambda *_: {"fp32_flop_per_s": 2e9, "bf16_flop_per_s": 8e9}
    )
    monkeypatch.setattr(probes, "memory_copy_rate", lambda *_: {"bytes_per_s": 1e9})


def no_direct_io(monkeypatch):
    really_open = os.open

    def refuse(path, flags, *rest, **more):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return really_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)


# Disk


@pytest.mark.parametrize("direct", [True, False])
def test_raw_reads_bring_the_bytes_that_are_asked_for(direct, known_file, monkeypatch):
    if not direct:
        no_direct_io(monkeypatch)
    reader = probes.RawFile(known_file, 8192)
    assert reader.read(12288, 8192) == 8192
    assert bytes(reader.memory) == known_file.read_bytes()[12288 : 12288 + 8192]
    reader.close()
    assert direct or reader.how != "direct"


def test_a_file_system_that_opens_but_does_not_read_directly_falls_back(known_file, monkeypatch):
    really_read = os.preadv
    failed = []

    def fail_first(*arguments):
        if not failed:
            failed.append(1)
            raise OSError(22, "Invalid argument")
        return really_read(*arguments)

    monkeypatch.setattr(os, "preadv", fail_first)
    reader = probes.RawFile(known_file, 4096)
    assert reader.how == "page cache dropped"
    assert reader.read(0, 4096) == 4096 and bytes(reader.memory) == known_file.read_bytes()[:4096]
    reader.close()


def test_dropping_really_asks_the_system_to_drop(known_file, monkeypatch):
    no_direct_io(monkeypatch)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments[1:3]))
    reader = probes.RawFile(known_file, 4096)
    reader.read(4096, 4096)
    reader.close()
    assert dropped == [(4096, 4096)]


def test_disk_rates_are_of_a_temporary_file_that_is_removed(tmp_path):
    before = set(threading.enumerate())
    found = probes.disk_rates(tmp_path / "new" / "folder", **SMALL)
    assert found["reads"] in ("direct", "page cache dropped")
    assert set(found["random_bytes_per_s"]) == {"1", "2", "4", "8"}
    assert (
        min(
            [
                found["sequential_bytes_per_s"],
                found["page_latency_s"],
                *found["random_bytes_per_s"].values(),
            ]
        )
        > 0
    )
    assert found["record_bytes"] == 2**16
    assert list(tmp_path.iterdir()) == [], "nor is a folder made for it"
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks /proc which file is read")
def test_raw_reads_take_each_record_once_and_in_order(tmp_path, monkeypatch):
    """A file read again comes faster from some disks: the rate would be nobody's."""
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(bytes(5 * 8192 + 100))
    places, read = [], probes.RawFile.read

    def watched(self, offset, num_bytes):
        places.append((os.readlink(f"/proc/self/fd/{self.file}"), offset))
        return read(self, offset, num_bytes)

    monkeypatch.setattr(probes.RawFile, "read", watched)
    assert probes.raw_reads_rate(files, 5000, 7 * 8192, num_readers=1) > 0
    assert places == sorted(set(places)) and len(places) == 7
    assert {offset % 8192 for _, offset in places} == {0}
    places.clear()
    probes.raw_reads_rate(files, 5000, 100 * 8192, num_readers=4)
    assert len(set(places)) == len(places) == 10, "all there are, and none of them twice"


def test_records_are_rounded_up_to_whole_pages(tmp_path):
    assert probes.disk_rates(tmp_path, 2**20, 5000, 0.01, readers=(1,))["record_bytes"] == 8192


def test_a_reader_that_fails_fails_the_probe_and_leaves_no_file(tmp_path, monkeypatch):
    def fail(self, offset, num_bytes):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(probes.RawFile, "read", fail)
    with pytest.raises(OSError, match="Input/output"):
        probes.disk_rates(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_not_written_to(tmp_path, monkeypatch):
    class Usage:
        free = 2**20

    monkeypatch.setattr(probes.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match="bytes free"):
        probes.disk_rates(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


# Arithmetic and copies


def test_rates_are_work_over_the_shortest_time(monkeypatch):
    # until; 1 -> 4 took 3; still early; 6 -> ... is never reached
    clock = iter([0.0, 1.0, 4.0, 4.0, 6.0, 7.0])
    monkeypatch.setattr(probes.time, "perf_counter", lambda: next(clock))
    calls = []
    assert probes._best_s(lambda: calls.append(1), 3.5) == 3.0
    assert len(calls) == 2, "one call to warm up, one timed"


def test_compute_and_copy_rates_are_positive():
    rates = probes.compute_rates(0.01, size=64)
    assert set(rates) == {"fp32_flop_per_s", "bf16_flop_per_s"} and min(rates.values()) > 0
    assert probes.memory_copy_rate(0.01, num_bytes=2**16)["bytes_per_s"] > 0


@pytest.mark.gpu
def test_copies_to_the_gpu_are_measured():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert min(probes.cuda_copy_rates(0.01, num_bytes=2**20).values()) > 0
    assert min(probes.compute_rates(0.01, "cuda", 256).values()) > 0


# The whole


def test_examine_is_plain_json_and_names_what_was_asked_for(tmp_path, quick):
    found = json.loads(json.dumps(doctor.examine(directory=tmp_path)))
    wanted = {
        "date",
        "kernel",
        "cpu",
        "cores",
        "torch",
        "transformers",
        "threads",
        "devices",
        "memory",
        "compiler",
    }
    assert wanted | {"disk", "compute", "memory_copy", "balance", "hub"} <= set(found)
    assert "failed" not in json.dumps(found)
    assert found["disk"]["folder"] == str(tmp_path)
    link = max(found["disk"]["random_bytes_per_s"].values())
    assert found["balance"]["fp32_flop_per_byte"] == pytest.approx(2e9 / link)
    assert found["balance"]["bf16_flop_per_byte"] == pytest.approx(8e9 / link)
    assert found["memory"]["total_bytes"] > found["memory"]["available_bytes"] > 0


def test_a_probe_that_fails_gives_its_reason_and_the_others_still_run(tmp_path, quick):
    (tmp_path / "file").write_text("no folder")
    found = doctor.examine(directory=tmp_path / "file" / "folder")
    assert "Error" in found["disk"]["failed"]
    assert "disk" in found["balance"]["failed"]
    assert found["compute"] == {"fp32_flop_per_s": 2e9, "bf16_flop_per_s": 8e9}


def test_without_torch_the_doctor_still_answers(tmp_path, quick, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    found = doctor.examine(directory=tmp_path)
    assert found["devices"] == [{"device": "cpu"}]
    assert "torch" in found["threads"]["failed"]
    assert found["disk"]["reads"]


def test_the_disk_of_the_cache_folder_is_measured_by_default(tmp_path, quick, monkeypatch):
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    assert doctor.examine()["disk"]["folder"] == str(tmp_path / "cache")


def test_a_processor_with_a_gpu_has_two_balances():
    found = {
        "disk": {"random_bytes_per_s": {"1": 1e9, "2": 2e9}},
        "compute": {"fp32_flop_per_s": 4e9, "bf16_flop_per_s": 8e9},
        "cuda_compute": {"fp32_flop_per_s": 5e13, "bf16_flop_per_s": 1e15},
        "cuda_copy": {"pinned_bytes_per_s": 5e10, "pageable_bytes_per_s": 1e10},
    }
    assert doctor.balance(found) == {
        "link_bytes_per_s": 2e9,
        "fp32_flop_per_byte": 2,
        "bf16_flop_per_byte": 4,
        "cuda_fp32_flop_per_byte": 1000,
        "cuda_bf16_flop_per_byte": 20000,
    }


def test_a_machine_without_a_compiler_cannot_compile(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.compiler()["compiler"] is None and doctor.compiler()["can_compile"] is False


# Hub


def test_the_network_is_left_alone_unless_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *a, **k: asked.append(k["timeout"]) or open(os.devnull)
    )
    assert "reachable" not in doctor.hub_settings() and asked == []
    assert doctor.hub_settings(probe=True)["reachable"] is True and asked == [3.0]


def test_an_unreachable_hub_gives_its_reason_and_a_complaining_one_is_reached(monkeypatch):
    def answer(failure):
        def urlopen(*arguments, **options):
            raise failure

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return doctor.hub_settings(probe=True)["reachable"]

    assert "no route" in answer(urllib.error.URLError("no route"))["failed"]
    assert answer(urllib.error.HTTPError("https://hub", 429, "slow down", None, None)) is True


def test_the_hub_is_described_by_its_own_constants(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/somewhere/hub")
    assert doctor.hub_settings() == {"offline": True, "cache_folder": "/somewhere/hub"}


# For people


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("compute.fp32_flop_per_s", 1.5e11, "150 GFLOP/s"),
        ("balance.fp32_flop_per_byte", 412.0, "412 FLOP/byte"),
        ("disk.random_bytes_per_s.2", 9.5e8, "950 MB/s"),
        ("disk.page_latency_s", 0.0002, "0.2 ms"),
        ("memory.total_bytes", 2**30, "1 GiB"),
        ("compiler.can_compile", False, "no"),
        ("compiler.compiler", None, "none"),
        ("cpu", "some cpu", "some cpu"),
    ],
)
def test_values_are_shown_with_the_unit_of_their_name(name, value, shown):
    assert doctor.readable(name, value) == shown


def test_the_table_has_a_line_for_every_value():
    found = {"a": 1, "b": {"c": "x", "d": [{"e": True}]}}
    assert doctor.to_table(found).splitlines() == ["a        1", "b.c      x", "b.d.0.e  yes"]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no system that says")
def test_what_a_probe_reads_into_has_large_pages_as_the_slots_have(tmp_path):
    """Into small ones a disk is asked for less at a time, and its rate would be another."""
    file = tmp_path / "f"
    file.write_bytes(bytes(2**22))
    reader = probes.RawFile(file, 2**22)
    address = ctypes.addressof(ctypes.c_char.from_buffer(reader.buffer))
    is_its, flags = False, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_its = int(found[1], 16) <= address < int(found[2], 16)
        elif is_its and line.startswith("VmFlags"):
            flags = line
    reader.close()
    assert "hg" in flags.split() or not Path("/sys/kernel/mm/transparent_hugepage").exists()
