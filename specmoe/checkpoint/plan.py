"""Where in the checkpoint every expert lies; checked by names and shapes, before any weights are
read.

Comes in: an opened checkpoint. Goes out: an ``ExpertPlan``, which fills one record at a time for
``packing``.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import CheckpointError, UnsupportedModelError, door
from .files import Checkpoint
from .layout import ExpertLayout
from .model import expert_modules, expert_parameters, meta_model, read_config
from .padding import FfnAxis, ffn_axes, pad_ffn, place
from .recipes import Recipe, Tensors, recipes

DIGITS = 32  # of the digest of one expert


class OneExpert:
    """A model as the conversion of a single expert sees it: every expert parameter is ``[1,
    ...]``."""

    def __init__(self, model: nn.Module):
        self._model = model
        self._experts = expert_parameters(model)

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def get_parameter(self, name: str) -> torch.Tensor:
        whole = self._model.get_parameter(name)
        return whole[:1] if name in self._experts else whole


@dataclass(frozen=True)
class ExpertPlan:
    """The experts of a checkpoint, ready to be packed. ``native`` is their layout before
    widening."""

    checkpoint: Checkpoint
    model: OneExpert
    layers: tuple[str, ...]
    num_experts: int
    recipes: tuple[tuple[Recipe, ...], ...]  # for each layer
    native: ExpertLayout
    layout: ExpertLayout
    axes: dict[str, FfnAxis]

    @property
    def num_records(self) -> int:
        return len(self.layers) * self.num_experts

    @property
    def widened_from(self) -> int | None:
        return None if self.layout == self.native else self.native.payload_bytes

    def fill(self, record: torch.Tensor, layer: int, expert: int) -> str:
        """Write one expert into ``record`` (uint8 ``[record_bytes]``); padding and widening stay as
        they are.

        Returns the digest of the bytes it was made from.
        """
        views, digest = self.layout.views(record), hashlib.sha256()
        for recipe in self.recipes[layer]:
            tensors = self._read(recipe, expert)
            _update(digest, tensors)
            for name, tensor in recipe.convert(tensors, self.model).items():
                leaf = name.removeprefix(self.layers[layer] + ".")
                place(views[leaf], tensor[0], self.axes.get(leaf))
        return digest.hexdigest()[:DIGITS]

    def digest(self, layer: int, expert: int) -> str:
        """What ``fill`` returns, without a record."""
        digest = hashlib.sha256()
        for recipe in self.recipes[layer]:
            for pattern, keys in recipe.sources.items():
                digest.update(pattern.encode())
                self.checkpoint.add_to(digest, *_of_one(pattern, keys, expert))
        return digest.hexdigest()[:DIGITS]

    def _read(self, recipe: Recipe, expert: int) -> Tensors:
        """Of each source pattern the tensor of ``expert`` alone; of a fused ``[E, ...]`` its ``[1,
        ...]``."""
        return {
            pattern: [self.checkpoint.read(*_of_one(pattern, keys, expert))]
            for pattern, keys in recipe.sources.items()
        }


def _of_one(pattern: str, keys: list[str], expert: int) -> tuple[str, int | None]:
    """The tensor of ``expert``, and its index where all experts are one tensor."""
    return (keys[0], expert) if _is_fused(pattern, keys) else (keys[expert], None)


def _update(digest, tensors: Tensors) -> None:
    for pattern, [tensor] in tensors.items():
        digest.update(pattern.encode())
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


def plan_experts(checkpoint: Checkpoint, expert_bytes: int | None = None) -> ExpertPlan:
    """Find every expert of the checkpoint, or say which tensor is missing, misshapen or
    unsupported."""
    with door(
        f"the experts of {checkpoint.folder} could not be found",
        "correct config.json or download it again",
    ):
        return _plan(checkpoint, expert_bytes)


def _plan(checkpoint: Checkpoint, expert_bytes: int | None) -> ExpertPlan:
    model = meta_model(read_config(checkpoint), torch.float32)
    modules = expert_modules(model)
    layers, num_experts = tuple(modules), _num_experts(modules)
    top_k = getattr(model.config.get_text_config(decoder=True), "num_experts_per_tok", None)
    if top_k is not None and not 1 <= top_k <= num_experts:
        raise CheckpointError(
            f"{checkpoint.folder} sends each token to num_experts_per_tok={top_k} of {num_experts} "
            "experts:"
            " correct config.json"
        )
    by_layer = _recipes_by_layer(model, checkpoint, num_experts)
    view = OneExpert(model)
    shapes = [
        _check_layer(checkpoint, view, name, modules[name], by_layer[name]) for name in layers
    ]
    if any(shape != shapes[0] for shape in shapes):
        odd = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
        raise UnsupportedModelError(
            f"experts of {layers[odd]} have shapes {shapes[odd]}, those of {layers[0]} {shapes[0]}:"
            " specmoe needs the same shapes in all layers"
        )
    native = ExpertLayout.of(shapes[0], _common_dtype(checkpoint, by_layer))
    axes = ffn_axes(modules[layers[0]])
    layout = pad_ffn(native, axes, expert_bytes) if expert_bytes is not None else native
    ordered = tuple(tuple(by_layer[name]) for name in layers)
    return ExpertPlan(checkpoint, view, layers, num_experts, ordered, native, layout, axes)


def _num_experts(modules: dict[str, nn.Module]) -> int:
    counts = {
        name: {p.shape[0] for p in m.parameters(recurse=False)} for name, m in modules.items()
    }
    first = next(iter(counts.values()))
    for name, count in counts.items():
        if count != first or len(count) != 1:
            raise UnsupportedModelError(
                f"{name} has {sorted(count)} experts, other layers {sorted(first)}: specmoe needs "
                "one number"
            )
    return first.pop()


def _recipes_by_layer(
    model: nn.Module, checkpoint: Checkpoint, num_experts: int
) -> dict[str, list[Recipe]]:
    experts = expert_parameters(model)
    by_layer: dict[str, list[Recipe]] = {name: [] for name in expert_modules(model)}
    for recipe in recipes(model, checkpoint.tensors):
        if recipe.target in experts:
            _check_sources(checkpoint, recipe, num_experts)
            by_layer[experts[recipe.target][0]].append(recipe)
    return by_layer


def _check_sources(checkpoint: Checkpoint, recipe: Recipe, num_experts: int) -> None:
    for pattern in recipe.converter.source_patterns if recipe.converter else ():
        if pattern not in recipe.sources:
            raise checkpoint.lacks(f"has no tensors like {pattern!r} for {recipe.target}")
    for pattern, keys in recipe.sources.items():
        check = _check_fused if _is_fused(pattern, keys) else _check_one_each
        check(checkpoint, recipe.target, keys, num_experts)


def _is_fused(pattern: str, keys: list[str]) -> bool:
    """Whether ``keys`` is one tensor of all experts, not one for each (whose number ``*`` stands
    for)."""
    return len(keys) == 1 and "*" not in pattern


def _check_fused(checkpoint: Checkpoint, target: str, keys: list[str], num_experts: int) -> None:
    shape = checkpoint.tensors[keys[0]].shape
    if shape[:1] != (num_experts,):
        raise CheckpointError(
            f"tensor {keys[0]!r} in {checkpoint.folder} has shape {list(shape)}, expected "
            f"{num_experts}"
            f" experts in its first dimension (for {target}): download the checkpoint again or "
            "correct config.json"
        )


def _check_one_each(checkpoint: Checkpoint, target: str, keys: list[str], num_experts: int) -> None:
    shapes = {key: checkpoint.tensors[key].shape for key in keys}
    if len(keys) != num_experts:
        lost = _missing_keys(keys, num_experts)
        detail = f"first missing {lost[0]!r}" if lost else f"last one {keys[-1]!r}"
        raise CheckpointError(
            f"{checkpoint.folder} has {len(keys)} of {num_experts} experts for {target}, {detail}:"
            " download the checkpoint again or correct config.json"
        )
    usual = Counter(shapes.values()).most_common(1)[0][0]
    for key, shape in shapes.items():
        if shape != usual:
            raise CheckpointError(
                f"tensor {key!r} in {checkpoint.tensors[key].file} has shape {list(shape)}, "
                "expected"
                f" {list(usual)} as its siblings have: download the checkpoint again"
            )


def _missing_keys(keys: list[str], num_experts: int) -> list[str]:
    """The names that would complete ``keys``, which differ in one number: that of the expert."""
    numbers = [[int(n) for n in re.findall(r"\d+", key)] for key in keys]
    varying = [i for i, column in enumerate(zip(*numbers)) if len(set(column)) > 1]
    if len(varying) != 1:
        return []  # a single key: no telling which number is the expert's
    spot = [match.span() for match in re.finditer(r"\d+", keys[0])][varying[0]]
    there = {row[varying[0]] for row in numbers}
    return [
        f"{keys[0][: spot[0]]}{i}{keys[0][spot[1] :]}" for i in range(num_experts) if i not in there
    ]


def _check_layer(
    checkpoint: Checkpoint,
    model: OneExpert,
    layer: str,
    module: nn.Module,
    layer_recipes: list[Recipe],
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one expert, from a conversion of shapes only, compared with the
    model's."""
    made: dict[str, tuple[int, ...]] = {}
    for recipe in layer_recipes:
        tensors = {p: [_meta(checkpoint, p, keys)] for p, keys in recipe.sources.items()}
        made |= {
            name: tuple(tensor.shape) for name, tensor in recipe.convert(tensors, model).items()
        }
    expected = {
        f"{layer}.{name}": (1, *p.shape[1:]) for name, p in module.named_parameters(recurse=False)
    }
    for name, shape in expected.items():
        if name not in made:
            raise checkpoint.lacks(f"has no experts' tensor for {name}")
        if made[name] != shape:
            raise CheckpointError(
                f"each expert of {name} in {checkpoint.folder} has shape {list(made[name][1:])}, "
                "but"
                f" config.json asks for {list(shape[1:])}: a tensor is missing or misshapen, or "
                "config.json is wrong"
            )
    return {name.removeprefix(layer + "."): shape[1:] for name, shape in expected.items()}


def _meta(checkpoint: Checkpoint, pattern: str, keys: list[str]) -> torch.Tensor:
    """A tensor without memory, in the shape of what ``ExpertPlan._read`` gives for one expert."""
    info = checkpoint.tensors[keys[0]]
    shape = (1, *info.shape[1:]) if _is_fused(pattern, keys) else info.shape
    return torch.empty(shape, dtype=checkpoint.dtype(keys[0]), device="meta")


def _common_dtype(checkpoint: Checkpoint, by_layer: dict[str, list[Recipe]]) -> torch.dtype:
    """The dtype of all expert tensors; where they differ, the smallest that holds them all without
    loss."""
    groups = [
        keys for layer in by_layer.values() for recipe in layer for keys in recipe.sources.values()
    ]
    dtypes = {checkpoint.dtype(key): key for keys in groups for key in keys}
    for dtype, key in dtypes.items():
        if not dtype.is_floating_point:
            raise CheckpointError(
                f"expert tensor {key!r} in {checkpoint.folder} is quantised ({dtype}): use an "
                "unquantised checkpoint"
            )
    return functools.reduce(torch.promote_types, dtypes)
