"""Which tensors of a GGUF make which of the model, where transformers reads it with its older
loader: that one's own names and processors, for one parameter at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from .low_bit import Tensors


class Processed:
    """Stands in for a ``WeightConverter``: the processor makes ``target`` of the tensors
    ``source_patterns``, or of their names ``keys`` in transformers' mapping."""

    def __init__(self, processor: Any, target: str, keys: list[str], names: list[str]):
        self.processor = processor
        self.target = target
        self.mapping = dict.fromkeys(keys, target)
        self.source_patterns = names
        self.collected: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict) -> Processed:
        return Processed(self.processor, self.target, list(self.mapping), self.source_patterns)

    def add_tensor(self, target: str, name: str, pattern: str, tensor: torch.Tensor) -> None:
        self.collected[name] = tensor

    def convert(self, target: str, model: Any, config: Any) -> dict[str, torch.Tensor]:
        """As transformers does it: the processor fills ``parsed`` itself (experts), or gives back
        what is then renamed. Of a tensor on ``meta`` only the shape counts."""
        parsed: dict[str, dict] = {"tensors": {}}
        for name, tensor in self.collected.items():
            made = self.processor.process(
                weights=_array(tensor),
                name=name,
                tensor_key_mapping=self.mapping,
                parsed_parameters=parsed,
            )
            if made.name in self.mapping:
                parsed["tensors"][target] = torch.from_numpy(made.weights)
        return parsed["tensors"]


def _array(tensor: torch.Tensor):
    """The processors compute with numpy, which has no bfloat16; half precision fits in single."""
    if tensor.is_meta:
        tensor = torch.zeros((), dtype=torch.uint8).expand(tensor.shape)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def sources_of(
    model: PreTrainedModel, architecture: str, tensors: Tensors
) -> dict[str, tuple[Processed, dict[str, list]]]:
    """Of each parameter that can be made: how, and of what."""
    # imports the tokenizers of half a dozen families
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    make = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = make(config=model.config.to_dict())
    keys: dict[str, list[str]] = {}
    for key, target in get_gguf_hf_weights_map(model, processor).items():
        keys.setdefault(target, []).append(key)
    found = {}
    for target, mine in keys.items():
        # experts have no ending in that mapping
        names = [key if key in tensors else f"{key}.weight" for key in mine]
        if sources := {name: [tensors[name]] for name in names if name in tensors}:
            found[target] = Processed(processor, target, mine, names), sources
    return found
