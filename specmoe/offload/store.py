"""The slow tier: where expert records lie until somebody asks for them. Read-only; one verb: read.

Comes in: a ``PackedExperts`` folder (``checkpoint.pack``). Goes out: ``Read`` tickets, each of
which fills one buffer with one record. A few reader threads serve demand reads before prefetches;
reads of the disk go around the page cache (direct I/O), so that what is measured is the disk.
"""

from __future__ import annotations

import os
import time
import weakref

import torch

from ..checkpoint import TICK_NS, InPlaceExperts, PackedExperts, lock
from ..errors import StoreError
from .base_store import CudaLane, ExpertStore
from .direct import open_around_page_cache
from .shards import CheckpointStore
from .transfers import Read, aligned_bytes, memory_of

# A record altered this long before it is read again is noticed.
STAMP_S = 0.001


class DiskStore(ExpertStore):
    """Records in a file, read with direct I/O where the file system allows it."""

    kind = "disk"

    def __init__(self, packed: PackedExperts, device="cpu", **reading):
        self._file, self.how = open_around_page_cache(packed.data_file)
        lock(self._file, "LOCK_SH")
        self._close_file = weakref.finalize(self, os.close, self._file)
        self._last_stamp = None
        self._stamped_s = -STAMP_S
        super().__init__(packed, device, **reading)

    def _stamp(self) -> tuple[int, ...] | None:
        """``_stamp_of`` the file, asked at most once in ``STAMP_S``: each time costs some
        microseconds."""
        now_s = time.perf_counter()
        if now_s - self._stamped_s >= STAMP_S:
            self._last_stamp = _stamp_of(self._file)
            self._stamped_s = now_s
        return self._last_stamp

    def _make_reader(self):
        return CudaLane(self.device, self.record_bytes) if self.device.type == "cuda" else None

    def _copy(self, read: Read, lane: CudaLane | None) -> None:
        offset, num_bytes, filled = self.packed.offset(*read.key), self.bytes_of(read.key), 0
        memory = memory_of(read.buffer if lane is None else lane.bounce)[:num_bytes]
        stamp = self._stamp()
        while filled < len(memory):
            num_bytes = os.preadv(self._file, [memory[filled:]], offset + filled)
            if num_bytes == 0:
                where = f"{self.packed.data_file} ends inside {read.key}"
                raise StoreError(f"{where}: pack the checkpoint again")
            filled += num_bytes
        if self.how != "direct":
            os.posix_fadvise(self._file, offset, len(memory), os.POSIX_FADV_DONTNEED)
        self.check(read.key, memory, stamp)
        if lane is not None:
            lane.copy(read.buffer[: len(memory)], lane.bounce[: len(memory)], read.after)

    def _release(self) -> None:
        self._close_file()


def _stamp_of(file: int) -> tuple[int, ...] | None:
    """What changes when anybody writes into the file; None when it was written just now, and a
    second change could still get the same time stamp."""
    found = os.fstat(file)
    if time.time_ns() - found.st_ctime_ns < TICK_NS:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class MemoryStore(ExpertStore):
    """Records in host memory; page-locked when the device is CUDA. The whole file is read once,
    when opened."""

    kind = "memory"

    def __init__(self, packed: PackedExperts, device="cpu", **reading):
        pin = torch.device(device).type == "cuda"
        self.how = "pinned host memory" if pin else "host memory"
        self._records = aligned_bytes(packed.data_bytes, pin)
        with open(packed.data_file, "rb") as file:
            file.readinto(memory_of(self._records))
        super().__init__(packed, device, **reading)

    def _make_reader(self):
        return CudaLane(self.device) if self.device.type == "cuda" else None

    def _copy(self, read: Read, lane: CudaLane | None) -> None:
        num_bytes = self.bytes_of(read.key)
        record = self._records[self.packed.offset(*read.key) :][:num_bytes]
        self.check(read.key, memory_of(record), "read once")
        if lane is None:
            read.buffer[:num_bytes].copy_(record)
        else:
            lane.copy(read.buffer[:num_bytes], record, read.after)

    def _release(self) -> None:
        self._records = None


def open_store(
    kind: str | None, packed: PackedExperts | InPlaceExperts, device="cpu", **reading
) -> ExpertStore:
    """The store named ``kind`` over ``packed``; of a packed folder all but "memory" means its
    disk. ``reading``: ``link_bytes_per_s`` and ``num_readers``."""
    if isinstance(packed, InPlaceExperts):
        return CheckpointStore(packed, device, **reading)
    return (MemoryStore if kind == "memory" else DiskStore)(packed, device, **reading)
