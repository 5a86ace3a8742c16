"""What the browser modules replay, as plain data: numbers, words, lists.

Comes in: an output with its trace, a ``Routing``, or simulated rows. Goes out: a dict that JSON can
hold. Pure functions; bad input raises one ``OptionError``.
"""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd

from ...errors import OptionError
from .. import replay
from ..figures import choices as drawn
from ..figures.base import ORDER
from ..figures.mechanisms import default_kept
from ..figures.tokens import check_routing, use_ranks, words_of
from ..routing import STATES

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


def pool(source, layer: int | None = None, num_experts: int | None = None) -> dict:
    """Every full-model step of every layer, prefills marked (``js/pool.js``). Of a run too long for
    a page: the layer asked for, and as much as there is room for.

    ``source``: an output or a trace frame; ``layer`` None: the first; ``num_experts`` None: as many
    as the trace names.
    """
    frame = replay.as_frame(source)
    layers = replay.layers_of(frame)
    layer = layers[0] if layer is None else replay.check_number("layer", layer, layers)
    steps, prefills, room = {}, {}, MOST_PAIRS
    for one in [layer, *(other for other in layers if other != layer)]:
        requests = replay.layer_requests(frame, one, num_experts)
        replay.decoding(requests)  # raises where there is nothing but prefills
        flat = [_pairs(request.counts) for request in requests]
        fits = _fitting(flat, room)
        if steps and fits < len(flat):
            break
        steps[one], room = flat[:fits], room - sum(map(len, flat[:fits])) // 2
        prefills[one] = [t for t in range(fits) if requests[t].phase == "prefill"]
    experts = len(requests[0].counts)
    start = {"layer": layer, "kept": default_kept(experts)}
    return {
        "layers": sorted(steps),
        "steps": steps,
        "prefills": prefills,
        "experts": experts,
        "start": start,
    }


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


# ---- accept or reject ----


def acceptance(p, q, words) -> dict:
    """Weights of the full model ``p`` and the draft ``q``, one per word (``js/accept.js``)."""
    p, q, words = list(p), list(q), list(words)
    if not 2 <= len(words) == len(p) == len(q):
        raise OptionError(
            f"{len(words)} words, {len(p)} weights p and {len(q)} weights q: give as many of each, "
            "at least two"
        )
    for weight in (*p, *q):
        if isinstance(weight, bool) or weight not in range(1, MOST_WEIGHT + 1):
            raise OptionError(
                f"{weight!r} is no weight: give whole numbers from 1 to {MOST_WEIGHT}, of which "
                "each word gets its share"
            )
    return {"p": p, "q": q, "words": words}


MOST_WEIGHT = 20

# ---- routing ----

MOST_PICKS = 6_000


def routing(recorded, token: int | None = None, num_tokens: int = 18) -> dict:
    """Every choice of every router, by token and layer (``js/routing.js``). Tokens that are spelled
    alike are numbered, so no two have one label. ``token``: the position to begin with (None: the
    first generated); ``num_tokens``: at most so many in one picture."""
    check_routing(recorded)
    picks = recorded.picks
    positions = sorted(picks["position"].unique().tolist())
    first_new = min(recorded.num_prompt_tokens, positions[-1])
    token = first_new if token is None else replay.check_number("token", token, positions)
    words = words_of(recorded.output.tokenizer, recorded.tokens, safe=None)[: positions[-1] + 1]
    layers = list(range(recorded.first_layer, recorded.num_layers))
    layers = layers[: max(1, MOST_PICKS // (len(positions) * recorded.top_k))]
    drafted = bool((picks["step"] == "draft").any())
    return {
        "words": words,
        "labels": numbered(words),
        "prompt": recorded.num_prompt_tokens,
        "positions": len(words),
        "layers": layers,
        "top_k": recorded.top_k,
        "experts": recorded.num_experts,
        "width": num_tokens,
        "drafted": drafted,
        "states": list(STATES),
        "picks": [_picks(picks, name, layers) for name in ("target", "draft")[: 1 + drafted]],
        "ranks": _ranks(picks, layers),
        "start": {"token": token},
    }


def numbered(words: list[str]) -> list[str]:
    """The words, those that occur more than once with their count so far: no two are alike."""
    often, seen, labels = Counter(words), Counter(), []
    for word in words:
        seen[word] += 1
        label = word if often[word] == 1 else f"{word} ({seen[word]})"
        while label in labels or (label != word and label in often):
            label += "'"
        labels.append(label)
    return labels


def _picks(picks: pd.DataFrame, step: str, layers: list[int]) -> dict[int, dict]:
    """position -> layer -> [expert, who ran, place in ``STATES``, weight] of every choice."""
    found: dict[int, dict] = {}
    part = picks[(picks["step"] == step) & picks["layer"].isin(layers)]
    for pick in part.drop_duplicates(["position", "layer", "choice"], keep="last").itertuples():
        one = [pick.expert, pick.computed, STATES.index(pick.state), round(float(pick.weight), 2)]
        found.setdefault(pick.position, {}).setdefault(pick.layer, []).append(one)
    return found


def _ranks(picks: pd.DataFrame, layers: list[int]) -> dict[int, dict]:
    ranks: dict[int, dict] = {layer: {} for layer in layers}
    for (layer, expert), rank in use_ranks(picks).items():
        if layer in ranks:
            ranks[layer][expert] = rank
    return ranks


# ---- choices ----


def knobs(rows, simulated: bool = True, **settings) -> dict:
    """Every row, every setting with a choice, and the ends of three axes that hold for all rows
    (``js/knobs.js``). Arguments as for ``widgets.knobs``."""
    drawn.check_rows(rows)
    chosen = drawn.choose(rows, settings)
    kind = "simulated" if simulated else "measured"
    titles = ("read per new token", "tokens per row and round", f"tokens per second ({kind})")
    offered = _offered(rows, chosen, drawn.SETTINGS)
    columns = ["method", *(one["name"] for one in offered), *drawn.MEASURES]
    return {
        "kind": kind,
        "settings": offered,
        "columns": columns,
        "rows": [[_short(value) for value in row] for row in rows[columns].itertuples(index=False)],
        "measures": [
            {"name": name, "title": title} | _axis(rows[name])
            for name, title in zip(drawn.MEASURES, titles)
        ],
    }


def winners(frame, **settings) -> dict:
    """Every cell of the map and every method's speed in it (``js/winners.js``)."""
    drawn.check_winners(frame)
    chosen = drawn.choose(frame, settings, drawn.SLICES)
    cells = frame.drop(columns=[name for name in frame if name not in _of_a_cell(frame)])
    return {
        "settings": _offered(frame, chosen, drawn.SLICES, least=1),
        "balances": drawn.values_of(frame, "balance"),
        "batches": drawn.values_of(frame, "batch"),
        "columns": list(cells),
        "rows": [[_short(value) for value in row] for row in cells.itertuples(index=False)],
    }


def _of_a_cell(frame) -> list[str]:
    return [*drawn.SLICES, "balance", "batch", "winner", "margin", *ORDER]


def _offered(rows: pd.DataFrame, chosen: dict, names, least: int = 2) -> list[dict]:
    """The settings with at least ``least`` values: each value, in words, and where to begin."""
    offered = []
    for name in (name for name in names if name in chosen):
        values = drawn.values_of(rows, name)
        if len(values) >= least:
            said = [drawn.setting_words(name, value) for value in values]
            one = {"name": name, "words": drawn.SETTING_NAMES[name], "said": said}
            short = [_short(value) for value in values]
            offered.append(one | {"values": short, "start": _short(chosen[name])})
    return offered


def _axis(values: pd.Series) -> dict:
    """Its ends, and whether it goes in powers of ten."""
    above = values[values > 0]
    least, most = (float(above.min()), float(above.max())) if len(above) else (1.0, 1.0)
    return {"least": _short(least), "most": _short(most), "log": most > FARTHEST * least}


FARTHEST = 30  # values further apart than this would leave bars of no length


def _short(value):
    """As JSON has it: four digits are enough for a picture; nan is nothing."""
    if isinstance(value, str) or value is None:
        return value
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 1e6 else float(f"{value:.4g}")
