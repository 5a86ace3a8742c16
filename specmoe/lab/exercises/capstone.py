"""Exercise 12: your own decoder, from your own parts.

Comes in: the student's ``generate(machine, prompts, num_new)``. Goes out: a verdict: the tokens must
be those of plain decoding, and the bytes fetched per new token are the score. ``machine`` is what it
runs on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
import torch
from transformers import AutoTokenizer

from ... import checkpoint
from . import parts
from .calling import Task, listed, wholes
from .machine import LENGTH, Machine
from .verdict import Passed, Scale, require, scored
from .workload import MODEL, prompts

TASK = Task(
    "generate",
    ("machine", "prompts", "num_new"),
    "one list of num_new new tokens for each prompt",
    writable=("machine",),
    seconds=600,
)
NUM_NEW = 24
# bytes per token against plain decoding on demand, for pass, good and excellent
SHARES = (0.95, 0.55, 0.45)


@functools.lru_cache(maxsize=1)
def tokenized(num_prompts: int = 4) -> list[list[int]]:
    """Tokens of held-out prompts, of different lengths."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve(MODEL))
    return [tokenizer(text)["input_ids"] for text in prompts(num_prompts)]


# ---- a decoder from the parts that are right ----


class Decoder:
    """Our own answer, from ``parts``. ``gamma=0``: plain decoding; ``keeps=False``: on demand."""

    def __init__(self, machine: Machine, gamma: int = 5, keeps: bool = True):
        self.machine, self.gamma, self.keeps = machine, gamma, keeps
        self.memory: dict = {}
        self.lengths: list[int] = []

    def full(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The MoE layer of the full model: each needed expert is fetched once; what drafts next
        stays."""
        machine, size = self.machine, hidden.shape[-1]
        scores, chosen = (hidden @ machine.router(layer).T).topk(machine.top_k)
        shares, out = scores.softmax(dim=-1), torch.zeros_like(hidden)
        here = machine.resident(layer)
        fetch, tokens = parts.coalesce(chosen.tolist(), self.lengths, here)
        counts = [len(tokens.get(expert, ())) for expert in range(machine.num_experts)]
        stay = set(parts.draft_set(layer, counts, machine.num_draft, self.memory))
        stay = stay & (here | set(fetch)) if self.keeps else set()
        experts = machine.experts(layer)
        for expert in [*(here & set(tokens)), *fetch]:
            if expert not in here:
                self._make_room(layer, stay)
                machine.fetch(layer, expert)
            for b, t in tokens[expert]:
                share = shares[b, t][chosen[b, t] == expert]
                out[b, t] += share * experts[expert](hidden[b, t].view(1, size))[0]
        for expert in machine.resident(layer) - stay:
            machine.drop(layer, expert)
        return out

    def _make_room(self, layer: int, stay: set[int]) -> None:
        """Drop whom nobody waits for, where all slots are taken."""
        machine, here = self.machine, self.machine.resident(layer)
        if len(here) == machine.num_slots:
            machine.drop(layer, min(here - stay or here))

    def draft(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The MoE layer of the draft."""
        machine = self.machine
        table = parts.table(machine.distances(layer), sorted(machine.resident(layer)))
        flat = parts.draft_layer(
            hidden.flatten(0, 1),
            machine.router(layer),
            machine.experts(layer),
            table,
            machine.top_k,
        )
        return flat.view_as(hidden)

    def generate(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """``num_new`` tokens for each prompt."""
        texts, ends = [list(row) for row in prompts], [len(row) + num_new for row in prompts]
        begins, mask = self.prefill(texts)
        while any(len(text) < end for text, end in zip(texts, ends)):
            room = [max(0, end - len(text) - 1) for text, end in zip(texts, ends)]
            drafted = self.draft_block(texts, begins, max(min(self.gamma, max(room)), 0))
            num = [min(len(row), r) for row, r in zip(drafted, room)]
            live = [len(text) < end for text, end in zip(texts, ends)]
            begins = self.verify(texts, begins, drafted, num, live)
        return [text[-num_new:] for text in texts]

    def prefill(self, texts):
        """All but each prompt's last token, padded to the longest."""
        rest = [text[:-1] for text in texts]
        width = max(map(len, rest))
        self.lengths = [len(row) for row in rest]
        begins, mask = parts.next_block([-1] * len(texts), [0] * len(texts), width, LENGTH)
        self.machine.forward(
            [row + [0] * (width - len(row)) for row in rest], begins, mask, self.full
        )
        return [len(text) - 1 for text in texts], mask

    def draft_block(self, texts, begins, gamma: int) -> list[list[int]]:
        """``gamma`` tokens per row from the residents."""
        drafted: list[list[int]] = [[] for _ in texts]
        last = [text[-1] for text in texts]
        for step in range(gamma):
            stand = [begin + step for begin in begins]
            _, mask = parts.next_block([s - 1 for s in stand], [0] * len(stand), 1, LENGTH)
            logits = self.machine.forward([[token] for token in last], stand, mask, self.draft)
            last = logits[:, -1].argmax(dim=-1).tolist()
            for row, token in zip(drafted, last):
                row.append(token)
        return drafted

    def verify(self, texts, begins, drafted, num, live) -> list[int]:
        """Verify a block, append what stands; where the next one begins."""
        block = [[text[-1], *row] for text, row in zip(texts, drafted)]
        self.lengths = [1 + n if alive else 0 for n, alive in zip(num, live)]
        _, mask = parts.next_block(
            [b - 1 for b in begins], [0] * len(begins), len(block[0]), LENGTH
        )
        target = self.machine.forward(block, begins, mask, self.full).argmax(dim=-1).tolist()
        verdicts = parts.accept(target, drafted, num)
        for text, row, (accepted, token), alive in zip(texts, drafted, verdicts, live):
            text += [*row[:accepted], token] if alive else []
        return [
            begin + 1 + accepted if alive else begin
            for begin, (accepted, _), alive in zip(begins, verdicts, live)
        ]


def ours(gamma: int = 5, keeps: bool = True) -> Callable:
    """``generate`` as our own parts do it."""
    return lambda machine, prompts, num_new: Decoder(machine, gamma, keeps).generate(
        prompts, num_new
    )


@functools.lru_cache(maxsize=4)
def reference(num_rows: int, gamma: int, keeps: bool) -> tuple[list[list[int]], int]:
    """(tokens, bytes) of our decoder for the first prompts."""
    machine = Machine(num_rows)
    tokens = ours(gamma, keeps)(machine, tokenized()[:num_rows], NUM_NEW)
    return tokens, machine.bytes


def read_tokens(answer) -> list[list[int]]:
    return [wholes(row) for row in listed(answer)]


def _compare(tokens: list[list[int]], right: list[list[int]], told: str) -> None:
    require(
        len(tokens) == len(right),
        f"you give {len(tokens)} rows of tokens for {len(right)} prompts",
        told,
    )
    for row, (mine, own) in enumerate(zip(tokens, right)):
        require(
            len(mine) == len(own),
            f"row {row} has {len(mine)} new tokens and needs {len(own)}: give the new ones, no "
            "more and no fewer",
            told,
        )
        place = next((i for i, (a, b) in enumerate(zip(mine, own)) if a != b), None)
        require(place is None, _where(row, place, mine, own), told)


def _where(row: int, place: int | None, mine, own) -> str:
    if place is None:
        return ""
    if place == 0:
        return (
            f"row {row} is wrong from its first new token on: look at the prefill, which leaves "
            "the prompt's last token to the first round"
        )
    return (
        f"row {row} is exact up to new token {place} and then leaves the target's text: a token "
        "was accepted that the target did not choose, a stale key was seen (do begins follow what "
        "was accepted?), or an accepted token was not appended"
    )


def _ask(generate: Callable, num_rows: int) -> int:
    """Bytes of a run that has to be exact."""
    machine, given = Machine(num_rows), tokenized()[:num_rows]
    right = reference(num_rows, 0, False)[0]
    answer = TASK.ask(generate, (machine, given, NUM_NEW), read_tokens)
    _compare(answer, right, TASK.told((machine, given, NUM_NEW), answer=answer, right=right))
    return machine.bytes


def check_capstone(generate: Callable) -> Passed:
    """Verdict on ``generate(machine, prompts, num_new)``; raises ``ExerciseError`` naming the
    mistake."""
    TASK.check_function(generate)
    with torch.inference_mode():
        _ask(generate, 1)
        num_bytes = {
            "yours": _ask(generate, 4),
            "on demand": reference(4, 0, False)[1],
            "kept, no draft": reference(4, 0, True)[1],
            "kept, gamma 5": reference(4, 5, True)[1],
        }
    per_token = {name: round(size / 4 / NUM_NEW / 1e3, 1) for name, size in num_bytes.items()}
    scores = pd.DataFrame(per_token.items(), columns=["decoder", "kB_per_token"])
    plain = per_token["on demand"]
    limits = tuple(round(share * plain, 1) for share in SHARES)
    told = f"exact, and {per_token['yours']} kB per token; plain decoding on demand {plain} kB"
    return scored(Passed(told, scores), per_token["yours"], Scale("kB per token", limits), told)
