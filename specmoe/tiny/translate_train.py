"""Making the translation model: dense phase, sparse upcycling, upcycled phase, checkpoint with its record.

Comes in: a ``TranslationRecipe`` and a folder. Goes out: a checkpoint there in the layout of NLLB-MoE (bf16), with its
tokenizer, ``training.json`` and the model card. Runs in float32 on as many threads as torch is set to.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, NllbMoeForConditionalGeneration

from .recipe import Phase
from .train import Clock, balance_term, learning_rate, rounded_to_bf16
from .translate_card import write_translation_record
from .translate_data import SentencePair, sentence_pairs
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
_CURVE_STEPS = 100  # steps averaged into one point of the loss curve
_IGNORED = -100


def _say_nothing(*_: object) -> None:
    pass


def encode(tokenizer, pairs: list[SentencePair]) -> list[tuple[list[int], list[int]]]:
    """(source ids, target ids) of each pair, both ``language ... </s>``."""
    sources = tokenizer([pair.english for pair in pairs])["input_ids"]
    targets = tokenizer(text_target=[pair.french for pair in pairs])["input_ids"]
    return list(zip(sources, targets, strict=True))


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """[B, T] ids, filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def batches(recipe: TranslationRecipe, tokenizer, seed: int, num_pairs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(source [num_pairs, S], target [num_pairs, T]) of pairs of about equal length, all of them fresh."""
    pairs, rng = sentence_pairs(seed), random.Random(f"batches {seed}")
    while True:
        pool = encode(tokenizer, list(itertools.islice(pairs, num_pairs * recipe.pool_batches)))
        pool.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
        starts = list(range(0, len(pool), num_pairs))
        rng.shuffle(starts)
        for start in starts:
            part = pool[start : start + num_pairs]
            yield padded([source for source, _ in part], PAD), padded([target for _, target in part], _IGNORED)


def loss_of(model, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the target [B, T] under teacher forcing, padding left out."""
    mask = target != _IGNORED
    inputs = torch.cat([torch.full_like(target[:, :1], EOS), target[:, :-1].masked_fill(~mask[:, :-1], PAD)], dim=1)
    logits = model(
        input_ids=source,
        attention_mask=(source != PAD).long(),
        decoder_input_ids=inputs,
        decoder_attention_mask=mask.long(),
        use_cache=False,
    ).logits
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=_IGNORED)


def train_step(model, optimizer, batch: tuple, routed: list[tuple], recipe: TranslationRecipe) -> float:
    """One optimizer step; ``routed`` is filled by hooks with (logits, picks) per sparse layer. Returns the loss."""
    routed.clear()
    loss = loss_of(model, *batch)
    total = loss + recipe.balance * sum(balance_term(*layer) for layer in routed)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizer.step()
    return loss.item()


def routing_hooks(model, routed: list[tuple]) -> list:
    """Hooks that append (logits [T, E], picks [T, 2]) of every sparse layer that runs."""
    layers = [layer for layer in sparse_layers(model).values() if hasattr(layer, "router")]
    return [layer.router.register_forward_hook(lambda _m, _i, out: routed.append((out[0], out[2]))) for layer in layers]


def run_phase(model, recipe: TranslationRecipe, phase: Phase, data: Iterator[tuple], clock: Clock, tell: Callable) -> dict:
    """Train until the clock is done -> steps, target tokens, seconds, loss curve. ``tell`` hears (share done, loss)."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    routed: list[tuple] = []
    hooks, curve, recent, num_tokens = routing_hooks(model, routed), [], [], 0
    start = time.perf_counter()
    model.train()
    while clock.done() < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, clock.done())
        batch = next(data)
        recent.append(train_step(model, optimizer, batch, routed, recipe))
        clock.step += 1
        num_tokens += int((batch[1] != _IGNORED).sum())
        if len(recent) == _CURVE_STEPS or clock.done() >= 1:
            curve.append([clock.step, round(sum(recent) / len(recent), 5)])
            recent.clear()
            tell(min(clock.done(), 1.0), curve[-1][1])
    for hook in hooks:
        hook.remove()
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": clock.step, "target_tokens": num_tokens, "seconds": seconds, "loss_curve": curve}


def train_dense(recipe: TranslationRecipe, clock: Clock, tell: Callable = _say_nothing):
    """The first phase: (dense model, tokenizer, what the phase took)."""
    torch.manual_seed(recipe.seed)
    pairs = itertools.islice(sentence_pairs(recipe.seed), _TOKENIZER_PAIRS)
    tokenizer = new_translation_tokenizer((text for p in pairs for text in (p.english, p.french)), recipe.shape)
    model = new_translator(recipe.shape, sparse=False)
    data = batches(recipe, tokenizer, recipe.seed + 1, recipe.dense_pairs)
    return model, tokenizer, run_phase(model, recipe, recipe.dense, data, clock, tell)


def train_upcycled(recipe: TranslationRecipe, dense, tokenizer, clock: Clock, tell: Callable = _say_nothing):
    """The second phase: (sparse model, what the phase took). Its pairs are new ones."""
    model = upcycle_translator(dense, recipe)
    data = batches(recipe, tokenizer, recipe.seed + 2, recipe.upcycled_pairs)
    return model, run_phase(model, recipe, recipe.upcycled, data, clock, tell)


def save_translator(model, tokenizer, folder: Path, recipe: TranslationRecipe, record: dict) -> Path:
    """Write the checkpoint beside ``folder`` and then rename file by file: a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
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
        for file in sorted(staging.iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def finish(recipe: TranslationRecipe, model, tokenizer, phases: dict, out_dir: Path, num_pairs: int) -> Path:
    """Evaluate the model as it will be read back, and save it with its record."""
    record = {
        "name": recipe.name,
        "recipe": dataclasses.asdict(recipe),
        "phases": phases,
        "made_with": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
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

    ``minutes`` (default: the recipe's) or ``steps`` is divided between the phases as in the recipe. ``progress``
    is called with (phase, share done, loss) every 100 steps.
    """
    say, planned = progress or _say_nothing, recipe.dense.minutes + recipe.upcycled.minutes
    total = planned if minutes is None else minutes

    def clock(phase: Phase) -> Clock:
        share = phase.minutes / planned
        return Clock(total * share, None if steps is None else max(1, round(steps * share)))

    dense, tokenizer, first = train_dense(recipe, clock(recipe.dense), lambda *x: say("dense", *x))
    model, second = train_upcycled(recipe, dense, tokenizer, clock(recipe.upcycled), lambda *x: say("upcycled", *x))
    return finish(recipe, model, tokenizer, {"dense": first, "upcycled": second}, Path(out_dir), num_eval_pairs)
