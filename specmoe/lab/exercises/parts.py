"""Right answers to the exercises that have one, in plain Python: what a student's parts are compared
with, and what the capstone lends to whoever skipped an exercise.

Comes in and goes out: what each exercise's text says. Tests hold them to the package's own
functions.
"""

from __future__ import annotations

import torch


def table(distances, residents):
    """Exercise 1: for each expert the nearest resident, E where nobody is resident."""
    nobody = len(distances)
    if not residents:
        return [nobody] * nobody
    nearest = [min(sorted(residents), key=lambda r: row[r]) for row in distances]
    return [e if e in residents else nearest[e] for e in range(nobody)]


def accept(target, drafted, num_drafted):
    """Exercise 3: per row (accepted tokens, the target's token after them)."""
    verdicts = []
    for row, guesses, length in zip(target, drafted, num_drafted):
        accepted = 0
        while accepted < length and row[accepted] == guesses[accepted]:
            accepted += 1
        verdicts.append((accepted, row[accepted]))
    return verdicts


def verify(p, q, token, uniform):
    """Exercise 4: None to accept, else the distribution of the replacement."""
    if uniform < p[token] / q[token]:
        return None
    beyond = [max(0.0, a - b) for a, b in zip(p, q)]
    return [x / sum(beyond) for x in beyond]


def coalesce(routing, num_tokens, resident):
    """Exercise 5: the experts to fetch, and the tokens of every needed expert."""
    tokens = {}
    for b, length in enumerate(num_tokens):
        for t in range(length):
            for expert in routing[b][t]:
                tokens.setdefault(expert, []).append((b, t))
    return [expert for expert in tokens if expert not in resident], tokens


def draft_set(layer, counts, num_draft, memory):
    """Exercise 6: the experts used most, of which older uses count less."""
    heat = memory.setdefault(layer, [0.0] * len(counts))
    for expert, count in enumerate(counts):
        heat[expert] = 0.5 * heat[expert] + count
    return sorted(range(len(counts)), key=lambda e: -heat[e])[:num_draft]


def plan(rounds, link_bytes_per_s):
    """Exercise 7: the gamma with the fewest seconds per token."""

    def seconds_per_token(one):
        return (one["bytes"] / link_bytes_per_s + one["compute_s"]) / one["tokens"]

    return min(rounds, key=seconds_per_token)["gamma"]


def draft_layer(hidden, router, experts, stand_in, top_k):
    """Exercise 8: a MoE layer [T, D] in which stand-ins compute for missing experts."""
    scores, chosen = (hidden @ router.T).topk(top_k)  # [T, K]
    weights = scores.softmax(dim=-1)
    out = torch.zeros_like(hidden)
    for t in range(len(hidden)):
        for weight, expert in zip(weights[t], chosen[t].tolist()):
            if stand_in[expert] < len(experts):
                out[t] += weight * experts[stand_in[expert]](hidden[t])
    return out


def next_block(starts, accepted, num_tokens, length):
    """Exercise 9: where the next block begins in each row, and which keys its tokens may see."""
    begins = [start + 1 + number for start, number in zip(starts, accepted)]
    visible = [
        [[key <= begin + t for key in range(length)] for t in range(num_tokens)] for begin in begins
    ]
    return begins, visible


def coupled(p, q, noise):
    """Exercise 10: what the draft draws, how many of it stand, and the target's token after
    them."""

    def race(chances, waits):
        return max(range(len(chances)), key=lambda x: chances[x] / waits[x])

    drafted = [race(row, waits) for row, waits in zip(q, noise)]
    target = [race(row, waits) for row, waits in zip(p, noise)]
    [(accepted, token)] = accept([target], [drafted], [len(drafted)])
    return drafted, accepted, token


def expected_tokens(alpha, gamma):
    """Exercise 11: expected tokens of a round."""
    return sum(alpha**i for i in range(gamma + 1))


def read_ahead(votes, held, quorum, room):
    """Exercise 13: (layer, expert) to read before the verification, the first in front."""
    reads = []
    for layer, row in enumerate(votes):
        named = [e for e in range(len(row)) if row[e] >= quorum and (layer, e) not in held]
        reads += [(layer, e) for e in sorted(named, key=lambda e: -row[e])]
    return reads[:room]


def decode(model, prompt, num_new, gamma):
    """Exercise 14: the engine without its bugs."""
    text, end = list(prompt), len(prompt) + num_new
    model.forward(text[:-1])
    while len(text) < end:
        drafted = []
        for _ in range(min(gamma, end - len(text) - 1)):
            drafted.append(model.draft(text + drafted))
        target = model.forward([text[-1], *drafted])
        [(accepted, token)] = accept([target], [drafted], [len(drafted)])
        text += [*drafted[:accepted], token]
        model.forget(len(drafted) - accepted)
    return text[len(prompt) :]
