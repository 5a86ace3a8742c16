"""The header of a safetensors file, believed only where all of it fits: names, shapes, formats,
bytes.

Comes in: a file. Goes out: where each tensor lies, for ``files``. The rules are those of the
safetensors library: the tensors fill the data from its first byte to its last, in order, none over
another.
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
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "BOOL": torch.bool,
}
QUANTISED = {
    "U8": "packed integers, as in MXFP4 or int4",
    "I8": "int8",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
}


class TensorInfo(NamedTuple):
    """Where one tensor lies: ``start`` is its first byte in ``file``; no ``dtype``: a format that
    is not computed with."""

    file: Path
    dtype: torch.dtype | None
    shape: tuple[int, ...]
    start: int
    format: str


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file; the size of the file must be what its header says."""
    with (
        door(f"{file} has no readable safetensors header", "download it again"),
        open(file, "rb") as stream,
    ):
        size = file.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or 8 + length > size:
            raise CheckpointError(
                f"{file} is cut short inside its header ({size} bytes): download it again"
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{file} has a header of {length} bytes, and no real one is so "
                "long: do not trust it"
            )
        header = json.loads(stream.read(length), object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = [_entry(key, **fields) for key, fields in header.items()]
    end = 0
    for begin, stop, key, *_ in sorted(entries, key=lambda entry: entry[:2]):
        if begin != end:
            how = (
                "over another tensor"
                if begin < end
                else (f"{begin - end} bytes after the tensor before it")
            )
            raise CheckpointError(
                f"tensor {key!r} in {file} lies {how}: the file was altered, download it again"
            )
        end = stop
    if size != 8 + length + end:
        raise CheckpointError(
            f"{file} has {size} bytes, its header says {8 + length + end}: cut short or altered, "
            "download it again"
        )
    return {
        key: TensorInfo(file, DTYPES.get(kind), shape, 8 + length + begin, kind)
        for begin, _, key, kind, shape in entries
    }


def quantised(key: str, info: TensorInfo) -> str:
    """The sentence about a tensor in a format that specmoe does not compute with."""
    return (
        f"tensor {key!r} in {info.file} has the quantised format {info.format} "
        f"({QUANTISED.get(info.format, 'not known')}):"
        " specmoe runs weights as they are; use an unquantised checkpoint (bf16, fp16, fp32)"
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _entry(key: str, dtype: str, shape: list[int], data_offsets: list[int]) -> tuple:
    """(begin, end, name, format, shape) of one tensor, if its fields have the types and sizes that
    they must have."""
    begin, end = data_offsets
    typed = type(dtype) is str and type(shape) is list and len(shape) <= MAX_DIMS
    if not (
        typed
        and all(type(n) is int and 0 <= n < 2**63 for n in (begin, end, *shape))
        and begin <= end
    ):
        raise ValueError(f"tensor {key!r} has fields of a wrong type or range")
    if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {key!r} has a size unlike its shape")
    return begin, end, key, dtype, tuple(shape)
