"""Weights that stay as they are stored, and the products with them: of a record's expert, and of
the model's own large layers.

Comes in: a layout or a model in float32 whose weights are narrower. Goes out: products that never
write a wide copy to memory. ``kernels`` multiplies experts with this, ``engine`` opens the rest of
the model with it. Where ``native`` has no function for a format, nothing here is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from ..checkpoint import ExpertLayout
from ..checkpoint.layout import Part, Weight
from ..checkpoint.model import LEAST_STORED
from .native import Piece, Pieces, library, native

# Rows that are multiplied with a weight as it is stored; for more, widening it costs less than it
# saves: torch's own products are faster.
MOST_ROWS = 64
# Elements that are widened at a time for more rows than that: 4 MiB of float32.
BLOCK_ELEMENTS = 2**20


class StoredMatrix(NamedTuple):
    """A matrix [out, in] in the records that begin at ``addresses``; of the rows that it is
    multiplied with each has its ``counts``."""

    num_outputs: int
    pieces: Pieces
    addresses: Sequence[int]
    counts: Sequence[int]

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [n, in] -> [n, out]."""
        x, y = x.contiguous(), x.new_empty(x.shape[0], self.num_outputs)
        self.pieces.products(self.addresses, self.counts, x, y)
        return y


class StoredExpert:
    """How the parameters of one expert lie in a record of ``layout``. ``complete`` is False where
    one of the matrices is in no format that C multiplies with."""

    def __init__(self, layout: ExpertLayout, transposed: bool):
        self.layout = layout
        sides = dict(zip(layout.names, layout.shapes))
        found = {name: [] for name, shape in sides.items() if len(shape) == 2}
        self.outputs = {name: sides[name][1 if transposed else 0] for name in found}
        for weight in _weights(layout):
            if weight.target in found:
                found[weight.target].append(self._piece(weight, transposed))
        self.complete = library() is not None and all(all(pieces) for pieces in found.values())
        self.matrices = dict.fromkeys(found)
        if self.complete:
            self.matrices = {name: Pieces(pieces) for name, pieces in found.items()}
        self.vectors = [p for p in layout.pieces if p.weight.target not in self.matrices]

    def _piece(self, weight: Weight, transposed: bool) -> Piece | None:
        """None where C cannot multiply with ``weight``."""
        layout, out_dim = self.layout, 1 if transposed else 0
        sides = dict(zip(layout.names, layout.shapes))[weight.target]
        # of the weight's own two dimensions that of the outputs
        out = [dim for dim, _, _ in weight.places].index(out_dim)
        (_, first, step), inner = weight.places[out], weight.places[1 - out]
        if inner != (1 - out_dim, 0, 1) or weight.shape[1 - out] != sides[1 - out_dim]:
            return None
        parts = [layout.parts[index] for index in weight.parts]
        made = native(weight.format, weight.shape, parts, weight.numbers, turned=out == 1)
        offsets = layout.offsets()
        return made and made.piece([offsets[index] for index in weight.parts], first, step)

    def weights(
        self, records: Sequence[torch.Tensor], counts: Sequence[int]
    ) -> dict[str, StoredMatrix | torch.Tensor]:
        """The parameters of the experts in ``records`` by name, for rows of which each has its
        ``counts``, one expert's after the other's; vectors [n, ...], or of one expert as they are.
        """
        addresses = [record.data_ptr() for record in records]
        found: dict[str, StoredMatrix | torch.Tensor] = {
            name: StoredMatrix(self.outputs[name], pieces, addresses, counts)
            for name, pieces in self.matrices.items()
        }
        if len(found) == len(self.layout.names):
            return found
        vectors = [self._vectors(record) for record in records]
        if len(records) == 1:
            return found | vectors[0]
        for name in vectors[0]:
            each = torch.stack([one[name] for one in vectors])
            found[name] = each.repeat_interleave(torch.tensor(counts), 0)
        return found

    def _vectors(self, record: torch.Tensor) -> dict[str, torch.Tensor]:
        layout = self.layout
        if not layout.is_low_bit:
            views = layout.views(record).items()
            return {name: view for name, view in views if name not in self.matrices}
        sides = dict(zip(layout.names, layout.shapes))
        made = {piece.weight.target: torch.empty(0) for piece in self.vectors}
        made = {name: torch.empty(sides[name]) for name in made}
        for piece in self.vectors:
            rows = piece.widened(lambda start, length: record[start : start + length])
            piece.weight.place(made[piece.weight.target])[piece.first : piece.last].copy_(rows)
        return made


def _weights(layout: ExpertLayout) -> Sequence[Weight]:
    """Those of a low-bit layout; of another each parameter is one, stored as it is."""
    if layout.is_low_bit:
        return layout.weights
    return [
        Weight(name, "plain", (index,), shape, tuple((dim, 0, 1) for dim in range(len(shape))))
        for index, (name, shape) in enumerate(zip(layout.names, layout.shapes))
    ]


# ---- the model's own layers ----


class Wide(torch.Tensor):
    """``stored`` for whoever asks a layer for its weight: float32, as the model computes, since
    some cast what they multiply to the weight's dtype. Only computing with it makes a wide copy."""

    @staticmethod
    def __new__(cls, stored: torch.Tensor):
        shape, device = stored.shape, stored.device
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=device)

    def __init__(self, stored: torch.Tensor):
        self.stored = stored

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda one: one.stored.float(), (args, kwargs or {}))
        return function(*args, **kwargs)


class Stored:
    """A layer whose weight, the buffer ``stored``, is bf16 while it computes in float32."""

    @property
    def weight(self) -> torch.Tensor:
        return Wide(self.stored)


class StoredLinear(Stored, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out], float32."""
        if (x.dtype, self.stored.dtype) != (torch.float32, torch.bfloat16):
            return F.linear(x, self.weight, self.bias)  # widened by its model; or torch refuses
        y = product(x.reshape(-1, x.shape[-1]), self.stored).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class StoredEmbedding(Stored, nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.stored, self.padding_idx).float()


STORED = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}


def keep_stored(model: nn.Module) -> None:
    """Teach the layers of ``model`` whose weights ``build_model`` left in bf16 to compute in
    float32, or widen them where C cannot multiply. The weights become buffers: a model's dtype is
    that of its parameters."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dtype != torch.bfloat16 or weight.is_meta:
                continue
            if name == "weight" and type(module) in STORED and library() is not None:
                module.__class__ = STORED[type(module)]
                delattr(module, name)
                module.register_buffer("stored", weight.data)
            else:
                # in place, as another layer may share it
                weight.data = weight.data.float()
    for each in model.modules():
        if isinstance(each, PreTrainedModel):
            # Its device is that of its first parameter, which may be an expert's now, on none.
            each.register_parameter("placed", nn.Parameter(torch.empty(0), requires_grad=False))


def multiplies_stored(model: nn.Module, kernel) -> bool:
    """Neither experts, by their ``kernel``, nor large layers of ``model`` are left to torch."""
    layers = range(max(1, len(kernel.layout.by_layer)))
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    return all(kernel.of_layer(layer).reads_stored() for layer in layers) and not any(
        module.weight.numel() >= LEAST_STORED for module in plain
    )


def trunk_weights(model: nn.Module) -> list[torch.Tensor]:
    """All weights of ``model`` beside its experts; a tied one once."""
    kept = [module.stored for module in model.modules() if isinstance(module, Stored)]
    weights = [weight for weight in (*model.parameters(), *kept) if not weight.is_meta]
    return list({weight.data_ptr(): weight for weight in weights}.values())


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x`` [n, in] float32 with a bf16 ``weight`` [out, in] -> [n, out]."""
    if x.shape[0] <= MOST_ROWS and (pieces := _pieces(weight.shape, library())) is not None:
        rows = x.shape[:1]
        return StoredMatrix(weight.shape[0], pieces, [weight.data_ptr()], rows).product(x)
    step = max(1, BLOCK_ELEMENTS // weight.shape[1])
    blocks = [F.linear(x, rows.to(x.dtype)) for rows in weight.split(step)]
    return torch.cat(blocks, 1)


@cache
def _pieces(shape: torch.Size, compiled: object) -> Pieces | None:
    """Of a bf16 weight, in the library that was ``compiled``."""
    made = native("plain", shape, [Part("", torch.bfloat16, shape)], ())
    return made and Pieces([made.piece((0,))])
