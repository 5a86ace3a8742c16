"""Which tensors of a checkpoint make which tensor of the model.

No name is written down here: transformers has a conversion mapping, and ``adapters`` one for the
few families outside it; for GGUF ``gguf_recipes``. ``model`` follows the recipes of the backbone,
``plan`` those of experts.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers import core_model_loading as loading
from transformers.conversion_mapping import get_model_conversion_mapping

from ..errors import CheckpointError
from .adapters import conversions
from .files import Checkpoint
from .gguf_file import is_modern
from .gguf_recipes import sources_of
from .header import StoredTensor

logger = logging.getLogger("specmoe")

# source pattern -> tensors, in the order of Recipe.sources
Tensors = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Recipe:
    """How ``target`` (the first tensor made) comes from checkpoint tensors: as it is, or through a
    converter. ``sources``: those of each of its patterns, experts in order of their number."""

    target: str
    converter: loading.WeightConverter | None
    sources: dict[str, list[StoredTensor]] = field(default_factory=dict)

    @property
    def first_source(self) -> str:
        return next(iter(self.sources.values()))[0].name

    def convert(self, tensors: Tensors, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The tensors of the model that come from ``tensors`` (grouped as in ``sources``)."""
        if self.converter is None:
            [[tensor]] = tensors.values()
            return {self.target: tensor}
        converter = deepcopy(self.converter)  # it collects tensors in itself
        for pattern, group in tensors.items():
            for stored, tensor in zip(self.sources[pattern], group):
                converter.add_tensor(self.target, stored.name, pattern, tensor)
        try:
            made = converter.convert(self.target, model=model, config=model.config)
        # an operation of transformers may raise anything on tensors that don't fit
        except Exception as error:
            what = f"{self.target} cannot be made from {self.first_source!r} and its like: {error}"
            why = "a tensor is missing or misshapen, or config.json is wrong"
            raise CheckpointError(f"{what}; {why}") from error
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


def recipes(model: PreTrainedModel, checkpoint: Checkpoint) -> list[Recipe]:
    """One recipe for each target that can be made, grouped as transformers' loader does it."""
    if checkpoint.architecture and not is_modern(checkpoint.architecture):
        found = sources_of(model, checkpoint.architecture, checkpoint.tensors)
        return [Recipe(target, *made) for target, made in found.items()]
    return _grouped(model, checkpoint.tensors, _transforms(model, checkpoint.architecture))


def _transforms(model: PreTrainedModel, architecture: str | None) -> list[loading.WeightTransform]:
    if not architecture:
        return [*get_model_conversion_mapping(model), *conversions(model)]
    # what maps safetensors is not asked about a GGUF
    from transformers.integrations.gguf import get_gguf_conversion_mapping

    return get_gguf_conversion_mapping(architecture, model.config)


def _grouped(
    model: PreTrainedModel, tensors: dict[str, StoredTensor], transforms: list
) -> list[Recipe]:
    renamings = [entry for entry in transforms if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, loading.WeightConverter)]
    converter_of = {pattern: made for made in converters for pattern in made.source_patterns}
    names = model.state_dict()
    prefix = model.base_model_prefix
    found: dict[str, Recipe] = {}
    unused = []
    for key in sorted(tensors, key=loading.dot_natural_key):
        target, pattern = loading.rename_source_key(key, renamings, converters, prefix, names)
        if target not in names and key in names:
            target, pattern = loading.rename_source_key(key, [], [], prefix, names)
        if target not in names:
            unused.append(key)
            continue
        recipe = found.setdefault(target, Recipe(target, converter_of.get(pattern)))
        recipe.sources.setdefault(pattern or key, []).append(tensors[key])
    if unused:
        what = "%d tensors of the checkpoint have no place in the model, first %r"
        logger.info(what, len(unused), unused[0])
    return list(found.values())
