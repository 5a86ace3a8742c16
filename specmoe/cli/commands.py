"""What each command does: one function per command, arguments in, exit code out.

Comes in: the namespace that ``cli`` parsed (options that were not typed are not in it). Goes out:
text or, with ``--json``, one object on stdout; progress on stderr, only when that is a terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, OptionError
from ..options import GenerateOptions, LoadOptions, from_kwargs, parse_bytes

# Words of ``bench`` that are arguments of their own; the others are options of load or generate.
BENCH = ("methods", "batch", "repeats")
TABLE = (
    "method",
    "eviction",
    "batch",
    "gamma",
    "tokens_per_second",
    "speedup_over_on_demand",
    "tokens_per_round",
    "acceptance_rate",
    "fetched_bytes_per_token",
    "wait_share",
    "same_tokens_as_plain",
)


def models(args: Namespace) -> int:
    from ..tiny import list_models

    rows = list_models()
    _emit(args, {"models": rows}, lambda: _table(rows))
    return 0


def generate(args: Namespace) -> int:
    load, decode = _options(args, LoadOptions), _sampling(_options(args, GenerateOptions))
    given = vars(args)
    if "prompts" in given:
        if "out" not in given:
            raise OptionError("--prompts needs --out OUT.jsonl, the file that the texts go to")
        return _generate_file(args, load, decode)
    for option in ("out", "resume", "overwrite"):
        if option in given:
            raise OptionError(f"--{option} belongs to --prompts IN.jsonl, not to -p")
    from ..engine import engine

    with engine.load(args.model, **load) as loaded:
        output = loaded.generate(args.prompt, **decode, progress=sys.stderr.isatty())
        info, separator = loaded.info, "\n" if loaded.is_translation else ""
    new = [
        tokens[start:] for tokens, start in zip(_lists(output.sequences), output.num_prompt_tokens)
    ]
    texts = output.new_texts or [None] * len(new)
    outputs = [
        {"prompt": p, "text": text, "tokens": t}
        for p, text, t in zip(args.prompt, texts, new, strict=True)
    ]
    stats = dataclasses.asdict(output.stats)
    _emit(
        args,
        {"model": info, "outputs": outputs, "stats": stats},
        lambda: "\n\n".join(_shown(outputs, separator)),
    )
    if not args.json:
        print(
            "\n" + _one_line(stats), *filter(None, [output.stats.remark]), sep="\n", file=sys.stderr
        )
    return 0


def _generate_file(args: Namespace, load: dict, decode: dict) -> int:
    """Prompts from a file to a file; 1 when any line ended in an error."""
    from . import jobs

    def name() -> str:
        from .identity import identity_of

        identity = identity_of(args.model, load.get("revision"))
        return jobs.fingerprint(identity, load, decode)

    to_stdout = args.out == "-"
    if to_stdout and args.json:
        raise OptionError(
            "--json prints one object on stdout, where --out - has its lines: name a file for them"
        )
    how = [
        getattr(args, option, default)
        for option, default in (("resume", 0), ("overwrite", 0), ("seed", None))
    ]
    with jobs.open_job(args.prompts, args.out, name, *how) as job:
        num_before = job.num_done
        # What a library prints must not come between the lines.
        with contextlib.redirect_stdout(sys.stderr) if to_stdout else contextlib.nullcontext():
            _run_job(args, job, load, decode, name)
        summary = {
            "out": str(args.out),
            "num_lines": job.num_done,
            "num_written": job.num_done - num_before,
            "num_errors": job.num_errors,
            **job.totals,
            "tokens_per_second": _rate(job.totals),
        }
        if to_stdout:
            print(_one_line(summary), file=sys.stderr)
        else:
            _emit(args, summary, lambda: _one_line(summary))
        return 1 if job.num_errors else 0


def _run_job(args: Namespace, job, load: dict, decode: dict, name: Callable[[], str]) -> None:
    """The engine is loaded when the first prompt is met, and closed at the end."""

    def report(line: int, error: str) -> None:
        print(f"specmoe: {args.prompts} line {line}: {error}", file=sys.stderr)

    def open_engine():
        from ..engine import engine

        loaded = stack.enter_context(engine.load(args.model, **load))
        if name() != job.name:  # no line may stand under the name of other weights
            raise CheckpointError(
                f"{args.model} changed after the job had begun: run it again when nothing "
                "writes to it"
            )
        return loaded

    with contextlib.ExitStack() as stack:
        job.run(open_engine, decode, report, _lines_done())


def bench(args: Namespace) -> int:
    from ..lab.bench.methods import run_bench

    generate = _options(args, GenerateOptions) | {"progress": _progress("runs")}
    for word, name in (("new_tokens", "max_new_tokens"), ("num_prompts", "num_prompts")):
        if hasattr(args, word):
            generate[name] = getattr(args, word)
    if hasattr(args, "prompts"):
        from .jobs import read_prompts

        generate["prompts"] = read_prompts(args.prompts)
    said = {name: getattr(args, name) for name in BENCH if hasattr(args, name)}
    result = run_bench(args.model, **said, load=_options(args, LoadOptions), generate=generate)
    found = result.to_json()
    _emit(args, found, lambda: _bench_text(found))
    if any(row["same_tokens_as_plain"] is False for row in found["rows"]):
        print("specmoe: error: a method's tokens differ from plain decoding", file=sys.stderr)
        return 1
    return 0


def _bench_text(found: dict) -> str:
    model, machine = found["model"], found["machine"]
    head = (
        f"{model.get('name')}: {model.get('layers')} MoE layers of {model.get('experts')} experts "
        "of "
        f"{model.get('expert_bytes')} bytes; fast memory {model.get('fast_memory_bytes')} bytes, "
        "resident apart\n"
        f"{machine.get('cpu')}, {machine.get('cores')} cores; store {machine['store']}"
    )
    return f"{head}\n\n{_table([{name: row[name] for name in TABLE} for row in found['rows']])}"


def pack(args: Namespace) -> int:
    expert_bytes = parse_bytes("expert_bytes", getattr(args, "expert_bytes", None))
    from .. import checkpoint

    packed = checkpoint.pack(args.model, args.directory, expert_bytes, progress=_progress("bytes"))
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
    _emit(args, found, lambda: _one_line(found))
    return 0


def verify(args: Namespace) -> int:
    from .. import checkpoint
    from .copies import verify_packed

    packed = checkpoint.open_packed(args.directory)
    bad = [
        {"layer": layer, "expert": expert}
        for layer, expert in verify_packed(packed, _progress("bytes"))
    ]
    num_records = len(packed.layers) * packed.num_experts
    found = {"directory": str(packed.directory), "num_records": num_records, "bad": bad}
    _emit(
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
    _emit(
        args,
        found,
        lambda: f"{found['folder']}: {found['bytes'] / 2**20:.1f} MiB {key}\n{_table(rows)}",
    )
    return 0


def report(args: Namespace) -> int:
    if args.action != "run" and {"parameter", "out", "overwrite", "against"} & set(vars(args)):
        raise OptionError(
            "-p, --out, --overwrite and --against belong to `specmoe report run`, not to "
            f"{args.action}"
        )
    if args.action != "list" and args.name is None:
        raise OptionError(
            f"`specmoe report {args.action}` needs the NAME of a report: see `specmoe report list`"
        )
    from ..lab import report as reports

    if args.action == "list":
        rows = reports.list_reports()
        _emit(args, {"reports": rows}, lambda: _table(rows))
    elif args.action == "params":
        found = reports.report_parameters(args.name)
        _emit(args, {"name": args.name, "parameters": found}, lambda: _parameters_text(found))
    else:
        parameters = _parameters(getattr(args, "parameter", []))
        path = reports.run_report(
            args.name,
            parameters,
            getattr(args, "out", None),
            overwrite=getattr(args, "overwrite", False),
            against=getattr(args, "against", None),
        )
        _emit(args, {"name": args.name, "report": str(path)}, lambda: str(path))
    return 0


def _parameters(given: list[str]) -> dict[str, str]:
    for pair in given:
        if not pair.partition("=")[1] or not pair.partition("=")[0].strip():
            raise OptionError(f"-p {pair!r} is not K=V, e.g. -p gamma=5")
    return {name.strip(): value for name, _, value in (pair.partition("=") for pair in given)}


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
    path = train_shipped(args.name, Path(args.out), progress=_training_progress(), **limits)
    _emit(args, {"name": args.name, "checkpoint": str(path)}, lambda: str(path))
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
    _emit(args, found, lambda: examiner.to_table(found))
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
    _emit(
        args, {"verdict": last.status, "said": last.sentence, "checks": checks}, lambda: str(last)
    )
    return int(last.status == workshop.FAIL)


# From arguments to options


def _options(args: Namespace, cls: type) -> dict:
    """The typed options that are fields of ``cls``, checked before anything heavy is imported."""
    fields = {field.name for field in dataclasses.fields(cls)}
    given = {name: value for name, value in vars(args).items() if name in fields}
    if cls is LoadOptions:
        from_kwargs(cls, given)
    return given


def _sampling(given: dict) -> dict:
    """Sampling is asked for by a temperature, top_k or top_p; temperature 0 is greedy."""
    wanted = any(name in given for name in ("temperature", "top_k", "top_p"))
    if given.get("temperature") == 0:
        given = {
            name: value
            for name, value in given.items()
            if name not in ("temperature", "top_k", "top_p")
        }
    elif wanted:
        given = {**given, "do_sample": True}
    from_kwargs(GenerateOptions, given)
    return given


# Output


def _emit(args: Namespace, found: dict, text: Callable[[], str]) -> None:
    from ..lab.writing import plain

    print(json.dumps(plain(found)) if args.json else text())


def _lists(sequences) -> list[list[int]]:
    return [[int(token) for token in sequence] for sequence in sequences]


def _shown(outputs: list[dict], separator: str) -> list[str]:
    """A text goes on where its prompt ends; a translation stands below its source."""
    return [
        f"{one['prompt']}{separator}{one['text']}"
        if one["text"] is not None
        else str(one["tokens"])
        for one in outputs
    ]


def _one_line(found: dict) -> str:
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _rate(totals: dict) -> float:
    return totals["num_new_tokens"] / totals["seconds"] if totals["seconds"] else 0.0


def _table(rows: list[dict]) -> str:
    if not rows:
        return "none"
    import pandas as pd

    return pd.DataFrame(rows).to_string(
        index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"
    )


def _progress(unit: str) -> Callable | None:
    """A line on stderr that is written over; None when nobody watches."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int, what: str = "") -> None:
        end = "\n" if done >= total else ""
        print(f"\r\033[K{done}/{total} {unit} {what}", end=end, file=sys.stderr, flush=True)

    return show


def _lines_done() -> Callable[[int], None] | None:
    """The same for a job, whose length nobody knows."""
    if not sys.stderr.isatty():
        return None
    return lambda done: print(f"\r\033[K{done} lines ", end="", file=sys.stderr, flush=True)


def _training_progress() -> Callable | None:
    if not sys.stderr.isatty():
        return None
    return lambda phase, share, loss: print(f"{phase} {share:.0%} loss {loss:.3f}", file=sys.stderr)
