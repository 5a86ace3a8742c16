"""What each command does that neither decodes nor plans: one function per command.

Comes in: the namespace that ``parser`` parsed (options that were not typed are not in it). Goes
out: an exit code; what was found is printed by ``printing``.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from argparse import Namespace
from pathlib import Path

from ..errors import OptionError
from ..options import parse_bytes
from . import printing


def models(args: Namespace) -> int:
    from ..tiny import list_models

    rows = list_models()
    printing.emit(args, {"models": rows}, lambda: printing.table(rows))
    return 0


def pack(args: Namespace) -> int:
    expert_bytes = parse_bytes("expert_bytes", getattr(args, "expert_bytes", None))
    from .. import checkpoint

    source = checkpoint.resolve(args.model, gguf_file=getattr(args, "gguf_file", None))
    packed = checkpoint.pack(
        source, args.directory, expert_bytes, progress=printing.progress("bytes")
    )
    layout = packed.layout
    found = {
        "directory": str(packed.directory),
        "layers": len(packed.layers),
        "experts": packed.num_experts,
        "record_bytes": layout.record_bytes,
        "expert_bytes": layout.payload_bytes,
        "widened_from": packed.widened_from,
        "bytes": packed.data_bytes,
    }
    printing.emit(args, found, lambda: printing.one_line(found))
    return 0


def verify(args: Namespace) -> int:
    from .. import checkpoint
    from .copies import verify_packed

    packed = checkpoint.open_packed(args.directory)
    bad = [
        {"layer": layer, "expert": expert}
        for layer, expert in verify_packed(packed, printing.progress("bytes"))
    ]
    num_records = len(packed.layers) * packed.num_experts
    found = {"directory": str(packed.directory), "num_records": num_records, "bad": bad}
    printing.emit(
        args,
        found,
        lambda: f"{packed.directory}: {num_records - len(bad)} of {num_records} records are good",
    )
    if bad:
        named = ", ".join(f"expert {one['expert']} of MoE layer {one['layer']}" for one in bad[:5])
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        print(f"specmoe: error: altered: {named}{more}: pack the checkpoint again", file=sys.stderr)
    return 1 if bad else 0


def cache(args: Namespace) -> int:
    names = getattr(args, "names", [])
    chosen = names or getattr(args, "all", False)
    if args.action == "list" and chosen:
        raise OptionError("names and --all belong to `specmoe cache remove`")
    if args.action == "remove" and (not chosen or (names and "all" in args)):
        raise OptionError("`specmoe cache remove` needs the names of packed copies, or --all")
    from ..checkpoint import cache_folder
    from . import copies

    rows = copies.remove(names or None) if chosen else copies.entries()
    key = "removed" if chosen else "copies"
    found = {
        "folder": str(cache_folder()),
        "bytes": sum(row["bytes"] for row in rows),
        key: rows,
    }
    printing.emit(
        args,
        found,
        lambda: (
            f"{found['folder']}: {found['bytes'] / 2**20:.1f} MiB {key}\n{printing.table(rows)}"
        ),
    )
    return 0


RUN_ONLY = {"parameter", "parameters", "sweep", "out", "overwrite", "against", "yes"}


def report(args: Namespace) -> int:
    if args.action != "run" and RUN_ONLY & set(vars(args)):
        raise OptionError(
            "-p, --parameters, --sweep, --yes, --out, --overwrite and --against belong to "
            f"`specmoe report run`, not to {args.action}"
        )
    if args.action in ("params", "run") and args.name is None:
        raise OptionError(
            f"`specmoe report {args.action}` needs the NAME of a report: see `specmoe report list`"
        )
    if args.action == "list" and args.name is not None:
        raise OptionError(f"list takes no NAME: `specmoe report params {args.name}` shows one")
    from ..lab import report as reports

    if args.action == "list":
        rows = reports.list_reports()
        printing.emit(args, {"reports": rows}, lambda: printing.table(rows))
    elif args.action == "params":
        found = reports.report_parameters(args.name)
        printing.emit(
            args, {"name": args.name, "parameters": found}, lambda: _parameters_text(found)
        )
    elif args.action == "index":
        path = reports.index(args.name or "reports")
        printing.emit(args, {"index": str(path)}, lambda: str(path))
    else:
        path = _run_report(args, reports)
        printing.emit(args, {"name": args.name, "report": str(path)}, lambda: str(path))
        runs = reports.runs_in(path.parent) if "sweep" in vars(args) else {}
        if failed := [place for place, run in runs.items() if run["error"]]:
            print(
                f"specmoe: {len(failed)} of {len(runs)} runs failed: see the page", file=sys.stderr
            )
            return 1
    return 0


def _run_report(args: Namespace, reports) -> Path:
    given = vars(args)
    typed = _parameters(given.get("parameter", []))
    parameters: dict = typed
    if "parameters" in given:
        from ..lab.sweep.grid import read_names

        parameters = read_names(args.parameters, "file of parameters", "gamma: 5") | typed
    out, overwrite = given.get("out"), given.get("overwrite", False)
    if "sweep" not in given:
        if "yes" in given:
            raise OptionError("--yes belongs to --sweep: leave it out")
        how = {"against": given.get("against"), "progress": not printing.quiet()}
        return reports.run_report(args.name, parameters, out, overwrite=overwrite, **how)
    if "against" in given:
        raise OptionError("--against compares one run: leave --sweep out")
    varied = reports.swept(args.sweep)
    if both := sorted(typed.keys() & varied.keys()):
        raise OptionError(f"{both[0]} stands in -p and in --sweep: leave one out")
    return reports.run_many(args.name, varied, parameters, out, overwrite, "yes" in given)


def _parameters(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given:
        name, is_pair, value = pair.partition("=")
        if not is_pair or not name.strip():
            raise OptionError(f"-p {pair!r} is not K=V, e.g. -p gamma=5")
        if name.strip() in found:
            raise OptionError(f"-p {name.strip()} stands twice: write it once")
        found[name.strip()] = value
    return found


def _parameters_text(found: dict) -> str:
    width = max(map(len, found), default=0)
    return "\n".join(
        f"{name:<{width}}  {one['type']} = "
        f"{one['default']!r}" + (f"  ({one['help']})" if one.get("help") else "")
        for name, one in found.items()
    )


def train(args: Namespace) -> int:
    from ..tiny import shipped_path, train_shipped

    shipped_path(args.name)  # an unknown name is refused before torch is imported
    limits = {
        name: value
        for name in ("minutes", "steps")
        if (value := getattr(args, name, None)) is not None
    }
    for name, value in limits.items():
        if value <= 0:
            raise OptionError(f"--{name} {value} must be above zero")
    path = train_shipped(args.name, Path(args.out), progress=printing.training_progress(), **limits)
    printing.emit(args, {"name": args.name, "checkpoint": str(path)}, lambda: str(path))
    return 0


def doctor(args: Namespace) -> int:
    """Failed probes are findings, not failures; without torch nothing else here works."""
    if getattr(args, "workshop", False):
        return _workshop(args)
    if "notebooks" in vars(args):
        raise OptionError("--notebooks belongs to --workshop, which runs one of them")
    from ..lab.machine import doctor as examiner

    found = examiner.examine(
        quick=not getattr(args, "thorough", False),
        directory=getattr(args, "directory", None),
        record_bytes=getattr(args, "record_bytes", None),
        hub=getattr(args, "hub", False),
    )
    printing.emit(args, found, lambda: examiner.to_table(found))
    return 1 if isinstance(found["threads"], dict) else 0


def _workshop(args: Namespace) -> int:
    """Ten lines, each as soon as it is known; 1 where the verdict is FAIL."""
    other = {"directory", "record_bytes", "thorough", "hub"} & set(vars(args))
    if other:
        option = min(other).replace("_", "-")
        raise OptionError(f"--{option} measures the machine and --workshop does not: leave one out")
    from ..lab.machine import workshop

    began_s, found = time.perf_counter(), []
    for one in workshop.findings(getattr(args, "notebooks", None)):
        found.append(one)
        if not args.json:
            print(one, flush=True)
    last = workshop.verdict(found, time.perf_counter() - began_s)
    checks = [dataclasses.asdict(one) for one in found]
    printing.emit(
        args, {"verdict": last.status, "said": last.sentence, "checks": checks}, lambda: str(last)
    )
    return int(last.status == workshop.FAIL)
