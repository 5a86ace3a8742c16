"""The training loop that every recipe shares: one phase, its clock and learning rate, load
balancing, a whole checkpoint.

Comes in: a ``Family`` (how a batch becomes a loss), a model, a phase as data. Goes out: the trained
model and what the phase took. ``train`` calls this; what a batch is, only ``text`` and
``translate`` know.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ...errors import StoreError, door
from ...lab.writing import REMEDY
from .evaluate import gini
from .recipe import Phase, Training

CURVE_STEPS = 50  # steps averaged into one point of the loss curve


def say_nothing(*_: object) -> None:
    pass


class Clock:
    """How far a phase is: by steps when ``steps`` is given, else by minutes of wall-clock time."""

    def __init__(self, minutes: float, steps: int | None):
        self.seconds = 60 * minutes
        self.steps = steps
        self.step = 0
        self.start: float | None = None

    def done(self) -> float:
        """Share of the phase that is over, 0 to 1; the first call starts the time."""
        self.start = self.start or time.perf_counter()
        if self.steps is not None:
            return self.step / self.steps
        return (time.perf_counter() - self.start) / self.seconds


class Family(ABC):
    """What differs between the shipped models: their data, how they are built, what is measured."""

    counted = "tokens"  # the name in the record of how many had a loss
    num_eval = 64  # held-out prompts or sentences, unless told otherwise

    def __init__(self, recipe: Training, tokenizer=None):
        self.recipe = recipe
        self.tokenizer = self.new_tokenizer() if tokenizer is None else tokenizer

    @abstractmethod
    def new_tokenizer(self):
        """The tokenizer, trained on the recipe's own texts."""

    @abstractmethod
    def dense(self) -> nn.Module:
        """A fresh model for the first phase."""

    @abstractmethod
    def sparse(self) -> nn.Module:
        """A fresh model with all its experts, which ``upcycle`` fills."""

    @abstractmethod
    def batches(self, phase: str, seed: int) -> Iterator:
        """Endless batches of one phase, all of them fresh."""

    @abstractmethod
    def loss_of(self, model: nn.Module, batch) -> torch.Tensor:
        """The batch's mean loss."""

    @abstractmethod
    def count_tokens(self, batch) -> int:
        """Of a batch, the tokens that have a loss."""

    @abstractmethod
    def routers(self, model: nn.Module) -> dict[str, nn.Module]:
        """By name; each returns (logits [T, E], weights [T, K], picks [T, K]). A dense model may
        have none."""

    @abstractmethod
    def evaluate(self, model: nn.Module, num: int) -> dict:
        """What the record says of the model on ``num`` held-out texts."""

    @abstractmethod
    def published(self, model: nn.Module) -> nn.Module:
        """The model in bf16 under published names, with its generation settings."""


def learning_rate(phase: Phase, done: float, step: int = 0) -> float:
    """Linear warm-up, then a cosine down to ``final_share`` of the peak (1: constant). ``done``
    runs from 0 to 1; the warm-up is a share of it, or ``warm_up_steps``."""
    if phase.warm_up_steps is None:
        rising, falls = (
            max(min(done / phase.warm_up, 1.0), 0.01),
            max(done - phase.warm_up, 0.0) / (1 - phase.warm_up),
        )
    else:
        rising, falls = min((step + 1) / phase.warm_up_steps, 1.0), done
    cosine = 0.5 * (1 + math.cos(math.pi * min(falls, 1.0)))
    return (
        phase.peak_learning_rate * rising * (phase.final_share + (1 - phase.final_share) * cosine)
    )


def balance_term(logits: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Switch-style load balancing of one layer: E times the sum of (share of picks x mean
    probability)."""
    num_experts = logits.shape[-1]
    share = torch.bincount(picks.reshape(-1), minlength=num_experts) / picks.numel()
    return num_experts * (share * logits.softmax(-1).mean(0)).sum()


def pull(picks: torch.Tensor, num_experts: int, target_gini: float | None) -> float:
    """Sign and strength of a layer's balancing: 1 evens out, -1 concentrates, nearly 0 around the
    target."""
    if target_gini is None:
        return 1.0
    distance = gini(torch.bincount(picks.reshape(-1), minlength=num_experts).tolist()) - target_gini
    return max(-1.0, min(1.0, 10 * distance))


def routing_loss(phase: Phase, routed: list[tuple]) -> torch.Tensor | float:
    """The load-balancing terms of all layers; ``routed`` holds (logits [T, E], picks [T, K]) per
    layer."""
    if not phase.balance:
        return 0.0
    terms = [
        pull(picks, logits.shape[-1], phase.target_gini) * balance_term(logits, picks)
        for logits, picks in routed
    ]
    return phase.balance * sum(terms)


def train_step(
    model, loss_of: Callable, optimizer, batch, routed: list[tuple], phase: Phase, clip_norm: float
) -> float:
    """One optimizer step; ``routed`` is filled by hooks with (logits, picks) per layer. Returns the
    batch's loss."""
    routed.clear()
    loss = loss_of(model, batch)
    total = loss + routing_loss(phase, routed)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.item()


def run_phase(
    family: Family,
    model: nn.Module,
    name: str,
    clock: Clock,
    tell: Callable[[float, float], None] = say_nothing,
) -> dict:
    """Train until the clock is done -> steps, tokens, seconds, loss curve. The phase's texts are
    new ones; ``tell`` hears (share done, loss)."""
    recipe, phase = family.recipe, family.recipe.phases[name]
    data = family.batches(name, recipe.seed + 1 + list(recipe.phases).index(name))
    betas = (0.9, recipe.beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=betas, weight_decay=recipe.weight_decay, fused=True
    )
    routed: list[tuple] = []
    hooks = [
        r.register_forward_hook(lambda _m, _i, out: routed.append((out[0], out[2])))
        for r in family.routers(model).values()
    ]
    curve, num_tokens, recent, start = [], 0, [], time.perf_counter()
    model.train()
    while clock.done() < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, clock.done(), clock.step)
        batch = next(data)
        recent.append(
            train_step(model, family.loss_of, optimizer, batch, routed, phase, recipe.clip_norm)
        )
        clock.step += 1
        num_tokens += family.count_tokens(batch)
        if len(recent) == CURVE_STEPS or clock.done() >= 1:
            curve.append([clock.step, round(sum(recent) / len(recent), 5)])
            recent.clear()
            tell(min(clock.done(), 1.0), curve[-1][1])
    for hook in hooks:
        hook.remove()
    seconds = round(time.perf_counter() - start, 1)
    return {
        "steps": clock.step,
        family.counted: num_tokens,
        "seconds": seconds,
        "loss_curve": curve,
    }


def run_phases(
    recipe: Training,
    minutes: float | None,
    steps: int | None,
    progress: Callable | None,
    train_phase: Callable,
) -> tuple[nn.Module, dict]:
    """Every phase on what the one before left -> (model, what each took).

    ``minutes`` or ``steps`` is divided between the phases by the recipe's minutes; without them
    each has its own length. ``train_phase(name, model, clock, tell)`` gives (model, what it took);
    the first gets None for a model.
    """
    model, took, planned = None, {}, sum(phase.minutes for phase in recipe.phases.values())
    for name, phase in recipe.phases.items():
        share = phase.minutes / planned
        if steps is not None:
            clock = Clock(0, max(1, round(steps * share)))
        elif minutes is not None:
            clock = Clock(minutes * share, None)
        else:
            clock = Clock(phase.minutes, phase.steps)
        model, took[name] = train_phase(
            name, model, clock, functools.partial(progress or say_nothing, name)
        )
    return model, took


def rounded_to_bf16(model):
    """The model as it will be read back: every weight rounded to bf16, arithmetic in float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model.eval()


def made_with() -> dict:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def save_whole(folder: Path, write: Callable[[Path], None]) -> Path:
    """``write`` a checkpoint into a folder of its own in ``folder`` and then rename file by file: a
    reader never sees half a file."""
    with door(f"the checkpoint could not be written into {folder}", REMEDY, StoreError):
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".specmoe-", dir=folder))
        try:
            write(staging)
            for file in sorted(staging.iterdir()):
                file.chmod(0o644)
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder
