"""A packed folder, opened and checked.

It holds ``experts.bin`` (one record per expert, layer by layer) and ``manifest.json``.
``offload.store`` reads the records.
"""

from __future__ import annotations

import io
import json
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, door, path_of
from .header import RAW
from .layout import ExpertLayout, Part, Weight

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
FORMAT, VERSION = "specmoe-experts", 2
NAMES = {dtype: name for name, dtype in RAW.items()}
# What a manifest says as it is of a folder, and of its layout.
OWN = ("layers", "num_experts", "checksums", "source", "widened_from")
OF_RECORD = ("names", "shapes", "record_bytes")


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
    # of a slot, beside the record
    slack_bytes = 0

    @property
    def data_file(self) -> Path:
        return self.directory / "experts.bin"

    @property
    def affinity_file(self) -> Path:
        """Where the distances between the experts are kept."""
        return self.directory / "affinity.npy"

    def opened(self) -> io.RawIOBase:
        """All records, to ``seek`` and ``read`` in."""
        return open(self.data_file, "rb", buffering=0)

    @property
    def data_bytes(self) -> int:
        return self.layout.first_byte(len(self.layers), self.num_experts)

    @property
    def records(self) -> list[str]:
        """For each record the digest of its source."""
        return self.source["records"]

    def offset(self, layer: int, expert: int) -> int:
        """First byte of the record of ``expert`` of MoE layer ``layer`` in ``data_file``."""
        if not (0 <= layer < len(self.layers) and 0 <= expert < self.num_experts):
            there = f"{len(self.layers)} layers of {self.num_experts}"
            raise IndexError(f"({layer}, {expert}) is outside {there}")
        begin = self.layout.first_byte(layer, self.num_experts)
        return begin + expert * self.bytes_of(layer)

    def bytes_of(self, layer: int) -> int:
        """Of each record of ``layer``."""
        return self.layout.of_layer(layer).record_bytes

    def manifest(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in OWN}
        of_record = {name: getattr(self.layout, name) for name in OF_RECORD}
        dtype = str(self.layout.dtype).removeprefix("torch.")
        made = {"format": FORMAT, "version": VERSION, "dtype": dtype, **own, **of_record}
        if self.layout.is_low_bit:
            made |= _stored(self.layout)
        if by_layer := self.layout.by_layer:
            kinds = list(dict.fromkeys(by_layer))
            made |= {"kinds": [_stored(kind) for kind in kinds]}
            made |= {"kind_of_layer": [kinds.index(one) for one in by_layer]}
        return made

    @classmethod
    def from_manifest(cls, directory: Path, manifest: dict[str, Any]) -> PackedExperts:
        """Raises whatever Python does, or ``ValueError``, where a field is not what ``manifest``
        would have written."""
        layout = _layout_of(manifest)
        own = {name: _frozen(manifest[name]) for name in OWN}
        packed = cls(directory, layout=layout, **own)
        widened, num_experts, layers = packed.widened_from, packed.num_experts, packed.layers
        rows, digests = packed.checksums, packed.records
        names = [*layers, *layout.names, packed.source["name"], *digests]
        sums = [crc for row in rows for crc in row]
        sizes = [num_experts, 1 if widened is None else widened, *chain(*layout.shapes)]
        good = {
            "its fields fit together": seal(packed.manifest()) == seal(manifest),
            "it has layers and tensors": min(len(layers), len(layout.names)) > 0,
            "its names are texts": all(type(name) is str for name in names),
            "no layer stands there twice": len({*layers}) == len(layers),
            "its numbers are whole": all(type(n) is int for n in (*sizes, *sums)),
            "its sizes can be": all(1 <= n < 2**63 for n in sizes),
            "its checksums can be": all(0 <= n < 2**32 for n in sums),
            "its weights fit its tensors": layout.is_sound(),
            "each layer has a layout": len(layout.by_layer) in (0, len(layers)),
            "each record has a checksum": [*map(len, rows)] == [num_experts] * len(layers),
            "each record has a digest": type(digests) is list and len(digests) == len(sums),
        }
        if not all(good.values()):
            raise ValueError(f"not so: {next(said for said in good if not good[said])}")
        return packed


def _stored(layout: ExpertLayout) -> dict[str, Any]:
    """What a record of low bits holds, as a manifest says it."""
    parts = [(name, NAMES[kind], shape) for name, kind, shape in layout.parts]
    return {"parts": parts, "weights": layout.weights}


def _layout_of(manifest: dict[str, Any]) -> ExpertLayout:
    shapes = dict(zip(manifest["names"], _frozen(manifest["shapes"])))
    dtype = DTYPES[manifest["dtype"]]
    kinds = [
        ExpertLayout.of(shapes, dtype, *_parts_of(stored))
        for stored in manifest.get("kinds", [manifest])
    ]
    if "kinds" not in manifest:
        return kinds[0]
    return ExpertLayout.mixed([kinds[index] for index in manifest["kind_of_layer"]])


def _parts_of(stored: dict[str, Any]) -> tuple[tuple[Part, ...], tuple[Weight, ...]]:
    parts, weights = (_frozen(stored.get(name, ())) for name in ("parts", "weights"))
    parts = tuple(Part(name, RAW[kind], shape) for name, kind, shape in parts)
    return parts, tuple(Weight(*weight) for weight in weights)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


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
