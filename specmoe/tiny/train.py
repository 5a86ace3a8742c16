"""Training a shipped model: dense phase, sparse upcycling, upcycled phase, checkpoint with its record.

Comes in: a recipe's name and a folder. Goes out: a Hugging Face checkpoint there (bf16), ``training.json`` and the
model card. Runs in float32 on as many threads as torch is set to.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
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

from .card import write_record
from .data import mixture
from .evaluate import evaluate, gini
from .model import new_model, new_tokenizer, routers, upcycle
from .recipe import Phase, Recipe, recipe_of

_TOKENIZER_TEXTS = 6000
_CURVE_STEPS = 50  # steps averaged into one point of the loss curve


def _say_nothing(*_: object) -> None:
    pass


class Clock:
    """How far a phase is: by steps when ``steps`` is given, else by minutes of wall-clock time."""

    def __init__(self, minutes: float, steps: int | None):
        self.seconds, self.steps, self.step = 60 * minutes, steps, 0
        self.start: float | None = None

    def done(self) -> float:
        """Share of the phase that is over, 0 to 1; the first call starts the time."""
        self.start = self.start or time.perf_counter()
        if self.steps is not None:
            return self.step / self.steps
        return (time.perf_counter() - self.start) / self.seconds


def learning_rate(phase: Phase, done: float) -> float:
    """Linear warm-up, then a cosine down to ``final_share`` of the peak; ``done`` runs from 0 to 1."""
    if done < phase.warm_up:
        return phase.peak_learning_rate * max(done / phase.warm_up, 0.01)
    falling = 0.5 * (1 + math.cos(math.pi * min((done - phase.warm_up) / (1 - phase.warm_up), 1.0)))
    return phase.peak_learning_rate * (phase.final_share + (1 - phase.final_share) * falling)


def sequences(recipe: Recipe, phase: Phase, tokenizer, seed: int) -> Iterator[list[int]]:
    """Token ids of whole documents, ``<s> ... </s>``; a few without their announcing line."""
    rng = random.Random(f"bare {seed}")
    for _, document in mixture(phase.weights, seed):
        bare = document.exact and document.completion[0] == "\n" and rng.random() < recipe.bare_share
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


def balance_term(logits: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Switch-style load balancing of one layer: E times the sum of (share of picks x mean probability)."""
    num_experts = logits.shape[-1]
    share = torch.bincount(picks.reshape(-1), minlength=num_experts) / picks.numel()
    return num_experts * (share * logits.softmax(-1).mean(0)).sum()


def pull(picks: torch.Tensor, num_experts: int, target_gini: float | None) -> float:
    """Sign and strength of a layer's balancing: 1 evens out, -1 concentrates, nearly 0 around the target."""
    if target_gini is None:
        return 1.0
    distance = gini(torch.bincount(picks.reshape(-1), minlength=num_experts).tolist()) - target_gini
    return max(-1.0, min(1.0, 10 * distance))


def routing_loss(phase: Phase, routed: list[tuple]) -> torch.Tensor | float:
    """The load-balancing terms of all layers; ``routed`` holds (logits [T, E], picks [T, K]) per layer."""
    if not phase.balance:
        return 0.0
    terms = [pull(picks, logits.shape[-1], phase.target_gini) * balance_term(logits, picks) for logits, picks in routed]
    return phase.balance * sum(terms)


def loss_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of [B, T + 1] tokens."""
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train_step(model, optimizer, tokens: torch.Tensor, routed: list[tuple], phase: Phase, clip_norm: float) -> float:
    """One optimizer step; ``routed`` is filled by hooks with (logits, picks) per layer. Returns the text loss."""
    routed.clear()
    loss = loss_of(model, tokens)
    total = loss + routing_loss(phase, routed)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


def run_phase(
    model,
    recipe: Recipe,
    phase: Phase,
    data: Iterator[torch.Tensor],
    clock: Clock,
    tell: Callable[[float, float], None],
) -> dict:
    """Train until the clock is done -> steps, tokens, seconds, loss curve. ``tell`` hears (share done, loss)."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    routed: list[tuple] = []
    hooks = [r.register_forward_hook(lambda _m, _i, out: routed.append((out[0], out[2]))) for r in routers(model)]
    curve, num_tokens, recent, start = [], 0, [], time.perf_counter()
    model.train()
    while clock.done() < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, clock.done())
        tokens = next(data)
        recent.append(train_step(model, optimizer, tokens, routed, phase, recipe.clip_norm))
        clock.step += 1
        num_tokens += tokens.numel()
        if len(recent) == _CURVE_STEPS or clock.done() >= 1:
            curve.append([clock.step, round(sum(recent) / len(recent), 4)])
            recent.clear()
            tell(min(clock.done(), 1.0), curve[-1][1])
    for hook in hooks:
        hook.remove()
    seconds = round(time.perf_counter() - start, 1)
    return {"steps": clock.step, "tokens": num_tokens, "seconds": seconds, "loss_curve": curve}


def save(model, tokenizer, folder: Path, record: dict) -> Path:
    """Write the checkpoint beside ``folder`` and then rename file by file: a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = {name: value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()}
        half = type(model)(model.config).to(torch.bfloat16)
        half.load_state_dict(weights)
        half.generation_config.update(do_sample=False, bos_token_id=0, eos_token_id=1, pad_token_id=2)
        half.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        write_record(staging, record)
        for file in sorted(staging.iterdir()):
            file.chmod(0o644)
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def rounded_to_bf16(model):
    """The model as it will be read back: every weight rounded to bf16, arithmetic in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model.eval()


def recipe_tokenizer(recipe: Recipe):
    """The tokenizer, trained on texts of the dense phase's mixture."""
    drawn = itertools.islice(mixture(recipe.dense.weights, recipe.seed), _TOKENIZER_TEXTS)
    return new_tokenizer((document.text for _, document in drawn), recipe.shape)


def train_phase(recipe: Recipe, name: str, model, tokenizer, clock: Clock, tell=_say_nothing):
    """Run one phase on what the phase before left (None at first) -> (model, what it took). Its texts are new ones."""
    if name == "dense":
        torch.manual_seed(recipe.seed)
        model = new_model(recipe.shape, 1)
    elif name == "upcycled":
        model = upcycle(model, recipe)
    phase = recipe.phases[name]
    seed = recipe.seed + 1 + list(recipe.phases).index(name)
    data = batches(recipe, sequences(recipe, phase, tokenizer, seed))
    return model, run_phase(model, recipe, phase, data, clock, tell)


def finish(recipe: Recipe, model, tokenizer, phases: dict, out_dir: Path, num_eval_prompts: int) -> Path:
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

    ``minutes`` (default: the recipe's) or ``steps`` is divided between the phases as in the recipe. ``progress``
    is called with (phase, share done, loss) every 50 steps.
    """
    recipe, say = recipe_of(name), progress or _say_nothing
    planned = sum(phase.minutes for phase in recipe.phases.values())
    total = planned if minutes is None else minutes
    tokenizer, model, took = recipe_tokenizer(recipe), None, {}
    for phase_name, phase in recipe.phases.items():
        share = phase.minutes / planned
        clock = Clock(total * share, None if steps is None else max(1, round(steps * share)))
        tell = functools.partial(say, phase_name)
        model, took[phase_name] = train_phase(recipe, phase_name, model, tokenizer, clock, tell)
    return finish(recipe, model, tokenizer, took, Path(out_dir), num_eval_prompts)
