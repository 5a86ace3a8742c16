"""Tokens per round by the plainest means: every step recomputes the whole text, no pool, no
kv_cache.

Comes in: a model, prompts, gamma and N. Goes out: the new tokens of each round. The model cards were
measured with it, and it is an independent check of the engine. A drafted token sees the target's own past: only the positions from the last accepted token on go through the draft
experts, as they would with a KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from specmoe.tiny.making.model import sorted_dispatch

DRAFTING = "specmoe_reference_drafting"


@dataclass
class Row:
    """One prompt in flight; ``tokens`` grows by each round."""

    index: int
    tokens: list[int]
    prompt_length: int
    rounds: list[int] = field(default_factory=list)


def distances(experts) -> torch.Tensor:
    """[E, E] L2 distance between the experts' weights."""
    flat = torch.cat([experts.gate_up_proj.flatten(1), experts.down_proj.flatten(1)], dim=1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")


class Reference:
    """A model that can run its last positions on draft experts. Changes the model's experts
    function."""

    def __init__(self, model, num_draft: int):
        self.model = model.eval()
        self.num_draft = num_draft
        self.drafted: torch.Tensor | None = None  # [B*T] True where the draft experts run
        self.layers = [layer.mlp.experts for layer in model.model.layers]
        self.distance = {id(e): distances(e) for e in self.layers}
        # [E] pick -> resident
        self.nearest = {id(e): torch.arange(e.num_experts) for e in self.layers}
        ALL_EXPERTS_FUNCTIONS.register(DRAFTING, self._experts)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = DRAFTING

    def _experts(self, experts, hidden, top_k_index, top_k_weights):
        if self.drafted is not None:
            top_k_index = torch.where(
                self.drafted[:, None], self.nearest[id(experts)][top_k_index], top_k_index
            )
        return sorted_dispatch(experts, hidden, top_k_index, top_k_weights)

    def choose(self, counts: list[torch.Tensor]) -> None:
        """HotTemporal: the N most used experts of each layer become resident."""
        for experts, count in zip(self.layers, counts, strict=True):
            resident = count.topk(self.num_draft).indices
            self.nearest[id(experts)] = resident[self.distance[id(experts)][:, resident].argmin(1)]

    @torch.no_grad()
    def next_tokens(self, texts: list[list[int]], draft_from: list[int] | None) -> torch.Tensor:
        """[B, T] greedy next token after every position; positions from ``draft_from`` on use the
        draft experts."""
        length = max(map(len, texts))
        ids = torch.tensor([text + [2] * (length - len(text)) for text in texts])
        self.drafted = None
        if draft_from is not None:
            self.drafted = (
                torch.arange(length)[None] >= torch.tensor(draft_from)[:, None]
            ).flatten()
        return self.model(input_ids=ids, use_cache=False).logits.argmax(-1)

    def verify(self, texts: list[list[int]], counted_from: list[int]) -> torch.Tensor:
        """The target's next tokens; the picks of the verified positions choose the next draft
        experts."""
        picks, hooks = [], []
        for layer in self.model.model.layers:
            hooks.append(
                layer.mlp.gate.register_forward_hook(lambda _m, _i, out: picks.append(out[2]))
            )
        tokens = self.next_tokens(texts, None)
        for hook in hooks:
            hook.remove()
        where = torch.arange(tokens.shape[1])[None]
        live = where >= torch.tensor(counted_from)[:, None]
        live &= where < torch.tensor([len(text) for text in texts])[:, None]
        num_experts = self.layers[0].num_experts
        self.choose(
            [torch.bincount(p[live.flatten()].flatten(), minlength=num_experts) for p in picks]
        )
        return tokens


def _round(reference: Reference, rows: list[Row], gamma: int, eos: int, max_new: int) -> None:
    # the last token has not been through the target yet
    starts = [len(row.tokens) - 1 for row in rows]
    texts = [list(row.tokens) for row in rows]
    for _ in range(gamma):
        guess = reference.next_tokens(texts, starts)
        for i, text in enumerate(texts):
            text.append(int(guess[i, len(text) - 1]))
    truth = reference.verify(texts, starts)
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        own = truth[i, starts[i] :].tolist()  # the target's token after each verified position
        agreed = 0
        while agreed < gamma and text[starts[i] + 1 + agreed] == own[agreed]:
            agreed += 1
        before = len(row.tokens)
        for token in own[: agreed + 1]:
            row.tokens.append(token)
            if token == eos or len(row.tokens) - row.prompt_length >= max_new:
                break
        row.rounds.append(len(row.tokens) - before)


def tokens_per_round(
    model,
    prompts: list[list[int]],
    num_draft: int,
    gamma: int = 5,
    batch: int = 16,
    max_new: int = 64,
    eos: int = 1,
) -> list[list[int]]:
    """For each prompt, the new tokens of each of its rounds; the last one may be cut. Finished rows
    are refilled."""
    reference, done, queue = Reference(model, num_draft), {}, list(enumerate(prompts))
    rows: list[Row] = []
    while queue or rows:
        while queue and len(rows) < batch:
            index, tokens = queue.pop(0)
            rows.append(Row(index, list(tokens), len(tokens)))
        # prefill decides the first draft experts
        if not done and not any(row.rounds for row in rows):
            reference.verify([row.tokens for row in rows], [0] * len(rows))
        _round(reference, rows, gamma, eos, max_new)
        for row in rows:
            if row.tokens[-1] == eos or len(row.tokens) - row.prompt_length >= max_new:
                done[row.index] = row.rounds
        rows = [row for row in rows if row.index not in done]
    return [done[index] for index in range(len(prompts))]
