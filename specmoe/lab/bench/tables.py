"""The table of targets: each beside what was measured, and what the floor would allow.

Comes in: the contents of the result files. Goes out: outcomes, and a frame of words. ``run`` prints it, the notebook ``performance`` shows all. Pure functions: nothing is
measured here. A missing measurement is ``None``, shown as "not measured"."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from .cells import SINGLE, SKEWED, TRANSLATE, Measured, achieved, among, divide, share
from .settings import BATCHES, PEER_BATCHES

PEERS = (
    ("resident", "memory", "resident", "transformers"),
    ("offload", "native", "specmoe", "accelerate"),
    ("offload", "native", "specmoe", "accelerate_uncached"),
)


@dataclass(frozen=True)
class Outcome:
    """One target. ``goal`` and ``measured`` are numbers; ``at_least``: whether more is better;
    ``floor`` and ``note`` are words."""

    name: str
    goal: float
    at_least: bool
    measured: float | None
    floor: str = ""
    note: str = ""
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def words(self, value: float) -> str:
        return f"{value:.2f}{self.unit}" if self.unit else f"{value:.1%}"


# ---- the targets ----

SHORT = {TRANSLATE: "translate", SKEWED: "skewed"}
LINK_NAMES = {"native": "native", "throttled": "0.25 GB/s"}
OTHERS = {"on_demand": "on-demand", "cached": "best cached"}
Values = dict[int, float | None]  # by batch
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
    ]


def target_frame(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """Target, measured, whether it was met, the floor, and the single values behind it, in
    words."""
    rows = [
        {
            "what": one.name,
            "target": f"{'≥' if one.at_least else '≤'} {one.words(one.goal)}",
            "measured": "not measured" if one.measured is None else one.words(one.measured),
            "met": {None: "", True: "yes", False: "no"}[one.met],
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
    """``take`` of the batches that were measured; the note says which, where there are several."""
    known = [f"{batch}: {value:.2f}" for batch, value in values.items() if value is not None]
    note = f"B = {', '.join(known)}" if len(values) > 1 and known else ""
    return Outcome(name, goal, at_least, among(take, values.values()), floor, note, unit)


def _speed_up(found: Measured, goal, model, link, over, batches, take, which: str) -> Outcome:
    ratios = {batch: found.ratio(model, link, batch, "specmoe", over) for batch in batches}
    bound = among(take, [found.ratio_at_floor(model, link, batch, over) for batch in batches])
    floor = f"{bound:.1f}× at specmoe's floor" if bound is not None else ""
    name = f"{SHORT[model]}, {LINK_NAMES[link]}: specmoe / {OTHERS[over]}, {which}"
    return _of_batches(name, goal, True, ratios, take, floor)


def auto_over_best(found: Measured, model: str, link: str, batch: int) -> float | None:
    """auto over the fastest single method of the same cell."""
    others = [
        speed for what in SINGLE if (speed := found.speed(model, link, batch, what)) is not None
    ]
    return divide(found.speed(model, link, batch, "auto"), max(others, default=None))


def _auto(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        for link, words in LINK_NAMES.items():
            ratios = {batch: auto_over_best(found, model, link, batch) for batch in BATCHES}
            name = f"{SHORT[model]}, {words}: auto / best single method, every B"
            rows.append(_of_batches(name, 0.97, True, ratios, min))
    return rows


def _bytes(found: Measured) -> list[Outcome]:
    native, throttled = (_bytes_ratio(found, link) for link in LINK_NAMES)
    further = f"native; at 0.25 GB/s, where the planner drafts further, {throttled or 0:.2f}"
    ours, theirs = (bytes_growth(found, what) for what in ("specmoe", "on_demand"))
    moved = "translate: bytes per token, specmoe / on-demand, B = 256"
    grown = "translate: growth of bytes, B = 1 to 256, gamma 10, N = 4"
    beside = f"on-demand grows {theirs:.1f}×" if theirs else ""
    return [
        Outcome(moved, 0.15, False, native, note=further if throttled else ""),
        Outcome(grown, 9.0, False, ours, note=beside),
    ]


def _bytes_ratio(found: Measured, link: str) -> float | None:
    both = [found.sums(TRANSLATE, link, 256, what) for what in ("specmoe", "on_demand")]
    return divide(*map(_per_token, both)) if all(both) else None


def _per_token(sums: dict) -> float:
    return sums["fetched_bytes"] / sums["num_new_tokens"]


def bytes_growth(found: Measured, what: str) -> float | None:
    """(bytes per token x B) at B = 256 over B = 1: how the traffic of a step grows with the
    batch."""
    one, many = (found.sums(TRANSLATE, "count", batch, what, "growth") for batch in (1, 256))
    return 256 * _per_token(many) / _per_token(one) if one and many else None


OF_ALL = "share of specmoe's time, every B"
NOT_EXPERTS = "what is not expert arithmetic, B = 64 and 256"


def _shares(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        sums = {batch: found.sums(model, "native", batch, "specmoe") for batch in BATCHES}
        waits, drafts = (
            {batch: share(each, name) for batch, each in sums.items()}
            for name in ("wait_s", "draft_s")
        )
        rates = {b: achieved(found, model, "throttled", b, "specmoe") for b in BATCHES}
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


def _not_arithmetic(found: Measured, model: str, batch: int) -> float | None:
    rows = found.rows(model, "native", batch, "specmoe", "drafting")
    known = rows and rows[0]["draft_s"]
    return 1 - rows[0]["draft_expert_s"] / rows[0]["draft_s"] if known else None


def _peers(found: Measured) -> list[Outcome]:
    def speeds(part: str, link: str, batch: int, *methods: str) -> list[float | None]:
        return [found.speed(SKEWED, link, batch, what, part) for what in methods]

    rows = []
    for batch in PEER_BATCHES:
        ratio = divide(*speeds("resident", "memory", batch, "resident", "transformers"))
        name = f"skewed: resident / transformers generate, B = {batch}"
        rows.append(Outcome(name, 1.0, True, ratio))
    for batch, goal in zip(PEER_BATCHES, (20.0, 10.0, 6.0)):
        peers = ("specmoe", "accelerate", "accelerate_uncached")
        ours, peer, uncached = speeds("offload", "native", batch, *peers)
        bare = divide(ours, uncached)
        note = f"{bare:.2f}× where the peer's page cache is dropped every step" if bare else ""
        name = f"skewed: specmoe / transformers + accelerate on disk, B = {batch}"
        rows.append(Outcome(name, goal, True, divide(ours, peer), note=note))
    traced = divide(*speeds("tracing", "native", 16, "trace_on", "trace_off"))
    return [*rows, Outcome("tracing on / off", 0.97, True, traced)]
