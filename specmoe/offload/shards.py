"""The slow tier without a copy: records are put together from the published shards.

Comes in: ``InPlaceExperts`` (``checkpoint.in_place``). Goes out: as of every store, ``Read``
tickets that fill buffers. Direct I/O asks for whole blocks, of the disk and of memory. So each run
of extents is read with the blocks that enclose it: those that are an extent's own right into the
slot, where the record begins where in a block its bytes begin in the file; the rest into a reader's
own buffer, and copied from there.

Nothing says what the bytes of a published file ought to be. So the files must be those that were
opened, by their stamps; what was read is hashed, and compared where a stamp proves nothing, and the
first time of a session with what it was in an earlier one.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator

from ..checkpoint import TICK_NS, InPlaceExperts, KeptSums
from ..checkpoint.in_place import Extent
from ..errors import StoreError
from .base_store import CudaLane, ExpertStore
from .direct import open_around_page_cache
from .transfers import ExpertKey, Read, aligned_bytes, memory_of

BLOCKS = (512, 4096)  # what a disk may ask to read at once
# Bytes that are read at once: each reader has memory of its own for as many.
PIECE = 2**24
# Bytes of an extent from which on its own blocks are read right into the slot.
LEAST_STRAIGHT = 2**16
ALIGNED = 8  # to this a record in memory begins whatever the file: no element is larger


class CheckpointStore(ExpertStore):
    """Experts read from the shards where they lie. ``read_bytes`` of ``asked_bytes``: what whole
    blocks cost."""

    kind = "checkpoint"

    def __init__(
        self,
        packed: InPlaceExperts,
        device="cpu",
        link_bytes_per_s: float | None = None,
        num_readers: int = 4,
    ):
        opened = {shard: open_around_page_cache(shard) for shard in packed.stamps}
        self._files = {shard: file for shard, (file, _) in opened.items()}
        self.how = min(how for _, how in opened.values())
        self._kept = KeptSums(packed)
        self._close_files = weakref.finalize(self, _close, list(self._files.values()), self._kept)
        self._block = _block_of(next(iter(self._files.values()))) if self.how == "direct" else 1
        self._sums: dict[ExpertKey, int] = {}
        self._stamps: dict[ExpertKey, tuple | None] = {}
        self._begins: dict[ExpertKey, int] = {}
        self.read_bytes = self.asked_bytes = 0
        self._counting = threading.Lock()
        super().__init__(packed, device, link_bytes_per_s, num_readers)

    def info(self) -> dict:
        amplification = self.read_bytes / self.asked_bytes if self.asked_bytes else 1.0
        return {**super().info(), "read_amplification": amplification}

    def _make_reader(self):
        num_bytes = min(self.record_bytes, PIECE) + 2 * BLOCKS[-1]
        lane = CudaLane(self.device, num_bytes) if self.device.type == "cuda" else None
        return (aligned_bytes(num_bytes) if lane is None else lane.bounce), lane

    def begin_of(self, key: ExpertKey) -> int:
        """That the blocks of its largest extent are blocks of memory, too."""
        if self.slot_bytes == self.record_bytes:
            return 0
        if key not in self._begins:
            extents = (extent for run in self.packed.runs(*key) for extent in run)
            largest = max(extents, key=lambda extent: extent.num_bytes)
            begin = (largest.start - largest.begin) % self._block
            self._begins[key] = 0 if begin % ALIGNED else begin
        return self._begins[key]

    def _copy(self, read: Read, reader) -> None:
        (bounce, lane), key = reader, read.key
        runs = self.packed.runs(*key)
        stamp = self._stamp(key, runs)
        must_hash = stamp is None or self._stamps.get(key) != stamp
        address = read.buffer.data_ptr() if lane is None else None
        into, memory = memory_of(read.buffer) if lane is None else None, memory_of(bounce)
        crc = 0
        for run in _pieces(runs):
            own = [self._own_blocks(extent, address) for extent in run]
            before = self._read(run, own, memory, into)
            for extent, blocks in zip(run, own, strict=True):
                if blocks is not None:
                    found = _between(extent, blocks, memory, before, into)
                    crc = self.checksum.of(found, crc) if must_hash else crc
                    continue
                source = bounce[extent.start - before :][: extent.num_bytes]
                target = read.buffer[extent.begin :][: extent.num_bytes]
                if lane is not None:
                    crc = self.checksum.of(memory_of(source), crc) if must_hash else crc
                    lane.copy(target, source, read.after)
                elif must_hash:
                    crc = self.checksum.copied(source, target, crc)
                else:
                    target.copy_(source)
        if must_hash:
            self._compare(key, runs, crc, stamp)
        self._stamps[key] = stamp

    def _compare(self, key: ExpertKey, runs: list[list[Extent]], crc: int, stamp) -> None:
        """With what the record was before, in this session or an earlier one."""
        file, index = runs[0][0].file, self.packed.index(*key)
        if key not in self._sums and stamp is not None:
            if self._stamp(key, runs) != stamp:
                # between its stamp and its bytes
                raise self._altered(key, file)
            if self._kept.before.get(index, crc) != crc:
                raise self._decayed(key, file)
            self._kept.now[index] = crc
        if self._sums.setdefault(key, crc) != crc:
            raise self._altered(key, file)

    def _stamp(self, key: ExpertKey, runs: list[list[Extent]]) -> tuple | None:
        """Of the files of a record; None where one was written just now. A file that is not the one
        opened may still be compared with what was read of it before."""
        stamps, is_settled = [], True
        for shard in {run[0].file for run in runs}:
            s = os.fstat(self._files[shard])
            stamps.append((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
            is_settled = is_settled and time.time_ns() - s.st_ctime_ns >= TICK_NS
            if list(stamps[-1]) != self.packed.stamps[shard] and key not in self._sums:
                raise self._altered(key, shard)
        return tuple(sorted(stamps)) if is_settled else None

    def _altered(self, key: ExpertKey, shard) -> StoreError:
        return StoreError(
            f"{key}: {shard} was altered after it was loaded: load the checkpoint again when "
            "nothing writes to it"
        )

    def _decayed(self, key: ExpertKey, shard) -> StoreError:
        return StoreError(
            f"expert {key.expert} of MoE layer {key.layer}: {shard} holds other bytes than in an "
            "earlier session, though nothing wrote to it: check the disk and download the "
            "checkpoint again"
        )

    def _own_blocks(self, extent: Extent, address: int | None) -> tuple[int, int] | None:
        """From where to where in its file the blocks of ``extent`` can be read right into the
        record, which begins at ``address`` of host memory: they are blocks there, too."""
        if address is None or extent.num_bytes < LEAST_STRAIGHT:
            return None
        end, block = extent.start + extent.num_bytes, self._block
        first, last = -(-extent.start // block) * block, end // block * block
        are_blocks = (address + extent.begin - extent.start) % block == 0
        return (first, last) if are_blocks and last > first else None

    def _read(self, run: list[Extent], own: list, memory, into) -> int:
        """Read the blocks around ``run``, those of ``own`` into the record, the others into
        ``memory``; returns where in the file they begin."""
        file, block = self._files[run[0].file], self._block
        begin = at = run[0].start // block * block
        end = run[-1].start + run[-1].num_bytes
        parts = []
        for extent, blocks in zip(run, own, strict=True):
            if blocks is not None:
                first, last = blocks
                to = extent.begin - extent.start
                parts += [memory[at - begin : first - begin], into[first + to : last + to]]
                at = last
        parts.append(memory[at - begin : -(-(end - begin) // block) * block])
        filled = 0
        while filled < end - begin:
            num_bytes = os.preadv(file, _after(filled, parts), begin + filled)
            if num_bytes == 0:
                raise StoreError(f"{run[0].file} was cut short: download the checkpoint again")
            filled += num_bytes
        if block == 1:
            os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_DONTNEED)
        with self._counting:
            self.read_bytes += filled
            self.asked_bytes += sum(extent.num_bytes for extent in run)
        return begin

    def _release(self) -> None:
        self._close_files()


def _pieces(runs: list[list[Extent]]) -> Iterator[list[Extent]]:
    """The same bytes in the same order, in runs of at most ``PIECE``."""
    for run in runs:
        piece: list[Extent] = []
        room = PIECE
        for extent in run:
            for at in range(0, extent.num_bytes, PIECE):
                size = min(PIECE, extent.num_bytes - at)
                if size > room:
                    yield piece
                    piece, room = [], PIECE
                piece.append(Extent(extent.file, extent.start + at, extent.begin + at, size))
                room -= size
        if piece:
            yield piece


def _between(extent: Extent, blocks: tuple[int, int], memory, before: int, into) -> memoryview:
    """``extent`` in its record, of which ``blocks`` are there and the ends in ``memory``, which
    begins at ``before`` of the file."""
    begin, end, to = extent.start, extent.start + extent.num_bytes, extent.begin - extent.start
    for first, last in ((begin, blocks[0]), (blocks[1], end)):
        into[first + to : last + to] = memory[first - before : last - before]
    return into[begin + to : end + to]


def _after(filled: int, parts: list[memoryview]) -> list[memoryview]:
    """What is left of ``parts`` when so many bytes are."""
    left = []
    for part in parts:
        if filled < len(part):
            left.append(part[filled:])
        filled = max(0, filled - len(part))
    return left


def _close(files: list[int], kept: KeptSums) -> None:
    for file in files:
        os.close(file)
    kept.keep()


def _block_of(file: int) -> int:
    """The smallest block that the disk reads directly."""
    page = memory_of(aligned_bytes(BLOCKS[-1]))
    try:
        os.preadv(file, [page[: BLOCKS[0]]], BLOCKS[0])
        return BLOCKS[0]
    except OSError:
        return BLOCKS[-1]
