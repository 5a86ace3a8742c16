"""How close experts are to each other, and who stands in for an expert that is not resident.

Comes in: the packed store. Goes out: pairwise L2 distances of the experts' weights per MoE layer,
``[L, E, E]``, computed once and kept beside the store (paper, section on the affinity table), and
tables ``[E + 1]`` that map an expert to its stand-in among the residents. ``stand_ins`` calls
next, when drafting.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import ExpertLayout, PackedExperts, write_whole
from ..checkpoint.layout import Piece

logger = logging.getLogger("specmoe")

# of all experts of a layer together, so that no layer is ever loaded whole
CHUNK_BYTES = 32 * 2**20
# An expert of more bytes than this is not read whole for its distances, but in pieces that lie
# evenly over it: reading all of a large model takes minutes, and which expert is nearest shows in
# a quarter of a million weights (where they are independent, to 0.14 % of a distance).
LARGEST_WHOLE = 4 * 2**20
PIECES, PIECE_BYTES = 8, 2**16
# A disk answers many small reads at once sooner than one after the other.
READERS = 8
# What is compared at a time: (first byte, bytes) of a record, or of a low-bit one some rows.
Place = tuple[int, int] | Piece


def expert_distances(packed: PackedExperts) -> torch.Tensor:
    """L2 distance between the weights of every two experts of a layer, float32 ``[L, E, E]``, zero
    on the diagonal; of large experts an estimate from a sample, the same every time.

    Read from ``affinity.npy`` beside the store; made again, and kept where the folder can be
    written, when that file is not of these very experts.
    """
    path = packed.affinity_file
    shape = (len(packed.layers), packed.num_experts, packed.num_experts)
    stored = _read_kept(path, packed, shape)
    if stored is not None:
        return stored
    distances = torch.stack([_layer_distances(packed, layer) for layer in range(shape[0])])
    content = io.BytesIO()
    np.save(content, distances.numpy())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    places = _places(packed, layer)
    for weights in _weights(packed, layer, places):  # [E, columns]
        gram += (weights @ weights.T).double()
    squared = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    squared *= _whole(packed.layout.of_layer(layer)) / sum(map(_size, places))
    return squared.clamp(min=0).sqrt().float().fill_diagonal_(0)


def _places(packed: PackedExperts, layer: int) -> list[Place]:
    """What is read of every record of a layer: all of it, or a sample."""
    layout = packed.layout.of_layer(layer)
    whole = layout.record_bytes
    if layout.is_low_bit:
        is_large = _whole(layout) * layout.dtype.itemsize > LARGEST_WHOLE
        return list(layout.pieces[:: max(1, len(layout.pieces) // PIECES) if is_large else 1])
    if (packed.widened_from or layout.payload_bytes) > LARGEST_WHOLE:
        step = whole // PIECES // 4096 * 4096
        return [(begin, PIECE_BYTES) for begin in range(0, PIECES * step, step)]
    step = max(4096, CHUNK_BYTES // packed.num_experts // 4096 * 4096)
    return [(begin, min(step, whole - begin)) for begin in range(0, whole, step)]


def _size(place: Place) -> int:
    return math.prod(place.shape) if isinstance(place, Piece) else place[1]


def _whole(layout: ExpertLayout) -> int:
    """The size of all places there are."""
    return sum(map(_size, layout.pieces)) or layout.record_bytes


def _weights(packed: PackedExperts, layer: int, places: list[Place]):
    """The layer's weights, one place after the other: float64 ``[E, columns]``."""
    with ThreadPoolExecutor(READERS) as readers:
        for place in places:
            rows = readers.map(partial(_part, packed, layer, place), range(packed.num_experts))
            yield torch.stack(list(rows)).flatten(1).double()


def _part(packed: PackedExperts, layer: int, place: Place, expert: int) -> torch.Tensor:
    with packed.opened() as file:
        read = partial(_read, file, packed.offset(layer, expert))
        if isinstance(place, Piece):
            return place.widened(read)
        return read(*place).view(packed.layout.dtype)


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
