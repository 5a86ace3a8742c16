"""Recordings of real runs that come with the package, so that maps and figures are drawn without
running anything.

Comes in: a shipped model's name and N. Goes out: its ``Recording``s; ``record_shipped`` makes them
again (``python -m specmoe.lab.simulate record``). Every run of one file has the same fast memory,
that of N draft experts, and only rounds with every row in flight are kept. They count; no clock is
in them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import OptionError
from ...shipped import need_path, package_path
from ...tiny.texts.data import held_out_prompts
from ...tiny.texts.translate_data import held_out_pairs
from ..writing import check_folder
from .recording import Recording, load_all, save_all

if TYPE_CHECKING:
    from ...engine.engine import Engine

FOLDER = package_path("lab/simulate/recordings")
# model -> N
SHIPPED = {"tiny-translate": (2, 4, 8, 16), "tiny-skewed": (4, 8), "tiny-balanced": (2, 4)}
BATCHES = (1, 4, 16, 64, 128, 256)
GAMMAS = (4, 10)
SEED, NEW_TOKENS, QUEUE_BATCHES, FEWEST_PROMPTS = 100, 64, 3, 32
# up to batch 16, beyond
ALL_EVICTIONS, EVICTIONS = ("temporal", "static", "lru", "lfu"), ("temporal", "static")
# Fast memory as a setting of its own: so many experts' bytes of it, whatever N is.
BUDGETED, BUDGETS, BUDGET_N, BUDGET_BATCHES = "tiny-skewed", (40, 66, 98), (4, 8), (1, 4, 16)
BUDGET_TOKENS, BUDGET_PROMPTS = 32, 8
Progress = Callable[[str], None]


def recordings(
    model: str | None = None,
    draft_experts: int | None = None,
    batch: int | None = None,
    method: str | None = None,
) -> list[Recording]:
    """Shipped recordings, all of them or those that match. ``cached`` is the eviction that read
    least (``settings`` names it); ``specmoe`` is there with gamma 4 and 10, and with prefetch off
    and on (gamma 10). ``OptionError`` when none matches."""
    files = sorted(FOLDER / f"{name}-n{n}.npz" for name in SHIPPED for n in SHIPPED[name])
    found = [each for path in files for each in load_all(need_path(path))]
    wanted = {"draft_experts": draft_experts, "name": model}
    chosen = [
        each
        for each in found
        if all(value is None or each.info[name] == value for name, value in wanted.items())
        and (batch is None or each.batch == batch)
        and (method is None or each.method == method)
    ]
    if not chosen:
        numbers: dict[str, set[int]] = {}
        for each in found:
            numbers.setdefault(each.info["name"], set()).add(each.info["draft_experts"])
        there = ", ".join(
            f"{name} with N = {' or '.join(map(str, sorted(some)))}"
            for name, some in numbers.items()
        )
        raise OptionError(
            f"no shipped recording has model={model!r}, "
            f"draft_experts={draft_experts!r}, batch={batch!r}, "
            f"method={method!r}: there are {there}, batch "
            f"{', '.join(map(str, BATCHES))}"
        )
    return chosen


def budgets() -> list[Recording]:
    """Shipped recordings in which fast memory is a setting of its own: every N at every size of it.
    What does not depend on N (``cached``) or on memory (plain decoding) was recorded once."""
    return load_all(need_path(FOLDER / "budgets" / f"{BUDGETED}.npz"))


def prompts_for(engine: Engine, num: int, seed: int = SEED) -> list[str]:
    """Held-out texts of the shipped models: English sentences for an encoder-decoder."""
    if engine.is_translation:
        return [pair.english for pair in held_out_pairs(num, seed)]
    return held_out_prompts(num, seed)


def record_shipped(
    model: str,
    draft_experts: int,
    folder: Path = FOLDER,
    batches=BATCHES,
    progress: Progress = print,
) -> Path:
    """Run every method at every batch and write ``folder/<model>-n<N>.npz``; takes minutes."""
    from ...engine.engine import load

    check_folder(folder)
    with load(model, draft_experts=draft_experts, store="memory") as engine:
        runs = [run for batch in batches for run in _record_batch(engine, batch, progress)]
    return save_all(runs, folder / f"{model}-n{draft_experts}.npz")


def _record_batch(engine: Engine, batch: int, progress: Progress) -> Iterator[Recording]:
    """One recording per method and gamma; of ``cached`` the one with the fewest reads per token."""
    prompts = prompts_for(engine, max(QUEUE_BATCHES * batch, FEWEST_PROMPTS))

    def run(method: str, **settings) -> Recording:
        made = _record(engine, prompts, batch, NEW_TOKENS, method, **settings)
        progress(
            f"{engine.info['name']} N={engine.info['draft_experts']} B={batch} {method} "
            f"{settings or ''}: "
            f"{len(made.rows)} full rounds, {made.num_reads / made.num_new_tokens:.3f} reads "
            "per token"
        )
        return made

    evictions = ALL_EVICTIONS if batch <= 16 else EVICTIONS
    yield run("on_demand")
    yield run("overlapped")
    yield _least(run("cached", eviction=name) for name in evictions)
    for gamma in GAMMAS:
        yield run("specmoe", gamma=gamma, prefetch=False)
    yield run("specmoe", gamma=GAMMAS[-1], prefetch=True)


def record_budgets(folder: Path = FOLDER / "budgets", progress: Progress = print) -> Path:
    """Record what ``budgets`` returns; takes minutes."""
    check_folder(folder)
    runs = [run for room in BUDGETS for n in BUDGET_N for run in _record_budget(room, n, progress)]
    return save_all(runs, folder / f"{BUDGETED}.npz")


def _record_budget(room: int, draft_experts: int, progress: Progress) -> Iterator[Recording]:
    from ...engine.engine import load

    where = {"draft_experts": draft_experts, "store": "memory"}
    with load(BUDGETED, **where) as engine:
        num_bytes = room * engine.info["record_bytes"]
    with load(BUDGETED, fast_memory=num_bytes, **where) as engine:
        for batch in BUDGET_BATCHES:
            prompts = prompts_for(engine, max(QUEUE_BATCHES * batch, BUDGET_PROMPTS))
            progress(f"{room} experts, N={draft_experts}, batch {batch}")
            run = functools.partial(_record, engine, prompts, batch, BUDGET_TOKENS)
            if draft_experts == BUDGET_N[0]:
                yield from map(run, ("on_demand", "overlapped") if room == BUDGETS[0] else ())
                yield _least(run("cached", eviction=name) for name in ALL_EVICTIONS)
            yield from (run("specmoe", gamma=gamma, prefetch=False) for gamma in GAMMAS)


def _record(engine, prompts, batch: int, new_tokens: int, method: str, **settings) -> Recording:
    """One run's recording, of its rounds with every row in flight."""
    size = {"batch_size": batch, "max_new_tokens": new_tokens}
    output = engine.generate(prompts, method=method, **size, **settings)
    return Recording.of(output, engine.info, **settings).full()


def _least(runs: Iterable[Recording]) -> Recording:
    """The one with the fewest reads per token."""
    return min(runs, key=lambda each: each.num_reads / each.num_new_tokens)
