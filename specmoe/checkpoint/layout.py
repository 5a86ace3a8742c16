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
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, StoreError, door

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
FORMAT, VERSION = "specmoe-experts", 2
RECORD_ALIGN, TENSOR_ALIGN = 4096, 64  # bytes: what direct I/O and vector loads ask for
# called with bytes done and bytes in all; True: a bar
Progress = Callable[[int, int], None] | bool | None


def align(num_bytes: int, to: int) -> int:
    return -(-num_bytes // to) * to


@dataclass(frozen=True)
class ExpertLayout:
    """One record: the tensors of one expert in ``dtype``, each 64-byte aligned; the same for all
    experts."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    record_bytes: int
    payload_bytes: int

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> ExpertLayout:
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes.values()]
        record_bytes = align(sum(align(size, TENSOR_ALIGN) for size in sizes), RECORD_ALIGN)
        return cls(
            tuple(shapes), tuple(tuple(s) for s in shapes.values()), dtype, record_bytes, sum(sizes)
        )

    def offsets(self) -> tuple[int, ...]:
        """First byte of each tensor in the record."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + align(math.prod(shape) * self.dtype.itemsize, TENSOR_ALIGN))
        return tuple(ends[:-1])

    def views(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors inside ``record`` (uint8 ``[record_bytes]``), by name; no copy."""
        return {
            name: record[start : start + math.prod(shape) * self.dtype.itemsize]
            .view(self.dtype)
            .view(shape)
            for name, shape, start in zip(self.names, self.shapes, self.offsets())
        }


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
        check_manifest(manifest)
        shapes = {name: tuple(shape) for name, shape in zip(manifest["names"], manifest["shapes"])}
        layout = ExpertLayout.of(shapes, DTYPES[manifest["dtype"]])
        if layout.record_bytes != manifest["record_bytes"]:
            raise ValueError("record_bytes does not fit the shapes")
        checksums = tuple(tuple(row) for row in manifest["checksums"])
        layers, num_experts = tuple(manifest["layers"]), manifest["num_experts"]
        if [len(row) for row in checksums] != [num_experts] * len(layers):
            raise ValueError("a checksum is missing")
        source, widened_from = manifest["source"], manifest["widened_from"]
        if len(source["records"]) != len(layers) * num_experts:
            raise ValueError("a digest is missing")
        return cls(directory, layers, num_experts, layout, checksums, source, widened_from)


def check_manifest(manifest: dict[str, Any]) -> None:
    """``ValueError`` where a field has another type or range than ``PackedExperts.manifest`` gives
    it."""
    names, shapes, rows = (manifest[key] for key in ("names", "shapes", "checksums"))
    widened = manifest["widened_from"]
    good = {
        "layers": _are_names(manifest["layers"]),
        "num_experts": _are_whole([manifest["num_experts"]], 1),
        "names and shapes": _are_names(names)
        and type(shapes) is list
        and len(names) == len(shapes),
        "shapes": type(shapes) is list and all(_are_whole(shape, 1) for shape in shapes),
        "dtype": type(manifest["dtype"]) is str and manifest["dtype"] in DTYPES,
        "checksums": type(rows) is list
        and all(_are_whole(row, 0) and max(row, default=0) < 2**32 for row in rows),
        "source": type(manifest["source"]) is dict,
        "widened_from": widened is None or _are_whole([widened], 1),
    }
    for field, is_good in good.items():
        if not is_good:
            raise ValueError(f"its {field} cannot be")


def _are_names(values: object) -> bool:
    return (
        type(values) is list
        and len(values) > 0
        and all(type(v) is str for v in values)
        and len({*values}) == len(values)
    )


def _are_whole(values: object, least: int) -> bool:
    return type(values) is list and all(
        type(value) is int and least <= value < 2**63 for value in values
    )


def seal(manifest: dict[str, Any]) -> str:
    """The manifest as text, with a checksum of itself."""
    body = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "manifest_crc32": zlib.crc32(body.encode())}, sort_keys=True)


def open_packed(directory: str | Path) -> PackedExperts:
    """Open a packed folder: manifest and file size are checked, no weights are read."""
    directory = Path(directory)
    if not (directory / "manifest.json").is_file():
        what = (
            ("holds no packed experts (no manifest.json)") if directory.is_dir() else "is no folder"
        )
        raise CheckpointError(
            f"{directory} {what}: make it with `specmoe pack CHECKPOINT {directory}`"
        )
    again = f"delete {directory} and pack the checkpoint again"
    packed = _unseal(directory / "manifest.json", again)
    size = packed.data_file.stat().st_size if packed.data_file.is_file() else 0
    if size != packed.data_bytes:
        raise CheckpointError(
            f"{packed.data_file} has {size} bytes instead of {packed.data_bytes}: {again}"
        )
    return packed


def _unseal(file: Path, again: str) -> PackedExperts:
    with door(f"{file} was altered or cut short", again):
        manifest = json.loads(file.read_text(encoding="utf-8"))
        crc = manifest.pop("manifest_crc32")
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise CheckpointError(
                f"{file} is of another version of specmoe ({manifest['version']}): {again}"
            )
        if crc != zlib.crc32(json.dumps(manifest, sort_keys=True).encode()):
            raise ValueError("its checksum does not fit")
        return PackedExperts.from_manifest(file.parent, manifest)


def verify_packed(packed: PackedExperts, progress: Progress = None) -> list[tuple[int, int]]:
    """Read every record; returns the (layer, expert) of those whose checksum does not fit."""
    bad = []
    buffer = bytearray(packed.layout.record_bytes)
    expected = [
        (layer, expert)
        for layer in range(len(packed.layers))
        for expert in range(packed.num_experts)
    ]
    with (
        open(packed.data_file, "rb") as file,
        reporting(progress, packed.data_bytes, "verifying") as report,
    ):
        for layer, expert in expected:
            with door(f"{packed.data_file} could not be read", "check the disk", StoreError):
                count = file.readinto(buffer)
            if count != len(buffer) or zlib.crc32(buffer) != packed.checksums[layer][expert]:
                bad.append((layer, expert))
            report(packed.offset(layer, expert) + len(buffer))
    return bad


@contextmanager
def reporting(progress: Progress, total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that takes the bytes done so far and tells ``progress``, a tqdm bar, or nobody."""
    if progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=label, unit="B", unit_scale=True) as bar:
            yield lambda done: bar.update(done - bar.n)
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        yield lambda done: None
