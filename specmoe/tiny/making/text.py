"""The models of texts: their documents, loss, and what they can do on held-out ones.

Comes in: a ``Recipe``. Goes out: ``Texts``, which ``train`` follows; its ``evaluate`` gives loss,
exact match and expert use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ..texts.data import DOMAINS, documents, mixture, prompts
from .evaluate import HELD_OUT_SEED, counted_picks, expert_use
from .model import new_model, new_tokenizer
from .recipe import Recipe
from .training import Family

_TOKENIZER_TEXTS = 6000


class Texts(Family):
    """A Mixtral-class model that goes on with a text."""

    recipe: Recipe

    def new_tokenizer(self):
        drawn = mixture(self.recipe.dense.weights, self.recipe.seed)
        texts = (document.text for _, document in itertools.islice(drawn, _TOKENIZER_TEXTS))
        return new_tokenizer(texts, self.recipe.shape)

    def dense(self) -> nn.Module:
        return new_model(self.recipe.shape, 1)

    def sparse(self) -> nn.Module:
        return new_model(self.recipe.shape, self.recipe.shape.num_experts)

    def batches(self, phase: str, seed: int) -> Iterator[torch.Tensor]:
        """[rows, length + 1] tokens; each row starts with a document and only its last one is
        cut."""
        sequences = self._sequences(phase, seed)
        for step in itertools.count(1):
            length = self.recipe.sequence_tokens * (2 if step % 8 == 0 else 1)
            rows = []
            for _ in range(self.recipe.batch_tokens // length):
                row: list[int] = []
                while len(row) <= length:
                    row += next(sequences)
                rows.append(row[: length + 1])
            yield torch.tensor(rows)

    def _sequences(self, phase: str, seed: int) -> Iterator[list[int]]:
        """Token ids of whole documents, ``<s> ... </s>``; a few without their announcing line."""
        rng = random.Random(f"bare {seed}")
        for _, document in mixture(self.recipe.phases[phase].weights, seed):
            bare = (
                document.exact
                and document.completion[0] == "\n"
                and rng.random() < self.recipe.bare_share
            )
            text = document.completion[1:] if bare else document.text
            yield self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, verbose=False)["input_ids"] + [self.tokenizer.eos_token_id]

    def loss_of(self, model, batch: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross-entropy of [B, T + 1] tokens."""
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def count_tokens(self, batch: torch.Tensor) -> int:
        return batch.numel()

    def routers(self, model) -> dict[str, nn.Module]:
        return {str(index): layer.mlp.gate for index, layer in enumerate(model.model.layers)}

    @torch.no_grad()
    def evaluate(self, model, num: int) -> dict:
        """Loss and exact match by domain; Gini and dead experts by layer over all domains
        together."""
        with counted_picks(self.routers(model), model.config.num_local_experts) as counts:
            losses = {
                domain: round(self._held_out_loss(model, domain, num), 4) for domain in DOMAINS
            }
        matches = {domain: exact_match(model, self.tokenizer, domain, num) for domain in DOMAINS}
        use = expert_use(counts)
        # layers are numbered here, so their order says it all
        per_layer = {
            name: list(value.values()) for name, value in use.items() if isinstance(value, dict)
        }
        return {
            "held_out_loss": {"mean": round(sum(losses.values()) / len(losses), 4), **losses},
            "exact_match": {domain: match for domain, match in matches.items() if match},
            "expert_use": use | per_layer,
        }

    def _held_out_loss(self, model, domain: str, num: int) -> float:
        """Mean loss per token of ``num`` held-out documents of a domain."""
        total, num_tokens = 0.0, 0
        held_out = documents(domain, HELD_OUT_SEED, held_out=True)
        for document in itertools.islice(held_out, num):
            ids = self._ids(document.text)[: model.config.max_position_embeddings]
            total += self.loss_of(model, torch.tensor([ids])).item() * (len(ids) - 1)
            num_tokens += len(ids) - 1
        return total / num_tokens

    def published(self, model) -> nn.Module:
        half = type(model)(model.config).to(torch.bfloat16)
        half.load_state_dict(model.state_dict())
        half.generation_config.update(
            do_sample=False, bos_token_id=0, eos_token_id=1, pad_token_id=2
        )
        return half


def left_padded(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """[B, T] ids and mask with the padding in front, for batched generation."""
    return tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )


@torch.no_grad()
def exact_match(model, tokenizer, domain: str, num_prompts: int) -> dict[str, float] | None:
    """Greedy completions against the expected ones: share wholly right, and share of lines
    right."""
    wanted = [
        prompt
        for prompt in prompts(domain, num_prompts, HELD_OUT_SEED)
        if prompt.expected is not None
    ]
    if not wanted:
        return None
    whole, lines, num_lines = 0, 0, 0
    for start in range(0, len(wanted), 16):
        part = wanted[start : start + 16]
        inputs = left_padded(tokenizer, [prompt.text for prompt in part])
        longest = max(len(tokenizer(prompt.expected)["input_ids"]) for prompt in part)
        output = model.generate(**inputs, max_new_tokens=longest + 1, do_sample=False)
        for prompt, row in zip(part, output[:, inputs["input_ids"].shape[1] :], strict=True):
            got = tokenizer.decode(row, skip_special_tokens=True)
            whole += got == prompt.expected
            right, expected = got.strip("\n").split("\n"), prompt.expected.strip("\n").split("\n")
            lines += sum(a == b for a, b in itertools.zip_longest(right[: len(expected)], expected))
            num_lines += len(expected)
    return {
        "whole": round(whole / len(wanted), 4),
        "lines": round(lines / num_lines, 4),
        "prompts": len(wanted),
    }
