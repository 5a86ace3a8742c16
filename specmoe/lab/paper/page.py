"""What the notebook ``paper`` calls: open or measure results, lines for its figures,
``metrics.json``.

Comes in: the notebook's parameters. Goes out: results, frames, a JSON file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ...engine import engine
from ...errors import OptionError, check_choice
from ...shipped import need_path, package_path
from ..writing import read_object, save_metrics
from .facts import FACTS, PAPER_MODELS, Number, frame_of
from .measure import measure
from .measured import measured_numbers
from .numbers import (
    Results,
    bytes_by_batch,
    load_results,
    main_model,
    rows_of,
    speed_ratios,
    speeds,
    timed_rows,
)
from .record import own_recordings, record_model
from .settings import MAIN, RERUNS, plan, plan_low_skew
from .simulated import H100, SSD, over_on_demand, replayed, simulated_numbers, speed_of

CLOCK = package_path("lab/simulate/results/clock.json")


def open_results(
    rerun: str = "none", model: str = MAIN, out_dir: str | Path | None = None, progress=None
) -> Results:
    """Committed results, or those of a new measurement, kept in ``<out_dir>/results`` so that it
    can be taken up again.

    Another ``model`` than the shipped translation model is always measured (at least "quick").
    ``OptionError`` for an unknown ``rerun``; errors of ``specmoe.load`` for a model that cannot be
    opened.
    """
    check_choice("rerun", rerun, RERUNS)
    if rerun == "none" and model == MAIN:
        return load_results()
    if out_dir is None:
        raise OptionError(
            "measuring needs a folder for its results: run it as a report (specmoe report run "
            "paper --out DIR)"
        )
    folder = Path(out_dir) / "results"
    how_much = "full" if rerun == "full" else "quick"
    if model == MAIN:
        runs = plan(model, how_much) + plan_low_skew(how_much)
    else:
        with engine.load(model, store="memory") as loaded:
            runs = plan(model, how_much, loaded.info["experts"])
    measure(runs, folder, progress=progress)
    if model != MAIN:
        record_model(model, runs[0].draft_experts, folder)
    results = load_results(folder)
    results.recordings = own_recordings(folder) if model != MAIN else None
    return results


def all_numbers(results: Results) -> list[Number]:
    """Every number of the report: the paper's, the measured, the simulated (of the shipped models'
    recordings)."""
    return [*FACTS, *measured_numbers(results), *simulated_numbers(results.recordings)]


LINES = ("speed", "latency", "disk", "bytes", "simulated speed", "simulated disk")


def lines_at(results: Results, what: str) -> pd.DataFrame:
    """Batch x method for a figure: "speed" or "latency" throttled, speed-up on the "disk", "bytes"
    (MB); simulated on the paper's machine: "simulated speed", speed-up on a "simulated disk". Empty
    where there is nothing."""
    check_choice("what", what, LINES)
    rows = rows_of(results, main_model(results))
    if what == "bytes":
        return bytes_by_batch(rows) / 1e6
    if what.startswith("simulated"):
        speed = replayed(SSD if what.endswith("disk") else H100, speed_of, of=results.recordings)
        # hardly to be told from the other
        speed = speed.drop(columns="specmoe, prefetch", errors="ignore")
        return speed if what.endswith("speed") else over_on_demand(speed)
    timed = timed_rows(rows, "disk" if what == "disk" else "throttled")
    if not len(timed):
        return pd.DataFrame()
    if what == "disk":
        return speed_ratios(timed)
    speed = speeds(timed)
    return speed if what == "speed" else speed.rdiv(1000.0 * speed.index.to_series(), axis=0)


def clock_rows(file: str | Path = CLOCK) -> pd.DataFrame:
    """Rows of the simulator against our clock (``specmoe.lab.simulate``)."""
    return pd.DataFrame(read_object(need_path(Path(file))).get("rows", []))


def clock_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """How far the simulator is from our clock, by model and link: median and worst of the runs."""
    found = []
    for (model, link), part in rows.groupby(["model", "link"]) if len(rows) else ():
        size = part.groupby(["method", "batch"])["error"].median().abs()
        worst = " at batch ".join(map(str, size.idxmax()))
        errors = {"median error": f"{size.median():.0%}", "worst": f"{size.max():.0%}"}
        found.append({"model": model, "link": link, **errors, "of": worst})
    return pd.DataFrame(found)


def setup(results: Results) -> str:
    """Model, machine, versions and dates of what was measured."""
    name = main_model(results)
    machine, model = results[name]["machine"], results[name]["model"]
    rows = rows_of(results, name)
    skewness = rows["skewness"].dropna() if "skewness" in rows else pd.Series(dtype=float)
    known = [key for key in ("specmoe", "torch", "transformers", "python") if key in machine]
    gini = f"{skewness.iloc[-1]:.2f}" if len(skewness) else "not measured"
    return (
        f"Measured with `{name}` ({model['architecture']}, {model['experts']} experts "
        f"top-{model['top_k']}) on {machine['cpu']}, {machine['cores']} cores, no GPU; "
        f"{', '.join(f'{key} {machine[key]}' for key in known)}; "
        f"{_dates(rows['measured'])}; {len(rows)} runs{_beside(results, name)}. Mean Gini of expert use "
        f"(our definition of skewness; the paper's is not known): {gini}, the paper says "
        f"{PAPER_MODELS['NLLB-MoE'][-1]} of NLLB-MoE."
    )


def _dates(measured: Iterable[str]) -> str:
    return ", ".join(sorted({each[:10] for each in measured}))


def _beside(results: Results, name: str) -> str:
    """Other models may have been measured on another day and machine."""
    return "".join(
        f"; {len(found['rows'])} of `{other}` on {found['machine']['cpu']}, "
        f"{_dates(row['measured'] for row in found['rows'].values())}"
        for other, found in results.items()
        if other != name
    )


def numbers_frame(numbers: list[Number], table: str) -> pd.DataFrame:
    """The numbers of one table, for a figure."""
    frame = frame_of(numbers)
    return frame[frame["table"] == table]


def export(out_dir: str | Path | None, numbers: list[Number], results: dict[str, dict]) -> None:
    """``metrics.json``: every number with its kind, and where the measured ones come from."""
    about = {
        name: {key: found[key] for key in ("model", "machine", "weights_sha256")}
        for name, found in results.items()
    }
    save_metrics(out_dir, {"numbers": [each.to_dict() for each in numbers], "measured_on": about})
