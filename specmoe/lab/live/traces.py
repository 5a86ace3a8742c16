"""What the browser modules replay of a run's trace, as plain data: its rounds, one layer's pool, the
clock.

Comes in: an output with its trace, or the trace's frame. Goes out: a dict that JSON can hold. Pure
functions; bad input raises one ``OptionError``. What has no trace behind it is in ``data``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...errors import OptionError, check_choice
from ...registry import yours
from .. import replay
from ..figures.pool import default_kept
from ..figures.tokens import drafted_by, words_of

# ---- rounds ----


def rounds(output, row: int | None = None, step: int | None = None, tokenizer=None) -> dict:
    """Every round of every prompt, its text, and which experts were where (``js/rounds.js``).

    ``row``: the prompt to begin with, from 0 (None: the first); ``step``: its round, from 0 (None:
    the first with a rejection). Prompts and rounds are shown counted from 1.
    """
    frame = replay.as_frame(output)
    blocks = replay.any_blocks(output.trace)
    rows = sorted({block.row for block in blocks})
    row = rows[0] if row is None else replay.check_number("row", row, rows)
    own = replay.blocks_of(output.trace, row)
    step = replay.telling_round(own) if step is None else step
    step = replay.check_number("step", step, range(len(own)))
    tokenizer = tokenizer or getattr(output, "tokenizer", None)
    reads = frame[frame["kind"].isin(["fetch", "prefetch"])]
    routed = frame["kind"] == "route"
    layers = sorted(frame.loc[routed & (frame["round"] >= 0), "layer"].unique().tolist())
    return {
        "prompts": [_prompt(output, one, rows[0], tokenizer) for one in rows],
        "draft": drafted_by(output),
        "memory": memory(frame, layers),
        "layers": layers,
        "experts": int(frame.loc[routed, "expert"].max()) + 1,
        "record_bytes": int(reads["size"].max()) if len(reads) else 0,
        "batch": int(frame.loc[frame["kind"] == "round", "size"].max()),
        "start": {"prompt": rows.index(row), "round": step, "act": 0},
    }


def _prompt(output, row: int, first: int, tokenizer) -> dict:
    return {
        "number": row + 1,
        "words": words_of(tokenizer, output.sequences[row - first].tolist(), safe=None),
        "rounds": [
            {
                "round": block.round,
                "start": block.start,
                "drafted": words_of(tokenizer, block.drafted, safe=None),
                "accepted": block.accepted,
                "committed": words_of(tokenizer, block.committed, safe=None),
                "kinds": replay.token_kinds(block),
            }
            for block in replay.blocks_of(output.trace, row)
        ],
    }


def memory(frame: pd.DataFrame, layers: list[int]) -> dict[int, dict]:
    """By round: who was in fast memory ``before`` and ``after`` (layer -> experts), the ``reads``
    [layer, expert, ahead of the router?], who was ``needed`` [layer, expert, tokens], and
    how many tokens were ``committed``."""
    here, found = _at_first(frame), {}
    for event in frame.itertuples():
        key, decodes = (event.layer, event.expert), event.round >= 0 and event.phase != "prefill"
        if decodes and event.round not in found:
            found[event.round] = {"before": _by_layer(here, layers), "reads": [], "needed": []}
        if event.kind == "evict":
            here.discard(key)
        elif event.kind in ("fetch", "prefetch"):
            here.add(key)
            if decodes:
                found[event.round]["reads"].append([*key, event.kind == "prefetch"])
        elif event.kind == "route" and decodes:
            found[event.round]["needed"].append([*key, event.count])
        elif event.kind == "round":
            # in which order readers finish is chance; what they read is not
            found[event.round]["reads"].sort()
            found[event.round] |= {"after": _by_layer(here, layers), "committed": event.count}
    return {number: one for number, one in found.items() if "after" in one}


def _at_first(frame: pd.DataFrame) -> set[tuple[int, int]]:
    """Who must have been in fast memory when the trace began: found there, or leaving it, before
    any read brought them."""
    moves = frame[frame["kind"].isin(["fetch", "prefetch", "hit", "evict"])]
    firsts = moves.drop_duplicates(["layer", "expert"])
    there = firsts[firsts["kind"].isin(["hit", "evict"])]
    return set(zip(there["layer"].tolist(), there["expert"].tolist()))


def _by_layer(here: set[tuple[int, int]], layers: list[int]) -> dict[int, list[int]]:
    return {layer: sorted(e for of, e in here if of == layer) for layer in layers}


# ---- one layer's pool ----

MOST_PAIRS = 12_000  # of step and expert: about 80 KB
MOST_LEFT = 40_000  # experts that leave, under all policies that are played here: about 130 KB
MOST_OWN = 3


def pool(
    source,
    layer: int | None = None,
    num_experts: int | None = None,
    policies: Sequence[str] | None = None,
) -> dict:
    """Every full-model step of every layer, prefills marked (``js/pool.js``). Of a run too long for
    a page: the layer asked for, and as much as there is room for.

    ``source``: an output or a trace frame; ``layer`` None: the first; ``num_experts`` None: as many
    as the trace names; ``policies``: more of ``replay.replayed()``, which are played here, since
    the page does not know their rules (None: evictions and draft sets that somebody registered).
    """
    frame = replay.as_frame(source)
    layers = replay.layers_of(frame)
    layer = layers[0] if layer is None else replay.check_number("layer", layer, layers)
    steps, prefills, decodes, room = {}, {}, {}, MOST_PAIRS
    for one in [layer, *(other for other in layers if other != layer)]:
        requests = replay.layer_requests(frame, one, num_experts)
        replay.decoding(requests)  # raises where there is nothing but prefills
        flat = [_pairs(request.counts) for request in requests]
        fits = _fitting(flat, room)
        if steps and fits < len(flat):
            break
        steps[one], room = flat[:fits], room - sum(map(len, flat[:fits])) // 2
        prefills[one] = [t for t in range(fits) if requests[t].phase == "prefill"]
        decodes[one] = [each for each in requests[:fits] if each.phase != "prefill"]
    experts = len(requests[0].counts)
    start = {"layer": layer, "kept": default_kept(experts), "policy": "temporal"}
    names = _more_policies(policies)
    if names:
        start["policy"] = names[0]
    return {
        "layers": sorted(steps),
        "steps": steps,
        "prefills": prefills,
        "experts": experts,
        "start": start,
        "own": {"names": names, "left": _left(decodes, names, start["kept"])},
    }


def _more_policies(policies: Sequence[str] | None) -> list[str]:
    given = [*yours("eviction"), *yours("draft_set")] if policies is None else policies
    names = dict.fromkeys(given)
    for name in names:
        check_choice("policy", name, replay.replayed())
    names = [name for name in names if name not in replay.REPLAYED]
    if len(names) > MOST_OWN:
        raise OptionError(
            f"{len(names)} policies beside the built-in ones ({', '.join(names)}): choose at most "
            f"{MOST_OWN} with policies=[...], or no line can be told from the next"
        )
    return names


def _left(decodes: dict[int, list], names: list[str], kept: int) -> dict[int, dict]:
    """Experts kept -> policy -> layer -> who leaves after each decoding step, and as -1 - e who
    comes unasked for (a draft set may do that); of other sizes than ``kept`` as many as there is
    room for."""
    found, room = {}, MOST_LEFT
    experts = max(len(part[0].counts) for part in decodes.values())
    for size in dict.fromkeys([kept, 2 * kept, max(1, kept // 2), 4 * kept]):
        if not names or size > experts:
            continue
        played = {
            name: {
                layer: [_moves(now.before | now.needed, now.after) for now in held]
                for layer, held in _played(decodes, size, name)
            }
            for name in names
        }
        room -= sum(
            len(left) for part in played.values() for all_ in part.values() for left in all_
        )
        if found and room < 0:
            break
        found[size] = played
    return dict(sorted(found.items()))


def _moves(here: frozenset[int], after: frozenset[int]) -> list[int]:
    return [*sorted(here - after), *(-1 - expert for expert in sorted(after - here))]


def _played(decodes: dict[int, list], size: int, name: str) -> list:
    parts = decodes.items()
    return [(layer, replay.replay_pool(part, size, name)) for layer, part in parts if part]


def _pairs(counts) -> list[int]:
    """Expert, tokens, expert, tokens, ... of the experts that were needed."""
    return [number for expert, n in enumerate(counts) if n for number in (expert, int(n))]


def _fitting(flat: list[list[int]], room: int) -> int:
    """How many of these steps have at most ``room`` pairs; at least one."""
    total = 0
    for place, pairs in enumerate(flat):
        total += len(pairs) // 2
        if total > room and place:
            return place
    return len(flat)


# ---- one round on the clock ----

MOST_BARS = 2_000  # about 70 KB
BUSY = ("draft", "verify", "wait", "rest", "fetch", "prefetch")


def timeline(source, round: int | None = None, mark: tuple[int, int] | None = None) -> dict:
    """Who was busy when, in every round (``js/timeline.js``). Of a run too long for a page: the
    round asked for, and its neighbours as far as there is room.

    ``source``: an output or a trace frame; ``round``: the one to begin with (None: the middle one);
    ``mark``: (layer, expert) whose read is chosen at first.
    """
    frame = replay.as_frame(source)
    rounds = replay.rounds_of(frame)
    round = rounds[len(rounds) // 2] if round is None else round
    mark = None if mark is None else _read_named(mark)
    chosen = {replay.check_number("round", round, rounds): replay.timeline(frame, round)}
    for number in sorted(rounds, key=lambda one: abs(one - round))[1:]:
        chosen[number] = replay.timeline(frame, number)
        if sum(map(len, chosen.values())) > MOST_BARS:
            del chosen[number]
            break
    shown = {number: _bars(chosen[number]) for number in sorted(chosen)}
    ends = [bar[5] for bars in shown.values() for bar in bars]
    return {
        "kinds": list(BUSY),
        "rounds": [{"round": number, "bars": bars} for number, bars in shown.items()],
        "lanes": 1 + max(bar[0] for bars in shown.values() for bar in bars),
        "longest": max(ends),
        "start": {"round": list(shown).index(round), "mark": mark},
    }


def _read_named(mark) -> list[int]:
    try:
        layer, expert = mark
        return [int(layer), int(expert)]
    except (TypeError, ValueError):
        raise OptionError(
            f"mark={mark!r} names no read: give (layer, expert), two whole numbers"
        ) from None


def _bars(table: pd.DataFrame) -> list[list]:
    """[lane (0: compute), place in ``BUSY``, layer, expert, begin, end] in milliseconds, in the
    order in which they began; a wait after the layer that it interrupts."""
    lanes = table["lane"].str.removeprefix("link ").replace("compute", "0").astype(int)
    places = table["kind"].map(BUSY.index)
    times = (1e3 * table[["begin_s", "end_s"]]).round(3)
    columns = [lanes, places, table["layer"], table["expert"], times["begin_s"], times["end_s"]]
    return sorted(
        ([*map(int, bar[:4]), *bar[4:]] for bar in zip(*columns)),
        key=lambda bar: (bar[0], BUSY[bar[1]] == "wait", bar[4]),
    )
