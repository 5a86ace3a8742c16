"""``specmoe.html``: one page that needs no server, no kernel and no network. Recorded rounds of
``tiny-skewed`` are replayed in it, and the reader plays.

Comes in: nothing. Goes out: the page's text, the same bytes every time. Its prose is
``js/page.html``, where a comment names the module that stands there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ... import __version__
from ...engine.engine import load
from ...shipped import need_path, package_path
from ...tiny.texts.data import held_out_prompts
from .. import simulate
from ..routing import record_routing
from ..simulate import shipped
from ..writing import write_whole
from . import data, place, read, script, style, traces

MODEL, DRAFT_EXPERTS, NUM_PROMPTS, SEED = "tiny-skewed", 4, 3, 100
RUN = {"max_new_tokens": 48, "gamma": 4, "prefetch": False, "batch_size": 1}
# The clock: measured once and kept, so that the page has the same bytes every time.
CLOCK = package_path("lab/results/clock.json")
CLOCKED = {"expert_bytes": "256KiB", "link_bytes_per_s": 1e8, "fast_memory": "10MiB"}
CLOCKED_RUN = {"max_new_tokens": 32, "gamma": 5, "batch_size": 1, "eos_token_id": []}
REPEATS = 12
SIZED_AS, HARDWARE = "mixtral-8x7b", "h100"
BATCHES = (1, 4, 16, 64)
LINKS = [1e9 * 4**power for power in range(4)]
BALANCES = (10, 100, 1000, 10_000, 100_000)


def make_page(path: str | Path) -> Path:
    """Write the page to ``path``; takes about half a minute."""
    return write_whole(path, page())


def page() -> str:
    """The whole page. What was measured for it is kept (``CLOCK``); nothing else in it depends on the
    clock or the machine."""
    modules = {**_recorded(), **_simulated()}
    text = read("page.html").replace("VERSION", __version__)
    text = text.replace("/* STYLE */", style()).replace("/* SCRIPT */", script(modules))
    # the data last: a word of it is no placeholder
    return re.sub(r"<!-- (\w+) -->", lambda found: modules[found[1]], text)


def _recorded() -> dict[str, str]:
    """Modules that replay runs, made here."""
    prompts = held_out_prompts(NUM_PROMPTS, SEED)
    with load(MODEL, draft_experts=DRAFT_EXPERTS, store="memory") as engine:
        drafted = engine.generate(prompts, method="specmoe", **RUN)
        cached = engine.generate(prompts, method="cached", **{**RUN, "gamma": 0})
        routed = record_routing(engine, prompts[0], method="specmoe", **RUN)
        experts = engine.info["experts"]
    weights = data.acceptance((10, 6, 3, 1), (5, 4, 2, 9), ("the", "a", "one", "no"))
    return {
        "rounds": place("rounds", traces.rounds(drafted), "a round: draft, verify, accept"),
        "routing": place("routing", data.routing(routed), "experts by token and layer"),
        "timeline": place("timeline", read_clock(), "one round on the clock, measured"),
        "pool": place("pool", traces.pool(cached, 0, experts), "one layer's pool, replayed"),
        "accept": place("accept", weights, "accept or reject a drafted token"),
    }


def read_clock() -> dict:
    return json.loads(need_path(CLOCK).read_text(encoding="utf-8"))


def measure_clock() -> Path:
    """Measure the rounds of the page's clock again, on this machine; of several runs the fastest is
    kept, as other work on the machine only adds time."""
    made = []
    with load(MODEL, draft_experts=DRAFT_EXPERTS, store="memory", **CLOCKED) as engine:
        for _ in range(REPEATS):
            output = engine.generate(held_out_prompts(1, SEED), method="specmoe", **CLOCKED_RUN)
            made.append(traces.timeline(output))
    return write_whole(CLOCK, json.dumps(min(made, key=_seconds), separators=(",", ":")) + "\n")


def _seconds(clock: dict) -> float:
    return sum(max(bar[5] for bar in one["bars"]) for one in clock["rounds"])


def _simulated() -> dict[str, str]:
    """Modules of the shipped recordings, replayed on imagined machines."""
    hardware, size = simulate.preset(HARDWARE), simulate.PAPER_SIZES[SIZED_AS]
    rows = simulate.knob_rows(shipped.budgets(), hardware, LINKS, size)
    knobs = data.knobs(rows, batch=16, gamma=4, draft_experts=DRAFT_EXPERTS)
    counted = shipped.recordings(draft_experts=DRAFT_EXPERTS)
    counted = [run for run in counted if run.batch in BATCHES]
    maps = simulate.winners(counted, hardware, balances=BALANCES)
    return {
        "knobs": place("knobs", knobs, "every method at one choice of settings, simulated"),
        "winners": place("winners", data.winners(maps, model=MODEL), "who is fastest where"),
    }
