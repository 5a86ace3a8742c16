"""What every store of experts is: a queue of reads and the threads that serve it.

Comes in: keys and buffers. Goes out: ``Read`` tickets. A store says how one record is copied
(``_copy``); ``store`` and ``shards`` do. ``link_bytes_per_s`` slows any of them to a link of your
choice, over all readers together.
"""

from __future__ import annotations

import time
import warnings
import weakref

import torch

from ..checkpoint import PackedExperts
from ..errors import StoreError
from .checksum import Checksum
from .read_queue import DEMAND, ReadQueue
from .transfers import ExpertKey, Link, Read, aligned_bytes

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
        self.slot_bytes = self.record_bytes + packed.slack_bytes
        self.device = torch.device(device)
        self.link = Link(link_bytes_per_s)
        self.num_readers = num_readers
        self.checksum = Checksum(self.record_bytes)
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

    def bytes_of(self, key: ExpertKey) -> int:
        """Of its record; ``record_bytes`` are those of the largest."""
        return self.layout.of_layer(key.layer).record_bytes

    def begin_of(self, key: ExpertKey) -> int:
        """Where in a slot its record is best read to."""
        return 0

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
        what = read.key if read else "a record"
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
        return {
            "store": self.kind,
            "reads": self.how,
            "num_readers": self.num_readers,
            "link_bytes_per_s": self.link.bytes_per_s,
        }

    def _serve(self, read: Read, reader) -> None:
        """Fill the buffer of one read, in a reader's thread."""
        began_s, error = time.perf_counter(), None
        try:
            crossed_s = self.link.reserve(self.bytes_of(read.key))
            self._copy(read, reader)
            self.link.wait_until(crossed_s)
        except Exception as failure:  # handed to whoever waits for the record
            error = _explained(failure, f"{read.key} from {self.packed.data_file}")
        read.ended_s = time.perf_counter()
        read.seconds = read.ended_s - began_s
        self._queue.done(read, error)

    def check(self, key: ExpertKey, memory, stamp) -> None:
        """Compare a record with its checksum the first time it is read, and again whenever
        ``stamp`` is another one than then; None is never the same."""
        if stamp is not None and self._checked[key.layer][key.expert] == stamp:
            return
        if self.checksum.of(memory) != self.packed.checksums[key.layer][key.expert]:
            raise StoreError(
                f"{key} in {self.packed.data_file} is altered (checksum differs): delete the "
                "folder and pack the checkpoint again"
            )
        self._checked[key.layer][key.expert] = stamp

    def _make_reader(self):
        return None

    def _copy(self, read: Read, reader) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        pass


def _explained(failure: Exception, what: str) -> StoreError:
    if isinstance(failure, StoreError):
        return failure
    return StoreError(f"cannot read {what}: {failure}")


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
