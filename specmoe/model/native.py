"""Products of few rows with weights as they are stored, in C: ``products.c``, compiled once where a
C compiler is.

Comes in: float32 rows and the serialised parts of a weight, on the CPU. Goes out: rows, and no wide
copy of the weight was written to memory. ``kernels`` and ``trunk`` ask; where there is no compiler,
or a format that is not in ``CODES``, ``takes`` says no and they widen with torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ..checkpoint.cache import cache_folder
from ..errors import StoreError
from ..shipped import package_path

logger = logging.getLogger("specmoe")

SOURCES = [package_path(f"model/{name}.c") for name in ("products", "sums")]
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")
# what makes the most of this processor; tried in turn
TUNING = (("-march=native",), ("-mcpu=native",), ())
COMPILE_S = 60
LANES = 8
# (format, dtype of the values) -> the place of its function in products.c
CODES = {
    ("plain", torch.bfloat16): 0,
    ("fp8", torch.float8_e4m3fn): 1,
    ("fp8", torch.float8_e5m2): 2,
    ("mxfp4", torch.uint8): 3,
    ("fp4", torch.uint8): 3,
    ("fp4", torch.int8): 3,
    ("int4", torch.int32): 4,
    ("int8", torch.int32): 5,
    ("q8_0", torch.uint8): 6,
    ("q4_k", torch.uint8): 7,
    ("q6_k", torch.uint8): 8,
    ("q4_0", torch.uint8): 9,
    ("q4_1", torch.uint8): 10,
}
# bf16 that lies [in, out]
TURNED = 11
SCALES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
# torch before 2.7 does not know it
SCALES |= {getattr(torch, "float8_e8m0fnu", torch.uint8): 2}
PER_BYTE = {3: 2, 4: 2}  # codes with more than one value in a byte
INTEGERS = (4, 5)


class Piece(ctypes.Structure):
    """As in ``products.c``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in "format values scales rows columns high wide grid kind rounded width "
        "first step".split()
    ]


class Job(ctypes.Structure):
    """As in ``products.c``."""

    _fields_ = [
        ("pieces", ctypes.POINTER(Piece)),
        ("number", ctypes.c_int64),
        ("record", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("y", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
    ]


class Native:
    """A weight ``[out, in]`` in a format that ``products.c`` reads: all but where it lies."""

    def __init__(self, code: int, numbers: Sequence[int]):
        self.code = code
        self.out, self.columns = numbers[:2]
        self._numbers = tuple(numbers)

    def piece(self, offsets: Sequence[int], first: int = 0, step: int = 1) -> Piece:
        """Its values and scales at ``offsets`` of a record, its outputs from ``first`` on in steps
        of ``step``."""
        values, scales = offsets if len(offsets) == 2 else (offsets[0], 0)
        return Piece(self.code, values, scales, *self._numbers, first, step)

    def product(self, x: torch.Tensor, addresses: Sequence[int], y: torch.Tensor) -> None:
        """``y`` [n, out] (any strides) = ``x`` [n, in], contiguous, times the weight whose values
        and scales lie at ``addresses``."""
        Pieces([self.piece(addresses, step=y.stride(1))]).products([0], [x.shape[0]], x, y)


class Pieces:
    """A matrix [out, in] of pieces that have the same inputs."""

    def __init__(self, pieces: Sequence[Piece]):
        self._number = len(pieces)
        self._pieces = (Piece * len(pieces))(*pieces)

    def products(
        self, addresses: Sequence[int], counts: Sequence[int], x: torch.Tensor, y: torch.Tensor
    ) -> None:
        """``y`` = ``x`` [n, in], contiguous, times the matrix in the records at ``addresses``: of
        the rows the first ``counts[0]`` with that in the first, and so on."""
        jobs, rows, row = (Job * len(counts))(), x.data_ptr(), y.data_ptr()
        row_bytes, stride = x.shape[1] * x.element_size(), y.stride(0)
        for job, address, count in zip(jobs, addresses, counts):
            job.pieces, job.number, job.record = self._pieces, self._number, address
            job.x, job.rows, job.y, job.stride = rows, count, row, stride
            rows, row = rows + count * row_bytes, row + count * stride * y.element_size()
        library().specmoe_products(jobs, len(counts), num_threads())


_own = threading.local()


def num_threads() -> int:
    """With how many threads products are computed."""
    return getattr(_own, "number", None) or torch.get_num_threads()


@contextmanager
def torch_rests() -> Iterator[None]:
    """Within, torch computes with one thread, and only products with as many as it had. OpenMP's
    threads, once they have had work, wait for more by spinning for milliseconds, on the very cores
    that the products of few rows need."""
    number = torch.get_num_threads()
    before, _own.number = getattr(_own, "number", None), num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(number)
        _own.number = before


def native(
    format: str, shape: Sequence[int], parts: Sequence, numbers: Sequence[int], turned: bool = False
) -> Native | None:
    """How to multiply with a weight of ``shape`` in ``format``, of whose ``parts`` dtype and shape
    are known and that asks for ``numbers`` (``checkpoint.formats``); ``turned``: it lies [in, out];
    None where C cannot."""
    code = CODES.get((format, parts[0].dtype))
    rows, columns = shape
    if code is None or columns % LANES or library() is None:
        return None
    if turned:
        is_plain = format == "plain" and rows % LANES == 0
        return Native(TURNED, (columns, rows, 0, 0, 0, 0, 0, 0)) if is_plain else None
    row_bytes = math.prod(parts[0].shape[1:]) * parts[0].dtype.itemsize
    if len(parts) == 1:
        return Native(code, (rows, columns, 0, 0, 0, 0, 0, row_bytes))
    scales = parts[1]
    kind = SCALES.get(scales.dtype)
    high, wide = numbers[:2] if numbers else (1, 32)
    if kind is None or wide % PER_BYTE.get(code, 1):
        return None
    grid = scales.shape[-1] if scales.shape else 1
    rounded = code in INTEGERS and scales.dtype == torch.bfloat16
    return Native(code, (rows, columns, high, wide, grid, kind, rounded, row_bytes))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled ``SOURCES``; None, after one warning, where they cannot be compiled."""
    try:
        found = ctypes.CDLL(str(_compiled()))
    # no folder to keep it in is a StoreError
    except (OSError, subprocess.SubprocessError, StoreError) as failure:
        what = "large experts are multiplied without a compiled kernel (%s)"
        logger.warning(what, _first_line(failure))
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.specmoe_products.restype = None
    found.specmoe_products.argtypes = [ctypes.POINTER(Job), number, number]
    found.specmoe_sum.restype = ctypes.c_uint32
    found.specmoe_sum.argtypes = [pointer, pointer, size, ctypes.c_uint32]
    return found


def _compiled() -> Path:
    """The file of the library: of this source and processor, made where it is missing."""
    source = b"".join(path.read_bytes() for path in SOURCES)
    tag = hashlib.sha256(source + repr((FLAGS, TUNING, _processor())).encode()).hexdigest()[:16]
    folder = cache_folder()
    for file in folder.glob(f"products-{tag}-*.so"):
        # loading a damaged one would end the process
        if file.stem.endswith(_digest(file)):
            return file
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"products-{tag}.{os.getpid()}.partial"
    try:
        _compile(partial)
        file = folder / f"products-{tag}-{_digest(partial)}.so"
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _compile(into: Path) -> None:
    compiler = _compiler()
    for tuning in TUNING:
        command = [*compiler, *FLAGS, *tuning, "-o", str(into), *map(str, SOURCES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S)
        if done.returncode == 0:
            return
    raise OSError(done.stderr.strip() or f"{compiler[0]} fails")


def _compiler() -> list[str]:
    """The command of a C compiler, the one that Python was built with first."""
    named = [os.environ.get("CC", ""), sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"]
    for words in filter(None, map(str.split, named)):
        if shutil.which(words[0]):
            return words
    raise OSError("no C compiler")


def _processor() -> str:
    """What a library that was made for this processor must not be used without."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _first_line(failure: Exception) -> str:
    lines = [line for line in str(failure).splitlines() if line.strip()]
    return lines[0] if lines else type(failure).__name__
