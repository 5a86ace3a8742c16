"""How one expert lies in a record: what computes with one looks through ``ExpertLayout``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple

import torch

from .formats import WIDEN

# What widening so many takes stays in a processor's cache.
PIECE_ELEMENTS = 2**18
# A GPU is asked few times: in the pieces above widening took 7 to 18 ms, the copy before it 0.3.
GPU_PIECE_ELEMENTS = 2**23
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
    parameters of them. Where layers are stored in different formats, ``by_layer`` has the layout of
    each, in records of one size, and the whole is that of the largest."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    record_bytes: int
    payload_bytes: int
    parts: tuple[Part, ...] = field(repr=False)
    weights: tuple[Weight, ...] = field(default=(), repr=False)
    by_layer: tuple[ExpertLayout, ...] = field(default=(), repr=False)

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

    @staticmethod
    def mixed(by_layer: Sequence[ExpertLayout]) -> ExpertLayout:
        """Of layers that have different ones."""
        most = max(by_layer, key=lambda one: one.record_bytes)
        return replace(most, by_layer=tuple(by_layer))

    def of_layer(self, layer: int) -> ExpertLayout:
        return self.by_layer[layer] if self.by_layer else self

    def first_byte(self, layer: int, num_experts: int) -> int:
        """Where the records of ``layer`` begin, if those of a layer follow those of the last."""
        if not self.by_layer:
            return layer * num_experts * self.record_bytes
        return num_experts * sum(one.record_bytes for one in self.by_layer[:layer])

    @property
    def is_low_bit(self) -> bool:
        return bool(self.weights)

    @property
    def stored_as(self) -> str:
        """The format of the weights, or their dtype."""
        weights = chain(self.weights, *(one.weights for one in self.by_layer))
        formats = {weight.format for weight in weights} - {"plain"}
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
        for piece in self.pieces if record.device.type == "cpu" else self.large_pieces:
            rows = piece.widened(lambda start, length: record[start : start + length])
            piece.weight.place(into[piece.weight.target])[piece.first : piece.last].copy_(rows)

    def is_sound(self) -> bool:
        """Whether the weights can be made of the parts and fill their places; no memory is used."""
        into = self.empty(self.dtype, "meta") if self.is_low_bit else {}
        parts = len(self.parts)
        return all(one.is_sound() for one in self.by_layer) and all(
            weight.format in WIDEN
            and weight.place(into[weight.target]).shape == weight.shape
            and all(0 <= index < parts for index in weight.parts)
            and weight.unit > 0
            for weight in self.weights
        )

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """The weights in rows so few that a processor widens them well."""
        return tuple(piece for w in self.weights for piece in self._pieces(w, PIECE_ELEMENTS))

    @cached_property
    def large_pieces(self) -> tuple[Piece, ...]:
        """The same for a GPU."""
        return tuple(piece for w in self.weights for piece in self._pieces(w, GPU_PIECE_ELEMENTS))

    def _pieces(self, weight: Weight, most: int) -> Iterator[Piece]:
        offsets, rows = self.offsets(), weight.shape[0]
        parts = [(offsets[index], self.parts[index]) for index in weight.parts]
        units = max(1, most * rows // math.prod(weight.shape) // weight.unit)
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
