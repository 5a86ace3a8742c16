"""The header of a safetensors file, believed only where all of it fits: where each tensor lies.

The rules are those of the safetensors library, which maps the file; here it is only read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..errors import CheckpointError, door

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
MAX_DIMS = 16
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
DTYPES |= {"BF16": torch.bfloat16, "BOOL": torch.bool}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16}
QUANTISED = {"U8": "packed integers, as in MXFP4 or int4", "I8": "int8"}
QUANTISED |= {"F8_E4M3": "fp8", "F8_E5M2": "fp8"}
USE_UNQUANTISED = (
    "specmoe runs weights as they are; use an unquantised checkpoint (bf16, fp16, fp32)"
)


class TensorInfo(NamedTuple):
    """Where one tensor lies, from byte ``start``; no ``dtype``: a format not computed with."""

    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    format: str


def read_header(file: Path) -> dict[str, TensorInfo]:
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
        key: TensorInfo(file, DTYPES.get(kind), shape, 8 + length + begin, kind)
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


def quantised(key: str, info: TensorInfo) -> str:
    """The sentence about a tensor in a format that specmoe does not compute with."""
    kind = f"{info.format} ({QUANTISED.get(info.format, 'not known')})"
    return f"tensor {key!r} in {info.file} has the quantised format {kind}: {USE_UNQUANTISED}"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(key: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple:
    """(begin, end, name, format, shape) of one tensor, if its fields are of the right types and
    sizes."""
    begin, end = data_offsets
    typed = type(dtype) is str and type(shape) is list and len(shape) <= MAX_DIMS
    sized = typed and all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape))
    if not (sized and begin <= end):
        raise ValueError(f"tensor {key!r} has fields of a wrong type or range")
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {key!r} has a size unlike its shape")
    return begin, end, key, dtype, tuple(shape)
