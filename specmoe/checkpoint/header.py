"""The tensors of a safetensors file: its header, believed only where all of it fits, and reading.

The rules are those of the safetensors library, but with plain reads: a mapped file that shrinks
kills the process, and mapped pages count as memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import CheckpointError, door

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_DIMS = 16
# Read and hashed at a time: stays in the processor's cache.
PIECE_BYTES = 2**20
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
DTYPES |= {"BF16": torch.bfloat16, "BOOL": torch.bool}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16}
QUANTISED = {"U8": "packed integers, as in MXFP4 or int4", "I8": "int8"}
QUANTISED |= {"F8_E4M3": "fp8", "F8_E5M2": "fp8"}
# What parts of low-bit weights may lie in.
RAW = DTYPES | {"U8": torch.uint8, "I8": torch.int8}
RAW |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
# torch before 2.7 does not know the third
RAW |= {"F8_E8M0": getattr(torch, "float8_e8m0fnu", torch.uint8)}
USE_UNQUANTISED = (
    "specmoe runs weights as they are; use an unquantised checkpoint (bf16, fp16, fp32)"
)


class StoredTensor(NamedTuple):
    """A tensor as it lies in ``file``, from byte ``start``."""

    name: str
    file: Path
    format: str
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> torch.dtype:
        if self.format not in DTYPES:
            raise self.refusal()
        return DTYPES[self.format]

    def refusal(self) -> CheckpointError:
        """The error about a format that specmoe does not compute with."""
        kind = f"{self.format} ({QUANTISED.get(self.format, 'not known')})"
        what = f"tensor {self.name!r} in {self.file} has the quantised format {kind}"
        return CheckpointError(f"{what}: {USE_UNQUANTISED}")

    def part(self, index: int) -> StoredTensor:
        """Of ``[E, ...]`` only ``index``, as ``[1, ...]``."""
        shape = (1, *self.shape[1:])
        start = self.start + index * math.prod(shape) * self.dtype.itemsize
        return self._replace(shape=shape, start=start)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def meta(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self, digest: Any = None) -> torch.Tensor:
        """The tensor; ``digest`` gets what ``add_to`` would give it."""
        with door(f"tensor {self.name!r} in {self.file} could not be made", "download it again"):
            tensor = torch.empty(self.shape, dtype=self.dtype)
        content = tensor.reshape(-1).view(torch.uint8).numpy()
        read_into(self.file, self.start, memoryview(content))
        if digest is not None:
            digest.update(repr((self.dtype, self.shape)).encode())
            digest.update(content)
        return tensor

    def add_to(self, digest: Any) -> None:
        """Add dtype, shape and bytes to ``digest``, a piece at a time."""
        digest.update(repr((self.dtype, self.shape)).encode())
        for piece in self.pieces():
            digest.update(piece)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, a piece at a time; each is valid until the next one is taken."""
        start, left = self.start, self.num_bytes
        piece = memoryview(bytearray(min(left, PIECE_BYTES)))
        while left:
            piece = piece[:left]
            read_into(self.file, start, piece)
            yield piece
            start, left = start + len(piece), left - len(piece)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; the size of the file must be what its header says."""
    readable = door(f"{file} has no readable safetensors header", "download it again")
    with readable, open(file, "rb") as stream:
        size = file.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or 8 + length > size:
            what = f"{file} is cut short inside its header ({size} bytes)"
            raise CheckpointError(f"{what}: download it again")
        if length > MAX_HEADER_BYTES:
            what = f"{file} has a header of {length} bytes, and no real one is so long"
            raise CheckpointError(f"{what}: do not trust it")
        header = json.loads(stream.read(length), object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = sorted(_entry(key, **fields) for key, fields in header.items())
    _check_places(file, size, 8 + length, entries)
    return {
        key: StoredTensor(key, file, kind, shape, 8 + length + begin)
        for begin, _, key, kind, shape in entries
    }


def _check_places(file: Path, size: int, start: int, entries: list[tuple]) -> None:
    """The tensors fill the file from ``start`` to its end, none over another."""
    end = 0
    for begin, stop, key, *_ in entries:
        if begin != end:
            after = f"{begin - end} bytes after the tensor before it"
            what = (
                f"tensor {key!r} in {file} lies {after if begin > end else 'over another tensor'}"
            )
            raise CheckpointError(f"{what}: the file was altered, download it again")
        end = stop
    if size != start + end:
        what = f"{file} has {size} bytes, its header says {start + end}"
        raise CheckpointError(f"{what}: cut short or altered, download it again")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(key: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple:
    """(begin, end, name, format, shape) of one tensor, if its fields have right types and sizes."""
    begin, end = data_offsets
    typed = type(dtype) is str and type(shape) is list and len(shape) <= MAX_DIMS
    sized = typed and all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape))
    if not (sized and begin <= end):
        raise ValueError(f"tensor {key!r} has fields of a wrong type or range")
    if dtype in RAW and end - begin != math.prod(shape) * RAW[dtype].itemsize:
        raise ValueError(f"tensor {key!r} has a size unlike its shape")
    return begin, end, key, dtype, tuple(shape)


def read_into(file: Path, start: int, view: memoryview) -> None:
    try:
        with open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            while len(view):
                count = stream.readinto(view)
                if not count:
                    what = f"{file} ended {len(view)} bytes early"
                    raise CheckpointError(f"{what}: cut short while it was read")
                view = view[count:]
    except OSError as error:
        raise CheckpointError(f"{file} could not be read ({error})") from error
