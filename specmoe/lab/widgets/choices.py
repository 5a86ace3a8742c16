"""Widgets that ask what settings do: every method at one choice, the map of winners, and p and q.

Comes in: frames of simulated rows, made beforehand, or weights. Goes out: a ``Live``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from .. import figures
from ..figures.choices import MEASURES, check_rows, reach_of
from ..live import data
from ..simulate.maps import knob_rows
from .base import Live


def knobs(
    rows, hardware=None, size=None, simulated: bool = True, kind: str = "draft_set", **settings
) -> Live:
    """Gamma, N, batch, link rate, parts by name -> bytes, tokens per round and speed of every
    method (``figures.knobs``), on axes that hold for all choices.

    ``rows``: as ``figures.knobs`` takes them; or recordings (``simulate.Recording``), which are
    replayed at several link rates on ``hardware`` and at ``size``; a mapping of them names a part
    of ``kind``, yours or built in, for each group (``simulate.knob_rows``). Every setting with more
    than one value gets a control. ``settings``: where the controls start, by column;
    ``simulated=False`` where the rows were measured.
    """
    if hardware is not None:
        rows = knob_rows(rows, hardware, size=size, kind=kind)
    check_rows(rows)
    reach = {measure: reach_of(rows[measure]) for measure in MEASURES}
    return Live(
        "knobs",
        data.knobs(rows, simulated, **settings),
        "bytes, tokens per round and speed of every method",
        lambda: figures.knobs(rows, reach, simulated, **settings),
    )


def winners_map(frame: pd.DataFrame, **settings) -> Live:
    """Which method wins over balance and batch, for a chosen model and N
    (``figures.winners_map``)."""
    return Live(
        "winners",
        data.winners(frame, **settings),
        "the fastest method over balance and batch, simulated",
        lambda: figures.winners_map(frame, **settings),
    )


def accept_or_reject(
    p: Sequence[int] = (10, 6, 3, 1),
    q: Sequence[int] = (5, 4, 2, 9),
    words: Sequence[str] = ("the", "a", "one", "no"),
) -> Live:
    """Set p and q of a few ``words``, accept or reject by hand, then let a rule do it ten thousand
    times: which rules give text that follows p? ``p``, ``q``: whole weights from 1 to 20, of which
    each word gets its share."""
    return Live(
        "accept",
        data.acceptance(p, q, words),
        "a drafted token is accepted or rejected, from p of the full model and q of the draft",
        lambda: figures.accept_or_reject(p, q, words),
    )
