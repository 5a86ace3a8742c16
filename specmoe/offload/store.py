"""The slow tier: where expert records lie until somebody asks for them. Read-only; one verb: read.

Comes in: a ``PackedExperts`` folder (``checkpoint.pack``). Goes out: ``Read`` tickets, each of
which fills one buffer with one record. A few reader threads serve demand reads before prefetches;
reads of the disk go around the page cache (direct I/O), so that what is measured is the disk.
``link_bytes_per_s`` slows any store to a link of your choice, over all readers together.
"""

from __future__ import annotations

import os
import time
import warnings
import weakref
import zlib

import torch

from ..checkpoint import TICK_NS, InPlaceExperts, PackedExperts, lock
from ..errors import StoreError
from .direct import open_around_page_cache
from .read_queue import DEMAND, ReadQueue
from .transfers import ExpertKey, Link, Read, aligned_bytes, memory_of

# A record altered this long before it is read again is noticed.
STAMP_S = 0.001
# A store that is closed waits no longer for the reads under way.
CLOSE_S = 10.0


class ExpertStore:
    """Base of the stores: reader threads around ``_copy``. ``submit`` queues a read, ``close`` ends
    the threads."""

    kind = "abstract"
    how = ""

    def __init__(
        self,
        packed: PackedExperts,
        device="cpu",
        link_bytes_per_s: float | None = None,
        num_readers: int = 4,
    ):
        self.packed = packed
        self.layout = packed.layout
        self.record_bytes = packed.layout.record_bytes
        self.device = torch.device(device)
        self.link = Link(link_bytes_per_s)
        self.num_readers = num_readers
        self._checked: list[list] = [[None] * packed.num_experts for _ in packed.layers]
        self._queue = ReadQueue()
        weakref.finalize(self, self._queue.close)
        self._queue.start(self._serve, self._make_reader, num_readers)

    def submit(
        self, key: ExpertKey, buffer: torch.Tensor, priority: int = DEMAND, after=None
    ) -> Read:
        """Queue one record for ``buffer`` (uint8 ``[record_bytes]``) -> its ticket, at once."""
        read = Read(key, buffer, after)
        self._queue.submit(read, priority)
        return read

    def cancel(self, read: Read) -> bool:
        """Take back a read nobody started; True when it will not happen."""
        return self._queue.cancel(read)

    def promote(self, read: Read) -> None:
        """Compute waits for this prefetch now: move it before all other prefetches."""
        self._queue.promote(read)

    def drain(self) -> None:
        """No read of an earlier run goes on: afterwards nobody writes into any buffer.
        ``StoreError`` while one is stalled."""
        self._queue.drain()

    def close(self) -> None:
        """End the reader threads and release files and memory. Calling it twice is fine.

        Returns within ``CLOSE_S``: a reader that has not come back by then keeps its buffer and its
        file, which are freed when it does, and a warning says so.
        """
        self._queue.close()
        self._queue.at_the_end(self._release)
        if self._queue.join(CLOSE_S):
            return
        read = self._queue.first_under_way()
        what = f"expert {read.key.expert} of MoE layer {read.key.layer}" if read else "a record"
        warnings.warn(
            f"reading {what} from {self.packed.data_file} has not ended in the {CLOSE_S:.0f} s "
            "that closing waits: its thread, file and buffers are freed when the disk answers",
            RuntimeWarning,
            stacklevel=3,
        )

    def is_idle(self) -> bool:
        """No read waits or is under way."""
        return self._queue.is_idle()

    def info(self) -> dict:
        """What was measured: the kind of store and how it reads."""
        rate = self.link.bytes_per_s
        return {
            "store": self.kind,
            "reads": self.how,
            "num_readers": self.num_readers,
            "link_bytes_per_s": rate,
        }

    def _serve(self, read: Read, reader) -> None:
        """Fill the buffer of one read, in a reader's thread."""
        began_s, error = time.perf_counter(), None
        try:
            crossed_s = self.link.reserve(self.record_bytes)
            self._copy(read, reader)
            self.link.wait_until(crossed_s)
        except Exception as failure:  # handed to whoever waits for the record
            error = self._explain(read.key, failure)
        read.ended_s = time.perf_counter()
        read.seconds = read.ended_s - began_s
        self._queue.done(read, error)

    def _explain(self, key: ExpertKey, failure: Exception) -> StoreError:
        if isinstance(failure, StoreError):
            return failure
        return StoreError(
            f"cannot read expert {key.expert} of MoE layer {key.layer} from "
            f"{self.packed.data_file}: {failure}"
        )

    def _check(self, key: ExpertKey, memory, stamp) -> None:
        """Compare a record with its checksum the first time it is read, and again whenever
        ``stamp`` is another one than then; None is never the same."""
        if stamp is not None and self._checked[key.layer][key.expert] == stamp:
            return
        if zlib.crc32(memory) != self.packed.checksums[key.layer][key.expert]:
            raise StoreError(
                f"expert {key.expert} of MoE layer {key.layer} in {self.packed.data_file} is "
                "altered (checksum differs): "
                "delete the folder and pack the checkpoint again"
            )
        self._checked[key.layer][key.expert] = stamp

    def _make_reader(self):
        return None

    def _copy(self, read: Read, reader) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        pass


class CudaLane:
    """One reader's own copy stream; the host waits for its copy, so a finished read is a filled
    buffer."""

    def __init__(self, device: torch.device, bounce_bytes: int = 0):
        self.stream = torch.cuda.Stream(device)
        self.bounce = aligned_bytes(bounce_bytes, pin=True) if bounce_bytes else None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after) -> None:
        with torch.cuda.stream(self.stream):
            if after is not None:
                self.stream.wait_event(after)
            target.copy_(source, non_blocking=True)
        self.stream.synchronize()


class DiskStore(ExpertStore):
    """Records in a file, read with direct I/O where the file system allows it."""

    kind = "disk"

    def __init__(
        self,
        packed: PackedExperts,
        device="cpu",
        link_bytes_per_s: float | None = None,
        num_readers: int = 4,
    ):
        self._file, self.how = open_around_page_cache(packed.data_file)
        lock(self._file, "LOCK_SH")
        self._close_file = weakref.finalize(self, os.close, self._file)
        self._last_stamp = None
        self._stamped_s = -STAMP_S
        super().__init__(packed, device, link_bytes_per_s, num_readers)

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
        memory = memory_of(read.buffer if lane is None else lane.bounce)
        offset, filled = self.packed.offset(*read.key), 0
        stamp = self._stamp()
        while filled < self.record_bytes:
            num_bytes = os.preadv(self._file, [memory[filled:]], offset + filled)
            if num_bytes == 0:
                raise StoreError(
                    f"{self.packed.data_file} ends inside expert {read.key.expert} of "
                    "MoE layer "
                    f"{read.key.layer}: pack the checkpoint again"
                )
            filled += num_bytes
        if self.how != "direct":
            os.posix_fadvise(self._file, offset, self.record_bytes, os.POSIX_FADV_DONTNEED)
        self._check(read.key, memory, stamp)
        if lane is not None:
            lane.copy(read.buffer, lane.bounce, read.after)

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

    def __init__(
        self,
        packed: PackedExperts,
        device="cpu",
        link_bytes_per_s: float | None = None,
        num_readers: int = 4,
    ):
        pin = torch.device(device).type == "cuda"
        self.how = "pinned host memory" if pin else "host memory"
        num_records = len(packed.layers) * packed.num_experts
        self._records = aligned_bytes(num_records * packed.layout.record_bytes, pin).view(
            num_records, -1
        )
        with open(packed.data_file, "rb") as file:
            file.readinto(memory_of(self._records.view(-1)))
        super().__init__(packed, device, link_bytes_per_s, num_readers)

    def _make_reader(self):
        return CudaLane(self.device) if self.device.type == "cuda" else None

    def _copy(self, read: Read, lane: CudaLane | None) -> None:
        record = self._records[read.key.layer * self.packed.num_experts + read.key.expert]
        self._check(read.key, memory_of(record), "read once")
        if lane is None:
            read.buffer.copy_(record)
        else:
            lane.copy(read.buffer, record, read.after)

    def _release(self) -> None:
        self._records = None


def open_store(
    kind: str | None,
    packed: PackedExperts | InPlaceExperts,
    device="cpu",
    link_bytes_per_s: float | None = None,
    num_readers: int = 4,
) -> ExpertStore:
    """The store named ``kind`` over ``packed``; of a packed folder all but "memory" means its
    disk."""
    if isinstance(packed, InPlaceExperts):
        from .shards import CheckpointStore as store
    else:
        store = MemoryStore if kind == "memory" else DiskStore
    return store(packed, device, link_bytes_per_s, num_readers)
