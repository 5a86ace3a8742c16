"""How one expert lies in a record, and a packed folder opened and checked.

Comes in: a folder that ``packing`` wrote: ``experts.bin`` (one record per expert, layer by layer)
and ``manifest.json``. Goes out: ``PackedExperts``; ``offload.store`` reads its records, and what
computes with them looks through ``ExpertLayout.views``.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, StoreError, door, path_of

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
FORMAT, VERSION = "specmoe-experts", 2
RECORD_ALIGN, TENSOR_ALIGN = 4096, 64  # bytes: what direct I/O and vector loads ask for
# called with bytes done and bytes in all; True: a bar
Progress = Callable[[int, int], None] | bool | None


def align(num_bytes: int, to: int) -> int:
    return -(-num_bytes // to) * to


@dataclass(frozen=True)
class ExpertLayout:
    """One record, the same for all experts: the tensors of one, in ``dtype``, 64-byte aligned."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    record_bytes: int
    payload_bytes: int

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> ExpertLayout:
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes.values()]
        record_bytes = align(sum(align(size, TENSOR_ALIGN) for size in sizes), RECORD_ALIGN)
        names, sides = tuple(shapes), tuple(map(tuple, shapes.values()))
        return cls(names, sides, dtype, record_bytes, sum(sizes))

    def offsets(self) -> tuple[int, ...]:
        """First byte of each tensor in the record."""
        sizes = [align(math.prod(s) * self.dtype.itemsize, TENSOR_ALIGN) for s in self.shapes]
        return tuple(accumulate(sizes, initial=0))[:-1]

    def views(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors inside ``record`` (uint8 ``[record_bytes]``), by name; no copy."""
        made = {}
        for name, shape, start in zip(self.names, self.shapes, self.offsets()):
            num_bytes = math.prod(shape) * self.dtype.itemsize
            made[name] = record[start : start + num_bytes].view(self.dtype).view(shape)
        return made


@dataclass(frozen=True)
class PackedExperts:
    """A packed folder. ``checksums[layer][expert]`` is the crc32 of all bytes of that record.

    ``layers`` names the experts modules of the model; ``source`` has the ``name`` of the checkpoint
    and in ``records`` for each expert the digest of the bytes it was made from; ``widened_from``
    is the payload of an expert before ``expert_bytes`` widened it, or None.
    """

    directory: Path
    layers: tuple[str, ...]
    num_experts: int
    layout: ExpertLayout
    checksums: tuple[tuple[int, ...], ...]
    source: dict[str, Any]
    widened_from: int | None

    @property
    def data_file(self) -> Path:
        return self.directory / "experts.bin"

    @property
    def data_bytes(self) -> int:
        return len(self.layers) * self.num_experts * self.layout.record_bytes

    @property
    def records(self) -> list[str]:
        """For each record the digest of its source."""
        return self.source["records"]

    def offset(self, layer: int, expert: int) -> int:
        """First byte of the record of ``expert`` of MoE layer ``layer`` in ``data_file``."""
        if not (0 <= layer < len(self.layers) and 0 <= expert < self.num_experts):
            raise IndexError(
                f"({layer}, {expert}) is outside {len(self.layers)} layers of {self.num_experts}"
            )
        return (layer * self.num_experts + expert) * self.layout.record_bytes

    def manifest(self) -> dict[str, Any]:
        layout = self.layout
        return {
            "format": FORMAT,
            "version": VERSION,
            "layers": list(self.layers),
            "num_experts": self.num_experts,
            "names": list(layout.names),
            "shapes": [list(shape) for shape in layout.shapes],
            "dtype": str(layout.dtype).removeprefix("torch."),
            "record_bytes": layout.record_bytes,
            "widened_from": self.widened_from,
            "source": self.source,
            "checksums": [list(row) for row in self.checksums],
        }

    @classmethod
    def from_manifest(cls, directory: Path, manifest: dict[str, Any]) -> PackedExperts:
        """Raises whatever Python does, or ``ValueError``, where a field is not what ``manifest``
        would have written."""
        shapes, source = manifest["shapes"], manifest["source"]
        named = dict(zip(manifest["names"], map(tuple, shapes)))
        layout = ExpertLayout.of(named, DTYPES[manifest["dtype"]])
        layers, checksums = tuple(manifest["layers"]), tuple(map(tuple, manifest["checksums"]))
        num_experts, widened = manifest["num_experts"], manifest["widened_from"]
        packed = cls(directory, layers, num_experts, layout, checksums, source, widened)
        sums = [crc for row in checksums for crc in row]
        at_least_1 = [num_experts, *(side for shape in shapes for side in shape)]
        at_least_1 += [] if widened is None else [widened]
        good = {
            "its fields fit together": seal(packed.manifest()) == seal(manifest),
            "its layers are names": layers and all(type(name) is str for name in layers),
            "no layer stands there twice": len({*layers}) == len(layers),
            "its numbers are whole": all(type(n) is int for n in (*at_least_1, *sums)),
            "its sizes can be": all(1 <= n < 2**63 for n in at_least_1),
            "its checksums can be": all(0 <= n < 2**32 for n in sums),
            "each record has a checksum": list(map(len, checksums)) == [num_experts] * len(layers),
            "each record has a digest": len(source["records"]) == len(sums),
            "its source has a name": type(source["name"]) is str,
        }
        if not all(good.values()):
            raise ValueError(f"not so: {next(said for said in good if not good[said])}")
        return packed


def seal(manifest: dict[str, Any]) -> str:
    """The manifest as text, with a checksum of itself."""
    body = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "manifest_crc32": zlib.crc32(body.encode())}, sort_keys=True)


def unseal(text: str | bytes) -> dict[str, Any]:
    """What ``seal`` was given; ``ValueError`` where it was given something else."""
    content = json.loads(text)
    crc = content.pop("manifest_crc32")
    if crc != zlib.crc32(json.dumps(content, sort_keys=True).encode()):
        raise ValueError("its checksum does not fit")
    return content


def open_packed(directory: str | Path) -> PackedExperts:
    """Open a packed folder: manifest and file size are checked, no weights are read."""
    file = path_of(directory, "a folder") / "manifest.json"
    if not file.is_file():
        there = file.parent.is_dir()
        what = "holds no packed experts (no manifest.json)" if there else "is no folder"
        make = f"make it with `specmoe pack CHECKPOINT {directory}`"
        raise CheckpointError(f"{file.parent} {what}: {make}")
    again = f"delete {file.parent} and pack the checkpoint again"
    with door(f"{file} was altered or cut short", again):
        text = file.read_text(encoding="utf-8")
        found = json.loads(text)
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            is_of = f"{file} is of another version of specmoe ({found['version']})"
            raise CheckpointError(f"{is_of}: {again}")
        packed = PackedExperts.from_manifest(file.parent, unseal(text))
    size = packed.data_file.stat().st_size if packed.data_file.is_file() else 0
    if size != packed.data_bytes:
        has = f"{packed.data_file} has {size} bytes instead of {packed.data_bytes}"
        raise CheckpointError(f"{has}: {again}")
    return packed


def verify_packed(packed: PackedExperts, progress: Progress = None) -> list[tuple[int, int]]:
    """Read every record; returns the (layer, expert) of those whose checksum does not fit."""
    bad, buffer = [], bytearray(packed.layout.record_bytes)
    with (
        open(packed.data_file, "rb") as file,
        reporting(progress, packed.data_bytes, "verifying") as report,
    ):
        for number in range(len(packed.layers) * packed.num_experts):
            layer, expert = divmod(number, packed.num_experts)
            with door(f"{packed.data_file} could not be read", "check the disk", StoreError):
                count = file.readinto(buffer)
            if count != len(buffer) or zlib.crc32(buffer) != packed.checksums[layer][expert]:
                bad.append((layer, expert))
            report((number + 1) * len(buffer))
    return bad


@contextmanager
def reporting(progress: Progress, total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the bytes done so far and tells ``progress``, a tqdm bar, or nobody."""
    if progress is not True:
        yield lambda done: progress and progress(done, total)
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=label, unit="B", unit_scale=True) as bar:
        yield lambda done: bar.update(done - bar.n)
