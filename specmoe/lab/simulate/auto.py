"""``auto`` on machines that are only described: its planner plays a job round by round, and pays for
what it tries out.

Comes in: recordings of one model at one batch by gamma, a ``Hardware``, a planner. Goes out: the
seconds of the job over those of the best single method. What a round asks for and gives is a
recording's (of the nearest gamma), seconds are the simulator's. A recording has no confidences: the
draft is as sure of each token as it was right in the recorded rounds, of every row alike.
``python -m specmoe.lab.simulate auto`` surveys thirty machines into ``results/auto.json``; ``gammas``
records what it plays.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ...engine.engine import load
from ...shipped import need_path, package_path
from ...speculate.block import Drafting
from ...speculate.confidence import ConfidencePlanner
from ...speculate.evidence import first_draft
from ...speculate.planner import CANDIDATES, CostPlanner, Planner
from ...trace import Round
from ..writing import check_folder, write_whole
from .hardware import PRESETS, Hardware
from .real_models import size_of
from .recording import ARRAYS, Recording, load_all, save_all
from .replay import Replay, simulate
from .shipped import FOLDER, NEW_TOKENS, prompts_for, recordings
from .sizes import ModelSize

# Of ``auto``, by gamma; 0: what it does while it does not draft.
PLAYED = FOLDER / "auto"
GAMMAS = (0, 1, 2, 4, 7, 10, 16)
FIXED = (4, 10)  # of ``specmoe`` as a single method
SHIPPED = {"tiny-skewed": 4, "tiny-balanced": 2, "tiny-translate": 4}  # model -> N
# greedy: by the draft's confidence; sampling: one gamma for all rows
PLANNERS: dict[str, Callable[[int], Planner]] = {
    "greedy": lambda first: ConfidencePlanner(True, None, first),
    "sampling": lambda first: CostPlanner(CANDIDATES, first),
}
# of a preset's own: a slower link, slower arithmetic, a slower memory, overheads
CHANGES = (
    {},
    {"link_bytes_per_s": 0.1},
    {"link_bytes_per_s": 10.0},
    {"flop_per_s": 0.01, "memory_bytes_per_s": 0.1},
    {"step_overhead_s": 10.0, "layer_overhead_s": 10.0, "expert_overhead_s": 10.0},
)
SIZES = (None, "olmoe-1b-7b", "mixtral-8x7b")
BATCHES = (1, 16, 64)
FEWEST_PROMPTS = 4
RESULTS = package_path("lab/simulate/results/auto.json")
ROUNDS = 24  # of a recording, at most
JOB = 128  # tokens of each row, one batch: a short job pays most for what it tries


def machines() -> list[Hardware]:
    """Thirty: six presets, and each with one thing changed."""
    names = ("h100", "consumer", "pcie3", "laptop", "laptop-sata", "h100-ssd")
    return [_changed(PRESETS[name], change) for name, change in product(names, CHANGES)]


def _changed(machine: Hardware, change: Mapping[str, float]) -> Hardware:
    words = ", ".join(f"{name} x {factor:g}" for name, factor in change.items())
    values = {name: getattr(machine, name) * factor for name, factor in change.items()}
    return replace(machine, name=f"{machine.name}; {words}" if words else machine.name, **values)


@dataclass(frozen=True)
class Jobs:
    """What was recorded of one model at one batch: of ``auto`` by gamma (0: plain), and of every
    single method. ``sure``: how sure the draft says it is of a token; None: as often as it is
    right."""

    auto: dict[int, Recording]
    single: dict[str, Recording]
    sure: float | None = None

    @classmethod
    def shipped(cls, model: str, batch: int) -> Jobs:
        mine = [r for r in load_all(need_path(PLAYED / f"{model}.npz")) if r.batch == batch]
        of_gamma = {each.settings["gamma"]: _begin(each) for each in mine}
        found = recordings(model, SHIPPED[model], batch)
        single = {r.method: _begin(r) for r in found if r.method != "specmoe"}
        for gamma in FIXED:
            single[f"specmoe, gamma {gamma}"] = of_gamma[gamma]
        return cls(of_gamma, single)

    @cached_property
    def agreement(self) -> float:
        """The chance that a drafted token is accepted, with which the longest drafts give what they
        gave."""
        longest = self.auto[max(self.auto)]
        gamma, per_row = max(self.auto), longest.num_new_tokens / int(longest.rows.sum())

        def tokens(chance: float) -> float:
            return sum(chance**place for place in range(gamma + 1))

        chances = np.linspace(0.01, 0.995, 400)
        return float(np.interp(per_row, [tokens(chance) for chance in chances], chances))

    @property
    def first(self) -> int:
        """Tokens of the first draft."""
        info = self.auto[0].info
        return first_draft(self.auto[0].batch, info["top_k"], info["experts"])

    @property
    def layers(self) -> int:
        return self.auto[0].experts.shape[1]


def _begin(recording: Recording) -> Recording:
    """Its first rounds: they are alike."""
    return replace(recording, **{name: getattr(recording, name)[:ROUNDS] for name in ARRAYS})


def fastest(jobs: Jobs, machine: Hardware, size: ModelSize | None = None) -> tuple[str, float]:
    """The best single method and its seconds per token."""
    seconds = {
        name: 1 / simulate(each, machine, size).tokens_per_second
        for name, each in jobs.single.items()
    }
    best = min(seconds, key=seconds.get)
    return best, seconds[best]


def play(jobs: Jobs, planner: Planner, machine, size, tokens: int, noise) -> float:
    """Seconds until ``tokens`` are there, as ``planner`` goes about it. It sees the seconds of a
    round times ``noise()``; what is added up are those of the quiet machine, so that only wrong
    choices cost."""
    replays = {gamma: Replay.of(each, machine, size) for gamma, each in jobs.auto.items()}
    places, seconds, made = dict.fromkeys(replays, 0), 0.0, 0
    while made < tokens:
        length = drafted(planner, planner.next_gamma(), jobs)
        gamma = min(replays, key=lambda gamma: abs(gamma - length)) if length else 0
        replay, number = replays[gamma], places[gamma] % len(jobs.auto[gamma].rows)
        places[gamma] += 1
        before = replay.draft_s, replay.verify_s, replay.lanes.wait_s
        replay.round(number, False)
        after = replay.draft_s, replay.verify_s, replay.lanes.wait_s
        took = [a - b for a, b in zip(after, before)]
        times = noise()
        done = round_of(jobs.auto[gamma], number, [s * times for s in took], jobs.agreement)
        planner.observe(done)
        seconds, made = seconds + took[0] + took[1], made + done.new_tokens
    # of the last round only what was still asked for
    return seconds - (took[0] + took[1]) * (made - tokens) / done.new_tokens


def drafted(planner: Planner, gamma: int, jobs: Jobs) -> int:
    """Tokens that ``planner`` lets every row draft, of ``gamma`` at most."""
    rows = jobs.auto[0].batch
    block = Drafting(torch.full((rows,), gamma), torch.tensor([], dtype=torch.long))
    said = jobs.agreement if jobs.sure is None else jobs.sure
    sure = torch.full((rows,), said, dtype=torch.float64)
    while block.active.any():
        block.append(torch.zeros(rows, dtype=torch.long), None)
        block.restrict(*planner.keep_drafting(block, lambda: sure))
    return int(block.num.max())


def round_of(record: Recording, number: int, seconds: list[float], agreement: float) -> Round:
    """What the planner sees; ``seconds``: of the draft, the verification, and waiting for reads. Which row had which token accepted is not recorded: as many as the
    round gave, spread over the rows as ``agreement`` for each token spreads them."""
    rows, steps = int(record.rows[number]), record.drafting[number]
    drafts = [int((steps > row).sum()) for row in range(rows)]
    gamma, (draft_s, verify_s, wait_s) = int(record.gammas[number]), seconds
    reads, ahead = (int(each[number].sum()) for each in (record.fetches, record.prefetches))
    return Round(
        gamma=gamma,
        draft_s=draft_s,
        verify_s=verify_s,
        drafted=drafts,
        accepted=spread(drafts, int(record.committed[number]) - rows, agreement),
        steps=[(int(steps[step]), draft_s / gamma) for step in range(gamma)],
        expected_rejections=sum(1 - agreement**num for num in drafts),
        new_tokens=int(record.committed[number]),
        num_reads=reads + ahead,
        num_ahead=ahead if gamma else 0,
        named=float(record.experts[number].mean()) / record.info["experts"],
        wait_s=wait_s,
    )


def spread(drafts: list[int], total: int, agreement: float) -> list[int]:
    """``total`` accepted tokens over rows with so many ``drafts``."""
    shares = [(row + 0.5) / len(drafts) for row in range(len(drafts))]
    lengths = [int(math.log(1 - share) / math.log(agreement)) for share in shares]
    accepted = [min(draft, length) for draft, length in zip(drafts, lengths)]
    row = 0
    while (left := min(total, sum(drafts)) - sum(accepted)) and left:
        change = 1 if left > 0 else -1
        if 0 <= accepted[row] + change <= drafts[row]:
            accepted[row] += change
        row = (row + 1) % len(drafts)
    return accepted


def shaky(seed: int, spread: float = 0.2, stalls: float = 0.05) -> Callable[[], float]:
    """The clock of a machine that does other things: ``spread`` to either side, and one round in
    twenty (``stalls``) takes four times as long."""
    rng = random.Random(seed)
    return lambda: rng.uniform(1 - spread, 1 + spread) * (4.0 if rng.random() < stalls else 1.0)


def survey(
    models: Iterable[str] = SHIPPED,
    sizes: Iterable[str | None] = SIZES,
    batches: Iterable[int] = BATCHES,
    noise: Callable[[], Callable[[], float]] | None = None,
) -> pd.DataFrame:
    """A row per recorded model, size, batch, machine and planner: the seconds of a job of ``JOB``
    tokens for each row over those of the best single method, which tries nothing and is told
    beforehand. ``sizes``: real models by name, None: the recorded model's own. ``noise()`` makes
    what the seconds of a round are multiplied by before the planner sees them."""
    rows = []
    for model, batch in product(models, batches):
        jobs = Jobs.shipped(model, batch)
        for name, machine in product(sizes, machines()):
            size = cut(size_of(name), jobs.layers) if name else None
            best, least_s = fastest(jobs, machine, size)
            for kind, make in PLANNERS.items():
                times = noise() if noise else lambda: 1.0
                spent_s = play(jobs, make(jobs.first), machine, size, JOB * batch, times)
                told = {"like": model, "size": name or "as recorded", "batch": batch}
                told |= {"machine": machine.name, "planner": kind, "best": best}
                rows.append(told | {"ratio": spent_s / (least_s * JOB * batch)})
    return pd.DataFrame(rows)


def cut(size: ModelSize, num_layers: int) -> ModelSize:
    """So many layers of it, with their share of the trunk."""
    share = num_layers / size.num_layers
    trunk = {n: getattr(size, n) * share for n in ("trunk_flops_per_token", "trunk_bytes")}
    return replace(size, num_layers=num_layers, **trunk)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and worst ratio, and where the worst is, by planner and size."""
    grouped = rows.groupby(["planner", "size"], sort=False)["ratio"]
    found = grouped.agg(median="median", worst="max").reset_index()
    worst = rows.loc[grouped.idxmax().to_list()]
    where = [f"{row.like}, B = {row.batch}, {row.machine}" for row in worst.itertuples()]
    return found.assign(where=where)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """The same in words."""
    times = {name: summary(rows)[name].map("{:.2f}×".format) for name in ("median", "worst")}
    return summary(rows).assign(**times)


def record(model: str, batch: int) -> list[Recording]:
    """A run of ``model`` at each of ``GAMMAS``: what ``Jobs`` plays."""
    found = []
    with load(model, draft_experts=SHIPPED[model], store="memory") as engine:
        prompts = prompts_for(engine, max(batch, FEWEST_PROMPTS))
        for gamma in GAMMAS:
            how = {"method": "specmoe" if gamma else "auto", "gamma": gamma, "prefetch": False}
            output = engine.generate(prompts, batch_size=batch, max_new_tokens=NEW_TOKENS, **how)
            found.append(_begin(Recording.of(output, engine.info, gamma=gamma).full()))
    return found


def record_all(folder: Path = PLAYED) -> list[Path]:
    """Record what is played; takes minutes."""
    check_folder(folder)
    return [
        save_all(
            [run for batch in BATCHES for run in record(model, batch)], folder / f"{model}.npz"
        )
        for model in SHIPPED
    ]


def write(path: Path = RESULTS) -> Path:
    """Survey what ``path`` has not, and keep every row; takes minutes."""
    rows = shipped(path).to_dict("records") if path.exists() else []
    done = {(row["like"], row["batch"]) for row in rows}
    for model, batch in product(SHIPPED, BATCHES):
        if (model, batch) not in done:
            rows += survey([model], batches=[batch]).to_dict("records")
            _keep(pd.DataFrame(rows), path)
    return path


def _keep(rows: pd.DataFrame, path: Path) -> None:
    """Machines by their place in ``machines``."""
    places = {each.name: place for place, each in enumerate(machines())}
    small = rows.assign(machine=rows["machine"].map(places)).round(4)
    told = {"job": JOB, "machines": list(places), "columns": list(small.columns)}
    told["rows"] = small.values.tolist()
    write_whole(path, json.dumps(told, separators=(",", ":")) + "\n")


def shipped(path: Path = RESULTS) -> pd.DataFrame:
    """What ``write`` kept."""
    told = json.loads(need_path(path).read_text(encoding="utf-8"))
    rows = pd.DataFrame(told["rows"], columns=told["columns"])
    return rows.assign(machine=rows["machine"].map(dict(enumerate(told["machines"]))))
