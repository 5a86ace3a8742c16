"""Plausible wrong answers to exercises 8 to 12, each with words of the sentence that has to name
the mistake."""

from __future__ import annotations

import torch

from specmoe.lab.exercises import parts
from specmoe.lab.exercises.capstone import LENGTH, Decoder


def layer(weigh=None, who=None, replace=True):
    """A MoE layer, written with matrices; ``weigh(scores, top)`` and ``who(chosen, stand_in)`` may
    be wrong."""

    def draft_layer(hidden, router, experts, stand_in, top_k):
        scores = hidden @ router.T
        top = scores.topk(top_k)
        weights = top.values.softmax(-1) if weigh is None else weigh(scores, top)
        out = torch.zeros_like(hidden)
        for t, row in enumerate(top.indices.tolist()):
            for k, chosen in enumerate(row):
                expert = who(chosen, stand_in) if who else stand_in[chosen] if replace else chosen
                if expert is not None and expert < len(experts):
                    out[t] = out[t] + weights[t, k] * experts[expert](hidden[t])
        return out

    return draft_layer


def residents_only(hidden, router, experts, stand_in, top_k):
    here = [e for e, other in enumerate(stand_in) if e == other]
    if not here:
        return torch.zeros_like(hidden)
    scores, chosen = (hidden @ router[here].T).topk(min(top_k, len(here)))
    weights, out = scores.softmax(-1), torch.zeros_like(hidden)
    for t in range(len(hidden)):
        for weight, place in zip(weights[t], chosen[t].tolist()):
            out[t] += weight * experts[here[place]](hidden[t])
    return out


def set_of_stand_ins(hidden, router, experts, stand_in, top_k):
    scores, chosen = (hidden @ router.T).topk(top_k)
    out = torch.zeros_like(hidden)
    for t in range(len(hidden)):
        done = set()
        for weight, expert in zip(scores[t].softmax(-1), chosen[t].tolist()):
            who = stand_in[expert]
            if who < len(experts) and who not in done:
                done.add(who)
                out[t] += weight * experts[who](hidden[t])
    return out


def own_weight(hidden, router, experts, stand_in, top_k):
    scores = hidden @ router.T
    chosen = scores.topk(top_k).indices
    padded = torch.cat([scores, scores[:, :1]], 1)
    who = torch.tensor(stand_in)[chosen]
    weights, out = padded.gather(1, who).softmax(-1), torch.zeros_like(hidden)
    for t in range(len(hidden)):
        for weight, expert in zip(weights[t], who[t].tolist()):
            if expert < len(experts):
                out[t] += weight * experts[expert](hidden[t])
    return out


def shared_out(hidden, router, experts, stand_in, top_k):
    scores, chosen = (hidden @ router.T).topk(top_k)
    out = torch.zeros_like(hidden)
    for t in range(len(hidden)):
        some = [
            (weight, stand_in[e])
            for weight, e in zip(scores[t].softmax(-1), chosen[t].tolist())
            if stand_in[e] < len(experts)
        ]
        total = sum(weight for weight, _ in some)
        for weight, expert in some:
            out[t] += weight / total * experts[expert](hidden[t])
    return out


def in_place(hidden, router, experts, stand_in, top_k):
    hidden += parts.draft_layer(hidden, router, experts, stand_in, top_k)
    return hidden


DRAFT_LAYER = {
    "missing called": (layer(replace=False), "is not resident, and a draft fetches nothing"),
    "missing left out": (
        layer(who=lambda e, stand_in: e if stand_in[e] == e else None),
        "a missing expert is left out",
    ),
    "routed among residents": (residents_only, "route among the residents"),
    "softmax over all": (
        layer(weigh=lambda scores, top: scores.softmax(-1).gather(1, top.indices)),
        "softmax over all experts",
    ),
    "unweighted": (
        layer(weigh=lambda scores, top: torch.ones(top.indices.shape)),
        "added up unweighted",
    ),
    "mean": (
        layer(weigh=lambda scores, top: torch.ones(top.indices.shape) / top.indices.shape[1]),
        "averaged",
    ),
    "raw scores": (layer(weigh=lambda scores, top: top.values), "raw scores"),
    "once each": (set_of_stand_ins, "their weights add up"),
    "stand-in's weight": (own_weight, "stand-in's own weight"),
    "shared out": (shared_out, "do not share its weight out"),
    "first only": (
        lambda h, r, e, s, k: layer()(h, r, e, s, 1),
        "a token has top_k",
    ),
    "with residual": (
        lambda h, r, e, s, k: h + layer()(h, r, e, s, k),
        "the residual is added outside",
    ),
    "hidden changed": (in_place, "changes its argument hidden"),
    "no nobody": (
        lambda h, r, e, s, k: torch.stack(
            [sum(e[s[c]](x) for c in (x @ r.T).topk(k).indices.tolist()) for x in h]
        ),
        "unweighted",
    ),
    "one token": (lambda h, r, e, s, k: layer()(h, r, e, s, k)[0], "[T, D] is needed"),
}


def block(begin=lambda s, a: s + a + 1, sees=lambda k, p, b, n: k <= p):
    """Begins, and a mask from ``sees(key, position, begin, block's width)``."""

    def next_block(starts, accepted, num_tokens, length):
        begins = [begin(s, a) for s, a in zip(starts, accepted)]
        mask = [
            [[sees(k, b + t, b, num_tokens) for k in range(length)] for t in range(num_tokens)]
            for b in begins
        ]
        return begins, mask

    return next_block


def one_length(choose):
    def next_block(starts, accepted, num_tokens, length):
        return block()(starts, [choose(accepted)] * len(starts), num_tokens, length)

    return next_block


def not_rolled_back(starts, accepted, num_tokens, length):
    return block()(starts, [num_tokens - 1] * len(starts), num_tokens, length)


def old_mask(starts, accepted, num_tokens, length):
    return (
        block()(starts, accepted, num_tokens, length)[0],
        block()([s - 1 for s in starts], [0] * len(starts), num_tokens, length)[1],
    )


def moved_starts(starts, accepted, num_tokens, length):
    for b, number in enumerate(accepted):
        starts[b] += number + 1
    return block(lambda s, a: s)(starts, accepted, num_tokens, length)


ROLLBACK = {
    "one early": (block(lambda s, a: s + a), "one position early"),
    "one late": (block(lambda s, a: s + a + 2), "one position late"),
    "back to the start": (block(lambda s, a: s + 1), "accepted tokens stay in the cache"),
    "starts forgotten": (block(lambda s, a: a + 1), "add starts"),
    "not rolled back": (not_rolled_back, "nothing is rolled back"),
    "shortest": (one_length(min), "none waits for the shortest"),
    "longest": (one_length(max), "none goes as far as the longest"),
    "not itself": (block(sees=lambda k, p, b, n: k < p), "a token may see itself"),
    "the same keys": (block(sees=lambda k, p, b, n: k <= b), "see the same keys"),
    "whole block": (block(sees=lambda k, p, b, n: k < b + n), "come after it"),
    "everything": (block(sees=lambda k, p, b, n: True), "everything is visible"),
    "from zero": (block(sees=lambda k, p, b, n: k <= p - b), "the mask starts at key 0"),
    "block only": (block(sees=lambda k, p, b, n: b <= k <= p), "the prefix is hidden"),
    "upside down": (block(sees=lambda k, p, b, n: k > p), "upside down"),
    "old mask": (old_mask, "still belongs to the last block"),
    "minus infinity": (
        lambda s, a, n, length: (
            block()(s, a, n, length)[0],
            [[[0.0 if k else -1e9 for k in range(length)] for _ in range(n)] for _ in s],
        ),
        "something else than True and False",
    ),
    "begins only": (lambda s, a, n, length: [x + y + 1 for x, y in zip(s, a)], "wrong form"),
    "starts changed": (moved_starts, "changes its argument starts"),
}


def draw(chances, waits):
    scores = [chance / wait for chance, wait in zip(chances, waits)]
    return scores.index(max(scores))


def stands(drafted, own):
    number = 0
    while number < len(drafted) and drafted[number] == own[number]:
        number += 1
    return number


def round_of(draft=draw, target=draw, end=None):
    def coupled(p, q, noise):
        drafted = [draft(q[i], noise[i]) for i in range(len(q))]
        own = [target(p[i], noise[i]) for i in range(len(p))]
        number = stands(drafted, own)
        return (drafted, *end(drafted, own, number)) if end else (drafted, number, own[number])

    return coupled


def other_noise(p, q, noise):
    drafted = [draw(row, noise[i]) for i, row in enumerate(q)]
    own = [draw(row, noise[len(q) - i]) for i, row in enumerate(p)]
    number = stands(drafted, own)
    return drafted, number, own[number]


def from_the_rest(p, q, noise):
    drafted = [draw(row, noise[i]) for i, row in enumerate(q)]
    own = [draw(row, noise[i]) for i, row in enumerate(p)]
    number = stands(drafted, own)
    if number == len(q):
        return drafted, number, own[number]
    rest = [max(0.0, a - b) for a, b in zip(p[number], q[number])]
    return drafted, number, draw(rest, noise[number])


def likeliest(chances, waits):
    return chances.index(max(chances))


def product(chances, waits):
    return draw(chances, [1 / wait for wait in waits])


def smallest(chances, waits):
    scores = [chance / wait for chance, wait in zip(chances, waits)]
    return scores.index(min(scores))


COUPLING = {
    "greedy": (round_of(likeliest, likeliest), "that is greedy"),
    "product": (round_of(product, product), "multiply by the noise"),
    "smallest": (round_of(smallest, smallest), "take the smallest"),
    "noise alone": (
        round_of(*[lambda chances, waits: waits.index(min(waits))] * 2),
        "the noise alone decides",
    ),
    "other noise": (other_noise, "must share the noise"),
    "greedy draft": (round_of(draft=likeliest), "the draft is greedy"),
    "greedy target": (round_of(target=likeliest), "the target is greedy"),
    "draft sees p": (
        lambda p, q, noise: round_of()(p, p[:-1], noise),
        "the draft draws from q",
    ),
    "first noise": (
        lambda p, q, noise: round_of()(p, q, [noise[0]] * len(noise)),
        "you use that of the first",
    ),
    "residual": (from_the_rest, "that is the other rule"),
    "all agreeing": (
        round_of(end=lambda d, own, n: (sum(a == b for a, b in zip(d, own)), own[n])),
        "take the prefix",
    ),
    "drafted token": (
        round_of(end=lambda d, own, n: (n, (d + own[-1:])[n])),
        "not the drafted one",
    ),
    "end of block": (round_of(end=lambda d, own, n: (n, own[-1])), "not at the end of the block"),
    "own token counted": (round_of(end=lambda d, own, n: (n + 1, own[n])), "comes on top"),
    "everything": (round_of(end=lambda d, own, n: (len(d), own[-1])), "accept whatever"),
    "pair": (lambda p, q, noise: round_of()(p, q, noise)[1:], "wrong form"),
}


def closed(alpha, gamma):
    return (1 - alpha ** (gamma + 1)) / (1 - alpha)


EXPECTATION = {
    "no limit at one": (closed, "mind the division by zero"),
    "no bonus": (lambda a, g: sum(a**i for i in range(1, g + 1)), "the bonus is missing"),
    "one term short": (lambda a, g: sum(a**i for i in range(g)), "the last term is missing"),
    "one term more": (lambda a, g: sum(a**i for i in range(g + 2)), "one term too many"),
    "linear": (lambda a, g: 1 + a * g, "a rejection ends the round"),
    "linear, no bonus": (lambda a, g: a * g, "leave out the target's own"),
    "linear, all": (lambda a, g: a * (g + 1), "gamma + 1 tokens"),
    "most": (lambda a, g: g + 1, "the most a round can give"),
    "no end": (lambda a, g: 1 / (1 - a), "without an end"),
    "all or nothing": (lambda a, g: 1 + g * a**g, "rounds in which all are accepted"),
    "chance": (lambda a, g: a**g, "not a number of tokens"),
    "one minus": (lambda a, g: sum((1 - a) ** i for i in range(g + 1)), "1 - alpha for alpha"),
    "not divided": (lambda a, g: 1 - a ** (g + 1), "not divided by 1 - alpha"),
    "rounded": (lambda a, g: round(sum(a**i for i in range(g + 1))), "round to whole tokens"),
    "list": (lambda a, g: [a**i for i in range(g + 1)], "wrong form"),
    "text": (lambda a, g: f"{closed(a, g):.2f}", "wrong form"),
}


def built(change=None, **changes):
    """A decoder of ours with methods replaced."""
    kind = type("Wrong", (Decoder,), changes)
    gamma = change or 5
    return lambda machine, prompts, num_new: kind(machine, gamma).generate(prompts, num_new)


def accepts_all(self, texts, begins, drafted, num, live):
    target = self.lengths = [1 + n if alive else 0 for n, alive in zip(num, live)]
    rows = [[text[-1], *row] for text, row in zip(texts, drafted)]
    _, mask = parts.next_block([b - 1 for b in begins], [0] * len(begins), len(rows[0]), LENGTH)
    target = self.machine.forward(rows, begins, mask, self.full).argmax(dim=-1).tolist()
    for text, row, own, n, alive in zip(texts, drafted, target, num, live):
        text += [*row[:n], own[n]] if alive else []
    return [begin + 1 + n if alive else begin for begin, n, alive in zip(begins, num, live)]


def no_rollback(self, texts, begins, drafted, num, live):
    Decoder.verify(self, texts, begins, drafted, num, live)
    return [begin + 1 + n for begin, n in zip(begins, num)]


def no_prefill(self, texts):
    return [len(text) - 1 for text in texts], None


def forgets_to_fetch(self, layer, hidden):
    return self.draft(layer, hidden)


def drops_nothing(self, layer, hidden):
    """Fetches until the slots are full."""
    chosen = (hidden @ self.machine.router(layer).T).topk(self.machine.top_k).indices.tolist()
    fetch, _ = parts.coalesce(chosen, self.lengths, self.machine.resident(layer))
    for expert in fetch:
        self.machine.fetch(layer, expert)
    return hidden


def fetches_again(self, layer, hidden):
    chosen = (hidden @ self.machine.router(layer).T).topk(self.machine.top_k).indices.tolist()
    for expert in parts.coalesce(chosen, self.lengths, set())[0][:2] * 2:
        self.machine.fetch(layer, expert)
    return hidden


def flat(self, layer, hidden):
    return Decoder.full(self, layer, hidden).flatten(0, 1)


def no_keys(self, texts, begins, drafted, num, live):
    rows = [[text[-1], *row] for text, row in zip(texts, drafted)]
    mask = [[[True] * 8 for _ in row] for row in rows]
    self.machine.forward(rows, begins, mask, self.full)
    return begins


def with_prompts(machine, prompts, num_new):
    return [row + new for row, new in zip(prompts, Decoder(machine).generate(prompts, num_new))]


def first_row(machine, prompts, num_new):
    return Decoder(machine).generate(prompts, num_new)[0]


def on_demand(machine, prompts, num_new):
    return Decoder(machine, 0, keeps=False).generate(prompts, num_new)


CAPSTONE = {
    "everything accepted": (built(verify=accepts_all), "the target did not choose"),
    "not rolled back": (built(verify=no_rollback), "a stale key was seen"),
    "no prefill": (built(prefill=no_prefill), "wrong from its first new token"),
    "draft only": (built(full=forgets_to_fetch), "wrong from its first new token"),
    "nothing dropped": (built(full=drops_nothing), "drop one first"),
    "fetched again": (built(full=fetches_again), "is resident already"),
    "flat layer": (built(full=flat), "your layer gives"),
    "short mask": (built(verify=no_keys), "the mask has the shape"),
    "prompts too": (with_prompts, "give the new ones"),
    "one row": (first_row, "wrong form"),
    "on demand": (on_demand, "pass up to"),
    "yields": (lambda machine, prompts, num_new: (row for row in prompts), "make a list of it"),
}
