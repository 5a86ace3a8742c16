"""Training a shipped model: dense phase, sparse upcycling, upcycled phase, checkpoint with its
record.

Comes in: a recipe's name and a folder. Goes out: a Hugging Face checkpoint there (bf16),
``training.json`` and the model card. Runs in float32 on as many threads as torch is set to.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from ..texts.data import mixture
from .card import write_record
from .evaluate import evaluate
from .model import new_model, new_tokenizer, routers, upcycle
from .recipe import Recipe, TextPhase, recipe_of
from .training import (
    Clock,
    Task,
    made_with,
    rounded_to_bf16,
    run_phase,
    run_phases,
    save_whole,
    say_nothing,
)

_TOKENIZER_TEXTS = 6000


def sequences(recipe: Recipe, phase: TextPhase, tokenizer, seed: int) -> Iterator[list[int]]:
    """Token ids of whole documents, ``<s> ... </s>``; a few without their announcing line."""
    rng = random.Random(f"bare {seed}")
    for _, document in mixture(phase.weights, seed):
        bare = (
            document.exact and document.completion[0] == "\n" and rng.random() < recipe.bare_share
        )
        text = document.completion[1:] if bare else document.text
        yield tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id]


def batches(recipe: Recipe, documents: Iterator[list[int]]) -> Iterator[torch.Tensor]:
    """[rows, length + 1] tokens; each row starts with a document and only its last one is cut."""
    for step in itertools.count(1):
        length = recipe.sequence_tokens * (2 if step % 8 == 0 else 1)
        rows = []
        for _ in range(recipe.batch_tokens // length):
            row: list[int] = []
            while len(row) <= length:
                row += next(documents)
            rows.append(row[: length + 1])
        yield torch.tensor(rows)


def loss_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of [B, T + 1] tokens."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


TEXTS = Task(loss_of, torch.Tensor.numel, routers)


def save(model, tokenizer, folder: Path, record: dict) -> Path:
    """The checkpoint in bf16, its tokenizer, its record and its card."""

    def write(staging: Path) -> None:
        weights = {
            name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()
        }
        half = type(model)(model.config).to(torch.bfloat16)
        half.load_state_dict(weights)
        half.generation_config.update(
            do_sample=False, bos_token_id=0, eos_token_id=1, pad_token_id=2
        )
        half.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        write_record(staging, record)

    return save_whole(folder, write)


def recipe_tokenizer(recipe: Recipe):
    """The tokenizer, trained on texts of the dense phase's mixture."""
    drawn = itertools.islice(mixture(recipe.dense.weights, recipe.seed), _TOKENIZER_TEXTS)
    return new_tokenizer((document.text for _, document in drawn), recipe.shape)


def train_phase(recipe: Recipe, name: str, model, tokenizer, clock: Clock, tell=say_nothing):
    """Run one phase on what the phase before left (None at first) -> (model, what it took). Its
    texts are new ones."""
    if name == "dense":
        torch.manual_seed(recipe.seed)
        model = new_model(recipe.shape, 1)
    elif name == "upcycled":
        model = upcycle(model, recipe)
    phase = recipe.phases[name]
    seed = recipe.seed + 1 + list(recipe.phases).index(name)
    data = batches(recipe, sequences(recipe, phase, tokenizer, seed))
    return model, run_phase(model, TEXTS, recipe, phase, data, clock, tell)


def finish(
    recipe: Recipe, model, tokenizer, phases: dict, out_dir: Path, num_eval_prompts: int
) -> Path:
    """Evaluate the model as it will be read back, and save it with its record."""
    record = {
        "name": recipe.name,
        "recipe": dataclasses.asdict(recipe),
        "phases": phases,
        "made_with": made_with(),
    }
    record |= evaluate(rounded_to_bf16(model), tokenizer, recipe, num_eval_prompts)
    return save(model, tokenizer, out_dir, record)


def train(
    name: str,
    out_dir: str | os.PathLike,
    minutes: float | None = None,
    steps: int | None = None,
    progress: Callable[[str, float, float], None] | None = None,
    num_eval_prompts: int = 64,
) -> Path:
    """Follow the recipe ``name`` and leave the checkpoint in ``out_dir``.

    ``minutes`` (default: the recipe's) or ``steps`` is divided between the phases as in the recipe.
    ``progress`` is called with (phase, share done, loss) every 50 steps.
    """
    recipe = recipe_of(name)
    tokenizer = recipe_tokenizer(recipe)

    def one_phase(phase_name: str, model, clock: Clock, tell: Callable):
        return train_phase(recipe, phase_name, model, tokenizer, clock, tell)

    model, took = run_phases(recipe, minutes, steps, progress, one_phase)
    return finish(recipe, model, tokenizer, took, Path(out_dir), num_eval_prompts)
