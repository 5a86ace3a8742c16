"""What the browser modules replay, as plain data: numbers, words, lists.

Comes in: weights, a ``Routing``, or simulated rows. Goes out: a dict that JSON can hold. Pure
functions; bad input raises one ``OptionError``. What replays a trace is in ``traces``.
"""

from __future__ import annotations

import math
from collections import Counter

import pandas as pd

from ...errors import OptionError
from .. import replay
from ..figures import choices as drawn
from ..figures.base import ORDER
from ..figures.routing import check_routing, steps_of, use_ranks
from ..figures.tokens import words_of
from ..routing import STATES

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

MOST_PICKS = 12_000  # of all steps


def routing(recorded, token: int | None = None, num_tokens: int = 18) -> dict:
    """Every choice of every router, by token and layer (``js/routing.js``). Tokens that are spelled
    alike are numbered, so no two have one label. ``token``: the position to begin with (None: the
    first generated); ``num_tokens``: at most so many in one picture. It opens on the draft replayed
    with a substitute of yours, where one was."""
    check_routing(recorded)
    picks = recorded.picks
    positions = sorted(picks["position"].unique().tolist())
    first_new = min(recorded.num_prompt_tokens, positions[-1])
    token = first_new if token is None else replay.check_number("token", token, positions)
    words = words_of(recorded.output.tokenizer, recorded.tokens, safe=None)[: positions[-1] + 1]
    layers = list(range(recorded.first_layer, recorded.num_layers))
    steps = [step for step in steps_of(picks) if (picks["step"] == step).any()]
    per_layer = len(positions) * recorded.top_k * max(2, len(steps))
    layers = layers[: max(1, MOST_PICKS // per_layer)]
    return {
        "words": words,
        "labels": numbered(words),
        "prompt": recorded.num_prompt_tokens,
        "positions": len(words),
        "layers": layers,
        "top_k": recorded.top_k,
        "experts": recorded.num_experts,
        "width": num_tokens,
        "drafted": "draft" in steps,
        "own": [step.partition(":")[2] for step in steps[2:]],
        "states": list(STATES),
        "picks": [_picks(picks, step, layers) for step in steps],
        "ranks": _ranks(picks, layers),
        "start": {"token": token, "step": 2 if steps[2:] else 0},
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
