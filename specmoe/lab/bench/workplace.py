"""What the cells share: engines that stay open from cell to cell, prompts and the texts that follow
them.

Comes in: what a cell needs. Goes out: a loaded engine, prompts, texts. ``parts`` calls this. The
engines that are open at a time are those of one model over one link.
"""

from __future__ import annotations

import specmoe

from ... import checkpoint
from ...checkpoint.cache import cache_folder
from . import low_bit
from .prompts import held_out
from .settings import EXPERT_BYTES, LINKS, MODELS, TOKENS, Model
from .window import CALIBRATED

NUM_PROMPTS = 512
SEED = 2026


def is_translation(model: str) -> bool:
    """Of a shipped model, by its name."""
    return model == "tiny-translate"


def model_named(name: str) -> Model:
    return next(model for model in MODELS.values() if model.name == name)


def fast_memory(model: Model, expert_bytes: int | None = EXPERT_BYTES) -> int:
    """Bytes of fast memory that every method but ``resident`` gets: so many experts' records for
    each decoding layer."""
    packed = checkpoint.pack(checkpoint.resolve(model.name), expert_bytes=expert_bytes)
    return model.experts_per_layer * model.num_layers * packed.layout.record_bytes


class Workplace:
    """Opens engines and closes those before. State: the open engines, texts and use of experts by
    model."""

    def __init__(self, num_prompts: int = NUM_PROMPTS, device="cpu"):
        self.num_prompts = num_prompts
        self.device = device
        self._opened: dict[tuple, object] = {}
        self._cell: tuple = ()
        self._texts: dict[str, list[list[int]]] = {}
        self._hotness: dict[str, list[list[int]]] = {}
        self._low_bit: dict[str, dict] = {}

    def engine(self, model: str, link: str = "native", number: int = 0, **options):
        """An engine of ``model``, widened, on disk, over ``link``, with the budget of the
        comparison; options change that. ``number``: which of several that are open at a time; all
        of them have the same model and link."""
        settings = {
            "store": "disk",
            "expert_bytes": EXPERT_BYTES,
            "link_bytes_per_s": LINKS.get(link),
            **options,
        }
        if "fast_memory" not in settings and "draft_experts" not in settings:
            settings["fast_memory"] = fast_memory(model_named(model), settings["expert_bytes"])
        key = (number, *sorted(settings.items(), key=str))
        if self._cell != (model, link):
            self.close()
        if key not in self._opened:
            self._drop(number)
            self._opened[key] = specmoe.load(settings.pop("path", model), **settings)
        self._cell = model, link
        return self._opened[key]

    def low_bit(self, model: str, store: str) -> dict:
        """Options of ``engine`` for one of ``low_bit.STORES``, read where it lies: as many experts
        in fast memory as in the others, in its own bytes."""
        if model not in self._low_bit:
            folder = cache_folder() / f"bench-low-bit-{model}"
            self._low_bit[model] = low_bit.checkpoints(model, folder, EXPERT_BYTES)
        path = str(self._low_bit[model][store])
        return {"path": path, "store": "checkpoint", "expert_bytes": None, "draft_experts": 8}

    def _drop(self, number: int) -> None:
        for key in [key for key in self._opened if key[0] == number]:
            self._opened.pop(key).close()

    @property
    def opened(self):
        """An engine that is open."""
        return next(iter(self._opened.values()), None)

    def prompts(self, model: str) -> list[str]:
        """Held-out prompts, the same for every method."""
        return held_out(self.num_prompts, SEED, is_translation(model))

    def texts(self, model: str) -> list[list[int]]:
        """For every prompt the tokens that the model continues it with (greedy, experts as they
        are, all in memory)."""
        if model not in self._texts:
            self._learn(model)
        return self._texts[model]

    def hotness(self, model: str) -> list[list[int]]:
        """What ``Engine.calibrate`` counts, whatever the store and the link: [L][E]."""
        if model not in self._hotness:
            self._learn(model)
        return self._hotness[model]

    def _learn(self, model: str) -> None:
        with specmoe.load(model, store="memory", device=self.device, trace=False) as engine:
            output = engine.generate(
                self.prompts(model), method="resident", batch_size=128, max_new_tokens=TOKENS
            )
            self._hotness[model] = engine.calibrate(self.prompts(model)[:CALIBRATED])
        rows = zip(output.sequences, output.num_prompt_tokens, strict=True)
        self._texts[model] = [sequence[length:].tolist() for sequence, length in rows]

    def close(self) -> None:
        for engine in self._opened.values():
            engine.close()
        self._opened, self._cell = {}, ()
