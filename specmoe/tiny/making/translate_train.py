"""Making the translation model: dense phase, sparse upcycling, upcycled phase, checkpoint with its
record.

Comes in: a ``TranslationRecipe`` and a folder. Goes out: a checkpoint there in the layout of
NLLB-MoE (bf16), with its tokenizer, ``training.json`` and the model card. Runs in float32 on as
many threads as torch is set to.
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
from transformers import GenerationConfig, NllbMoeForConditionalGeneration

from ..texts.translate_data import SentencePair, sentence_pairs
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
from .translate_card import write_translation_record
from .translate_evaluate import evaluate_translation
from .translate_model import (
    BOS,
    EOS,
    PAD,
    new_translation_tokenizer,
    new_translator,
    published_state,
    sparse_layers,
    translation_config,
    upcycle_translator,
)
from .translate_recipe import TARGET, TRANSLATE, TranslationRecipe

_TOKENIZER_PAIRS = 8000
_IGNORED = -100


def encode(tokenizer, pairs: list[SentencePair]) -> list[tuple[list[int], list[int]]]:
    """(source ids, target ids) of each pair, both ``language ... </s>``."""
    sources = tokenizer([pair.english for pair in pairs])["input_ids"]
    targets = tokenizer(text_target=[pair.french for pair in pairs])["input_ids"]
    return list(zip(sources, targets, strict=True))


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """[B, T] ids, filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def batches(
    recipe: TranslationRecipe, tokenizer, seed: int, num_pairs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(source [num_pairs, S], target [num_pairs, T]) of pairs of about equal length, all of them
    fresh."""
    pairs, rng = sentence_pairs(seed), random.Random(f"batches {seed}")
    while True:
        pool = encode(tokenizer, list(itertools.islice(pairs, num_pairs * recipe.pool_batches)))
        pool.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
        starts = list(range(0, len(pool), num_pairs))
        rng.shuffle(starts)
        for start in starts:
            part = pool[start : start + num_pairs]
            yield (
                padded([source for source, _ in part], PAD),
                padded([target for _, target in part], _IGNORED),
            )


def loss_of(model, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the target [B, T] given the source [B, S], under teacher forcing,
    padding left out."""
    source, target = batch
    mask = target != _IGNORED
    inputs = torch.cat(
        [torch.full_like(target[:, :1], EOS), target[:, :-1].masked_fill(~mask[:, :-1], PAD)], dim=1
    )
    logits = model(
        input_ids=source,
        attention_mask=(source != PAD).long(),
        decoder_input_ids=inputs,
        decoder_attention_mask=mask.long(),
        use_cache=False,
    ).logits
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=_IGNORED)


def routers(model) -> list[torch.nn.Module]:
    """Of the sparse layers, encoder first; a dense model has none."""
    return [layer.router for layer in sparse_layers(model).values() if hasattr(layer, "router")]


PAIRS = Task(
    loss_of, lambda batch: int((batch[1] != _IGNORED).sum()), routers, counted="target_tokens"
)


def recipe_tokenizer(recipe: TranslationRecipe):
    """The tokenizer, trained on both sides of the first pairs."""
    pairs = itertools.islice(sentence_pairs(recipe.seed), _TOKENIZER_PAIRS)
    return new_translation_tokenizer(
        (text for p in pairs for text in (p.english, p.french)), recipe.shape
    )


def train_phase(
    recipe: TranslationRecipe,
    name: str,
    model,
    tokenizer,
    clock: Clock,
    tell: Callable = say_nothing,
):
    """Run one phase on what the phase before left (None at first) -> (model, what it took). Its
    pairs are new ones."""
    if name == "dense":
        torch.manual_seed(recipe.seed)
        model, num_pairs = new_translator(recipe.shape, sparse=False), recipe.dense_pairs
    else:
        model, num_pairs = upcycle_translator(model, recipe), recipe.upcycled_pairs
    data = batches(recipe, tokenizer, recipe.seed + 1 + list(recipe.phases).index(name), num_pairs)
    return model, run_phase(model, PAIRS, recipe, recipe.phases[name], data, clock, tell)


def save_translator(
    model, tokenizer, folder: Path, recipe: TranslationRecipe, record: dict
) -> Path:
    """The checkpoint in bf16 under published names, its tokenizer, its record and its card."""

    def write(staging: Path) -> None:
        half = NllbMoeForConditionalGeneration(translation_config(recipe.shape)).to(torch.bfloat16)
        half.load_state_dict(published_state(model))
        half.generation_config = GenerationConfig(
            do_sample=False,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_bos_token_id=tokenizer.convert_tokens_to_ids(TARGET),
            max_length=recipe.shape.max_positions,
        )
        half.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        write_translation_record(staging, record)

    return save_whole(folder, write)


def finish(
    recipe: TranslationRecipe, model, tokenizer, phases: dict, out_dir: Path, num_pairs: int
) -> Path:
    """Evaluate the model as it will be read back, and save it with its record."""
    record = {
        "name": recipe.name,
        "recipe": dataclasses.asdict(recipe),
        "phases": phases,
        "made_with": made_with(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    record |= evaluate_translation(rounded_to_bf16(model), tokenizer, num_pairs)
    return save_translator(model, tokenizer, out_dir, recipe, record)


def train_translator(
    out_dir: str | os.PathLike,
    minutes: float | None = None,
    steps: int | None = None,
    progress: Callable[[str, float, float], None] | None = None,
    num_eval_pairs: int = 512,
    recipe: TranslationRecipe = TRANSLATE,
) -> Path:
    """Follow ``recipe`` and leave the checkpoint in ``out_dir``.

    ``minutes`` or ``steps`` is divided between the phases as in the recipe; without them each has
    its own length. ``progress`` is called with (phase, share done, loss) every 50 steps.
    """
    tokenizer = recipe_tokenizer(recipe)

    def one_phase(name: str, model, clock: Clock, tell: Callable):
        return train_phase(recipe, name, model, tokenizer, clock, tell)

    model, took = run_phases(recipe, minutes, steps, progress, one_phase)
    return finish(recipe, model, tokenizer, took, Path(out_dir), num_eval_pairs)
