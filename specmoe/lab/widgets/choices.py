"""Widgets that ask what settings do: every method at one choice, and the map of winners.

Comes in: frames of simulated rows, made beforehand. Goes out: an ``Explorer``; a slider only picks
rows.
"""

from __future__ import annotations

import pandas as pd

from .. import figures
from ..figures import choices as drawn
from ..simulate.maps import knob_rows
from .explorer import Explorer, choice, steps


def knobs(rows, hardware=None, size=None, simulated: bool = True, **settings) -> Explorer:
    """Gamma, N, batch, link rate, draft set -> bytes, tokens per round and speed of every method
    (``figures.knobs``).

    ``rows``: as ``figures.knobs`` takes them; or recordings (``simulate.Recording``), which are
    replayed at several link rates on ``hardware`` and at ``size`` (``simulate.knob_rows``). Every
    setting with more than one value gets a control. ``settings``: where the controls start, by
    column; ``simulated=False`` where the rows were measured.
    """
    if hardware is not None:
        rows = knob_rows(rows, hardware, size=size)
    drawn.check_rows(rows)
    chosen = drawn.choose(rows, settings)
    reach = {measure: float(rows[measure].max()) for measure in drawn.MEASURES}

    def draw(**values):
        return figures.knobs(rows, reach, simulated, **{**chosen, **values})

    return Explorer(
        _controls(rows, chosen), draw, "bytes, tokens per round and speed of every method", 430
    )


def winners_map(frame: pd.DataFrame, **settings) -> Explorer:
    """Which method wins over balance and batch, for a chosen model and N
    (``figures.winners_map``)."""
    drawn.check_winners(frame)
    chosen = drawn.choose(frame, settings, drawn.SLICES)

    def draw(**values):
        return figures.winners_map(frame, **{**chosen, **values})

    return Explorer(
        _controls(frame, chosen), draw, "the fastest method over balance and batch, simulated", 500
    )


def _controls(rows: pd.DataFrame, chosen: dict) -> dict:
    """A control for every setting with a choice: a slider for numbers, a menu for names."""
    controls = {}
    for name, value in chosen.items():
        values = drawn.values_of(rows, name)
        options = [(drawn.setting_words(name, one), one) for one in values]
        if len(values) > 1:
            make = choice if isinstance(value, str) else steps
            controls[name] = make(drawn.SETTING_NAMES[name], options, value)
    return controls
