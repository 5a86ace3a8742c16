# ruff: noqa: E501 (a table: one wrong answer a line)
"""Plausible wrong answers to the exercises, each with words of the sentence that has to name the
mistake."""

from __future__ import annotations

import random

from specmoe.lab.exercises import parts

TOTAL: list[int] = []  # what a student keeps in a global variable by mistake


def nearest_of(key=min, columns=None):
    return lambda d, r: [key(columns or r, key=lambda x: row[x]) for row in d]


def any_neighbour(d, r):
    table = []
    for e, row in enumerate(d):
        others = sorted((x for x in range(len(row)) if x != e), key=lambda x: row[x])
        table.append(e if e in r else others[0])
    return table


def sorted_and_not(d, r):
    """argmin over the columns as given, looked up in the sorted residents."""
    return [sorted(r)[min(range(len(r)), key=lambda i: row[r[i]])] for row in d]


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
        "with no resident at all every entry is E",
    ),
    "nobody is minus one": (
        lambda d, r: parts.table(d, r) if r else [-1] * len(d),
        "which means 'no expert'",
    ),
    "nearest number": (
        lambda d, r: [min(r, key=lambda x: abs(x - e)) for e in range(len(d))] if r else [9],
        "you compare the experts' numbers",
    ),
    "one for all": (lambda d, r: [e if e in r else r[0] for e in range(len(d))], "for everybody"),
    "any neighbour": (any_neighbour, "resident or not"),
    "sorted and not": (sorted_and_not, "any order"),
    "matrix": (lambda d, r: [[d[e][x] for x in r] for e in range(len(d))], "wrong form"),
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


def most_used(counts, resident, memory, num_kept):
    """This step alone: no memory."""
    here = {e for e, c in enumerate(counts) if c} | resident
    return set(sorted(here, key=lambda e: (-counts[e], e))[:num_kept])


def faded(shrink, lift=0.0):
    """Heat that shrinks by ``shrink`` a step."""

    def keep(counts, resident, memory, num_kept):
        heat = memory.setdefault("heat", [0.0] * len(counts))
        for e, c in enumerate(counts):
            heat[e] = shrink * heat[e] + (c > 0) + lift * c
        here = {e for e, c in enumerate(counts) if c} | resident
        return set(sorted(here, key=lambda e: -heat[e])[:num_kept])

    return keep


def least_recent(counts, resident, memory, num_kept):
    """LRU as the package has it."""
    now = memory["now"] = memory.get("now", 0) + 1
    last = memory.setdefault("last", {})
    last.update({e: (now, c) for e, c in enumerate(counts) if c})
    here = {e for e, c in enumerate(counts) if c} | resident
    return set(sorted(here, key=lambda e: (*last[e], -e), reverse=True)[:num_kept])


def resident_and_new(counts, resident, memory, num_kept):
    resident |= {e for e, c in enumerate(counts) if c}
    return faded(0.9)(counts, resident, memory, num_kept)


EVICTION = {
    "no memory": (most_used, "look at this step only"),
    "LRU": (least_recent, "exactly what LRU does"),
    "forgets too fast": (faded(0.3), "not far enough below LRU"),
    "counts for ever": (faded(1.0), "let old residents go"),
    "argument changed": (resident_and_new, "changes its argument resident"),
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


def until(t, d, n):
    """The rejection's place where there is one; where there is none, 0."""
    place = next((i for i in range(n) if t[i] != d[i]), 0)
    return place, t[place]


ACCEPTANCE = {
    "own token counted": (
        each(lambda t, d, n: (prefix(t, d[:n]) + 1, t[prefix(t, d[:n])])),
        "comes on top",
    ),
    "everything": (each(lambda t, d, n: (n, t[n])), "accept whatever was drafted"),
    "nothing": (each(lambda t, d, n: (0, t[0])), "you accept nothing"),
    "place of the rejection": (each(until), "have no such place"),
    "numbers only": (each(lambda t, d, n: prefix(t, d[:n])), "wrong form"),
    "one early": (
        each(lambda t, d, n: (prefix(t, d[:n]), t[prefix(t, d[:n]) - 1])),
        "one position early",
    ),
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


def or_below(chance):
    """Accept where p >= q; below it with ``chance(p, q)``."""
    return lambda p, q, t, u: None if p[t] >= q[t] or u < chance(p[t], q[t]) else beyond(p, q)


def own_random(p, q, token, uniform):
    return None if random.random() < p[token] / q[token] else beyond(p, q)


def rest_of_p(p, q, token):
    return scaled([0.0 if i == token else a for i, a in enumerate(p)])


SAMPLING = {
    "other chance": (or_below(lambda p, q: p / max(1 - q, 1e-9)), "divide by 1 - q"),
    "twice p": (or_below(lambda p, q: 2 * p), "fixed multiple of p"),
    "own random numbers": (own_random, "random numbers of its own"),
    "share": (or_below(lambda p, q: p / (p + q)), "p / (p + q)"),
    "difference": (or_below(lambda p, q: 1 - (q - p)), "the difference"),
    "half": (lambda p, q, t, u: None if u < 0.5 else beyond(p, q), "fixed threshold"),
    "never": (lambda p, q, t, u: beyond(p, q) or p, "accept no token"),
    "greedy": (
        lambda p, q, t, u: None if p[t] == max(p) else beyond(p, q),
        "greedy decoding",
    ),
    "rest of p": (
        lambda p, q, t, u: None if u < p[t] / q[t] else rest_of_p(p, q, t),
        "leave the rejected token out",
    ),
    "a token": (
        lambda p, q, t, u: None if u < p[t] / q[t] else p.index(max(p)),
        "wrong form",
    ),
    "true or false": (lambda p, q, t, u: u < p[t] / q[t], "give None to accept"),
    "even": (rule(replace=lambda p, q: [1 / len(p)] * len(p)), "every token gets the same"),
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


def swapped(routing, num, resident):
    found = groups(routing, num)
    turned = {e: [(t, b) for b, t in pairs] for e, pairs in found.items()}
    return [e for e in found if e not in resident], turned


def from_one(routing, num, resident):
    found = groups(routing, num)
    return [e for e in found if e not in resident], {
        e: [(b + 1, t + 1) for b, t in pairs] for e, pairs in found.items()
    }


def last_only(routing, num, resident):
    found = {e: pairs[-1:] for e, pairs in groups(routing, num).items()}
    return [e for e in found if e not in resident], found


def all_experts(routing, num, resident):
    found = {e: [] for e in range(6)} | groups(routing, num)
    return [e for e, pairs in found.items() if pairs and e not in resident], found


def one_short(routing, num, resident):
    found = groups(routing, [max(0, n - 1) for n in num])
    return [e for e in found if e not in resident], found


COALESCING = {
    "position, row": (swapped, "(position, row)"),
    "counted from one": (from_one, "from 0"),
    "last token only": (last_only, "only some of its tokens"),
    "empty groups": (all_experts, "has no tokens"),
    "last token left out": (one_short, "needed and not fetched"),
    "wrong way round": (
        lambda g, n, r: (groups(g, n), [e for e in groups(g, n) if e not in r]),
        "wrong way round",
    ),
    "list only": (lambda g, n, r: [e for e in groups(g, n) if e not in r], "wrong form"),
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


KEPT_OUTSIDE: dict = {}


def outside(layer, counts, num, memory):
    heat = KEPT_OUTSIDE.setdefault(layer, [0] * 99)
    KEPT_OUTSIDE[layer] = [0.9 * a + c for a, c in zip(heat, counts)]
    return top(KEPT_OUTSIDE[layer], num)


def older_first(layer, counts, num, memory):
    heat = memory.get(layer) or [0.0] * len(counts)
    memory[layer] = [0.5 * a + c for a, c in zip(heat, counts)]
    return top(heat, num)


def total(layer, counts, num, memory):
    memory[layer] = [a + c for a, c in zip(memory.get(layer, [0] * 99), counts)]
    return top(memory[layer], num)


DRAFT_SET = {
    "this verification only": (lambda layer, c, n, m: top(c, n), "look at this verification only"),
    "counts for ever": (total, "let old use fade"),
    "global": (outside, "use memory, not a global variable"),
    "one verification late": (older_first, "whatever the verification used"),
    "scores": (lambda layer, c, n, m: dict(enumerate(c)), "wrong form"),
    "no such expert": (
        lambda layer, c, n, m: [e + len(c) for e in top(c, n)],
        "there is no expert",
    ),
    "always the same": (lambda layer, c, n, m: list(range(n)), "look at counts"),
    "too many": (lambda layer, c, n, m: [e for e, x in enumerate(c) if x], "may draft"),
    "twice": (lambda layer, c, n, m: [top(c, 1)[0]] * n, "named twice"),
    "one only": (lambda layer, c, n, m: top(c, 1), "stays empty"),
    "least used": (lambda layer, c, n, m: top([-x for x in c], n), "did not use"),
    "one memory for all layers": (one_memory, "belongs to each layer"),
    "never forgets": (first_seen, "let old use fade"),
}


def by(key):
    return lambda rounds, rate: min(rounds, key=lambda one: key(one, rate))["gamma"]


def position(rounds, rate):
    costs = [(one["bytes"] / rate + one["compute_s"]) / one["tokens"] for one in rounds]
    return costs.index(min(costs))


def cost(one, rate):
    return one["bytes"] / rate + one["compute_s"]


PLANNER = {
    "most tokens": (by(lambda one, rate: -one["tokens"]), "whatever it costs"),
    "shortest round": (by(cost), "divide its seconds by its tokens"),
    "bytes only": (by(lambda one, rate: one["bytes"] / rate / one["tokens"]), "compute rules"),
    "compute only": (by(lambda one, rate: one["compute_s"] / one["tokens"]), "bytes rule"),
    "bytes times rate": (
        by(lambda one, rate: (one["bytes"] * rate + one["compute_s"]) / one["tokens"]),
        "multiply bytes by the rate",
    ),
    "gamma + 1": (by(lambda one, rate: cost(one, rate) / (one["gamma"] + 1)), "gamma + 1"),
    "upside down": (
        by(lambda one, rate: (rate / one["bytes"] + one["compute_s"]) / one["tokens"]),
        "divide the rate by the bytes",
    ),
    "no brackets": (
        by(lambda one, rate: one["bytes"] / rate + one["compute_s"] / one["tokens"]),
        "brackets around the sum",
    ),
    "overlapped": (
        by(lambda one, rate: max(one["bytes"] / rate, one["compute_s"]) / one["tokens"]),
        "the longer of the two",
    ),
    "slowest": (by(lambda one, rate: -cost(one, rate) / one["tokens"]), "you take the slowest"),
    "bytes plus seconds": (
        by(lambda one, rate: (one["bytes"] + one["compute_s"]) / one["tokens"]),
        "add bytes to seconds",
    ),
    "times tokens": (by(lambda one, rate: cost(one, rate) * one["tokens"]), "is a quotient"),
    "position": (position, "position in the list"),
    "the round": (lambda rounds, rate: rounds[0], "the whole round"),
    "always five": (lambda rounds, rate: 5, "never measured"),
    "always the first": (lambda rounds, rate: rounds[0]["gamma"], "compare them all"),
}
