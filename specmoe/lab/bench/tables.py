"""The tables: every target beside what was measured and the floor; every cell beside its own floor.

Comes in: the contents of the result files. Goes out: rows of plain values, and their text. ``run``
prints them, ``page`` writes them. Pure functions: nothing is measured here. A missing measurement
is ``None``, shown as "not measured"."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import floors
from .settings import BATCHES, LINKS

TRANSLATE, SKEWED = "tiny-translate", "tiny-skewed"
SINGLE = ("on_demand", "overlapped", "cached", "specmoe")  # what auto is compared with
PEERS = (
    ("resident", "memory", "resident", "transformers"),
    ("offload", "native", "specmoe", "accelerate"),
    ("offload", "native", "specmoe", "accelerate_uncached"),
)
SUMMED = (
    "num_new_tokens",
    "seconds",
    "fetched_bytes",
    "num_prefetches",
    "row_rounds",
    "num_drafted",
    "wait_s",
    "draft_s",
    "verify_s",
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
    why: str = ""  # what forbids it, in numbers, where the floor does

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal


class Measured:
    """What the result files hold, by model, link, batch and method; repeats (slices) are one cell,
    its speed their median."""

    def __init__(self, files: dict[str, dict]):
        self.files = files
        self.cells: dict[tuple, list[dict]] = {}
        for part, content in files.items():
            for row in content.get("rows", {}).values():
                self.cells.setdefault(
                    (part, row["model"], row["link"], row["batch"], row["what"]), []
                ).append(row)

    def rows(
        self, model: str, link: str, batch: int, what: str, part: str | None = None
    ) -> list[dict]:
        return self.cells.get(
            (part or f"{model.removeprefix('tiny-')}-{link}", model, link, batch, what), []
        )

    def speed(
        self, model: str, link: str, batch: int, what: str, part: str | None = None
    ) -> float | None:
        """Tokens per second: the median of the slices."""
        rows = self.rows(model, link, batch, what, part)
        return statistics.median(row["tokens_per_second"] for row in rows) if rows else None

    def sums(
        self, model: str, link: str, batch: int, what: str, part: str | None = None
    ) -> dict | None:
        """Counts and seconds of all slices together."""
        rows = self.rows(model, link, batch, what, part)
        return {name: sum(row[name] for row in rows) for name in SUMMED} if rows else None

    def ratio(self, model: str, link: str, batch: int, what: str, over: str) -> float | None:
        return divide(self.speed(model, link, batch, what), self.speed(model, link, batch, over))

    def probe(self, model: str, link: str, batch: int) -> dict | None:
        """The probe before the methods of this batch; of the compute rates the median over all
        batches (disks drift, cores do not)."""
        rows = self.rows(model, link, batch, "probe")
        part = [
            row
            for key, cells in self.cells.items()
            if key[1:3] == (model, link) and key[4] == "probe"
            for row in cells
        ]
        rates = ("fp32_flop_per_s", "bf16_flop_per_s")
        return (
            rows[0] | {name: statistics.median(row[name] for row in part) for name in rates}
            if rows
            else None
        )

    def floor(self, model: str, link: str, batch: int, what: str) -> dict | None:
        """The floor of a cell: from its own counts, its model, and the probes before it."""
        sums, probe = self.sums(model, link, batch, what), self.probe(model, link, batch)
        if sums is None or probe is None:
            return None
        facts = self.files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
        return floors.floor(sums, facts, probe, LINKS[link])

    def ratio_at_floor(self, model: str, link: str, batch: int, over: str) -> float | None:
        """What specmoe over ``over`` (as measured) would be if specmoe ran at its floor."""
        floor, other = (
            self.floor(model, link, batch, "specmoe"),
            self.speed(model, link, batch, over),
        )
        return divide(1.0, floor["floor_s"] * other) if floor and other else None


def divide(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def among(function: Callable, values: Iterable[float | None]) -> float | None:
    """``function`` of the values that are there (``_listed`` says which), None without any."""
    known = [value for value in values if value is not None]
    return function(known) if known else None


# ---- the targets ----


def targets(files: dict[str, dict]) -> list[Outcome]:
    """Every target, in the order in which they were set."""
    found = Measured(files)
    return [
        *_over_on_demand(found),
        *_over_cached(found),
        *_auto(found),
        *_bytes(found),
        *_shares(found),
        *_peers(found),
    ]


def _speedup(
    found: Measured,
    name: str,
    goal: float,
    model: str,
    link: str,
    batches: Iterable[int],
    over: str,
    function: Callable = min,
) -> Outcome:
    """specmoe over another method; ``function`` of the batches (the least of them, unless the
    target says otherwise)."""
    batches = list(batches)
    ratios = [found.ratio(model, link, batch, "specmoe", over) for batch in batches]
    bounds = [found.ratio_at_floor(model, link, batch, over) for batch in batches]
    bound = among(function, bounds)
    floor = f"{bound:.1f}× at specmoe's floor" if bound is not None else ""
    return Outcome(name, goal, True, among(function, ratios), floor, _listed(batches, ratios))


def _listed(batches: list[int], values: list[float | None], scale: str = ".2f") -> str:
    """ "B = 1: 1.20, 4: 1.55"; nothing where a single batch was asked for."""
    known = [
        f"{batch}: {value:{scale}}" for batch, value in zip(batches, values) if value is not None
    ]
    return f"B = {', '.join(known)}" if len(batches) > 1 and known else ""


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _over_on_demand(found: Measured) -> list[Outcome]:
    def row(name, goal, model, link, batches, function=min):
        return _speedup(found, name, goal, model, link, batches, "on_demand", function)

    return [
        row(
            "translate, native: specmoe / on-demand, best batch",
            6.0,
            TRANSLATE,
            "native",
            BATCHES,
            max,
        ),
        row("translate, native: specmoe / on-demand, B = 256", 5.0, TRANSLATE, "native", [256]),
        row(
            "translate, native: specmoe / on-demand, mean over B",
            3.5,
            TRANSLATE,
            "native",
            BATCHES,
            _mean,
        ),
        row(
            "translate, 0.25 GB/s: specmoe / on-demand, B = 256", 7.0, TRANSLATE, "throttled", [256]
        ),
        row(
            "skewed, native: specmoe / on-demand, B = 64 and 128", 3.0, SKEWED, "native", [64, 128]
        ),
        row("skewed, 0.25 GB/s: specmoe / on-demand, B = 64", 6.0, SKEWED, "throttled", [64]),
    ]


def _over_cached(found: Measured) -> list[Outcome]:
    def row(name, goal, model, link, batches):
        return _speedup(found, name, goal, model, link, batches, "cached")

    return [
        row("translate, native: specmoe / best cached, B = 1", 1.0, TRANSLATE, "native", [1]),
        row("translate, 0.25 GB/s: specmoe / best cached, B = 1", 1.0, TRANSLATE, "throttled", [1]),
        row(
            "translate, native: specmoe / best cached, B >= 16",
            3.0,
            TRANSLATE,
            "native",
            BATCHES[2:],
        ),
        row("skewed, native: specmoe / best cached, B >= 16", 1.2, SKEWED, "native", BATCHES[2:]),
        row(
            "translate, 0.25 GB/s: specmoe / best cached, B >= 64",
            4.0,
            TRANSLATE,
            "throttled",
            BATCHES[3:],
        ),
        row(
            "skewed, 0.25 GB/s: specmoe / best cached, B >= 64",
            2.5,
            SKEWED,
            "throttled",
            BATCHES[3:],
        ),
    ]


def auto_over_best(found: Measured, model: str, link: str, batch: int) -> float | None:
    """auto over the fastest single method of the same cell."""
    others = [
        speed for what in SINGLE if (speed := found.speed(model, link, batch, what)) is not None
    ]
    return divide(found.speed(model, link, batch, "auto"), max(others, default=None))


def _auto(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        for link, words in (("native", "native"), ("throttled", "0.25 GB/s")):
            ratios = [auto_over_best(found, model, link, batch) for batch in BATCHES]
            name = f"{model.removeprefix('tiny-')}, {words}: auto / best single method, every B"
            rows.append(
                Outcome(name, 0.97, True, among(min, ratios), note=_listed(list(BATCHES), ratios))
            )
    return rows


def _bytes(found: Measured) -> list[Outcome]:
    native, throttled = (_bytes_ratio(found, link) for link in ("native", "throttled"))
    other = (
        (f"native; at 0.25 GB/s, where the planner drafts further, {throttled:.2f}")
        if throttled
        else ""
    )
    grown = {what: bytes_growth(found, what) for what in ("specmoe", "on_demand")}
    note = f"on-demand grows {grown['on_demand']:.1f}×" if grown["on_demand"] else ""
    return [
        Outcome(
            "translate: bytes per token, specmoe / on-demand, B = 256",
            0.15,
            False,
            native,
            note=other,
        ),
        Outcome(
            "translate: growth of bytes, B = 1 to 256, gamma 10, N = 4",
            9.0,
            False,
            grown["specmoe"],
            note=note,
        ),
    ]


def _bytes_ratio(found: Measured, link: str) -> float | None:
    both = [found.sums(TRANSLATE, link, 256, what) for what in ("specmoe", "on_demand")]
    return (
        divide(*[sums["fetched_bytes"] / sums["num_new_tokens"] for sums in both])
        if all(both)
        else None
    )


def bytes_growth(found: Measured, what: str) -> float | None:
    """(bytes per token x B) at B = 256 over B = 1: how the traffic of a step grows with the
    batch."""
    one, many = (found.sums(TRANSLATE, "count", batch, what, "growth") for batch in (1, 256))
    if not one or not many:
        return None
    return (
        256
        * (many["fetched_bytes"] / many["num_new_tokens"])
        / (one["fetched_bytes"] / one["num_new_tokens"])
    )


def share(sums: dict | None, name: str) -> float | None:
    return divide(sums[name], sums["seconds"]) if sums else None


def achieved(found: Measured, model: str, link: str, batch: int, what: str) -> float | None:
    """Bytes per second that crossed the link, over the raw rate."""
    sums, probe = found.sums(model, link, batch, what), found.probe(model, link, batch)
    if not sums or not probe:
        return None
    return sums["fetched_bytes"] / sums["seconds"] / floors.link_rate(LINKS[link], probe)


def _shares(found: Measured) -> list[Outcome]:
    rows = []
    for model in (TRANSLATE, SKEWED):
        short = model.removeprefix("tiny-")
        waits = [
            share(found.sums(model, "native", batch, "specmoe"), "wait_s") for batch in BATCHES
        ]
        drafts = [
            share(found.sums(model, "native", batch, "specmoe"), "draft_s") for batch in BATCHES
        ]
        rates = [achieved(found, model, "throttled", batch, "specmoe") for batch in BATCHES]
        rows += [
            Outcome(
                f"{short}, native: waiting for the link, share of specmoe's time, every B",
                0.05,
                False,
                among(max, waits),
                note=_listed(list(BATCHES), waits),
                unit="",
            ),
            Outcome(
                f"{short}, 0.25 GB/s: rate of specmoe's reads over the raw rate, best B",
                0.90,
                True,
                among(max, rates),
                note=_listed(list(BATCHES), rates),
                unit="",
            ),
            Outcome(
                f"{short}, native: drafting, share of specmoe's time, every B",
                0.40,
                False,
                among(max, drafts),
                note=_listed(list(BATCHES), drafts),
                unit="",
            ),
            _not_arithmetic(found, model),
        ]
    return rows


def _not_arithmetic(found: Measured, model: str) -> Outcome:
    shares = []
    for batch in (64, 256):
        rows = found.rows(model, "native", batch, "specmoe", "drafting")
        shares.append(
            1 - rows[0]["draft_expert_s"] / rows[0]["draft_s"]
            if rows and rows[0]["draft_s"]
            else None
        )
    name = (
        f"{model.removeprefix('tiny-')}, native: of drafting, what is not expert arithmetic, B "
        "= 64 and 256"
    )
    return Outcome(name, 0.40, False, among(max, shares), note=_listed([64, 256], shares), unit="")


def _peers(found: Measured) -> list[Outcome]:
    rows = []
    for batch in (1, 16, 64):
        speeds = [
            found.speed(SKEWED, "memory", batch, what, "resident")
            for what in ("resident", "transformers")
        ]
        rows.append(
            Outcome(
                f"skewed: resident / transformers generate, B = {batch}", 1.0, True, divide(*speeds)
            )
        )
    for batch, goal in ((1, 20.0), (16, 10.0), (64, 6.0)):
        ours, peer, uncached = (
            found.speed(SKEWED, "native", batch, what, "offload")
            for what in ("specmoe", "accelerate", "accelerate_uncached")
        )
        name, ratio = (
            (f"skewed: specmoe / transformers + accelerate on disk, B = {batch}"),
            divide(ours, uncached),
        )
        note = f"{ratio:.2f}× where the peer's page cache is dropped every step" if ratio else ""
        rows.append(Outcome(name, goal, True, divide(ours, peer), note=note))
    traced = [
        found.speed(SKEWED, "native", 16, what, "tracing") for what in ("trace_on", "trace_off")
    ]
    return [*rows, Outcome("tracing on / off", 0.97, True, divide(*traced))]


# ---- every cell beside its floor ----


def cell_rows(files: dict[str, dict], model: str, link: str) -> list[dict]:
    """One row for each batch and method that was measured: speed, bytes, floor, measured over
    floor, shares of time."""
    found, rows = Measured(files), []
    for batch in BATCHES:
        for what in ("on_demand", "overlapped", "cached", "specmoe", "auto", "resident"):
            sums, floor = (
                found.sums(model, link, batch, what),
                found.floor(model, link, batch, what),
            )
            if sums is None or floor is None:
                continue
            speed = found.speed(model, link, batch, what)
            slices = found.rows(model, link, batch, what)
            rows.append(
                {
                    "batch": batch,
                    "method": what if what != "cached" else f"cached ({slices[0]['eviction']})",
                    "tokens_per_second": speed,
                    "over_on_demand": found.ratio(model, link, batch, what, "on_demand"),
                    "gamma": statistics.mean(row["gamma"] for row in slices),
                    "bytes_per_token": sums["fetched_bytes"] / sums["num_new_tokens"],
                    **floor,
                    "limit": "link" if floor["link_s"] >= floor["compute_s"] else "arithmetic",
                    "measured_over_floor": divide(1 / speed, floor["floor_s"]),
                    "wait_share": share(sums, "wait_s"),
                    "draft_share": share(sums, "draft_s"),
                }
            )
    return rows


# ---- text ----


def number(outcome: Outcome, value: float) -> str:
    return f"{value:.2f}{outcome.unit}" if outcome.unit else f"{value:.1%}"


def target_cells(outcome: Outcome) -> tuple[str, ...]:
    """A target as words: name, goal, measured, met, floor and note."""
    sign = "≥" if outcome.at_least else "≤"
    measured = "not measured" if outcome.measured is None else number(outcome, outcome.measured)
    met = {None: "", True: "yes", False: "no"}[outcome.met]
    return (
        outcome.name,
        (f"{sign} {number(outcome, outcome.goal)}"),
        measured,
        met,
        outcome.floor,
        outcome.note,
    )


def text(files: dict[str, dict]) -> str:
    """The tables for a terminal."""
    lines = [
        ("what", "target", "measured", "met", "floor", ""),
        *[target_cells(outcome) for outcome in targets(files)],
    ]
    widths = [max(len(line[place]) for line in lines) for place in range(6)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines
    )
