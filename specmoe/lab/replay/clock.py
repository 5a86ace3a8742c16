"""One round on the clock: who was busy when, and who waited for whom.

Comes in: a trace frame. Goes out: intervals of the computing thread and of the link.
"""

from __future__ import annotations

import pandas as pd

from ...errors import OptionError
from .frames import check_frame, check_number


def rounds_of(frame: pd.DataFrame) -> list[int]:
    """Numbers of the rounds that were finished."""
    check_frame(frame)
    rounds = sorted(frame.loc[frame["kind"] == "round", "round"].unique().tolist())
    if not rounds:
        raise OptionError("no round was finished in this trace: generate at least one token")
    return rounds


def timeline(frame: pd.DataFrame, round: int) -> pd.DataFrame:
    """Who was busy when in one round: a row per interval with lane ("link 1", "link 2", ... or
    "compute"), kind, layer, expert, begin_s and end_s (seconds since the round began), size
    (bytes).

    A read fills the lowest link lane that is free; it counts to every round that it overlaps.
    Compute is "draft", "verify" (cut at each layer's first routing), "wait" (compute stood still
    for a read) and "rest".
    """
    round = check_number("round", round, rounds_of(frame))
    whole = frame[(frame["kind"] == "round") & (frame["round"] == round)].iloc[0]
    begin_s, end_s = float(whole["time_s"] - whole["seconds"]), float(whole["time_s"])
    rows = _compute_lane(frame[frame["round"] == round], begin_s, end_s) + _link_lanes(
        frame, begin_s, end_s
    )
    columns = ["lane", "kind", "layer", "expert", "begin_s", "end_s", "size"]
    table = pd.DataFrame(rows, columns=columns)
    table[["begin_s", "end_s"]] -= begin_s
    return table.sort_values(["lane", "begin_s"], kind="stable", ignore_index=True)


def _compute_lane(events: pd.DataFrame, begin_s: float, end_s: float) -> list[tuple]:
    rows, spans = [], []
    for name in ("draft", "verify"):
        for step in events[events["kind"] == name].itertuples():
            spans.append((step.time_s - step.seconds, step.time_s))
            rows += _layers_of_step(events, name, *spans[-1])
    waits = events[(events["kind"] == "wait") & events["phase"].isin(["draft", "verify"])]
    rows += [
        ("compute", "wait", w.layer, w.expert, w.time_s - w.seconds, w.time_s, 0)
        for w in waits.itertuples()
    ]
    reached = begin_s
    for span_begin, span_end in [*sorted(spans), (end_s, end_s)]:
        if span_begin > reached:
            rows.append(("compute", "rest", -1, -1, reached, span_begin, 0))
        reached = max(reached, span_end)
    return rows


def _layers_of_step(events: pd.DataFrame, name: str, begin_s: float, end_s: float) -> list[tuple]:
    """A step cut where each layer's router spoke; drafting, whose routers leave no event, stays
    whole."""
    routes = events[(events["kind"] == "route") & (events["phase"] == name)]
    starts = routes.groupby("layer")["time_s"].min().clip(begin_s, end_s).sort_values()
    if not len(starts):
        return [("compute", name, -1, -1, begin_s, end_s, 0)]
    cuts = [begin_s, *starts.tolist()[1:], end_s]
    return [
        ("compute", name, layer, -1, cuts[i], cuts[i + 1], 0)
        for i, layer in enumerate(starts.index)
    ]


def _link_lanes(frame: pd.DataFrame, begin_s: float, end_s: float) -> list[tuple]:
    reads = frame[frame["kind"].isin(["fetch", "prefetch"])]
    reads = reads.assign(begin_s=reads["time_s"] - reads["seconds"]).sort_values("begin_s")
    rows, free_at = [], []
    for read in reads[(reads["time_s"] > begin_s) & (reads["begin_s"] < end_s)].itertuples():
        lane = next(
            (number for number, free_s in enumerate(free_at) if free_s <= read.begin_s + 1e-6),
            len(free_at),
        )
        free_at[lane : lane + 1] = [read.time_s]
        begin, end = max(read.begin_s, begin_s), min(read.time_s, end_s)
        rows.append((f"link {lane + 1}", read.kind, read.layer, read.expert, begin, end, read.size))
    return rows
