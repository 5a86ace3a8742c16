"""An engine that decodes nothing: tokens from a formula, seconds from a script. For tests of what
stands above it."""

from __future__ import annotations

import dataclasses

import torch

from specmoe.engine.output import Output, Stats
from specmoe.errors import OptionError
from specmoe.options import GenerateOptions, from_kwargs
from specmoe.trace import Trace


def _code(token: str | int | dict) -> int:
    if isinstance(token, dict):
        return sum(map(ord, token["content"]))
    return token if isinstance(token, int) else ord(token)


class FakeEngine:
    """Keeps its calls in ``calls``. ``seconds`` maps a method to one duration per timed run;
    ``wrong`` names a method that gives another last token; ``refused`` prompts raise
    ``OptionError``; ``interrupt_at`` is the call that is interrupted."""

    is_translation = False

    def __init__(self, seconds=None, wrong=None, refused=(), interrupt_at=None, text=True):
        self.seconds = seconds or {}
        self.wrong = wrong
        self.refused = refused
        self.interrupt_at = interrupt_at
        self.tokenizer = object() if text else None
        self.calls: list[tuple[list, dict]] = []
        self.num_closed = 0
        self.info = {
            "name": "fake",
            "layers": 2,
            "experts": 8,
            "top_k": 2,
            "expert_bytes": 4096,
            "record_bytes": 4096,
            "draft_experts": 4,
            "fast_memory_bytes": 65536,
        }
        self.store_info = {
            "store": "disk",
            "reads": "direct",
            "num_readers": 4,
            "link_bytes_per_s": None,
        }

    def generate(self, prompts, **options) -> Output:
        self.calls.append((list(prompts), options))
        if self.interrupt_at == len(self.calls):
            raise KeyboardInterrupt
        first = options.get("first_prompt", 0)
        n = options.get("num_return_sequences") or 1
        own = ("first_prompt", "num_return_sequences", "settings")
        checked = from_kwargs(GenerateOptions, {k: v for k, v in options.items() if k not in own})
        settings = [one or {} for one in options.get("settings") or [None] * len(prompts)]
        for index, prompt in enumerate(prompts):
            if prompt in self.refused:
                raise OptionError(f"prompt {index} is refused")
        prompts = [prompt for prompt in prompts for _ in range(n)]
        new = [
            self._tokens(prompt, first + i, dataclasses.replace(checked, **settings[i // n]))
            for i, prompt in enumerate(prompts)
        ]
        if self.wrong == checked.method:
            new[-1][-1] += 1
        return self._output([list(map(_code, p)) for p in prompts], new, checked)

    @staticmethod
    def _tokens(prompt, number: int, options: GenerateOptions) -> list[int]:
        """Greedy: from the prompt alone; sampled: also from (seed, number)."""
        salt = 31 * (options.seed or 0) + 7 * number if options.do_sample else 0
        start = sum(map(_code, prompt)) + salt
        return [97 + (start + step) % 26 for step in range(options.max_new_tokens)]

    def _output(
        self, old: list[list[int]], new: list[list[int]], options: GenerateOptions
    ) -> Output:
        num_tokens = sum(map(len, new))
        left = self.seconds.get(options.method, [])
        is_warm_up = len(left) == 0 or options.max_new_tokens < self.seconds.get("timed_tokens", 0)
        seconds = 1.0 if is_warm_up else left.pop(0)
        drafts = options.method in ("specmoe", "auto")
        trace = Trace()
        trace.add("round", count=num_tokens, size=len(self.calls))
        sequences = [torch.tensor([*a, *b]) for a, b in zip(old, new)]
        texts = ["".join(map(chr, tokens)) for tokens in new] if self.tokenizer else []
        stats = Stats(
            method=options.method,
            gamma=float(options.gamma or 0),
            batch_size=options.batch_size or 64,
            num_new_tokens=num_tokens,
            seconds=seconds,
            tokens_per_second=num_tokens / seconds,
            num_rounds=1,
            num_plain_rounds=0,
            tokens_per_round=1.0,
            acceptance_rate=0.5 if drafts else 0.0,
            fetched_bytes=100 * num_tokens,
            num_fetches=1,
            num_hits=0,
            num_misses=1,
            prefetch_recall=0.0,
            prefetch_precision=float("nan"),
            wait_s=seconds / 4,
            draft_s=seconds / 8 if drafts else 0.0,
            verify_s=seconds / 2,
            prefill_s=0.5,
            prefill_bytes=10,
            peak_fast_expert_bytes=65536,
            kept_full=len(new) > (options.batch_size or 64),
        )
        return Output(sequences, texts, texts, list(map(len, old)), stats, trace)

    def close(self) -> None:
        self.num_closed += 1

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()
