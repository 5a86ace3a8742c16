"""What the result files hold, cell by cell: speed, counts, and the floor that these counts give.

Comes in: the contents of the result files. Goes out: ``Measured``, which is asked by model, link,
batch and method, and the rows of a table. ``tables`` and ``page`` read it. Pure functions: nothing
is measured here. What is missing is ``None``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from . import floors
from .settings import BATCHES, LINKS

TRANSLATE, SKEWED = "tiny-translate", "tiny-skewed"
SINGLE = ("on_demand", "overlapped", "cached", "specmoe")  # what auto is compared with
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
        return {name: sum(_of(row, name) for row in rows) for name in SUMMED} if rows else None

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
        rates = ("fp32_flop_per_s", "bf16_flop_per_s", "memory_bytes_per_s")
        if not rows:
            return None
        known = [name for name in rates if name in rows[0]]
        found = {name: [row[name] for row in part if name in row] for name in known}
        return rows[0] | {name: statistics.median(values) for name, values in found.items()}

    def floor(self, model: str, link: str, batch: int, what: str) -> dict | None:
        """The floor of a cell: from its own counts, its model, and the probes before it."""
        sums, probe = self.sums(model, link, batch, what), self.probe(model, link, batch)
        if sums is None or probe is None:
            return None
        facts = self.files[f"{model.removeprefix('tiny-')}-{link}"]["models"][model]
        return floors.floor(sums, facts, probe, LINKS[link])

    def ratio_at_floor(self, model: str, link: str, batch: int, over: str) -> float | None:
        """What specmoe over ``over`` (as measured) would be if specmoe ran at its floor."""
        floor = self.floor(model, link, batch, "specmoe")
        other = self.speed(model, link, batch, over)
        return divide(1.0, floor["floor_s"] * other) if floor and other else None


def _of(row: dict, name: str) -> float:
    """A counter of a row; draft steps are its mean gamma in every round."""
    return row["gamma"] * row["num_rounds"] if name == "num_steps" else row[name]


def divide(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def among(function: Callable, values: Iterable[float | None]) -> float | None:
    """``function`` of the values that are there, None without any."""
    known = [value for value in values if value is not None]
    return function(known) if known else None


def share(sums: dict | None, name: str) -> float | None:
    return divide(sums[name], sums["seconds"]) if sums else None


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
        for what in ("on_demand", "overlapped", "cached", "specmoe", "auto", "resident"):
            sums = found.sums(model, link, batch, what)
            floor = found.floor(model, link, batch, what)
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
                    "limit": LIMITS[floor["limit"]],
                    "measured_over_floor": divide(1 / speed, floor["floor_s"]),
                    "wait_share": share(sums, "wait_s"),
                    "draft_share": share(sums, "draft_s"),
                }
            )
    return rows
