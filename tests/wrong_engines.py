"""Plausible wrong answers to exercises 13 and 14, each with words of the sentence that has to name
the mistake."""

from __future__ import annotations


def reads(order=lambda key, votes: (key[0], -votes), enough=lambda v, q: v >= q, free=None):
    """A read-ahead with loops; ``order``, ``enough`` and ``free`` may be wrong."""
    free = free or (lambda key, held: key not in held)

    def read_ahead(votes, held, quorum, room):
        found = []
        for layer, row in enumerate(votes):
            for expert, number in enumerate(row):
                if enough(number, quorum) and free((layer, expert), held):
                    found.append((order((layer, expert), number), layer, expert))
        return [(layer, expert) for _, layer, expert in sorted(found)][:room]

    return read_ahead


def cut_too_early(votes, held, quorum, room):
    return [key for key in reads()(votes, set(), quorum, room) if key not in held]


def room_each(votes, held, quorum, room):
    return [
        (layer, expert)
        for layer in range(len(votes))
        for _, expert in reads()(
            [votes[layer]], {(0, e) for at, e in held if at == layer}, quorum, room
        )
    ]


def turns(votes, held, quorum, room):
    rows = [
        [key for key in reads()(votes, held, quorum, 10**6) if key[0] == layer]
        for layer in range(len(votes))
    ]
    longest = max(map(len, rows))
    return [row[i] for i in range(longest) for row in rows if i < len(row)][:room]


def strikes_off(votes, held, quorum, room):
    for layer, expert in held:
        votes[layer][expert] = 0
    return reads()(votes, set(), quorum, room)


READ_AHEAD = {
    "held again": (reads(free=lambda key, held: True), "what is held is read again"),
    "held anywhere": (
        reads(free=lambda key, held: key[1] not in [expert for _, expert in held]),
        "held in its own layer only",
    ),
    "no quorum": (reads(enough=lambda v, q: v), "too few votes is read"),
    "above quorum": (reads(enough=lambda v, q: v > q), "not > quorum"),
    "unnamed": (reads(enough=lambda v, q: True), "that nobody named"),
    "no room": (lambda v, h, q, r: reads()(v, h, q, 10**6), "more reads begin"),
    "votes first": (reads(lambda key, votes: -votes), "most votes in all layers first"),
    "by number": (reads(lambda key, votes: key), "in the order of the experts' numbers"),
    "fewest first": (reads(lambda key, votes: (key[0], votes)), "the fewest votes come first"),
    "last layer first": (
        reads(lambda key, votes: (-key[0], -votes)),
        "the verification begins with layer 0",
    ),
    "ties the other way": (
        reads(lambda key, votes: (key[0], -votes, -key[1])),
        "take the lower",
    ),
    "room each": (room_each, "for all layers together"),
    "cut too early": (cut_too_early, "buffers stay empty"),
    "turns": (turns, "the layers take turns"),
    "expert first": (
        lambda v, h, q, r: [(e, layer) for layer, e in reads()(v, h, q, r)],
        "yours are (expert, layer)",
    ),
    "next layer only": (lambda v, h, q, r: reads()(v[:1], h, q, r), "only layer 0"),
    "experts alone": (lambda v, h, q, r: [e for _, e in reads()(v, h, q, r)], "wrong form"),
    "a set": (lambda v, h, q, r: set(reads()(v, h, q, r)), "a set has no order"),
    "votes changed": (strikes_off, "changes its argument votes"),
}


def prefix(drafted, target):
    number = 0
    while number < len(drafted) and drafted[number] == target[number]:
        number += 1
    return number


def engine(
    count=prefix,
    token=lambda drafted, target, n: target[n],
    forget=lambda drafted, n: len(drafted) - n,
    guess=lambda text, drafted: text + drafted,
    most=lambda gamma, left: min(gamma, left - 1),
    fill=lambda prompt: prompt[:-1],
    block=lambda text, drafted: [text[-1], *drafted],
):
    """The engine of one row; every part may be wrong."""

    def decode(model, prompt, num_new, gamma):
        text = list(prompt)
        model.forward(fill(prompt))
        while len(text) < len(prompt) + num_new:
            drafted = []
            for _ in range(most(gamma, len(prompt) + num_new - len(text))):
                drafted.append(model.draft(guess(text, drafted)))
            target = model.forward(block(text, drafted))
            accepted = count(drafted, target)
            more = token(drafted, target, accepted)
            text += drafted[:accepted] + ([] if more is None else [more])
            model.forget(forget(drafted, accepted))
        return text[len(prompt) :]

    return decode


def agreeing(drafted, target):
    return sum(a == b for a, b in zip(drafted, target))


REPAIR = {
    "any agreement": (engine(count=agreeing), "a token behind the first rejection was counted"),
    "forgets what stood": (engine(forget=lambda d, n: n), "0 of 2 are left"),
    "same text": (engine(guess=lambda text, d: text), "from the same text"),
    "past the end": (engine(most=lambda gamma, left: gamma), "more than there is room for"),
    "nothing forgotten": (engine(forget=lambda d, n: 0), "later tokens see what was rejected"),
    "one key too many": (
        engine(forget=lambda d, n: min(len(d), len(d) - n + 1)),
        "lost keys that stand",
    ),
    "rejected token": (
        engine(token=lambda d, t, n: d[n] if n < len(d) else t[n]),
        "goes on with the rejected token",
    ),
    "end of block": (engine(token=lambda d, t, n: t[-1]), "the end of the block"),
    "no token of its own": (
        engine(token=lambda d, t, n: None if n else t[0]),
        "target's own token after it is missing",
    ),
    "nothing accepted": (engine(count=lambda d, t: 0), "as if none did"),
    "everything accepted": (engine(count=lambda d, t: len(d)), "rejected tokens stay in the text"),
    "whole prompt": (engine(fill=lambda prompt: prompt), "the whole prompt is prefilled"),
    "no prefill": (engine(fill=lambda prompt: prompt[-1:]), "the prompt without its last token"),
    "never drafts": (engine(most=lambda gamma, left: 0), "and may draft"),
    "cut at the end": (
        lambda m, p, n, g: engine(most=lambda gamma, left: gamma)(m, p, n, g)[:n],
        "tokens were missing",
    ),
    "without the last": (
        engine(block=lambda text, d: d or text[-1:]),
        "opens with a drafted token",
    ),
    "not all verified": (
        engine(
            block=lambda text, d: [text[-1], *d[:-1]],
            count=lambda d, t: prefix(d[:-1], t),
            forget=lambda d, n: max(0, len(d) - 1 - n),
        ),
        "does not verify all",
    ),
    "drafts from the draft": (
        engine(guess=lambda text, d: d or text),
        "from another text than its own",
    ),
    "prompt too": (lambda m, p, n, g: p + engine()(m, p, n, g), "the prompt is given back too"),
}
