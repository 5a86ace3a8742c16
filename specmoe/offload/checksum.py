"""CRC-32 of records, as zlib computes it; of large ones in C (``model/sums.c``), as zlib takes
longer for a record than a fast disk for reading it.

Comes in: memory. Goes out: its checksum, and a copy. The stores call this.
"""

from __future__ import annotations

import ctypes
import zlib

import torch

from ..model import native
from .transfers import memory_of

# bytes of a record from which on something is worth compiling
LEAST = 2**20


class Checksum:
    """For records of one size."""

    def __init__(self, record_bytes: int):
        library = native.library() if record_bytes >= LEAST else None
        self.sum = library.specmoe_sum if library and library.specmoe_sums_fast() else None

    def of(self, memory: memoryview, crc: int = 0) -> int:
        """Of what had ``crc`` before, followed by these writable bytes."""
        if self.sum is None:
            return zlib.crc32(memory, crc)
        return self.sum((ctypes.c_char * len(memory)).from_buffer(memory), None, len(memory), crc)

    def copied(self, source: torch.Tensor, target: torch.Tensor, crc: int) -> int:
        """Copy ``source`` into ``target``, both uint8 in host memory -> the checksum of what had
        ``crc`` before, followed by it."""
        if self.sum is None:
            target.copy_(source)
            return zlib.crc32(memory_of(source), crc)
        return self.sum(source.data_ptr(), target.data_ptr(), source.numel(), crc)
