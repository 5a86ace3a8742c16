"""The table of targets: each beside what was measured, and what the floor would allow.

Comes in: the contents of the result files. Goes out: outcomes, and a frame of words. ``run`` prints
it, the notebook ``performance`` shows all. Nothing is measured here; the bound in bytes was counted
(``lab.bound``). A missing measurement is ``None``, shown as "not measured".
"""

from __future__ import annotations

import statistics

from .. import bound
from .cells import (
    SKEWED,
    TRANSLATE,
    Measured,
    achieved,
    among,
    auto_over_best,
    bytes_of,
    divide,
)
from .control import Ratio
from .outcomes import Outcome, of_batches, target_frame, those_measured
from .settings import BATCHES, LINKS, LOW_BIT_BATCHES, PEER_BATCHES

PEERS = (
    ("resident", "memory", "resident", "transformers"),
    ("offload", "native", "specmoe", "accelerate"),
    ("offload", "native", "specmoe", "accelerate_uncached"),
)


# ---- the targets ----

SHORT = {TRANSLATE: "translate", SKEWED: "skewed"}
LINK_NAMES = {"native": "native", "throttled": "0.25 GB/s"}
OTHERS = {"on_demand": "on-demand", "cached": "best cached"}
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
# What the page opens with: two ratios over on-demand, bytes, the best pool, a peer.
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


def text(files: dict[str, dict]) -> str:
    """The targets for a terminal."""
    return target_frame(targets(files)).to_string(index=False, justify="left")


def _speed_up(found: Measured, goal, model, link, over, batches, take, which: str) -> Outcome:
    ratios = {batch: found.ratio(model, link, batch, "specmoe", over) for batch in batches}
    known = those_measured(ratios)
    at_floor = among(take, [found.ratio_at_floor(model, link, batch, over) for batch in known])
    name = f"{SHORT[model]}, {LINK_NAMES[link]}: specmoe / {OTHERS[over]}, {which}"
    target = Outcome(name, goal, True, floor=_at_floor(at_floor), bound=at_floor)
    return of_batches(target, ratios, take)


def _at_floor(ratio: float | None) -> str:
    return f"{ratio:.1f}× at specmoe's floor" if ratio is not None else ""


def _auto(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        for link, said in LINK_NAMES.items():
            ratios = {batch: auto_over_best(found, model, link, batch) for batch in BATCHES}
            name = f"{SHORT[model]}, {said}: auto / best single method, every B"
            rows.append(of_batches(Outcome(name, 0.97, True), ratios, min))
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
    of_draft = bound.over_on_demand()
    least = min(of_draft.values(), default=None)
    said = ", ".join(f"{over:.2f}× ({length} tokens)" for length, over in of_draft.items())
    said = f"oracle's draft and Belady's pool: {said}" if said else ""
    return [
        Outcome(moved, 0.15, False, native, said, further, bound=least),
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
            of_batches(Outcome(name, goal, at_least, unit=""), values, max)
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
    """Targets of the last days: specmoe beside everything in memory, experts in few bits, a slow
    link's floor."""
    return [
        *(_beside_resident(found, model) for model in (TRANSLATE, SKEWED)),
        *(_low_bit(found, store, goal) for store, goal in (("int4", 2.5), ("int8", 1.7))),
        *(_over_floor(found, model) for model in (TRANSLATE, SKEWED)),
    ]


def _beside_resident(found: Measured, model: str) -> Outcome:
    ratios = {b: found.ratio(model, "native", b, "specmoe", "resident") for b in BATCHES[1:]}
    bounds = [found.ratio_at_floor(model, "native", b, "resident") for b in those_measured(ratios)]
    at_floor = among(min, bounds)
    name = f"{SHORT[model]}, native: specmoe / resident, B >= 4"
    target = Outcome(name, 0.9, True, floor=_at_floor(at_floor), bound=at_floor)
    return of_batches(target, ratios, min)


def _low_bit(found: Measured, store: str, goal: float) -> Outcome:
    """Its bound: bf16's reads, in fewer bits, and nothing else that takes time."""
    at = (SKEWED, "throttled")
    ratios = {b: found.ratio(*at, b, store, "bf16", "low_bit") for b in LOW_BIT_BATCHES}
    bounds = []
    for batch in those_measured(ratios):
        whole = found.sums(*at, batch, "bf16", "low_bit")
        link_s = bytes_of(whole) * int(store[3:]) / 16 / LINKS["throttled"]
        bounds.append(divide(1.0, link_s * found.speed(*at, batch, "bf16", "low_bit")))
    least = among(min, bounds)
    name = f"skewed, 0.25 GB/s: store of {store[3:]} bits / of bf16, the same text, specmoe"
    floor = f"{least:.1f}× if nothing but reads took time" if least else ""
    return of_batches(Outcome(name, goal, True, floor=floor, bound=least), ratios, min)


def _over_floor(found: Measured, model: str) -> Outcome:
    ratios = {b: found.over_floor(model, "throttled", b, "specmoe") for b in BATCHES if b <= 64}
    name = f"{SHORT[model]}, 0.25 GB/s: specmoe's time / its floor, B <= 64"
    return of_batches(Outcome(name, 1.05, False), ratios, max)
