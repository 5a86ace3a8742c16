"""Is the output exact? Every method against plain decoding, and where they part, by how little.

Comes in: a loaded engine and prompts. Goes out: an ``ExactReport``. ``Engine.check_exact`` calls this.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

METHODS = ("on_demand", "overlapped", "cached", "specmoe", "resident")


@dataclass(frozen=True)
class Divergence:
    """The first token where a method left plain decoding; ``logit_gap`` is the target's top-2 gap there."""

    method: str
    prompt: int
    position: int
    plain_token: int | None
    token: int | None
    logit_gap: float


@dataclass(frozen=True)
class ExactReport:
    """Which methods gave the tokens of plain decoding. True in a condition when all did."""

    num_prompts: int
    num_tokens: int
    methods: tuple[str, ...]
    divergences: tuple[Divergence, ...]

    def __bool__(self) -> bool:
        return not self.divergences

    def __str__(self) -> str:
        if self:
            return f"exact: {len(self.methods)} methods, {self.num_prompts} prompts, {self.num_tokens} tokens each"
        return "\n".join(
            f"{d.method}: prompt {d.prompt}, position {d.position}: token {d.token} instead of {d.plain_token} "
            f"(top-2 logit gap {d.logit_gap:.2e})"
            for d in self.divergences
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def compare_methods(engine, prompts, max_new_tokens: int = 64, methods=METHODS, **options) -> ExactReport:
    """Greedy output of every method against ``on_demand`` one row at a time, the plainest way to decode."""
    plain = engine.generate(prompts, method="on_demand", batch_size=1, max_new_tokens=max_new_tokens, **options)
    divergences = []
    for method in methods:
        output = engine.generate(prompts, method=method, max_new_tokens=max_new_tokens, **options)
        for prompt, (expected, got) in enumerate(zip(plain.sequences, output.sequences, strict=True)):
            if expected.tolist() != got.tolist():
                source = plain.sources[prompt]
                divergences.append(_first_divergence(engine, method, prompt, expected.tolist(), got.tolist(), source))
    return ExactReport(len(plain.sequences), plain.stats.num_new_tokens, tuple(methods), tuple(divergences))


def _first_divergence(engine, method: str, prompt: int, expected: list[int], got: list[int], source=None) -> Divergence:
    pairs = zip(expected, got, strict=False)
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(got)))
    top = engine.next_logits(expected[:position], source).float().topk(2).values
    at = [tokens[position] if position < len(tokens) else None for tokens in (expected, got)]
    return Divergence(method, prompt, position, at[0], at[1], float(top[0] - top[1]))
