"""Plain decoding with everything in memory: this engine's ``resident`` against transformers' own
``generate``.

Comes in: a run of the part "resident". Goes out: tokens and seconds of decoding alone. Both: the
same checkpoint, float32, the same threads, the same prompts, ``TOKENS`` new tokens for each, no
EOS, so that the batch stays full. transformers' prefill ends with its first token: the clock starts
there."""

from __future__ import annotations

import time
from pathlib import Path

import specmoe

from ... import checkpoint
from .runs import Run
from .settings import TOKENS, Length

_loaded: dict[str, object] = {}


def measure_resident(place, run: Run, length: Length) -> dict:
    """Whole runs until half a slice has passed; tokens and seconds of their decoding."""
    prompts = place.prompts(run.model)[: run.batch]
    decode = _open(run.method, run.model)
    decode(prompts, 4)  # warm-up
    tokens, seconds, runs = 0, 0.0, 0
    while seconds < length.slice_s / 2:
        more_tokens, more_s = decode(prompts, TOKENS)
        tokens, seconds, runs = tokens + more_tokens, seconds + more_s, runs + 1
    return {
        "num_new_tokens": tokens,
        "seconds": seconds,
        "runs": runs,
        "tokens_per_second": tokens / seconds,
    }


def _open(what: str, model: str):
    """The two stay open from cell to cell: they are small, and alternate."""
    if what not in _loaded:
        _loaded[what] = (
            Resident(model) if what == "resident" else Transformers(checkpoint.resolve(model))
        )
    return _loaded[what]


def close() -> None:
    """Forget both."""
    if "resident" in _loaded:
        _loaded["resident"].engine.close()
    _loaded.clear()


class Resident:
    """This engine with every expert in memory."""

    def __init__(self, model: str):
        self.engine = specmoe.load(model, store="memory", dtype="float32", trace=False)

    def __call__(self, prompts: list, new_tokens: int) -> tuple[int, float]:
        stats = self.engine.generate(
            prompts,
            method="resident",
            batch_size=len(prompts),
            max_new_tokens=new_tokens,
            eos_token_id=[],
        ).stats
        return stats.num_new_tokens, stats.seconds


class Transformers:
    """transformers' ``generate``; ``load`` goes to ``from_pretrained``."""

    def __init__(self, path, **load):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **load})
        self.tokenizer = None
        if any(Path(path).glob("token*")):
            self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token_id = self.tokenizer.eos_token_id or 0

    def _batch(self, prompts: list) -> dict:
        """Texts, or lists of ids of one length."""
        import torch

        if self.tokenizer is not None:
            return self.tokenizer(prompts, return_tensors="pt", padding=True)
        ids = torch.tensor(prompts)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def __call__(
        self, prompts: list, new_tokens: int, each_step=lambda: None, most_s: float = 1e9
    ) -> tuple[int, float]:
        """New tokens after the first, and their seconds; stops after ``most_s``. ``each_step``:
        called after each. ``prompts``: texts, or lists of ids where there is no tokenizer."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        times = []

        class Clock(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                times.append(time.perf_counter())
                each_step()
                over = times[-1] - times[0] > most_s
                return torch.full((len(input_ids),), over, dtype=torch.bool)

        batch = self._batch(prompts)
        with torch.inference_mode():
            self.model.generate(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=self.tokenizer.pad_token_id if self.tokenizer else 0,
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )
        return len(prompts) * (len(times) - 1), times[-1] - times[0]
