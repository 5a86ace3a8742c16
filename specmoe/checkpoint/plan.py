"""Where in the checkpoint every expert lies; checked by names and shapes, before any weight."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from ..errors import CheckpointError, UnsupportedModelError, door
from .files import AGAIN, Checkpoint
from .header import StoredTensor
from .layout import ExpertLayout
from .low_bit import LowBitTensor, parts_of
from .model import expert_modules, expert_parameters, meta_model, read_config
from .padding import FfnAxis, ffn_axes, pad_ffn, place
from .placing import is_fused, low_bit_layout, odd_one, one_each, signature
from .recipes import Recipe, recipes

DIGITS = 32  # of the digest of one expert
Shapes = dict[str, tuple[int, ...]]


class OneExpert:
    """A model as the conversion of a single expert sees it: expert parameters are ``[1, ...]``."""

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
    """The experts of a checkpoint, ready to be packed; fields as of ``PackedExperts``."""

    checkpoint: Checkpoint
    model: OneExpert
    layers: tuple[str, ...]
    num_experts: int
    recipes: tuple[list[Recipe], ...]  # for each layer
    layout: ExpertLayout
    widened_from: int | None
    axes: dict[str, FfnAxis]

    @property
    def num_records(self) -> int:
        return len(self.layers) * self.num_experts

    def others(self) -> list[StoredTensor]:
        """Every tensor of the checkpoint that is no expert's."""
        groups = [g for layer in self.recipes for recipe in layer for g in recipe.sources.values()]
        experts = {stored.name for group in groups for stored in group}
        found = sorted(self.checkpoint.tensors.items())
        return list(chain(*(parts_of(one) for name, one in found if name not in experts)))

    def fill(self, record: torch.Tensor, layer: int, expert: int) -> str:
        """Write one expert, but for its padding, into ``record``; returns its ``digest``."""
        views, digest = self.layout.of_layer(layer).views(record), hashlib.sha256()
        if self.layout.is_low_bit:
            if self.layout.by_layer:
                record.zero_()  # the last one may have been another layer's
            for view, part in zip(views.values(), self.parts(layer, expert), strict=True):
                view.copy_(part.read(digest).view(view.shape))
            return digest.hexdigest()[:DIGITS]
        for recipe in self.recipes[layer]:
            tensors = {}
            for pattern, stored in one_each(recipe, expert).items():
                digest.update(pattern.encode())
                tensors[pattern] = [stored.read(digest)]
            for name, tensor in recipe.convert(tensors, self.model).items():
                leaf = name.removeprefix(self.layers[layer] + ".")
                place(views[leaf], tensor[0], self.axes.get(leaf))
        return digest.hexdigest()[:DIGITS]

    def parts(self, layer: int, expert: int) -> list[StoredTensor]:
        """The tensors that an expert is made from, where they lie: of a low-bit one its record."""
        stored = chain(*(one_each(recipe, expert).values() for recipe in self.recipes[layer]))
        return list(chain(*map(parts_of, stored)))

    def digest(self, layer: int, expert: int) -> str:
        """Of the bytes that the expert is made from."""
        digest = hashlib.sha256()
        if self.layout.is_low_bit:
            for part in self.parts(layer, expert):
                part.add_to(digest)
            return digest.hexdigest()[:DIGITS]
        for recipe in self.recipes[layer]:
            for pattern, stored in one_each(recipe, expert).items():
                digest.update(pattern.encode())
                stored.add_to(digest)
        return digest.hexdigest()[:DIGITS]


def plan_experts(checkpoint: Checkpoint, expert_bytes: int | None = None) -> ExpertPlan:
    """Find every expert of the checkpoint, or say which tensor is missing or misshapen."""
    folder = checkpoint.folder
    what = f"the experts of {folder} could not be found"
    with door(what, "correct config.json or download it again"):
        model = meta_model(read_config(checkpoint), torch.float32)
        modules, view = expert_modules(model), OneExpert(model)
        num_experts, shapes = _sizes(modules)
        top_k = getattr(model.config.get_text_config(decoder=True), "num_experts_per_tok", None)
        if top_k is not None and not 1 <= top_k <= num_experts:
            what = f"num_experts_per_tok={top_k} of {num_experts} experts: correct config.json"
            raise CheckpointError(f"{folder} sends each token to {what}")
        by_layer = _recipes_by_layer(model, checkpoint, num_experts)
        for layer, found in by_layer.items():
            _check_shapes(checkpoint, view, layer, shapes, found)
        native = _layout(checkpoint, view, shapes, by_layer)
        axes = ffn_axes(next(iter(modules.values())))
        layout = pad_ffn(native, axes, expert_bytes) if expert_bytes is not None else native
        widened = None if layout == native else native.payload_bytes
        found = tuple(modules), num_experts, tuple(by_layer.values()), layout, widened, axes
        return ExpertPlan(checkpoint, view, *found)


def _sizes(modules: dict[str, nn.Module]) -> tuple[int, Shapes]:
    """How many experts each layer has, and the shapes of the tensors of one."""
    of = {
        layer: {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
        for layer, module in modules.items()
    }
    first = next(iter(of))
    for layer, shapes in of.items():
        if shapes != of[first]:
            what = f"experts of {layer} have shapes {shapes}, those of {first} {of[first]}"
            raise UnsupportedModelError(f"{what}: specmoe needs the same shapes in all layers")
    counts = {shape[0] for shape in of[first].values()}
    if len(counts) > 1:
        what = f"{first} has tensors of {sorted(counts)} experts"
        raise UnsupportedModelError(f"{what}: specmoe needs one number")
    return counts.pop(), {name: shape[1:] for name, shape in of[first].items()}


def _recipes_by_layer(
    model: nn.Module, checkpoint: Checkpoint, num_experts: int
) -> dict[str, list[Recipe]]:
    layer_of = expert_parameters(model)
    by_layer: dict[str, list[Recipe]] = {name: [] for name in layer_of.values()}
    for recipe in recipes(model, checkpoint):
        if recipe.target in layer_of:
            _check_sources(checkpoint, recipe, num_experts)
            by_layer[layer_of[recipe.target]].append(recipe)
    return by_layer


def _check_sources(checkpoint: Checkpoint, recipe: Recipe, num_experts: int) -> None:
    for pattern in recipe.converter.source_patterns if recipe.converter else ():
        if pattern not in recipe.sources:
            raise checkpoint.lacks(f"has no tensors like {pattern!r} for {recipe.target}")
    for pattern in recipe.sources:
        if fault := _fault(checkpoint, recipe, pattern, num_experts):
            raise CheckpointError(f"{fault}: {AGAIN} or correct config.json")


def _fault(checkpoint: Checkpoint, recipe: Recipe, pattern: str, num_experts: int) -> str | None:
    """Why the tensors of ``pattern`` are not those of all experts: one tensor, or one each."""
    stored, folder, target = recipe.sources[pattern], checkpoint.folder, recipe.target
    usual = Counter(tensor.shape for tensor in stored).most_common(1)[0][0]
    if is_fused(pattern, stored):
        if usual[:1] == (num_experts,):
            return None
        want = f"expected {num_experts} experts in its first dimension (for {target})"
        return f"tensor {stored[0].name!r} in {folder} has shape {list(usual)}, {want}"
    if len(stored) != num_experts:
        detail = _first_missing([tensor.name for tensor in stored], num_experts)
        return f"{folder} has {len(stored)} of {num_experts} experts for {target}, {detail}"
    for one in stored:
        if one.shape != usual:
            want = f"expected {list(usual)} as its siblings have"
            return f"tensor {one.name!r} in {one.file} has shape {list(one.shape)}, {want}"
    return None


def _first_missing(keys: list[str], num_experts: int) -> str:
    """What is missing in ``keys``, which differ in one number: that of the expert."""
    for number in re.finditer(r"\d+", keys[0]):
        before, after = keys[0][: number.start()], keys[0][number.end() :]
        lost = [name for i in range(num_experts) if (name := f"{before}{i}{after}") not in keys]
        if lost and len(lost) < num_experts - 1:
            return f"first missing {lost[0]!r}"
    return f"last one {keys[-1]!r}"


def _check_shapes(
    checkpoint: Checkpoint, model: OneExpert, layer: str, shapes: Shapes, found: list[Recipe]
) -> None:
    """Whether a conversion of shapes only gives one expert of the model."""
    made: Shapes = {}
    for recipe in found:
        tensors = {pattern: [t.meta()] for pattern, t in one_each(recipe, 0).items()}
        made |= {name: tuple(t.shape) for name, t in recipe.convert(tensors, model).items()}
    for leaf, shape in shapes.items():
        name = f"{layer}.{leaf}"
        if name not in made:
            raise checkpoint.lacks(f"has no experts' tensor for {name}")
        if made[name] != (1, *shape):
            has = f"each expert of {name} in {checkpoint.folder} has shape {list(made[name][1:])}"
            why = "a tensor is missing or misshapen, or config.json is wrong"
            raise CheckpointError(f"{has}, but config.json asks for {list(shape)}: {why}")


def _layout(
    checkpoint: Checkpoint, model: OneExpert, shapes: Shapes, by_layer: dict[str, list[Recipe]]
) -> ExpertLayout:
    """As in the checkpoint where weights are low-bit; else what ``shapes`` says, in one dtype."""
    groups = [g for layer in by_layer.values() for recipe in layer for g in recipe.sources.values()]
    _refuse_integers(checkpoint, groups)
    if not any(isinstance(one, LowBitTensor) for one in chain(*groups)):
        return ExpertLayout.of(shapes, _common_dtype(groups))
    for group in groups:
        if odd := odd_one(group):
            what = f"tensor {odd.name!r} in {odd.file} is stored otherwise than {group[0].name!r}"
            raise CheckpointError(f"{what}: {AGAIN}, or use the unquantised checkpoint")
    made, found = {}, []
    for layer, recipes_of in by_layer.items():
        kind = signature(layer, recipes_of)
        if kind not in made:
            made[kind] = low_bit_layout(model, layer, shapes, recipes_of)
        found.append(made[kind])
    return found[0] if len(made) == 1 else ExpertLayout.mixed(found)


def _refuse_integers(checkpoint: Checkpoint, groups: list[list[StoredTensor]]) -> None:
    for stored in chain(*groups):
        if not stored.dtype.is_floating_point:
            what = f"expert tensor {stored.name!r} in {checkpoint.folder} is quantised"
            raise CheckpointError(f"{what} ({stored.dtype}): use an unquantised checkpoint")


def _common_dtype(groups: list[list[StoredTensor]]) -> torch.dtype:
    """The smallest dtype that holds all expert tensors without loss."""
    return functools.reduce(torch.promote_types, [stored.dtype for stored in chain(*groups)])
