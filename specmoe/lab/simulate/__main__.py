"""Makes again what the simulator's results rest on.

``python -m specmoe.lab.simulate clock [MODEL] [--link native|RATE]``: every method against this
machine's clock, into ``results/clock.json`` (about two minutes for each model and link; nothing
else should run meanwhile). ``python -m specmoe.lab.simulate record [MODEL] [--draft-experts N]``:
the shipped recordings (no clock in them; minutes); ``budgets``: those at several sizes of fast
memory; ``gammas``: those that ``auto`` plays. ``python -m specmoe.lab.simulate auto``: its planner on
thirty described machines, into ``results/auto.json``; ``few-rounds``: texts of few rounds at a real
model's shape, into ``results/auto_few_rounds.json``. ``python -m specmoe.lab.simulate count``: the
sizes in ``real_models.json``, from the configs in it.
"""

from __future__ import annotations

import argparse

from ..entry import leave
from ..machine import doctor
from . import auto, clock, even_jobs, real_models
from .shipped import SHIPPED, record_budgets, record_shipped


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m specmoe.lab.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("model", nargs="?", choices=list(SHIPPED))
    parser.add_argument("--draft-experts", type=int)
    parser.add_argument("--link", help="native, or bytes per second (default: both)")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    COMMANDS[given.command](given)


def compare(given) -> None:
    links = clock.LINKS
    if given.link is not None:
        links = [None if given.link == "native" else float(given.link)]
    machine = doctor.describe()
    for model in [given.model] if given.model else clock.MODELS:
        for link in links:
            frame = clock.compare_shipped(model, link, given.repeats, machine=machine)
            print(clock.cells(frame).round(3).to_string())
            print(clock.errors(frame))


def record(given) -> None:
    for model in [given.model] if given.model else SHIPPED:
        for number in [given.draft_experts] if given.draft_experts else SHIPPED[model]:
            path = record_shipped(model, number, progress=lambda line: print(line, flush=True))
            print(f"wrote {path.name}: {path.stat().st_size} bytes")


def budgets(given) -> None:
    path = record_budgets(progress=lambda line: print(line, flush=True))
    print(f"wrote {path.name}: {path.stat().st_size} bytes")


def count(given) -> None:
    print(f"wrote {real_models.write().name}")


def gammas(given) -> None:
    for path in auto.record_all():
        print(f"wrote {path.name}: {path.stat().st_size} bytes")


def survey(given) -> None:
    print(f"wrote {auto.write().name}")
    print(auto.table(auto.shipped()).to_string())


def few_rounds(given) -> None:
    print(f"wrote {even_jobs.write().name}")
    print(even_jobs.table(even_jobs.shipped()).to_string())


COMMANDS = {
    "clock": compare,
    "record": record,
    "budgets": budgets,
    "gammas": gammas,
    "auto": survey,
    "few-rounds": few_rounds,
    "count": count,
}


if __name__ == "__main__":
    leave(main)
