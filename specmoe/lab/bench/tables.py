"""The table of targets: each beside what was measured, and what the floor would allow.

Comes in: the contents of the result files. Goes out: outcomes, and a frame of words. ``run`` prints it, the notebook ``performance`` shows all. Pure functions: nothing is
measured here. A missing measurement is ``None``, shown as "not measured"."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from .cells import SINGLE, SKEWED, TRANSLATE, Measured, achieved, among, bytes_of
from .control import Ratio, words
from .settings import BATCHES, LOW_BIT_BATCHES, PEER_BATCHES

PEERS = (
    ("resident", "memory", "resident", "transformers"),
    ("offload", "native", "specmoe", "accelerate"),
    ("offload", "native", "specmoe", "accelerate_uncached"),
)


@dataclass(frozen=True)
class Outcome:
    """One target. ``found``: what was measured; ``at_least``: whether more is better; ``floor`` and
    ``note`` are words."""

    name: str
    goal: float
    at_least: bool
    found: Ratio | None
    floor: str = ""
    note: str = ""
    unit: str = "×"

    @property
    def measured(self) -> float | None:
        return self.found.value if self.found else None

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    @property
    def verdict(self) -> str:
        """No claim where two arms of one method lie as far apart as the measured and the goal."""
        if self.found is None:
            return ""
        said = "yes" if self.met else "no"
        if self.found.within(self.goal):
            said = "within the spread"
        return f"{said} (old)" if self.found.old else said

    def words(self, value: float) -> str:
        return words(Ratio(value), self.unit)


# ---- the targets ----

SHORT = {TRANSLATE: "translate", SKEWED: "skewed"}
LINK_NAMES = {"native": "native", "throttled": "0.25 GB/s"}
OTHERS = {"on_demand": "on-demand", "cached": "best cached"}
Values = dict[int, Ratio | None]  # by batch
# specmoe over another method: the goal, where, over what, at which batches, what is taken of them
SPEED_UPS = (
    (6.0, TRANSLATE, "native", "on_demand", BATCHES, max, "best batch"),
    (5.0, TRANSLATE, "native", "on_demand", (256,), min, "B = 256"),
    (3.5, TRANSLATE, "native", "on_demand", BATCHES, statistics.mean, "mean over B"),
    (7.0, TRANSLATE, "throttled", "on_demand", (256,), min, "B = 256"),
    (3.0, SKEWED, "native", "on_demand", (64, 128), min, "B = 64 and 128"),
    (6.0, SKEWED, "throttled", "on_demand", (64,), min, "B = 64"),
    (1.0, TRANSLATE, "native", "cached", (1,), min, "B = 1"),
    (1.0, TRANSLATE, "throttled", "cached", (1,), min, "B = 1"),
    (3.0, TRANSLATE, "native", "cached", BATCHES[2:], min, "B >= 16"),
    (1.2, SKEWED, "native", "cached", BATCHES[2:], min, "B >= 16"),
    (4.0, TRANSLATE, "throttled", "cached", BATCHES[3:], min, "B >= 64"),
    (2.5, SKEWED, "throttled", "cached", BATCHES[3:], min, "B >= 64"),
)
# What the page opens with: two ratios to be glad of, two that are not reached, one of bytes.
HEADLINES = (
    "translate, native: specmoe / on-demand, best batch",
    "translate, 0.25 GB/s: specmoe / on-demand, B = 256",
    "translate: bytes per token, specmoe / on-demand, B = 256",
    "translate, native: specmoe / best cached, B >= 16",
    "skewed: resident / transformers generate, B = 64",
)


def targets(files: dict[str, dict]) -> list[Outcome]:
    """Every target, in the order in which they were set."""
    found = Measured(files)
    return [
        *(_speed_up(found, *target) for target in SPEED_UPS),
        *_auto(found),
        *_bytes(found),
        *_shares(found),
        *_peers(found),
        *_ours(found),
    ]


def target_frame(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """Target, measured, whether it was met, the floor, and the single values behind it, in
    words."""
    rows = [
        {
            "what": one.name,
            "target": f"{'≥' if one.at_least else '≤'} {one.words(one.goal)}",
            "measured": words(one.found, one.unit) if one.found else "not measured",
            "met": one.verdict,
            "A/A": f"± {one.found.spread - 1:.1%}" if one.found and one.found.spread else "",
            "what the floor would allow": one.floor,
            "by batch": one.note,
        }
        for one in outcomes
    ]
    return pd.DataFrame(rows)


def text(files: dict[str, dict]) -> str:
    """The targets for a terminal."""
    return target_frame(targets(files)).to_string(index=False, justify="left")


def _of_batches(
    name: str,
    goal: float,
    at_least: bool,
    values: Values,
    take: Callable,
    floor: str = "",
    unit: str = "×",
) -> Outcome:
    """``take`` of the batches that were measured last; the note says which, where there are
    several, and what is older."""
    new, old = (_those(values, old=old) for old in (False, True))
    note = f"B = {', '.join(_listed(new))}" if len(values) > 1 and new else ""
    if len(values) > 1 and old:
        note = f"{note}; old: " * bool(note) + f"B = {', '.join(_listed(old))}"
    return Outcome(name, goal, at_least, _taken(take, new or old), floor, note, unit)


def _those(values: Values, old: bool) -> dict[int, Ratio]:
    return {b: ratio for b, ratio in values.items() if ratio is not None and ratio.old == old}


def _listed(values: dict[int, Ratio]) -> list[str]:
    return [f"{batch}: {words(ratio).replace('×', '')}" for batch, ratio in values.items()]


def _taken(take: Callable, values: dict[int, Ratio]) -> Ratio | None:
    """The least or the greatest as it is; of a mean, the mean of the ends and the widest spread."""
    if not values:
        return None
    if take is not statistics.mean:
        return take(values.values(), key=lambda ratio: ratio.value)

    def mean(name: str) -> float | None:
        ends = [getattr(ratio, name) for ratio in values.values()]
        return None if None in ends else statistics.mean(ends)

    spread = among(max, [ratio.spread for ratio in values.values()])
    old = any(ratio.old for ratio in values.values())
    return Ratio(
        statistics.mean(r.value for r in values.values()), mean("low"), mean("high"), spread, old
    )


def _speed_up(found: Measured, goal, model, link, over, batches, take, which: str) -> Outcome:
    ratios = {batch: found.ratio(model, link, batch, "specmoe", over) for batch in batches}
    known = _those(ratios, old=False) or _those(ratios, old=True)
    bound = among(take, [found.ratio_at_floor(model, link, batch, over) for batch in known])
    floor = f"{bound:.1f}× at specmoe's floor" if bound is not None else ""
    name = f"{SHORT[model]}, {LINK_NAMES[link]}: specmoe / {OTHERS[over]}, {which}"
    return _of_batches(name, goal, True, ratios, take, floor)


def auto_over_best(found: Measured, model: str, link: str, batch: int) -> Ratio | None:
    """auto over the fastest single method of the same cell."""
    speeds = {what: found.speed(model, link, batch, what) for what in SINGLE}
    known = {what: speed for what, speed in speeds.items() if speed is not None}
    best = max(known, key=known.get) if known else ""
    return found.ratio(model, link, batch, "auto", best)


def _auto(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        for link, said in LINK_NAMES.items():
            ratios = {batch: auto_over_best(found, model, link, batch) for batch in BATCHES}
            name = f"{SHORT[model]}, {said}: auto / best single method, every B"
            rows.append(_of_batches(name, 0.97, True, ratios, min))
    return rows


def _bytes(found: Measured) -> list[Outcome]:
    native, throttled = (
        found.ratio(TRANSLATE, link, 256, "specmoe", "on_demand", of=bytes_of)
        for link in LINK_NAMES
    )
    further = (
        f"native; at 0.25 GB/s, where the planner drafts further, {throttled.value:.2f}"
        if throttled
        else ""
    )
    ours, theirs = (bytes_growth(found, what) for what in ("specmoe", "on_demand"))
    moved = "translate: bytes per token, specmoe / on-demand, B = 256"
    grown = "translate: growth of bytes, B = 1 to 256, gamma 10, N = 4"
    beside = f"on-demand grows {theirs.value:.1f}×" if theirs else ""
    return [
        Outcome(moved, 0.15, False, native, note=further),
        Outcome(grown, 9.0, False, ours, note=beside),
    ]


def bytes_growth(found: Measured, what: str) -> Ratio | None:
    """(bytes per token x B) at B = 256 over B = 1: how the traffic of a step grows with the
    batch."""
    ends = [found.rows(TRANSLATE, "count", batch, what, "growth") for batch in (1, 256)]
    if not all(ends):
        return None
    one, many = (bytes_of(rows[0]) for rows in ends)
    return Ratio(256 * many / one, old=any(map(found.is_old, ends)))


OF_ALL = "share of specmoe's time, every B"
NOT_EXPERTS = "what is not expert arithmetic, B = 64 and 256"


def _shares(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        waits, drafts = (
            {batch: found.share(model, "native", batch, "specmoe", name) for batch in BATCHES}
            for name in ("wait_s", "draft_s")
        )
        rates = {b: _achieved(found, model, b) for b in BATCHES}
        other = {batch: _not_arithmetic(found, model, batch) for batch in (64, 256)}
        at_disk, at_link = f"{SHORT[model]}, native: ", f"{SHORT[model]}, 0.25 GB/s: "
        rows += [
            _of_batches(name, goal, at_least, values, max, unit="")
            for name, goal, at_least, values in (
                (f"{at_disk}waiting for the link, {OF_ALL}", 0.05, False, waits),
                (f"{at_link}rate of specmoe's reads over the raw rate, best B", 0.90, True, rates),
                (f"{at_disk}drafting, {OF_ALL}", 0.40, False, drafts),
                (f"{at_disk}of drafting, {NOT_EXPERTS}", 0.40, False, other),
            )
        ]
    return rows


def _achieved(found: Measured, model: str, batch: int) -> Ratio | None:
    value = achieved(found, model, "throttled", batch, "specmoe")
    rows = found.rows(model, "throttled", batch, "specmoe")
    return None if value is None else Ratio(value, old=found.is_old(rows))


def _not_arithmetic(found: Measured, model: str, batch: int) -> Ratio | None:
    rows = found.rows(model, "native", batch, "specmoe", "drafting")
    if not rows or not rows[0]["draft_s"]:
        return None
    return Ratio(1 - rows[0]["draft_expert_s"] / rows[0]["draft_s"], old=found.is_old(rows))


def _peers(found: Measured) -> list[Outcome]:
    rows = []
    for batch in PEER_BATCHES:
        ratio = found.ratio(SKEWED, "memory", batch, "resident", "transformers", "resident")
        name = f"skewed: resident / transformers generate, B = {batch}"
        rows.append(Outcome(name, 1.0, True, ratio))
    for batch, goal in zip(PEER_BATCHES, (20.0, 10.0, 6.0)):
        held, bare = (
            found.ratio(SKEWED, "native", batch, "specmoe", peer, "offload")
            for peer in ("accelerate", "accelerate_uncached")
        )
        note = (
            f"{bare.value:.2f}× where the peer's page cache is dropped every step" if bare else ""
        )
        name = f"skewed: specmoe / transformers + accelerate on disk, B = {batch}"
        rows.append(Outcome(name, goal, True, held, note=note))
    traced = found.ratio(SKEWED, "native", 16, "trace_on", "trace_off", "tracing")
    return [*rows, Outcome("tracing on / off", 0.97, True, traced)]


def _ours(found: Measured) -> list[Outcome]:
    """Targets of the last day: specmoe beside everything in memory, and experts in few bits."""
    rows = []
    for model in (TRANSLATE, SKEWED):
        ratios = {b: found.ratio(model, "native", b, "specmoe", "resident") for b in BATCHES[1:]}
        name = f"{SHORT[model]}, native: specmoe / resident, B >= 4"
        rows.append(_of_batches(name, 0.9, True, ratios, min))
    for store, goal in (("int4", 2.5), ("int8", 1.7)):
        ratios = {
            b: found.ratio(SKEWED, "throttled", b, store, "bf16", "low_bit")
            for b in LOW_BIT_BATCHES
        }
        name = f"skewed, 0.25 GB/s: store of {store[3:]} bits / of bf16, the same text, specmoe"
        rows.append(_of_batches(name, goal, True, ratios, min))
    return rows
