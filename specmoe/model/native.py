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
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from ..checkpoint.cache import cache_folder
from ..errors import StoreError
from ..shipped import package_path

logger = logging.getLogger("specmoe")

SOURCE = package_path("model/products.c")
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
}
SCALES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
# torch before 2.7 does not know it
SCALES |= {getattr(torch, "float8_e8m0fnu", torch.uint8): 2}
PER_BYTE = {3: 2, 4: 2}  # codes with more than one value in a byte
INTEGERS = (4, 5)


class Native:
    """A weight ``[out, in]`` in a format that ``products.c`` reads: all but the addresses."""

    def __init__(self, code: int, numbers: Sequence[int]):
        self.code = code
        self.out, self.columns = numbers[:2]
        self._numbers = (ctypes.c_long * len(numbers))(*numbers)

    def product(self, x: torch.Tensor, addresses: Sequence[int], y: torch.Tensor) -> None:
        """``y`` [n, out] (any strides) = ``x`` [n, in], contiguous, times the weight whose values
        and scales lie at ``addresses``."""
        values, scales = addresses if len(addresses) == 2 else (addresses[0], 0)
        library().specmoe_product(
            self.code,
            values,
            scales,
            self._numbers,
            x.data_ptr(),
            len(x),
            y.data_ptr(),
            y.stride(0),
            y.stride(1),
            torch.get_num_threads(),
        )


def native(
    format: str, shape: Sequence[int], parts: Sequence, numbers: Sequence[int]
) -> Native | None:
    """How to multiply with a weight of ``shape`` in ``format``, of whose ``parts`` dtype and shape
    are known and that asks for ``numbers`` (``checkpoint.formats``); None where C cannot."""
    code = CODES.get((format, parts[0].dtype))
    rows, columns = shape
    if code is None or columns % LANES or library() is None:
        return None
    if format == "plain":
        return Native(code, (rows, columns, 0, 0, 0, 0, 0, 2 * columns))
    scales = parts[1]
    kind = SCALES.get(scales.dtype)
    high, wide = numbers[:2] if numbers else (1, 32)
    if kind is None or wide % PER_BYTE.get(code, 1):
        return None
    grid = scales.shape[-1] if scales.shape else 1
    rounded = code in INTEGERS and scales.dtype == torch.bfloat16
    row_bytes = math.prod(parts[0].shape[1:]) * parts[0].dtype.itemsize
    return Native(code, (rows, columns, high, wide, grid, kind, rounded, row_bytes))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled ``products.c``; None, after one warning, where it cannot be made."""
    try:
        found = ctypes.CDLL(str(_compiled()))
    # no folder to keep it in is a StoreError
    except (OSError, subprocess.SubprocessError, StoreError) as failure:
        what = "large experts are multiplied without a compiled kernel (%s)"
        logger.warning(what, _first_line(failure))
        return None
    pointer, size, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.specmoe_product.restype = None
    found.specmoe_product.argtypes = [number, pointer, pointer, pointer, pointer, size, pointer]
    found.specmoe_product.argtypes += [size, size, number]
    return found


def _compiled() -> Path:
    """The file of the library: of this source and processor, made where it is missing."""
    source = SOURCE.read_bytes()
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
        command = [*compiler, *FLAGS, *tuning, "-o", str(into), str(SOURCE)]
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
