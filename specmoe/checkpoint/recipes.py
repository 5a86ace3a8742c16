"""Which tensors of a checkpoint make which tensor of the model, by transformers' own conversion
mapping.

Comes in: a model on ``meta`` and the names in a checkpoint. Goes out: one ``Recipe`` per tensor to
be made; ``model`` follows those of the trunk, ``plan`` those of the experts. No name is written
down here; those of the few families outside transformers' mapping come from ``adapters``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ..errors import CheckpointError
from .adapters import conversions

logger = logging.getLogger("specmoe")

# source pattern -> tensors, in the order of Recipe.sources
Tensors = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How ``target`` (the first tensor made) comes from checkpoint tensors: as it is, or through a
    converter.

    ``sources`` lists checkpoint names for each pattern of the converter, experts in order of their
    number.
    """

    target: str
    converter: WeightConverter | None
    sources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def first_source(self) -> str:
        return next(iter(self.sources.values()))[0]

    def convert(self, tensors: Tensors, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The tensors of the model that come from ``tensors`` (grouped as in ``sources``)."""
        if self.converter is None:
            [[tensor]] = tensors.values()
            return {self.target: tensor}
        converter = deepcopy(self.converter)  # it collects tensors in itself
        for pattern, group in tensors.items():
            for key, tensor in zip(self.sources[pattern], group):
                converter.add_tensor(self.target, key, pattern, tensor)
        try:
            made = converter.convert(self.target, model=model, config=model.config)
        # an operation of transformers may raise anything on tensors that don't fit
        except Exception as error:
            raise CheckpointError(
                f"{self.target} cannot be made from {self.first_source!r} and its like: {error}; a "
                "tensor is"
                " missing or misshapen, or config.json is wrong"
            ) from error
        return {
            name: value[0] if isinstance(value, list) else value for name, value in made.items()
        }


def recipes(model: PreTrainedModel, keys: Iterable[str]) -> list[Recipe]:
    """One recipe for each target that ``keys`` make, grouped as transformers' loader does it."""
    transforms = [*get_model_conversion_mapping(model), *conversions(model)]
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    converter_of = {
        pattern: converter for converter in converters for pattern in converter.source_patterns
    }
    names = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, Recipe] = {}
    unused = []
    for key in sorted(keys, key=dot_natural_key):
        target, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if target not in names and key in names:
            target, pattern = rename_source_key(key, [], [], prefix, names)
        if target not in names:
            unused.append(key)
            continue
        recipe = found.setdefault(target, Recipe(target, converter_of.get(pattern)))
        recipe.sources.setdefault(pattern or key, []).append(key)
    if unused:
        logger.info(
            "%d tensors of the checkpoint have no place in the model, first %r",
            len(unused),
            unused[0],
        )
    return list(found.values())
