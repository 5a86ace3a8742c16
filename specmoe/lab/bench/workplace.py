"""What the cells share: engines that stay open from cell to cell, prompts and the texts that follow
them.

Comes in: what a cell needs. Goes out: a loaded engine, prompts, texts. ``parts`` calls this. One
engine is open at a time.
"""

from __future__ import annotations

import specmoe

from ... import checkpoint
from .prompts import held_out
from .settings import EXPERT_BYTES, LINKS, MODELS, TOKENS, Model

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
    """Opens engines and closes the one before. State: the open engine, texts by model."""

    def __init__(self, num_prompts: int = NUM_PROMPTS, device="cpu"):
        self.num_prompts = num_prompts
        self.device = device
        self._key: tuple | None = None
        self._engine = None
        self._texts: dict[str, list[list[int]]] = {}

    def engine(self, model: str, link: str = "native", **options):
        """An engine of ``model``, widened, on disk, over ``link``, with the budget of the
        comparison; options change that."""
        settings = {
            "store": "disk",
            "expert_bytes": EXPERT_BYTES,
            "link_bytes_per_s": LINKS.get(link),
            **options,
        }
        if "fast_memory" not in settings and "draft_experts" not in settings:
            settings["fast_memory"] = fast_memory(model_named(model), settings["expert_bytes"])
        key = (model, *sorted(settings.items(), key=str))
        if key != self._key:
            self.close()
            self._engine = specmoe.load(model, **settings)
            self._key = key
        return self._engine

    @property
    def opened(self):
        """The engine that is open."""
        return self._engine

    def prompts(self, model: str) -> list[str]:
        """Held-out prompts, the same for every method."""
        return held_out(self.num_prompts, SEED, is_translation(model))

    def texts(self, model: str) -> list[list[int]]:
        """For every prompt the tokens that the model continues it with (greedy, experts as they
        are, all in memory)."""
        if model not in self._texts:
            self.close()
            with specmoe.load(model, store="memory", device=self.device, trace=False) as engine:
                output = engine.generate(
                    self.prompts(model), method="resident", batch_size=128, max_new_tokens=TOKENS
                )
            rows = zip(output.sequences, output.num_prompt_tokens, strict=True)
            self._texts[model] = [sequence[length:].tolist() for sequence, length in rows]
        return self._texts[model]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = self._key = None
