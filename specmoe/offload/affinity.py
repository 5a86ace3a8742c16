"""How close experts are to each other, and who stands in for an expert that is not resident.

Comes in: the packed store. Goes out: pairwise L2 distances of the experts' weights per MoE layer,
``[L, E, E]``, computed once and kept beside the store (paper, section on the affinity table), and
tables ``[E + 1]`` that map an expert to its stand-in among the residents. ``experts`` calls next,
when drafting.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import ExpertLayout, PackedExperts, write_whole

logger = logging.getLogger("specmoe")

# of all experts of a layer together, so that no layer is ever loaded whole
CHUNK_BYTES = 32 * 2**20
# An expert of more bytes than this is not read whole for its distances, but in pieces that lie
# evenly over it: reading all of a large model takes minutes, and which expert is nearest shows in
# a quarter of a million weights (where they are independent, to 0.14 % of a distance).
LARGEST_WHOLE = 4 * 2**20
PIECES, PIECE_BYTES = 8, 2**16
# The size of a part of a record, and what makes its weights of ``read(first byte, bytes)``.
Place = tuple[int, Callable]


def expert_distances(packed: PackedExperts) -> torch.Tensor:
    """L2 distance between the weights of every two experts of a layer, float32 ``[L, E, E]``, zero
    on the diagonal; of large experts an estimate from a sample, the same every time.

    Read from ``affinity.npy`` beside the store; made again, and kept where the folder can be
    written, when that file is not of these very experts.
    """
    path = Path(packed.directory) / "affinity.npy"
    shape = (len(packed.layers), packed.num_experts, packed.num_experts)
    stored = _read_kept(path, packed, shape)
    if stored is not None:
        return stored
    distances = torch.stack([_layer_distances(packed, layer) for layer in range(shape[0])])
    content = io.BytesIO()
    np.save(content, distances.numpy())
    try:
        write_whole(path, content.getvalue() + _seal(packed, content.getvalue()))
    except OSError as error:
        logger.info("distances between experts not kept in %s (%s)", path, error)
    return distances


def _read_kept(path: Path, packed: PackedExperts, shape: tuple[int, ...]) -> torch.Tensor | None:
    """The distances in ``path``; None where they are missing, damaged, or of other experts."""
    seal_bytes, num_bytes = hashlib.sha256().digest_size, 4 * math.prod(shape)
    try:
        if not num_bytes < path.stat().st_size < num_bytes + 4096:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    array, seal = content[:-seal_bytes], content[-seal_bytes:]
    if seal != _seal(packed, array):
        return None
    return torch.from_numpy(np.load(io.BytesIO(array), allow_pickle=False))


def _seal(packed: PackedExperts, array: bytes) -> bytes:
    """What stands behind the array, where numpy does not look: a hash of it and of the experts it
    is of."""
    digest = hashlib.sha256(repr((packed.checksums, packed.layout)).encode())
    digest.update(array)
    return digest.digest()


def _layer_distances(packed: PackedExperts, layer: int) -> torch.Tensor:
    """[E, E] from the Gram matrix, accumulated over places of the records in float64."""
    gram = torch.zeros(packed.num_experts, packed.num_experts, dtype=torch.float64)
    places, whole = _places(packed)
    for weights in _weights(packed, layer, places):  # [E, columns]
        gram += (weights @ weights.T).double()
    squared = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    squared *= whole / sum(size for size, _ in places)
    return squared.clamp(min=0).sqrt().float().fill_diagonal_(0)


def _places(packed: PackedExperts) -> tuple[list[Place], int]:
    """What is read of every record, all of it or a sample, and the size of all."""
    layout = packed.layout
    if layout.is_low_bit:
        places = [(math.prod(p.shape), p.widened) for p in layout.pieces]
        whole = sum(size for size, _ in places)
        is_large = whole * layout.dtype.itemsize > LARGEST_WHOLE
        return places[:: max(1, len(places) // PIECES) if is_large else 1], whole
    whole, step, num = layout.record_bytes, max(4096, CHUNK_BYTES // packed.num_experts), None
    if (packed.widened_from or layout.payload_bytes) > LARGEST_WHOLE:
        step, num = whole // PIECES, PIECE_BYTES
    step = step // 4096 * 4096
    begins = range(0, whole if num is None else PIECES * step, step)
    sizes = [num or min(step, whole - begin) for begin in begins]
    return [(size, partial(_as_stored, layout, at, size)) for at, size in zip(begins, sizes)], whole


def _as_stored(layout: ExpertLayout, begin: int, num_bytes: int, read: Callable) -> torch.Tensor:
    return read(begin, num_bytes).view(layout.dtype)


def _weights(packed: PackedExperts, layer: int, places: list[Place]):
    """The layer's weights, one place after the other: float64 ``[E, columns]``."""
    with open(packed.data_file, "rb", buffering=0) as file:
        for _, weights_of in places:
            records = [packed.offset(layer, expert) for expert in range(packed.num_experts)]
            rows = [weights_of(partial(_read, file, record)) for record in records]
            yield torch.stack(rows).flatten(1).double()


def _read(file, record: int, begin: int, num_bytes: int) -> torch.Tensor:
    file.seek(record + begin)
    return torch.frombuffer(bytearray(file.read(num_bytes)), dtype=torch.uint8)


def nearest_resident(distances: torch.Tensor, residents: Sequence[int]) -> torch.Tensor:
    """Stand-ins: ``distances`` [E, E] and the resident experts -> int64 ``[E + 1]``; residents
    stand for themselves, also where two experts are equal.

    The last entry, E, means "no expert" and stays E; with no resident at all everything maps to it.
    """
    return stand_in_table(len(distances), residents, lambda r: r[distances[:, r].argmin(dim=1)])


def random_resident(
    num_experts: int, residents: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """The same kind of table with a random resident for every expert that is not resident."""

    def draw(r: torch.Tensor) -> torch.Tensor:
        return r[torch.randint(len(r), (num_experts,), generator=generator)]

    return stand_in_table(num_experts, residents, draw)


def no_substitute(num_experts: int, residents: Sequence[int]) -> torch.Tensor:
    """The same kind of table where an expert that is not resident is left out."""
    return stand_in_table(num_experts, residents, lambda r: num_experts)


def stand_in_table(num_experts: int, residents: Sequence[int], stand_ins: Callable) -> torch.Tensor:
    """int64 [E + 1]: residents as they are, the others as ``stand_ins`` of the residents says."""
    table = torch.full((num_experts + 1,), num_experts, dtype=torch.long)
    if len(residents):
        columns = torch.as_tensor(sorted(residents))
        table[:num_experts] = stand_ins(columns)
        table[columns] = columns
    return table
