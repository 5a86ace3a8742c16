"""Drafts by the model with some of its layers left out.

Comes in: which decoder layers a draft skips. Goes out: passes in which these hand on what they were
given; the other layers compute with their resident experts, as ``resident`` does.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

from ...errors import OptionError, UnsupportedModelError
from .resident import Resident


class Skippable:
    """Stands in for ``module.forward``. ``answers``: of how many values the layer's tuple is, 0 for
    hidden states alone; None until it has run."""

    def __init__(self, module: nn.Module, number: int):
        self.compute = module.forward
        self.number = number
        self.skips = False
        self.answers: int | None = None
        module.forward = self

    def __call__(self, hidden_states: torch.Tensor, *args, **kwargs):
        # Layers with an indexer also hand on which tokens it chose, by this name.
        handed = [hidden_states, *(kwargs[name] for name in kwargs if name.startswith("prev_"))]
        if self.skips:
            return tuple(handed[: self.answers]) if self.answers else hidden_states
        output = self.compute(hidden_states, *args, **kwargs)
        self.answers = len(output) if isinstance(output, tuple) else 0
        if self.answers > 1 and (len(handed) < self.answers or handed[1] is None):
            raise UnsupportedModelError(
                f"draft='layer_skip': layer {self.number} hands more than hidden states to the "
                "next, which no layer before it has: skip others ('layer_skip:3,5') or draft "
                "otherwise"
            )
        return output


class LayerSkip(Resident):
    """``skipped``: numbers of decoder layers, from 0; None: every second, from layer 1 on."""

    def __init__(self, skipped: tuple[int, ...] | None = None):
        numbers = ",".join(map(str, skipped or ()))
        self.name = f"layer_skip:{numbers}" if numbers else "layer_skip"
        self.skipped = skipped
        self.layers: list[Skippable] = []

    @contextmanager
    def running(self, experts, memory):
        installed = experts.installed
        if installed.compiled:
            raise UnsupportedModelError(
                f"draft={self.name!r} changes the model's layers between passes, which compiled "
                "passes cannot follow: load without compile=True"
            )
        found = decoder_layers(installed.model, installed.modules[installed.draft_layers.start])
        numbers = tuple(range(1, len(found), 2)) if self.skipped is None else self.skipped
        if not numbers or max(numbers) >= len(found) or len(set(numbers)) == len(found):
            raise OptionError(
                f"draft={self.name!r}: layers are 0..{len(found) - 1}, and one must be left"
            )
        self.layers = [Skippable(found[number], number) for number in numbers]
        try:
            yield
        finally:
            for number in numbers:
                del found[number].forward

    @contextmanager
    def drafting(self, batch):
        if any(layer.answers is None for layer in self.layers):
            yield False  # no full pass has run yet
            return
        with super().drafting(batch) as can_draft:
            try:
                self._skip(True)
                yield can_draft
            finally:
                self._skip(False)

    def _skip(self, skips: bool) -> None:
        for layer in self.layers:
            layer.skips = skips


def decoder_layers(model: nn.Module, experts: nn.Module) -> nn.ModuleList:
    """The list of layers that ``experts`` stands in."""
    name = next(name for name, module in model.named_modules() if module is experts)
    parts = name.split(".")
    for length in range(1, len(parts)):
        module = model.get_submodule(".".join(parts[:length]))
        if isinstance(module, nn.ModuleList):
            return module
    raise UnsupportedModelError(
        f"draft='layer_skip': the layers of {model.config.model_type} are in no list"
    )
