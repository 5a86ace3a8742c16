"""How one expert lies in a record, and a packed folder opened and checked.

The folder holds ``experts.bin`` (one record per expert, layer by layer) and ``manifest.json``.
``offload.store`` reads the records; what computes with one looks through ``ExpertLayout.views``.
Zero FFN columns make small experts cost what large ones do; outputs stay the same, as what they
compute meets a zero column of the down projection.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CheckpointError, OptionError, door, path_of
from .formats import WIDEN
from .header import RAW

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}
FORMAT, VERSION = "specmoe-experts", 2
NAMES = {dtype: name for name, dtype in RAW.items()}
# What a manifest says as it is of a folder, and of its layout.
OWN = ("layers", "num_experts", "checksums", "source", "widened_from")
OF_RECORD = ("names", "shapes", "record_bytes")
PIECE_ELEMENTS = 2**18
RECORD_ALIGN, TENSOR_ALIGN = 4096, 64  # bytes: what direct I/O and vector loads ask for


def align(num_bytes: int, to: int) -> int:
    return -(-num_bytes // to) * to


class Part(NamedTuple):
    """A serialised tensor as it lies in a record."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Weight(NamedTuple):
    """A weight of ``shape``, made of ``parts`` of a record, and where in the parameter ``target``
    it goes: of each of its dimensions the target's dimension, the first index there, the step.
    ``numbers`` are what its format asks for (``formats``)."""

    target: str
    format: str
    parts: tuple[int, ...]
    shape: tuple[int, ...]
    places: tuple[tuple[int, int, int], ...]
    numbers: tuple[int, ...] = ()

    @property
    def unit(self) -> int:
        """The rows that are widened together."""
        return self.numbers[0] if self.numbers else 1

    def place(self, target: torch.Tensor) -> torch.Tensor:
        """The view of ``target`` that the weight fills."""
        dims, indices = [], {}
        for length, (dim, first, step) in zip(self.shape, self.places, strict=True):
            indices[dim] = slice(first, first + (length - 1) * step + 1, step)
            dims.append(dim)
        return target[tuple(indices[dim] for dim in sorted(dims))].permute(dims)


class Piece(NamedTuple):
    """Rows of a weight, from ``first`` to before ``last``; ``parts``: for each the first byte in
    the record, and what lies there."""

    weight: Weight
    first: int
    last: int
    parts: tuple[tuple[int, Part], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.last - self.first, *self.weight.shape[1:]

    def widened(self, read: Callable[[int, int], torch.Tensor]) -> torch.Tensor:
        """The rows; ``read(first byte, number of bytes)`` gives uint8."""
        tensors = [
            read(start, part.num_bytes).view(part.dtype).view(part.shape)
            for start, part in self.parts
        ]
        return WIDEN[self.weight.format](*tensors, *self.weight.numbers)


@dataclass(frozen=True)
class ExpertLayout:
    """One record, the same for all experts: the tensors of one, 64-byte aligned.

    ``names`` and ``shapes`` are those of the module's parameters. Without ``weights`` these lie in
    the record, in ``dtype``. With them ``parts`` do, as in the checkpoint, and ``widen`` makes
    parameters of them."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    record_bytes: int
    payload_bytes: int
    parts: tuple[Part, ...] = field(repr=False)
    weights: tuple[Weight, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        parts: tuple[Part, ...] = (),
        weights: tuple[Weight, ...] = (),
    ) -> ExpertLayout:
        names, sides = tuple(shapes), tuple(map(tuple, shapes.values()))
        parts = parts or tuple(Part(name, dtype, shape) for name, shape in zip(names, sides))
        sizes = [part.num_bytes for part in parts]
        record_bytes = align(sum(align(size, TENSOR_ALIGN) for size in sizes), RECORD_ALIGN)
        return cls(names, sides, dtype, record_bytes, sum(sizes), parts, weights)

    @property
    def is_low_bit(self) -> bool:
        return bool(self.weights)

    @property
    def stored_as(self) -> str:
        """The format of the weights, or their dtype."""
        formats = {weight.format for weight in self.weights} - {"plain"}
        return ", ".join(sorted(formats)) or str(self.dtype).removeprefix("torch.")

    @property
    def elements(self) -> int:
        """Of all parameters of an expert."""
        return sum(map(math.prod, self.shapes))

    def offsets(self) -> tuple[int, ...]:
        """First byte of each part of the record."""
        sizes = [align(part.num_bytes, TENSOR_ALIGN) for part in self.parts]
        return tuple(accumulate(sizes, initial=0))[:-1]

    def views(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors inside ``record`` (uint8 ``[record_bytes]``), by name; no copy."""
        return {
            part.name: record[start : start + part.num_bytes].view(part.dtype).view(part.shape)
            for part, start in zip(self.parts, self.offsets())
        }

    def empty(self, dtype: torch.dtype, device="cpu") -> dict[str, torch.Tensor]:
        """Memory for the parameters; turned where a weight's rows would be scattered otherwise."""
        turned = {w.target for w in self.weights if [dim for dim, *_ in w.places] == [1, 0]}
        made = {}
        for name, shape in zip(self.names, self.shapes):
            sides = shape[::-1] if name in turned else shape
            memory = torch.empty(sides, dtype=dtype, device=device)
            made[name] = memory.T if name in turned else memory
        return made

    def widen(self, record: torch.Tensor, into: dict[str, torch.Tensor]) -> None:
        """Fill ``into`` (as ``empty`` made it) with the parameters of the expert in ``record``."""
        if not self.is_low_bit:
            for name, weight in self.views(record).items():
                into[name].copy_(weight)
        for piece in self.pieces:
            rows = piece.widened(lambda start, length: record[start : start + length])
            piece.weight.place(into[piece.weight.target])[piece.first : piece.last].copy_(rows)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The weights in rows so few that what widening them takes stays in a processor's cache."""
        return tuple(piece for weight in self.weights for piece in self._pieces(weight))

    def _pieces(self, weight: Weight) -> Iterator[Piece]:
        offsets, rows = self.offsets(), weight.shape[0]
        parts = [(offsets[index], self.parts[index]) for index in weight.parts]
        units = max(1, PIECE_ELEMENTS * rows // math.prod(weight.shape) // weight.unit)
        step = units * weight.unit
        for first in range(0, rows, step):
            last = min(rows, first + step)
            cut = tuple(_cut(start, part, weight, first, last) for start, part in parts)
            yield Piece(weight, first, last, cut)


def _cut(start: int, part: Part, weight: Weight, first: int, last: int) -> tuple[int, Part]:
    """What of a part belongs to some rows of its weight."""
    rows = part.shape[0] if part.shape else 1
    if rows == 1:
        return start, part
    unit = 1 if rows == weight.shape[0] else weight.unit
    first, last = first // unit, align(last, unit) // unit
    shape = (last - first, *part.shape[1:])
    return start + first * (part.num_bytes // rows), part._replace(shape=shape)


@dataclass(frozen=True)
class FfnAxis:
    """Where a tensor has FFN columns: along ``dim``, ``width`` entries each, in ``halves``."""

    dim: int
    halves: int = 1
    width: int = 1


def ffn_axes(module: nn.Module) -> dict[str, FfnAxis]:
    """The FFN dimension of each tensor of an expert; tensors without one are left out."""
    gated = hasattr(module, "gate_up_proj")
    first, width = ("gate_up_proj", 2) if gated else ("up_proj", 1)
    halves = 2 if gated and _is_concatenated(module) else 1
    turned = module.is_transposed  # [D, 2F] and [F, D] instead of [2F, D] and [D, F]
    return {
        first: FfnAxis(1 if turned else 0, halves, width),
        f"{first}_bias": FfnAxis(0, halves, width),
        "down_proj": FfnAxis(0 if turned else 1),
    }


def _is_concatenated(module: nn.Module) -> bool:
    """Whether the first projection is [gate; up], not one pair after the other. transformers before
    5.7 does not say, so its gate is asked: does the first output hang on the second input?"""
    if hasattr(module, "is_concatenated"):
        return module.is_concatenated
    return not module._apply_gate(torch.tensor([[0.0, torch.nan, 0.0, 0.0]]))[0, 0].isnan()


def pad_ffn(native: ExpertLayout, axes: dict[str, FfnAxis], expert_bytes: int) -> ExpertLayout:
    """The layout with so many zero FFN columns that the payload is at least ``expert_bytes``."""
    shapes = dict(zip(native.names, native.shapes))
    if native.is_low_bit:
        what = f"expert_bytes={expert_bytes}: experts in {native.stored_as} can't be widened"
        raise OptionError(f"{what}: leave it out, or use the unquantised checkpoint")
    if expert_bytes < native.payload_bytes:
        what = f"expert_bytes={expert_bytes} is below the {native.payload_bytes} bytes of an expert"
        raise OptionError(f"{what}: experts can only be widened")
    if expert_bytes == native.payload_bytes:
        return native
    if "down_proj" not in shapes or len(shapes.keys() & axes.keys()) < 2:
        what = f"expert_bytes={expert_bytes}: experts made of {list(shapes)} can't be widened"
        raise OptionError(what)
    wide = {name: axis for name, axis in axes.items() if name in shapes}
    entries = [a.width * math.prod(shapes[n]) // shapes[n][a.dim] for n, a in wide.items()]
    column_bytes = native.dtype.itemsize * sum(entries)
    num_columns = shapes["down_proj"][axes["down_proj"].dim]
    num_columns += -(-(expert_bytes - native.payload_bytes) // column_bytes)
    for name, axis in wide.items():
        sides = list(shapes[name])
        sides[axis.dim] = axis.width * num_columns
        shapes[name] = tuple(sides)
    return ExpertLayout.of(shapes, native.dtype)


def place(view: torch.Tensor, tensor: torch.Tensor, axis: FfnAxis | None) -> None:
    """Copy ``tensor`` into ``view``, which may be wider: a half fills the start of its half."""
    if axis is None or view.shape == tensor.shape:
        view.copy_(tensor)
        return
    for to, part in zip(view.chunk(axis.halves, axis.dim), tensor.chunk(axis.halves, axis.dim)):
        to.narrow(axis.dim, 0, part.shape[axis.dim]).copy_(part)


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
            there = f"{len(self.layers)} layers of {self.num_experts}"
            raise IndexError(f"({layer}, {expert}) is outside {there}")
        return (layer * self.num_experts + expert) * self.layout.record_bytes

    def manifest(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in OWN}
        of_record = {name: getattr(self.layout, name) for name in OF_RECORD}
        dtype = str(self.layout.dtype).removeprefix("torch.")
        made = {"format": FORMAT, "version": VERSION, "dtype": dtype, **own, **of_record}
        if self.layout.is_low_bit:
            parts = [(name, NAMES[kind], shape) for name, kind, shape in self.layout.parts]
            made |= {"parts": parts, "weights": self.layout.weights}
        return made

    @classmethod
    def from_manifest(cls, directory: Path, manifest: dict[str, Any]) -> PackedExperts:
        """Raises whatever Python does, or ``ValueError``, where a field is not what ``manifest``
        would have written."""
        shapes = dict(zip(manifest["names"], _frozen(manifest["shapes"])))
        parts, weights = (_frozen(manifest.get(name, ())) for name in ("parts", "weights"))
        parts = tuple(Part(name, RAW[kind], shape) for name, kind, shape in parts)
        weights = tuple(Weight(*weight) for weight in weights)
        layout = ExpertLayout.of(shapes, DTYPES[manifest["dtype"]], parts, weights)
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
            "each record has a checksum": [*map(len, rows)] == [num_experts] * len(layers),
            "each record has a digest": type(digests) is list and len(digests) == len(sums),
        }
        if not all(good.values()):
            raise ValueError(f"not so: {next(said for said in good if not good[said])}")
        return packed


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
