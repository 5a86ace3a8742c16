"""Where each low-bit weight of an expert goes: found by sending marks through transformers' own
conversion of the checkpoint's tensors, so that no family's layout is written down here.
"""

from __future__ import annotations

import re

import torch

from ..errors import UnsupportedModelError
from .header import StoredTensor
from .layout import ExpertLayout, Part, Weight
from .low_bit import LowBitTensor, parts_of
from .recipes import Recipe


def one_each(recipe: Recipe, expert: int) -> dict[str, StoredTensor | LowBitTensor]:
    """Of each source pattern the tensor of one expert alone."""
    return {
        pattern: stored[0].part(expert) if is_fused(pattern, stored) else stored[expert]
        for pattern, stored in recipe.sources.items()
    }


def is_fused(pattern: str, stored: list[StoredTensor | LowBitTensor]) -> bool:
    """Whether one tensor holds all experts, not one each (``*`` stands for a number)."""
    return len(stored) == 1 and "*" not in pattern


def low_bit_layout(
    model, layer: str, shapes: dict[str, tuple[int, ...]], found: list[Recipe]
) -> ExpertLayout:
    """The layout whose record holds what the ``recipes`` of a layer read, as it lies there."""
    parts: list[Part] = []
    weights: list[Weight] = []
    for recipe in found:
        mine = []
        for pattern, stored in one_each(recipe, 0).items():
            begin = len(parts)
            alone = is_fused(pattern, recipe.sources[pattern])
            own = parts_of(stored)
            parts += [Part(_short(one.name), one.dtype, one.shape[alone:]) for one in own]
            target, places = _follow(recipe, pattern, model)
            leaf = target.removeprefix(layer + ".")
            shape, turned = stored.shape[alone:], getattr(stored, "turned", False)
            shape, places = (shape[::-1], places[::-1]) if turned else (shape, places)
            kind = stored.format if isinstance(stored, LowBitTensor) else "plain"
            numbers = getattr(stored, "numbers", ())
            indices = tuple(range(begin, len(parts)))
            mine.append(Weight(leaf, kind, indices, shape, places, numbers))
        _prove(recipe, mine, layer, model)
        weights += mine
    return ExpertLayout.of(shapes, torch.bfloat16, tuple(parts), tuple(weights))


def _short(name: str) -> str:
    """A tensor's name within its expert."""
    return re.split(r"experts\.(?:\d+\.)?|^blk\.\d+\.", name)[-1]


def _blank(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {
        pattern: torch.zeros(stored.shape, dtype=torch.uint8)
        for pattern, stored in one_each(recipe, 0).items()
    }


def _convert(recipe: Recipe, sources: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    made = recipe.convert({pattern: [tensor] for pattern, tensor in sources.items()}, model)
    return {name: tensor[0] for name, tensor in made.items()}


def _follow(recipe: Recipe, pattern: str, model) -> tuple[str, tuple[tuple[int, int, int], ...]]:
    """Where the tensor of ``pattern`` goes: marks on its first element and the next of each
    dimension say it."""
    sources = _blank(recipe)
    tensor = sources[pattern][0] if is_fused(pattern, recipe.sources[pattern]) else sources[pattern]
    for dim in range(tensor.dim()):
        tensor.select(dim, min(1, tensor.shape[dim] - 1))[(0,) * (tensor.dim() - 1)] = 2 + dim
    tensor[(0,) * tensor.dim()] = 1
    made = _convert(recipe, sources, model)
    for name, target in made.items():
        marks = {int(target[tuple(at)]): at for at in target.nonzero()}
        if 1 not in marks:
            continue
        places, free = [], list(range(target.dim()))
        for dim in range(tensor.dim()):
            step = marks.get(2 + dim, marks[1]) - marks[1]
            moved = step.nonzero().flatten().tolist() or free[:1]
            places.append((moved[0], int(marks[1][moved[0]]), max(1, int(step[moved[0]]))))
            free = [other for other in free if other != moved[0]]
        return name, tuple(places)
    raise _not_placed(recipe)


def _prove(recipe: Recipe, weights: list[Weight], layer: str, model) -> None:
    """Whether every element of the parameters comes from where ``weights`` says."""
    sources = _blank(recipe)
    for number, tensor in enumerate(sources.values()):
        # (element + 17 * number) % 251, in a byte each
        pattern = ((torch.arange(251) + 17 * number) % 251).to(torch.uint8)
        tensor.view(-1).copy_(pattern.repeat(-(-tensor.numel() // 251))[: tensor.numel()])
    made = _convert(recipe, sources, model)
    rebuilt = {name: torch.full_like(tensor, 255) for name, tensor in made.items()}
    for weight, (pattern, tensor) in zip(weights, sources.items(), strict=True):
        tensor = tensor[0] if is_fused(pattern, recipe.sources[pattern]) else tensor
        turned = getattr(one_each(recipe, 0)[pattern], "turned", False)
        try:
            weight.place(rebuilt[f"{layer}.{weight.target}"]).copy_(tensor.T if turned else tensor)
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise _not_placed(recipe) from error
    if not all(torch.equal(rebuilt[name], made[name]) for name in made):
        raise _not_placed(recipe)


def _not_placed(recipe: Recipe) -> UnsupportedModelError:
    what = f"{recipe.target} is made from {recipe.first_source!r} and its like in a way"
    return UnsupportedModelError(
        f"{what} that low-bit weights cannot follow: use the unquantised checkpoint"
    )


def signature(layer: str, found: list[Recipe]) -> tuple:
    """How the experts of a layer are stored: the same for layers that can share a layout."""
    return tuple(
        (recipe.target.removeprefix(layer), *(_kind(group[0]) for group in recipe.sources.values()))
        for recipe in found
    )


def _kind(stored: StoredTensor | LowBitTensor) -> tuple:
    parts = parts_of(stored)
    return tuple((part.format, part.shape) for part in parts)


def odd_one(group: list[StoredTensor | LowBitTensor]) -> StoredTensor | LowBitTensor | None:
    """The first tensor that is stored otherwise than its siblings."""
    return next((one for one in group if _kind(one) != _kind(group[0])), None)
