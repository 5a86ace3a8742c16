"""Training a shipped model: dense phase, sparse upcycling, upcycled phase, checkpoint with its
record.

Comes in: a recipe or its name, and a folder. Goes out: a Hugging Face checkpoint there (bf16),
``training.json`` and the model card. Runs in float32 on as many threads as torch is set to.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from .card import write_record
from .model import upcycle
from .recipe import Training, TranslationRecipe, recipe_of
from .text import Texts
from .training import (
    Clock,
    Family,
    made_with,
    rounded_to_bf16,
    run_phase,
    run_phases,
    save_whole,
)
from .translate import Translations


def train(
    recipe: str | Training,
    out_dir: str | os.PathLike,
    minutes: float | None = None,
    steps: int | None = None,
    progress: Callable[[str, float, float], None] | None = None,
    num_eval: int | None = None,
) -> Path:
    """Follow ``recipe`` and leave the checkpoint in ``out_dir``.

    ``minutes`` or ``steps`` is divided between the phases as in the recipe; without them each has
    its own length. ``progress`` is called with (phase, share done, loss) every 50 steps.
    """
    recipe = recipe_of(recipe) if isinstance(recipe, str) else recipe
    family = (Translations if isinstance(recipe, TranslationRecipe) else Texts)(recipe)

    def one_phase(name: str, model: nn.Module | None, clock: Clock, tell: Callable):
        model = begin_phase(family, name, model)
        return model, run_phase(family, model, name, clock, tell)

    model, took = run_phases(recipe, minutes, steps, progress, one_phase)
    return finish(family, model, took, Path(out_dir), num_eval)


def begin_phase(family: Family, name: str, model: nn.Module | None) -> nn.Module:
    """The model a phase trains, from what the phase before left (None at first)."""
    if name == "dense":
        torch.manual_seed(family.recipe.seed)
        return family.dense()
    if name == "upcycled":
        return upcycle(model, family.sparse(), family.recipe)
    return model


def finish(
    family: Family, model: nn.Module, phases: dict, out_dir: Path, num_eval: int | None = None
) -> Path:
    """Evaluate the model as it will be read back, and save it with tokenizer, record and card."""
    record = {
        "name": family.recipe.name,
        "recipe": dataclasses.asdict(family.recipe),
        "phases": phases,
        "made_with": made_with(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    record |= family.evaluate(rounded_to_bf16(model), num_eval or family.num_eval)

    def write(staging: Path) -> None:
        family.published(model).save_pretrained(staging)
        family.tokenizer.save_pretrained(staging)
        write_record(staging, record)

    return save_whole(out_dir, write)
