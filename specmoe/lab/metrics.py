"""Numbers computed from a trace.

Comes in: the frame of ``Trace.to_frame()`` (its columns are described in ``trace``). Goes out:
plain numbers, dicts and small frames. ``figures``, ``report`` and the notebooks call these. Pure
functions: nothing is changed or drawn.

*Decoding* is every event that is not of phase "prefill". A *round* without drafting is a plain
decoding step, so all of these hold for every method. Where a number has nothing to stand on (no
drafts, no reads) it is ``nan``.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..errors import OptionError, check_choice
from ..trace import COLUMNS, PHASES

NAN = float("nan")
READS = ("fetch", "prefetch")
PARTS = ("draft", "verify", "wait", "rest")
_EXPERT = ["round", "layer", "expert"]


def events(frame: pd.DataFrame, phase: str | None, *kinds: str) -> pd.DataFrame:
    """Events of ``kinds`` in ``phase``: "decode" (all but prefill), a phase of the trace, or None
    (all)."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise OptionError(
            f"this is not a trace frame: it has no column {missing[0]!r} (see specmoe.trace)"
        )
    chosen = frame["kind"].isin(kinds)
    if phase == "decode":
        chosen &= frame["phase"] != "prefill"
    elif phase is not None:
        check_choice("phase", phase, ["decode", *PHASES])
        chosen &= frame["phase"] == phase
    return frame[chosen]


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else NAN


# ---- which experts are used ----


def expert_use(
    frame: pd.DataFrame,
    phase: str | None = "verify",
    num_layers: int | None = None,
    num_experts: int | None = None,
) -> pd.DataFrame:
    """Tokens sent to each expert: int ``[layer x expert]``, the sum of ``count`` over "route"
    events of ``phase``.

    A trace does not know experts that were never used: name ``num_experts`` (and ``num_layers``)
    for their zeros. While speculating, rejected tokens count too; a plain method's trace counts
    each token of the text once.
    """
    routes = events(frame, phase, "route")
    use = routes.pivot_table(
        index="layer", columns="expert", values="count", aggfunc="sum", fill_value=0, observed=True
    )
    # an encoder's take no part in rounds
    layers = range(num_layers) if num_layers else sorted(routes["layer"].unique())
    experts = range(num_experts or int(frame["expert"].max() + 1 if len(frame) else 0))
    use = use.reindex(index=layers, columns=experts, fill_value=0).fillna(0).astype(int)
    return use.rename_axis(index="layer", columns="expert")


def gini(use) -> float:
    """Gini coefficient of one layer's use x_1 <= ... <= x_E: sum_i (2 i - E - 1) x_i / (E sum_i
    x_i).

    0: all experts used alike; (E - 1) / E: one expert takes everything. No unit; nan where nothing
    was used.
    """
    x = np.sort(np.asarray(use, dtype=float))
    rank = np.arange(1, len(x) + 1)
    return _ratio(((2 * rank - len(x) - 1) * x).sum(), len(x) * x.sum())


def skewness(counts: pd.DataFrame) -> float:
    """Hotness skewness as we define it: the Gini coefficient of expert use in each MoE layer, mean
    over layers.

    The paper's "hotness skewness" is not defined in what we know of it; the two need not be the
    same number.
    """
    return float(np.mean([gini(row) for row in counts.to_numpy()])) if len(counts) else NAN


def dead_experts(counts: pd.DataFrame) -> pd.Series:
    """Experts of each layer that no token was sent to (a count per layer)."""
    return (counts == 0).sum(axis=1).rename("dead_experts")


def top_share(counts: pd.DataFrame, num: int) -> float:
    """Share of a layer's expert calls that go to its ``num`` most used experts, mean over layers (0
    .. 1)."""
    rows = [np.sort(row)[::-1] for row in counts.to_numpy()]
    return float(np.mean([_ratio(row[:num].sum(), row.sum()) for row in rows])) if rows else NAN


# ---- what is moved ----


def new_tokens(frame: pd.DataFrame) -> int:
    """Tokens committed: the sum of ``count`` over "round" events."""
    return int(events(frame, None, "round")["count"].sum())


def fetched_bytes(frame: pd.DataFrame, phase: str | None = "decode") -> int:
    """Bytes read from the slow tier in ``phase``, prefetched ones included: the sum of ``size`` of
    reads."""
    return int(events(frame, phase, *READS)["size"].sum())


def bytes_per_token(frame: pd.DataFrame) -> float:
    """Bytes read while decoding, over tokens committed (bytes per token; prefill is not in it)."""
    return _ratio(fetched_bytes(frame), new_tokens(frame))


def hit_rate(frame: pd.DataFrame) -> float:
    """Of the distinct experts that each layer of each verification needed, the share already
    resident."""
    return _ratio(len(events(frame, "verify", "hit")), len(events(frame, "verify", "route")))


# ---- what is accepted ----


def tokens_per_round(frame: pd.DataFrame) -> float:
    """Tokens a row gains per round, accepted + 1: sum of ``count`` / sum of ``size`` of the "round"
    events."""
    rounds = events(frame, None, "round")
    return _ratio(rounds["count"].sum(), rounds["size"].sum())


def acceptance_rate(frame: pd.DataFrame) -> float:
    """Accepted over drafted tokens (0 .. 1)."""
    verdicts = events(frame, None, "accept")
    return _ratio(verdicts["count"].sum(), verdicts["size"].sum())


def acceptance_by_position(frame: pd.DataFrame) -> pd.DataFrame:
    """For each place in the drafted block (from 1): how often drafted, how often accepted, and
    their ratio.

    Acceptance stops at the first wrong token: where every row drafts equally many, the ratio can
    only fall.
    """
    verdicts = events(frame, None, "accept")
    longest = int(verdicts["size"].max()) if len(verdicts) else 0
    rows = []
    for position in range(1, longest + 1):
        drafted = int((verdicts["size"] >= position).sum())
        accepted = int((verdicts["count"] >= position).sum())
        rows.append((position, drafted, accepted, accepted / drafted))
    return pd.DataFrame(rows, columns=["position", "drafted", "accepted", "rate"])


# ---- where the time goes ----


def decode_seconds(frame: pd.DataFrame) -> float:
    """Wall-clock seconds of all rounds (prefill stands apart)."""
    return float(events(frame, None, "round")["seconds"].sum())


def time_shares(frame: pd.DataFrame) -> dict[str, float]:
    """Shares of the rounds' wall clock, adding up to 1: computing "draft" and "verify", "wait" for
    reads, "rest".

    draft = (sum of draft seconds - waits in them) / seconds of all rounds; verify likewise; rest is
    what is left (accepting, choosing, bookkeeping).
    """
    seconds = {}
    for step in ("draft", "verify"):
        waits = events(frame, step, "wait")["seconds"].sum()
        seconds[step] = max(0.0, float(events(frame, step, step)["seconds"].sum() - waits))
    seconds["wait"] = float(events(frame, "decode", "wait")["seconds"].sum())
    whole = decode_seconds(frame)
    seconds["rest"] = max(0.0, whole - sum(seconds.values()))
    return {part: _ratio(seconds[part], whole) for part in PARTS}


def oracle_overlap_seconds(frame: pd.DataFrame) -> float:
    """Seconds of all verifications if reading and computing overlapped perfectly: sum of max(load,
    compute).

    Per step: load = time during which at least one read of a needed expert was under way (readers
    at work together count once); compute = the step's seconds - its waits. Measured parts, computed
    sum: no run was this fast.
    """
    steps = events(frame, "verify", "verify").groupby("round")["seconds"].sum()
    waits = events(frame, "verify", "wait").groupby("round")["seconds"].sum()
    compute = (steps - waits.reindex(steps.index, fill_value=0.0)).clip(lower=0)
    spans = {number: _covered(reads) for number, reads in _needed(frame, *READS).groupby("round")}
    load = pd.Series(spans, dtype=float).reindex(steps.index, fill_value=0.0)
    return float(np.maximum(load, compute).sum())


def _covered(reads: pd.DataFrame) -> float:
    """Length of the union of the intervals [time_s - seconds, time_s]."""
    reads = reads.sort_values("time_s", ascending=False)
    # from the last read to the first: everything after ``reached`` is done
    covered, reached = 0.0, float("inf")
    for end, seconds in zip(reads["time_s"], reads["seconds"]):
        covered += max(0.0, min(end, reached) - (end - seconds))
        reached = min(reached, end - seconds)
    return covered


# ---- reading ahead ----


def _needed(frame: pd.DataFrame, *kinds: str) -> pd.DataFrame:
    """Decoding reads of experts that the verification of the same round sent tokens to."""
    routed = events(frame, "verify", "route")[_EXPERT].drop_duplicates()
    return events(frame, "decode", *kinds).merge(routed, on=_EXPERT)


def prefetch_recall(frame: pd.DataFrame) -> float:
    """Of the reads that verifications needed, the share that had been started before the router
    asked."""
    used = len(_needed(frame, "prefetch"))
    return _ratio(used, used + len(_needed(frame, "fetch")))


def prefetch_precision(frame: pd.DataFrame) -> float:
    """Of the experts read ahead, the share that the same round's verification needed."""
    return _ratio(len(_needed(frame, "prefetch")), len(events(frame, "decode", "prefetch")))


def summary(frame: pd.DataFrame) -> dict[str, float]:
    """The numbers above by name, for a table or a JSON file."""
    measures = (
        new_tokens,
        decode_seconds,
        fetched_bytes,
        bytes_per_token,
        hit_rate,
        tokens_per_round,
        acceptance_rate,
        prefetch_recall,
        prefetch_precision,
        oracle_overlap_seconds,
    )
    numbers = {measure.__name__: measure(frame) for measure in measures}
    return numbers | {f"{part}_share": share for part, share in time_shares(frame).items()}


def table(
    traces: dict[tuple[str, int], pd.DataFrame], shares: list[dict] | None = None
) -> pd.DataFrame:
    """``summary`` of each trace of a bench, one row per (label, batch); a label is "specmoe" or
    "cached:lru". With the ``shares`` of a bench, where the time went is the median of its repeats,
    and its ``_min`` and ``_max`` are there."""
    rows = []
    for (label, batch), frame in traces.items():
        method, _, eviction = label.partition(":")
        row = {"method": method, "eviction": eviction or None, "batch": batch} | summary(frame)
        same = [one for one in shares or [] if (one["label"], one["batch"]) == (label, batch)]
        rows.append(row | _over_repeats(same))
    return pd.DataFrame(rows)


def _over_repeats(shares: list[dict]) -> dict[str, float]:
    found = {}
    for name in [f"{part}_share" for part in PARTS] if shares else []:
        values = [one[name] for one in shares]
        found |= {name: float(np.median(values))}
        found |= {f"{name}_min": min(values), f"{name}_max": max(values)}
    return found


def plainest(traces: dict[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The trace of a bench to count expert use on: of a method that sends no rejected token to any
    expert, if one was run (on_demand before the others), at the largest batch."""
    order = ("on_demand", "resident", "overlapped", "cached", "auto", "specmoe")
    return traces[min(traces, key=lambda key: (order.index(key[0].partition(":")[0]), -key[1]))]
