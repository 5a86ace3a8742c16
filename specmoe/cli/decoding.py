"""The commands that decode: ``generate`` and ``bench``.

Comes in: the namespace that ``parser`` parsed (options that were not typed are not in it). Goes
out: an exit code; texts and rows are printed by ``printing``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from argparse import Namespace
from collections.abc import Callable

from ..errors import CheckpointError, OptionError
from ..options import FOUND_BY, GenerateOptions, LoadOptions, from_kwargs
from . import printing

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
STEADY = """\
steady: over on_demand, without the first third of each run's rounds (cold pool, trials) and its
tail; in brackets the 95 % interval of repeats in turn. A/A: how far repeats of one method lie
apart: believe no smaller difference. The other columns are of whole runs."""


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
        output = loaded.generate(args.prompt, **decode, progress=printing.watched())
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
    printing.emit(
        args,
        {"model": info, "outputs": outputs, "stats": stats},
        lambda: "\n\n".join(_shown(outputs, separator)),
    )
    if not args.json:
        print(
            "\n" + printing.one_line(stats),
            *filter(None, [output.stats.remark]),
            sep="\n",
            file=sys.stderr,
        )
    return 0


def _generate_file(args: Namespace, load: dict, decode: dict) -> int:
    """Prompts from a file to a file; 1 when any line ended in an error."""
    from . import jobs

    def name() -> str:
        from .identity import identity_of

        identity = identity_of(
            args.model, **{name: load[name] for name in FOUND_BY if name in load}
        )
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
        said = f"{printing.one_line(summary)}\n{_planned(job.totals)}"
        if to_stdout:
            print(said, file=sys.stderr)
        else:
            printing.emit(args, summary, lambda: said)
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
        job.run(open_engine, decode, report, watching(job))


def watching(job) -> Callable[[int], None] | None:
    """Shows lines, tokens per second, bytes of the input, and, where it is a file, time left."""
    show = printing.progress("lines")
    if show is None:
        return None

    def see(done: int) -> None:
        size = os.fstat(job.stream.fileno()).st_size if job.stream.seekable() else 0
        read = job.stream.tell() if size else 0
        total = max(done + 1, round(done * size / read)) if read else None
        show(done, total, f"{_rate(job.totals):.4g} tokens/s, {read:,} of {size:,} bytes read")

    return see


def bench(args: Namespace) -> int:
    from ..lab.bench.methods import run_bench

    generate = _options(args, GenerateOptions) | {"progress": printing.progress("runs")}
    for word, name in (("new_tokens", "max_new_tokens"), ("num_prompts", "num_prompts")):
        if hasattr(args, word):
            generate[name] = getattr(args, word)
    if hasattr(args, "prompts"):
        from .jobs import read_prompts

        generate["prompts"] = read_prompts(args.prompts)
    said = {name: getattr(args, name) for name in BENCH if hasattr(args, name)}
    result = run_bench(args.model, **said, load=_options(args, LoadOptions), generate=generate)
    found = result.to_json()
    printing.emit(args, found, lambda: _bench_text(found))
    if any(row["same_tokens_as_plain"] is False for row in found["rows"]):
        print("specmoe: error: a method's tokens differ from plain decoding", file=sys.stderr)
        return 1
    return 0


def _steady(row: dict) -> dict[str, str]:
    """Speed without the cold start, in words: over on-demand, its interval, its control."""
    over, low, high, apart = (
        row.get(name)
        for name in (
            "steady_over_on_demand",
            "steady_over_on_demand_low",
            "steady_over_on_demand_high",
            "control_spread",
        )
    )
    ends = f" ({low:.2f} to {high:.2f})" if low else ""
    return {
        "steady": f"{over:.2f}{ends}" if over else "-",
        "A/A": f"± {apart - 1:.0%}" if apart else "-",
    }


def _bench_text(found: dict) -> str:
    model, machine = found["model"], found["machine"]
    head = (
        f"{model.get('name')}: {model.get('layers')} MoE layers of {model.get('experts')} experts "
        "of "
        f"{model.get('expert_bytes')} bytes; fast memory {model.get('fast_memory_bytes')} bytes, "
        "resident apart\n"
        f"{machine.get('cpu')}, {machine.get('cores')} cores; store {machine['store']}"
    )
    rows = [{name: row[name] for name in TABLE} | _steady(row) for row in found["rows"]]
    return f"{head}\n\n{printing.table(rows)}\n\n{STEADY}"


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


def _planned(totals: dict) -> str:
    """What the planner did and saved, for people."""
    rounds, tokens = totals["num_rounds"], totals["num_new_tokens"]
    saved = 1 - totals["num_turns"] / tokens if tokens else 0.0
    return (
        f"drafted in {rounds - totals['num_plain_rounds']} of {rounds} rounds, which saved "
        f"{saved:.0%} of the {tokens} passes over the model that plain decoding takes"
    )


def _rate(totals: dict) -> float:
    return totals["num_new_tokens"] / totals["seconds"] if totals["seconds"] else 0.0
