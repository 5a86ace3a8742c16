"""What the result files hold, cell by cell: speed, counts, and the floor that these counts give.

Comes in: the contents of the result files. Goes out: ``Measured``, which is asked by model, link,
batch and method, and the rows of a table. ``tables`` and ``page`` read it. Pure functions: nothing
is measured here. What is missing is ``None``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace

from . import floors
from .control import LEAST, Ratio, paired, spread_of
from .settings import AGAIN, BATCHES, LINKS, PARTS

TRANSLATE, SKEWED = "tiny-translate", "tiny-skewed"
SINGLE = ("on_demand", "overlapped", "cached", "specmoe")  # what auto is compared with
SHOWN = (*SINGLE, "auto", "resident", f"specmoe{AGAIN}")
LIMITS = {"link": "link", "memory": "memory", "compute": "arithmetic"}
SUMMED = (
    "num_new_tokens",
    "seconds",
    "fetched_bytes",
    "num_prefetches",
    "row_rounds",
    "num_drafted",
    "num_rounds",
    "num_steps",
    "num_hits",
    "num_misses",
    "wait_s",
    "draft_s",
    "verify_s",
)


Of = Callable[[dict], float]  # a number of a row


def speed_of(row: dict) -> float:
    return row["tokens_per_second"]


def bytes_of(row: dict) -> float:
    """Bytes per token."""
    return row["fetched_bytes"] / row["num_new_tokens"]


def share_of(name: str) -> Of:
    """The share of a row's seconds that ``name`` has."""
    return lambda row: row[name] / row["seconds"]


class Measured:
    """What the result files hold, by model, link, batch and method; repeats (slices) are one cell,
    its speed their median."""

    def __init__(self, files: dict[str, dict]):
        self.files = files
        self.cells: dict[tuple, list[dict]] = {}
        self.newest = newest_code(files)
        for part in PARTS:
            for row in files.get(part, {}).get("rows", {}).values():
                key = (part, row["model"], row["link"], row["batch"], row["what"])
                self.cells.setdefault(key, []).append(row)
        for rows in self.cells.values():
            rows.sort(key=lambda row: row["slice"])

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
        return {name: sum(_of(row, name) for row in rows) for name in SUMMED} if rows else None

    def ratio(
        self,
        model: str,
        link: str,
        batch: int,
        what: str,
        over: str,
        part: str | None = None,
        of: Of = speed_of,
    ) -> Ratio | None:
        """``what`` over ``over``, slice by slice, beside the spread of two arms of one method in the
        same cell; of their speeds, or of another number of their rows."""
        ours, theirs = (self.rows(model, link, batch, one, part) for one in (what, over))
        if not ours or not theirs:
            return None
        found = paired(*([*map(of, rows)] for rows in in_the_same_turns(ours, theirs)))
        old = self.is_old([*ours, *theirs])
        return replace(found, spread=self.spread(model, link, batch, part, of), old=old)

    def share(self, model: str, link: str, batch: int, what: str, name: str) -> Ratio | None:
        """The share of a method's seconds that ``name`` has, beside the spread of the control's."""
        sums = self.sums(model, link, batch, what)
        if sums is None:
            return None
        spread = self.spread(model, link, batch, of=share_of(name))
        old = self.is_old(self.rows(model, link, batch, what))
        return Ratio(sums[name] / sums["seconds"], spread=spread, old=old)

    def is_old(self, rows: list[dict]) -> bool:
        """Whether they were measured with other code than the newest ones."""
        return any(row.get("code") != self.newest for row in rows)

    def spread(
        self,
        model: str,
        link: str,
        batch: int,
        part: str | None = None,
        of: Of = speed_of,
    ) -> float | None:
        """How far the two arms of the cell's control lie apart."""
        part = part or f"{model.removeprefix('tiny-')}-{link}"
        cell = (part, model, link, batch)
        for key, again in self.cells.items():
            if key[:4] == cell and key[4].endswith(AGAIN):
                arm = self.rows(*cell[1:], key[4].removesuffix(AGAIN), part)
                return spread_of([*map(of, arm)], [*map(of, again)])
        return None

    def probe(self, model: str, link: str, batch: int) -> dict | None:
        """The probe before the methods of this batch; of the compute rates the median over all
        batches (disks drift, cores do not)."""
        rows = self.rows(model, link, batch, "probe")
        part = [
            row
            for key, cells in self.cells.items()
            if key[1:3] == (model, link) and key[4] == "probe"
            for row in cells
            if rows and row.get("code") == rows[0].get("code")
        ]
        rates = ("fp32_flop_per_s", "bf16_flop_per_s", "memory_bytes_per_s")
        if not rows:
            return None
        known = [name for name in rates if name in rows[0]]
        found = {name: [row[name] for row in part if name in row] for name in known}
        reached = {"reached_bytes_per_s": self._reached(model, link, batch)}
        return rows[0] | reached | {name: statistics.median(each) for name, each in found.items()}

    def _reached(self, model: str, link: str, batch: int) -> float:
        """Bytes per second over the link, of the fastest slice of the cell: the raw rate is no less."""
        cell = (f"{model.removeprefix('tiny-')}-{link}", model, link, batch)
        slices = (row for key, rows in self.cells.items() if key[:4] == cell for row in rows)
        rates = [row["fetched_bytes"] / row["seconds"] for row in slices if row.get("seconds")]
        return max(rates, default=0.0)

    def floor(self, model: str, link: str, batch: int, what: str) -> dict | None:
        """The floor of a cell: from its own counts, its model, and the probes before it."""
        sums, probe = self.sums(model, link, batch, what), self.probe(model, link, batch)
        if sums is None or probe is None:
            return None
        facts = self.files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
        return floors.floor(sums, facts, probe, LINKS[link])

    def over_floor(self, model: str, link: str, batch: int, what: str) -> Ratio | None:
        """Seconds of a token over the floor of the same slice's counts, slice by slice, beside the
        spread of the control's."""
        times = self._times(model, link, batch, what)
        if not times:
            return None
        found = paired(times, [1.0] * len(times))
        spread = spread_of(times, self._times(model, link, batch, what + AGAIN))
        old = self.is_old(self.rows(model, link, batch, what))
        return replace(found, spread=spread, old=old)

    def _times(self, model: str, link: str, batch: int, what: str) -> list[float]:
        """Of each slice of a method: its seconds over its floor's."""
        rows, probe = self.rows(model, link, batch, what), self.probe(model, link, batch)
        if not rows or probe is None:
            return []
        facts = self.files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
        sums = [{name: _of(row, name) for name in SUMMED} for row in rows]
        least_s = [floors.floor(each, facts, probe, LINKS[link])["floor_s"] for each in sums]
        return [1 / (speed_of(row) * floor_s) for row, floor_s in zip(rows, least_s)]

    def ratio_at_floor(self, model: str, link: str, batch: int, over: str) -> float | None:
        """What specmoe over ``over`` (as measured) would be if specmoe ran at its floor."""
        floor = self.floor(model, link, batch, "specmoe")
        other = self.speed(model, link, batch, over)
        return divide(1.0, floor["floor_s"] * other) if floor and other else None


def in_the_same_turns(ours: list[dict], theirs: list[dict]) -> tuple[list[dict], list[dict]]:
    """Rows of the turns in which both were measured; all of them, where these are too few for an
    interval."""
    both = {row["slice"] for row in ours} & {row["slice"] for row in theirs}
    if len(both) < LEAST:
        return ours, theirs
    ours, theirs = ([row for row in rows if row["slice"] in both] for rows in (ours, theirs))
    return ours, theirs


def best_single(found: Measured, model: str, link: str, batch: int) -> str | None:
    """The single method whose median over all slices of the cell is the highest."""
    speeds = {what: found.speed(model, link, batch, what) for what in SINGLE}
    known = {what: speed for what, speed in speeds.items() if speed is not None}
    return max(known, key=known.get) if known else None


def auto_over_best(found: Measured, model: str, link: str, batch: int) -> Ratio | None:
    """auto over ``best_single``, slice by slice: one method for the whole cell, chosen after it was
    measured, so that chance is on its side."""
    best = best_single(found, model, link, batch)
    return found.ratio(model, link, batch, "auto", best) if best else None


def newest_code(files: dict[str, dict]) -> str | None:
    """The code of the row that was measured last."""
    rows = [row for part in PARTS for row in files.get(part, {}).get("rows", {}).values()]
    return max(reversed(rows), key=lambda row: row.get("measured", ""), default={}).get("code")


def _of(row: dict, name: str) -> float:
    """A counter of a row; draft steps are its mean gamma in every round."""
    return row["gamma"] * row["num_rounds"] if name == "num_steps" else row[name]


def divide(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def among(function: Callable, values: Iterable[float | None]) -> float | None:
    """``function`` of the values that are there, None without any."""
    known = [value for value in values if value is not None]
    return function(known) if known else None


def achieved(found: Measured, model: str, link: str, batch: int, what: str) -> float | None:
    """Bytes per second that crossed the link, over the raw rate."""
    sums, probe = found.sums(model, link, batch, what), found.probe(model, link, batch)
    if not sums or not probe:
        return None
    return sums["fetched_bytes"] / sums["seconds"] / floors.link_rate(LINKS[link], probe)


# ---- every cell beside its floor ----


def cell_rows(files: dict[str, dict], model: str, link: str) -> list[dict]:
    """One row for each batch and method that was measured: speed, bytes, floor, measured over
    floor, shares of time."""
    found, rows = Measured(files), []
    for batch in BATCHES:
        for what in SHOWN:
            sums = found.sums(model, link, batch, what)
            floor = found.floor(model, link, batch, what)
            if sums is None or floor is None:
                continue
            speed = found.speed(model, link, batch, what)
            slices = found.rows(model, link, batch, what)
            over = found.ratio(model, link, batch, what, "on_demand")
            rows.append(
                {
                    "batch": batch,
                    "method": what if what != "cached" else f"cached ({slices[0]['eviction']})",
                    "tokens_per_second": speed,
                    "over_on_demand": over.value if over else None,
                    "over": over,
                    "gamma": statistics.mean(row["gamma"] for row in slices),
                    "bytes_per_token": sums["fetched_bytes"] / sums["num_new_tokens"],
                    **floor,
                    "limit": LIMITS[floor["limit"]],
                    "old": found.is_old(slices),
                    "measured_over_floor": divide(1 / speed, floor["floor_s"]),
                    "wait_share": sums["wait_s"] / sums["seconds"],
                    "draft_share": sums["draft_s"] / sums["seconds"],
                }
            )
    return rows
