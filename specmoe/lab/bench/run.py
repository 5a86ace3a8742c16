"""``python -m specmoe.lab.bench.run [--length quick] [--only PART ...]``: measure what is missing,
print the table.

Comes in: what to measure. Goes out: ``results/<part>.json``, rewritten after each cell (interrupted
and started again, it goes on), and the table of targets beside what was measured and the floor.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path

from ..entry import leave
from ..writing import check_folder
from . import peers, results, settings, tables
from .parts import Shared, measure_group
from .runs import Run
from .settings import LENGTHS, PARTS, Length
from .workplace import Workplace


def main(arguments: list[str] | None = None) -> int:
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    options = parse(arguments)
    length = length_of(options)
    files = {
        part: results.part_file(part, length, options.out, options.keep) for part in options.only
    }
    plan = [
        group
        for group in settings.groups(options.only, length, options.batches)
        if options.models is None or group[0].model in options.models
    ]
    missing = [group for group in plan if not all(files[run.part].has(run) for run in group)]
    expected_s = [settings.expected_s(group, length) for group in missing]
    print(
        f"{len(missing)} of {len(plan)} cells to measure, about {sum(expected_s) / 60:.0f} minutes",
        flush=True,
    )
    if not options.estimate:
        check_folder(options.out)
        measure(missing, expected_s, files, length, options)
    print(tables.text(results.read_all(options.out)))
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m specmoe.lab.bench.run", description=__doc__)
    parser.add_argument(
        "--length",
        choices=LENGTHS,
        default="full",
        help="full: windows of 21 s; quick: fewer, shorter",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=", ".join(PARTS),
    )
    parser.add_argument("--models", nargs="+", help="only cells of these models")
    parser.add_argument("--batches", nargs="+", type=int, help="only these batches")
    parser.add_argument(
        "--slice-s", type=float, help="seconds of a slice; a window is --repeats of them"
    )
    parser.add_argument("--repeats", type=int, help="slices of each method, in turn")
    parser.add_argument(
        "--out", type=Path, default=results.FOLDER, help="folder of the result files"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep rows of other code and of other lengths"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="begin no cell that would end after so many"
    )
    parser.add_argument("--estimate", action="store_true", help="only say how long it would take")
    return parser.parse_args(arguments)


def length_of(options: argparse.Namespace) -> Length:
    """The length by name, with what the command line changes."""
    changes = {"slice_s": options.slice_s, "repeats": options.repeats}
    return replace(
        LENGTHS[options.length],
        **{name: value for name, value in changes.items() if value is not None},
    )


def measure(
    missing: list[list[Run]], expected_s: list[float], files: dict, length: Length, options
) -> None:
    """One cell after the other; each is on disk before the next begins."""
    counted = results.read_all(options.out).get("evictions", {}).get("rows", {})
    shared = Shared(
        length, Workplace(), files["evictions"].rows if "evictions" in files else counted
    )
    began_s = time.monotonic()
    try:
        for number, group in enumerate(missing):
            first, passed_s = group[0], time.monotonic() - began_s
            what = f"{first.part} {first.model}, B = {first.batch}"
            if passed_s + expected_s[number] > 60 * options.minutes:
                print(f"no time for {what}", flush=True)
                continue
            rows = measure_group(shared, group, files[first.part])
            keep(files[first.part], group, rows)
            left, passed = sum(expected_s[number + 1 :]) / 60, (time.monotonic() - began_s) / 60
            print(f"[{number + 1}/{len(missing)}, {passed:.1f} min, {left:.0f} left] {what}")
            print("\n".join(brief(group, rows)), flush=True)
    finally:
        shared.place.close()
        peers.close()


def keep(file: results.ResultFile, group: list[Run], rows: dict[str, dict]) -> None:
    """The rows of a cell at once; what other code left of it goes."""
    about = group[0].row()
    of = {name: about[name] for name in ("part", "model", "link", "batch")}
    if group[0].part in ("evictions", "growth", "drafting"):
        of |= {name: about[name] for name in ("what", "slice")}
    file.drop_old(**of)
    file.add({run.key: run.row() | rows[run.key] for run in group}, machine=results.machine())


def brief(group: list[Run], rows: dict[str, dict]) -> list[str]:
    """A line for each method: its slices, and where the time of them went."""
    found: dict[str, list[dict]] = {}
    for run in group:
        found.setdefault(run.method, []).append(rows[run.key])
    return [f"  {method}: {_line(slices)}" for method, slices in found.items()]


def _line(slices: list[dict]) -> str:
    row = slices[-1]
    if "tokens_per_second" not in row:
        best, balance = max(row["random_bytes_per_s"].values()) / 1e9, row["fp32_flop_per_byte"]
        return (
            f"link {best:.2f} GB/s, {row['fp32_flop_per_s'] / 1e9:.0f} GFLOP/s, {balance:.0f} "
            "FLOP/byte"
        )
    shares = [
        f"{name[:-2]} {row[name] / row['seconds']:.0%}"
        for name in ("wait_s", "draft_s", "verify_s")
        if row.get(name)
    ]
    gamma = f", gamma {row['gamma']:.1f}" if row.get("gamma") else ""
    speeds = " ".join(f"{slice['tokens_per_second']:.1f}" for slice in slices)
    return f"{speeds} tokens/s{gamma}" + (f" ({', '.join(shares)})" if shares else "")


if __name__ == "__main__":
    leave(main)
