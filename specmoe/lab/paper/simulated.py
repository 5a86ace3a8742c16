"""The simulated numbers: recorded runs of our models replayed on the paper's machine, at the sizes
of the paper's models.

Comes in: recordings (``specmoe.lab.simulate``'s shipped ones and those of ``record``). Goes out:
``Number``s of kind "simulated", each note names the hardware. Tokens, reads and distinct experts
are those of the recorded run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import pandas as pd

from ..simulate import PAPER_SIZES, PRESETS, Hardware, ModelSize, Recording, recordings, simulate
from .facts import SPEED, Number, Table
from .measured import against_four
from .record import own_recordings
from .settings import LOW_SKEW, MAIN
from .timed import low_skew_numbers, share_numbers, speed_numbers

H100, SSD = PRESETS["h100"], PRESETS["h100-ssd"]
SIZES = {
    MAIN: PAPER_SIZES["nllb-moe-54b"],
    "tiny-balanced": PAPER_SIZES["mixtral-8x7b"],
    "tiny-skewed": PAPER_SIZES["llama-4-scout"],
}
PAPER_NAMES = {"tiny-balanced": "Mixtral-8x7B", "tiny-skewed": "Llama-4-Scout"}
GAMMA = 10


def _implied() -> Hardware:
    """The paper's machine as slow as its own numbers say: 28 GB a step of on_demand, 256 rows at
    28.6 tokens/s, 90.11 % of the time in migration; what is left of a step is shared among the
    experts that it computes."""
    step_s, step_bytes, migration = 256 / 28.6, 28e9, 0.9011
    experts = step_bytes / SIZES[MAIN].expert_bytes
    rates = {
        "link_bytes_per_s": step_bytes / (step_s * migration),
        "expert_overhead_s": step_s * (1 - migration) / experts,
    }
    return replace(H100, name="H100 as slow as the paper's numbers imply", **rates)


IMPLIED = _implied()
# line -> (recorded method, setting it needs, overlap of the replay)
LINES: dict[str, tuple[str, dict, str]] = {
    "on_demand": ("on_demand", {}, "engine"),
    "overlapped": ("overlapped", {}, "engine"),
    "overlapped (oracle)": ("on_demand", {}, "oracle"),
    "cached": ("cached", {"budget": "tenth"}, "engine"),
    "cached, equal bytes": ("cached", {}, "engine"),
    "specmoe": ("specmoe", {"gamma": GAMMA, "prefetch": False}, "engine"),
    "specmoe, prefetch": ("specmoe", {"gamma": GAMMA, "prefetch": True}, "engine"),
}
# settings of runs that only stand for what asks for them
SPECIAL = ("budget", "draft_set", "temperature")


@cache
def all_recordings() -> tuple[Recording, ...]:
    """The shipped ones and our own."""
    return (*recordings(), *own_recordings())


def chosen(
    model: str,
    method: str,
    draft_experts: int | None = None,
    of: Iterable[Recording] | None = None,
    **settings,
) -> list[Recording]:
    """Recordings of ``model`` with these settings, and no special one (of more memory, another
    draft set) unasked."""
    special = dict.fromkeys(SPECIAL)
    found = []
    for each in of or all_recordings():
        fits = all(each.settings.get(name) == value for name, value in (special | settings).items())
        at = draft_experts is None or each.info["draft_experts"] == draft_experts
        if each.info["name"] == model and each.method == method and fits and at:
            found.append(each)
    return sorted(found, key=lambda each: each.batch)


def size_of(recording: Recording) -> ModelSize:
    """Of the paper's model that a shipped one stands for; another model stands for itself."""
    return SIZES.get(recording.info["name"]) or ModelSize.of(recording.info)


def replayed(
    hardware: Hardware,
    value: Callable,
    lines: Iterable[str] = tuple(LINES),
    draft_experts: int | None = 4,
    model: str = MAIN,
    of: list[Recording] | None = None,
    **settings,
) -> pd.DataFrame:
    """``value(Simulated)`` of each line: batch x line. ``of``: recordings of another model than the
    shipped ones."""
    if of:
        model, draft_experts = of[0].info["name"], None
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        method, wanted, overlap = LINES[line]
        wanted = {
            name: given
            for name, given in (wanted | settings).items()
            if method == "specmoe" or name in SPECIAL
        }
        for each in chosen(model, method, draft_experts, of, **wanted):
            found.setdefault(line, {})[each.batch] = value(
                simulate(each, hardware, size_of(each), overlap)
            )
    return pd.DataFrame(found).sort_index()


def speed_of(played) -> float:
    return played.tokens_per_second


def simulated_numbers(of: list[Recording] | None = None) -> list[Number]:
    """Every table for which it makes sense; throughput and migration only for another model
    (``of``), at its own size."""
    fast, slow = "H100, PCIe 5.0", "H100, NVMe SSD of 7 GB/s"
    fast, slow = (f"{note}; at its own size" if of else note for note in (fast, slow))
    found = [
        *_throughput(Table("throughput", "simulated", fast), H100, of),
        *_migration(Table("migration", "simulated", fast), of),
        *_throughput(Table("ssd", "simulated", slow), SSD, of),
    ]
    return found if of else [*found, *_at_implied(), *_choices(), *_low_skew()]


def _throughput(table: Table, hardware: Hardware, of: list[Recording] | None) -> list[Number]:
    speed = replayed(hardware, speed_of, of=of)
    found = [n for line in speed for n in table.by_batch(line, "speed", speed[line], SPEED)]
    return found + speed_numbers(table, speed, over_on_demand(speed))


def over_on_demand(speed: pd.DataFrame) -> pd.DataFrame:
    return speed.div(speed["on_demand"], axis=0).drop(columns="on_demand")


def _at_implied() -> list[Number]:
    """Batch 256 on the machine that the paper's own numbers imply: on_demand is then near the
    paper's by construction."""
    speed = replayed(IMPLIED, speed_of).loc[256].dropna().to_dict()
    for num in (2, 8, 16):
        found = replayed(IMPLIED, speed_of, ("specmoe",), num)
        speed |= {f"specmoe, N = {num}": found["specmoe"].get(256)} if len(found) else {}
    note = (
        f"link {IMPLIED.link_bytes_per_s / 1e9:.1f} GB/s, "
        f"{1000 * IMPLIED.expert_overhead_s:.1f} ms per expert computed"
    )
    table, measure = Table("implied", "simulated", note), "speed at batch 256"
    return [n for line, value in speed.items() for n in table.mean(line, measure, value, SPEED)]


def _migration(table: Table, of: list[Recording] | None) -> list[Number]:
    shares = replayed(H100, lambda played: 100 * played.migration_share, of=of)
    return [n for line in shares for n in share_numbers(table, line, shares[line].dropna())]


def _choices() -> list[Number]:
    """Speed by N and by draft set at batch 256."""
    found: list[Number] = []
    by_number = {num: replayed(H100, speed_of, ("specmoe",), num) for num in (2, 4, 8, 16)}
    speeds = pd.DataFrame({num: frame["specmoe"] for num, frame in by_number.items() if len(frame)})
    experts, sets = (
        Table(name, "simulated", "H100, PCIe 5.0") for name in ("draft_experts", "draft_set")
    )
    for batch, row in speeds.iterrows():
        for num, value in row.dropna().items():
            found += experts.mean(f"N = {num}", "speed", value, SPEED, batch=batch)
        found += against_four(experts, row.dropna(), batch)
    names = ("random", "hot_global", "hot_temporal")
    by_set = {name: replayed(H100, speed_of, ("specmoe",), draft_set=name) for name in names}
    for name, speed in by_set.items() if all(map(len, by_set.values())) else ():
        over = speed["specmoe"] / by_set["random"]["specmoe"]
        found += sets.by_batch(name, "speed against random", over, "times random")
    return found


def _low_skew() -> list[Number]:
    """The two models with less skew, sampled at temperature 1: on the paper's machine, at its
    models' sizes."""
    lines = ("on_demand", "overlapped (oracle)", "cached, equal bytes", "specmoe")
    found: list[Number] = []
    for model in LOW_SKEW:
        speed = replayed(H100, speed_of, lines, 4, model, temperature=1.0, gamma=5)
        if len(speed):
            table = Table("low_skew", "simulated", f"routing of {model}; H100, PCIe 5.0")
            found += low_skew_numbers(table, PAPER_NAMES[model], over_on_demand(speed))
    return found
