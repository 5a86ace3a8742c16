"""What a trained model can do on held-out texts: loss, exact match, expert use.

Comes in: a model, its tokenizer, its recipe. Goes out: a dictionary that ``training.json`` and the
model card show.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from ..texts.data import DOMAINS, documents, prompts
from .model import routers
from .recipe import Recipe

HELD_OUT_SEED = 7
DEAD_SHARE = 0.001  # an expert with less of its layer's picks is called dead


def gini(counts: list[int]) -> float:
    """Gini coefficient of expert use: 0 is even, (E - 1) / E is one expert for everything."""
    ordered, n = sorted(counts), len(counts)
    total = sum(ordered)
    if not total:
        return 0.0
    return 2 * sum(i * x for i, x in enumerate(ordered, 1)) / (n * total) - (n + 1) / n


def left_padded(tokenizer, texts: list[str]) -> dict[str, torch.Tensor]:
    """[B, T] ids and mask with the padding in front, for batched generation."""
    return tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
    )


def count_picks(model) -> tuple[list[torch.Tensor], list]:
    """Per-layer counters [E] that grow with every forward pass, and the hooks to remove
    afterwards."""
    counts = [torch.zeros(model.config.num_local_experts, dtype=torch.long) for _ in routers(model)]

    def counter(count: torch.Tensor):
        # must return None, or it would replace the router's output
        def hook(_module, _inputs, output):
            count.add_(torch.bincount(output[2].reshape(-1), minlength=len(count)))

        return hook

    pairs = zip(routers(model), counts, strict=True)
    return counts, [router.register_forward_hook(counter(count)) for router, count in pairs]


@torch.no_grad()
def held_out_loss(
    model, tokenizer, domain: str, num_documents: int
) -> tuple[float, list[torch.Tensor]]:
    """Mean loss per token of one domain's held-out documents, and the experts picked: per layer
    [num_experts]."""
    counts, hooks = count_picks(model)
    total, num_tokens = 0.0, 0
    for document in itertools.islice(
        documents(domain, HELD_OUT_SEED, held_out=True), num_documents
    ):
        ids = tokenizer(document.text, verbose=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = ids[: model.config.max_position_embeddings]
        tokens = torch.tensor([ids])
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        total += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
        num_tokens += tokens.shape[1] - 1
    for hook in hooks:
        hook.remove()
    return total / num_tokens, counts


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


def evaluate(model, tokenizer, recipe: Recipe, num_prompts: int = 64) -> dict:
    """Held-out loss and exact match by domain; Gini and dead experts by layer over all domains
    together."""
    losses, matches, used = {}, {}, None
    for domain in DOMAINS:
        loss, counts = held_out_loss(model, tokenizer, domain, num_prompts)
        losses[domain] = round(loss, 4)
        used = counts if used is None else [a + b for a, b in zip(used, counts, strict=True)]
        match = exact_match(model, tokenizer, domain, num_prompts)
        if match is not None:
            matches[domain] = match
    ginis = [round(gini(count.tolist()), 4) for count in used]
    dead = [int((count < DEAD_SHARE * count.sum()).sum()) for count in used]
    return {
        "held_out_loss": {"mean": round(sum(losses.values()) / len(losses), 4), **losses},
        "exact_match": matches,
        "expert_use": {
            "gini_per_layer": ginis,
            "mean_gini": round(sum(ginis) / len(ginis), 4),
            "dead_per_layer": dead,
            "never_used_per_layer": [int((c == 0).sum()) for c in used],
            "counts": [count.tolist() for count in used],
        },
    }
