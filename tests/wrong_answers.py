# ruff: noqa: E501 (a table: one wrong answer a line)
"""Plausible wrong answers to the exercises, each with words of the sentence that has to name the
mistake."""

from __future__ import annotations

TOTAL: list[int] = []  # what a student keeps in a global variable by mistake


def nearest_of(key=min, columns=None):
    return lambda d, r: [key(columns or r, key=lambda x: row[x]) for row in d]


NEAREST = {
    "positions": (
        lambda d, r: [min(range(len(r)), key=lambda i: row[r[i]]) for row in d],
        "positions in the list of residents",
    ),
    "themselves": (lambda d, r: list(range(len(d))), "everyone stands for themselves"),
    "farthest": (nearest_of(max), "farthest"),
    "only the others": (
        lambda d, r: [min(r, key=lambda x: d[e][x]) for e in range(len(d)) if e not in r],
        "one entry for each",
    ),
    "never oneself": (
        lambda d, r: [min((x for x in r if x != e), key=lambda x: d[e][x]) for e in range(len(d))],
        "at distance zero",
    ),
    "neighbour": (lambda d, r: [e if e in r else 2 for e in range(len(d))], "not resident"),
    "twins": (nearest_of(), "equal weights"),
    "no residents": (
        lambda d, r: [e if e in r else min(r, key=lambda x: d[e][x]) for e in range(len(d))],
        "raised ValueError",
    ),
}


def least_used(counts, resident, memory, num_kept):
    here = {e for e, c in enumerate(counts) if c} | resident
    return set(sorted(here, key=lambda e: counts[e])[:num_kept])


def only_new(counts, resident, memory, num_kept):
    return set(
        sorted((e for e, c in enumerate(counts) if c), key=lambda e: -counts[e])[: num_kept - 1]
    )


def never_evict(counts, resident, memory, num_kept):
    here = sorted(resident) + sorted(
        (e for e, c in enumerate(counts) if c and e not in resident), key=lambda e: -counts[e]
    )
    return set(here[:num_kept])


def with_global(counts, resident, memory, num_kept):
    TOTAL.append(1)
    here = {e for e, c in enumerate(counts) if c} | resident
    return set(sorted(here, key=lambda e: (e != 0, (e + len(TOTAL) // 5) % 3))[:num_kept])


def single_holder(counts, resident, memory, num_kept):
    here = sorted({e for e, c in enumerate(counts) if c} | resident, key=lambda e: (-counts[e], e))
    return {
        min(resident | {here[0]}),
        *[e for e in here if e != min(resident | {here[0]})][: num_kept - 1],
    }


EVICTION = {
    "nothing kept": (lambda c, r, m, n: set(), "on-demand"),
    "too many": (lambda c, r, m, n: {e for e, x in enumerate(c) if x} | r, "fit"),
    "from elsewhere": (lambda c, r, m, n: set(range(6, 6 + n)), "neither resident nor asked for"),
    "least used": (least_used, "most used down"),
    "slots unused": (only_new, "unused slots"),
    "never evict": (never_evict, "let old residents go"),
    "one old one": (single_holder, "holds its slot for ever"),
    "global": (with_global, "global variable"),
}


def prefix(row, guesses):
    number = 0
    while number < len(guesses) and row[number] == guesses[number]:
        number += 1
    return number


def each(rule):
    return lambda target, drafted, num: [rule(t, d, n) for t, d, n in zip(target, drafted, num)]


def shortest(target, drafted, num):
    least = min(prefix(t, d[:n]) for t, d, n in zip(target, drafted, num))
    return [(least, t[least]) for t in target]


def all_agreeing(t, d, n):
    number = sum(a == b for a, b in zip(t, d[:n]))
    return number, t[prefix(t, d[:n])]


def end_of_block(t, d, n):
    return prefix(t, d[:n]), t[-1]


def no_bonus(t, d, n):
    number = prefix(t, d[:n])
    return (number, t[number]) if number < n else (number - 1, t[number - 1])


ACCEPTANCE = {
    "all agreeing": (each(all_agreeing), "take the prefix"),
    "padding": (each(lambda t, d, n: (prefix(t, d), t[prefix(t, d)])), "padding"),
    "last token": (each(end_of_block), "not at the end of the block"),
    "drafted token": (
        each(lambda t, d, n: (prefix(t, d[:n]), (d + [0])[prefix(t, d[:n])])),
        "not the drafted one",
    ),
    "one late": (
        each(lambda t, d, n: (prefix(t, d[:n]), t[min(prefix(t, d[:n]) + 1, len(t) - 1)])),
        "one position late",
    ),
    "shifted": (each(lambda t, d, n: (prefix(t[1:], d[:n]), t[prefix(t[1:], d[:n])])), "no shift"),
    "no bonus": (each(no_bonus), "bonus token"),
    "shortest row": (shortest, "none waits for the shortest"),
}


def scaled(values):
    return [value / sum(values) for value in values] if sum(values) else values


def beyond(p, q):
    return scaled([max(0.0, a - b) for a, b in zip(p, q)])


def rule(ratio=lambda p, q: p / q, replace=beyond):
    return lambda p, q, token, u: None if u < ratio(p[token], q[token]) else replace(p, q)


SAMPLING = {
    "always replaced from p": (rule(replace=lambda p, q: p), "counted twice"),
    "from q": (rule(replace=lambda p, q: q), "draw from q"),
    "ratio upside down": (rule(lambda p, q: q / max(p, 1e-9)), "upside down"),
    "p alone": (rule(lambda p, q: p), "divide by q"),
    "only where p is above": (rule(lambda p, q: float(p >= q)), "reject where p is below q"),
    "other side of the draw": (
        lambda p, q, t, u: None if u > p[t] / q[t] else beyond(p, q),
        "above the ratio",
    ),
    "not scaled": (
        rule(replace=lambda p, q: [max(0.0, a - b) for a, b in zip(p, q)]),
        "divide it by its sum",
    ),
    "negative": (rule(replace=lambda p, q: [a - b for a, b in zip(p, q)]), "negative"),
    "absolute": (rule(replace=lambda p, q: scaled([abs(a - b) for a, b in zip(p, q)])), "|p - q|"),
    "wrong way round": (rule(replace=lambda p, q: beyond(q, p)), "wrong way round"),
}


def groups(routing, num_tokens, top=None):
    found = {}
    for b, length in enumerate(num_tokens):
        for t in range(length):
            for expert in routing[b][t][:top]:
                found.setdefault(expert, []).append((b, t))
    return found


def per_row(routing, num, resident):
    lists = [
        sorted({e for choices in row[:n] for e in choices} - resident)
        for row, n in zip(routing, num)
    ]
    return sum(lists, []), groups(routing, num)


def flat_positions(routing, num, resident):
    found = groups(routing, num)
    return [e for e in found if e not in resident], {
        e: [(0, 2 * b + t) for b, t in pairs] for e, pairs in found.items()
    }


def padded(routing, num, resident):
    found = groups(routing, [len(row) for row in routing])
    return [e for e in found if e not in resident], found


def residents_left_out(routing, num, resident):
    found = {e: pairs for e, pairs in groups(routing, num).items() if e not in resident}
    return list(found), found


def first_choice(routing, num, resident):
    found = groups(routing, num, top=1)
    return [e for e in found if e not in resident], found


COALESCING = {
    "once per row": (per_row, "more than once"),
    "residents fetched": (
        lambda g, n, r: (list(groups(g, n)), groups(g, n)),
        "is resident: do not fetch",
    ),
    "padding": (padded, "padding is fetched for"),
    "first choice": (first_choice, "first expert"),
    "residents not computed": (residents_left_out, "still have to be computed"),
    "whole layer": (
        lambda g, n, r: ([e for e in range(8) if e not in r], groups(g, n)),
        "no token asked",
    ),
    "positions in the block": (flat_positions, "within the row"),
}


def top(counts, num):
    return sorted(range(len(counts)), key=lambda e: -counts[e])[:num]


def one_memory(layer, counts, num, memory):
    heat = memory["heat"] = [a + c for a, c in zip(memory.get("heat", [0] * 99), counts)]
    return top(heat, num)


def first_seen(layer, counts, num, memory):
    return memory.setdefault(layer, top(counts, num))


DRAFT_SET = {
    "always the same": (lambda layer, c, n, m: list(range(n)), "look at counts"),
    "too many": (lambda layer, c, n, m: [e for e, x in enumerate(c) if x], "may draft"),
    "twice": (lambda layer, c, n, m: [top(c, 1)[0]] * n, "named twice"),
    "one only": (lambda layer, c, n, m: top(c, 1), "stays empty"),
    "least used": (lambda layer, c, n, m: top([-x for x in c], n), "did not use"),
    "one memory for all layers": (one_memory, "belongs to each layer"),
    "never forgets": (first_seen, "forget slowly"),
}


def by(key):
    return lambda rounds, rate: min(rounds, key=lambda one: key(one, rate))["gamma"]


def position(rounds, rate):
    costs = [(one["bytes"] / rate + one["compute_s"]) / one["tokens"] for one in rounds]
    return costs.index(min(costs))


PLANNER = {
    "most tokens": (by(lambda one, rate: -one["tokens"]), "whatever it costs"),
    "shortest round": (
        by(lambda one, rate: one["bytes"] / rate + one["compute_s"]),
        "divide its seconds by its tokens",
    ),
    "bytes only": (by(lambda one, rate: one["bytes"] / rate / one["tokens"]), "compute rules"),
    "compute only": (
        by(lambda one, rate: one["compute_s"] / one["tokens"] if one["tokens"] < 4.1 else 9),
        "bytes rule",
    ),
    "position": (position, "position in the list"),
    "always five": (lambda rounds, rate: 5, "never measured"),
}
