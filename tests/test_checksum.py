"""Checksums of records in C are zlib's, for any number of bytes, in any pieces."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specmoe.offload import checksum, transfers
from specmoe.offload.checksum import LEAST, Checksum
from specmoe.offload.direct import pages
from specmoe.offload.transfers import LEAST_LARGE, aligned_bytes, memory_of

LENGTHS = [1, 15, 16, 17, 63, 64, 65, 79, 80, 127, 128, 129, 200, 16383, 16384, 16385, 50_000]


def content(num_bytes: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(num_bytes)
    return torch.randint(0, 256, (num_bytes,), generator=random, dtype=torch.uint8)


@pytest.fixture
def sums():
    found = Checksum(LEAST)
    if found.sum is None:
        pytest.skip("no C compiler, or a processor that does not multiply polynomials")
    return found


@pytest.mark.parametrize("num_bytes", LENGTHS)
def test_a_sum_in_c_is_that_of_zlib(sums, num_bytes):
    # one byte later: no address is even
    record, target = content(num_bytes + 1)[1:], torch.zeros(num_bytes, dtype=torch.uint8)
    for before in (0, 1, 0xDEADBEEF):
        found = sums.copied(record, target, before)
        assert found == zlib.crc32(memory_of(record), before)
        assert torch.equal(record, target)
        target.zero_()
    assert sums.of(memory_of(record)) == zlib.crc32(memory_of(record))


def test_a_record_in_pieces_has_the_sum_of_the_whole(sums):
    record, crc = content(50_000), 0
    for piece in record.split(7_001):
        crc = sums.copied(piece, torch.empty_like(piece), crc)
    assert crc == zlib.crc32(memory_of(record))


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_zlib_sums():
    sums, record = Checksum(LEAST), content(999)
    target = torch.empty_like(record)
    assert sums.sum is None and sums.of(memory_of(record)) == zlib.crc32(memory_of(record))
    assert sums.copied(record, target, 5) == zlib.crc32(memory_of(record), 5)
    assert torch.equal(record, target)


def test_for_small_records_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(checksum.native, "library", None)  # would fail
    assert Checksum(LEAST - 1).sum is None


def test_large_memory_is_written_and_read_as_any_other():
    memory = aligned_bytes(LEAST_LARGE + 5)
    memory[-1] = 7
    assert len(memory) == LEAST_LARGE + 5 and memory[0] == 0 and memory[-1] == 7
    assert memory.data_ptr() % 4096 == 0


def test_slots_have_large_pages_however_few_they_are(monkeypatch):
    asked = []
    monkeypatch.setattr(
        transfers, "pages", lambda num_bytes, large: asked.append(large) or pages(num_bytes)
    )
    store = SimpleNamespace(device=torch.device("cpu"), slot_bytes=4096)
    transfers.allocate_slots(3, store)
    transfers.aligned_bytes(4096)
    assert asked == [True, False]


def test_large_memory_may_have_large_pages():
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text():
        pytest.skip("no large pages here")
    memory = aligned_bytes(LEAST_LARGE)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    inside, found = memory.data_ptr() + LEAST_LARGE // 2, []
    for line in lines:
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
        elif line.startswith("THPeligible") and first <= inside < last:
            found.append(line.split()[1])
    # a processor without them has no such line
    assert found in (["1"], [])
