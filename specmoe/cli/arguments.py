"""What may be typed after each command: a function per command, named as it is; its docstring is
the summary that ``--help`` shows.

Comes in: the command's parser. Goes out: the same, with its arguments. Defaults live in
``options``' dataclasses, so none stand here.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial

MODEL = "a shipped model, a checkpoint folder or a hub id"
WHICH = "which GGUF file of a folder or hub id with several"
WIDEN = "widen experts to this size, same outputs"


def _add(parser, words: str, help: str | None, kind: Callable | None = None, **how) -> None:
    """One argument: ``words`` as the help shows it, "-p --prompt TEXT" or "model MODEL"; ``kind``
    makes its value of a text, ``bool``: it has none."""
    first, *more = words.split()
    names = [first, *(word for word in more if word.startswith("-"))]
    if more[len(names) - 1 :]:
        how["metavar"] = more[-1]
    how |= {"action": "store_true"} if kind is bool else {"type": kind} if kind else {}
    parser.add_argument(*names, help=help, **how)


def models(parser: ArgumentParser) -> None:
    """shipped checkpoints: size, layers, experts, measured skew"""


def generate(parser: ArgumentParser) -> None:
    """continue prompts: texts with -p, or a file of JSON lines"""
    add = partial(_add, parser)
    add("model MODEL", MODEL)
    source = parser.add_mutually_exclusive_group(required=True)
    _add(source, "-p --prompt TEXT", "a prompt; may be repeated", action="append")
    _add(source, "--prompts IN.jsonl", 'lines {"prompt": ...}; - is stdin')
    add("--out OUT.jsonl", "where the texts of --prompts go, in order; - is stdout")
    add("--resume", "go on after the lines that --out already has", bool)
    add("--overwrite", "start --out anew", bool)
    add("--method", "auto (default), specmoe, on_demand, cached, overlapped or resident")
    add("--batch-size B", "rows in flight; finished ones are refilled", int)
    add("--num-return-sequences N", "texts per prompt, when sampling (1)", int)
    add("--max-new-tokens T", "at most this many new tokens each (64)", int)
    add("--top-k K", "sample among the K likeliest tokens (0: all)", int)
    add("--draft-top-k K", "experts per token while drafting; default: the model's", int)
    add("--top-p P", "sample among the likeliest tokens up to this mass (1)", float)
    add("--accept-rule", "when sampling: coupled (default), rejection or block")
    add("--seed", "of sampling", int)
    add("--eos-token-id ID", "the token that ends a text; default: the model's", int)
    add("--eviction", "of method cached: temporal (default), decayed, lru, lfu or static")
    _decoding(parser)


def bench(parser: ArgumentParser) -> None:
    """measure methods side by side at the same fast memory; repeats alternate, figures are
    medians"""
    add = partial(_add, parser)
    add("model MODEL", MODEL)
    add("--methods M,M", "on_demand,cached,overlapped,specmoe,auto,resident", _words)
    add("--batch B,B", "rows in flight (1,16,64)", _numbers)
    add("--repeats R", "timed runs of each method and batch (3)", int)
    add("--new-tokens T", "new tokens per prompt, at most (64)", int)
    add("--prompts IN.jsonl", "default: held-out prompts of the shipped models")
    add("--num-prompts P", "prompts per run (two batches; four of sentences to translate)", int)
    add("--eviction E,E", "of method cached: decayed (default), temporal, lru, lfu, static", _words)
    add("--seed", "of prompts and sampling (0)", int)
    _decoding(parser)


def _decoding(parser: ArgumentParser) -> None:
    """What every command that decodes has."""
    add = partial(_add, parser.add_argument_group("translation models (encoder-decoder)"))
    add("--source-lang CODE", "language of the prompts; default: the tokenizer's")
    add("--target-lang CODE", "language to translate into; default: the checkpoint's")
    add = partial(_add, parser.add_argument_group("speculation"))
    add("--gamma G", "drafted tokens per round; default: planned", int)
    sources = "resident (default), ngram, low_bit:4, merged:4, layer_skip, ngram+resident, oracle"
    add("--draft SOURCE", sources)
    add("--draft-set", "hot_temporal (default), hot_global or random")
    add("--substitute", "affinity (default), router, random, drop or no_experts")
    add("--planner", "how far to draft where --gamma is not given: confidence or cost")
    how = {"dest": "prefetch", "action": "store_false"}
    add("--no-prefetch", "fetch only when asked for", **how)
    add("--temperature T", "0 (default) is greedy", float)
    how = {"action": "append"}
    add("--plugin FILE.py", "run first: names your own parts by specmoe.register", **how)
    add = partial(_add, parser.add_argument_group("memory and hardware"))
    add("--draft-experts N", "resident experts per MoE layer", int)
    add("--fast-memory BYTES", "all expert bytes in fast memory, e.g. 2GiB")
    add(
        "--store",
        "where experts live: disk (a packed copy), memory, or checkpoint (no copy; the "
        "default for large experts)",
    )
    add("--link-bytes-per-s RATE", "throttle the store, e.g. 2.5e8", float)
    add("--expert-bytes BYTES", WIDEN)
    add("--device", "cpu (default) or cuda")
    add("--dtype", "of the arithmetic, e.g. float32")
    add("--compile", "torch.compile around the experts (a minute of warm-up)", bool)
    add("--revision REV", "branch, tag or commit of a hub id")
    add("--gguf-file NAME", WHICH)
    add("--num-readers R", "threads that read the store (4)", int)


def plan(parser: ArgumentParser) -> None:
    """what to expect of a model on a machine, before anything is downloaded (simulated)"""
    add = partial(_add, parser)
    add(
        "model MODEL",
        "a name of the table of real models, a checkpoint folder or its config.json, "
        "a shipped model, or a hub id whose config is in the cache",
    )
    add("--fast-memory BYTES", "of experts, e.g. 8GiB; default: what is left")
    add("--machine NAME", "a described machine, e.g. laptop; default: this one")
    add("--link RATE", "bytes/s from slow to fast memory, e.g. 3e9", float)
    add("--memory-rate RATE", "bytes/s of the fast memory", float)
    add("--compute RATE", "FLOP/s, multiply and add being two", float)
    add("--batch B,B", "texts decoded together (1,16,64)", _numbers)
    like = "whose counted routing to assume (tiny-balanced; a shipped model: its own), or even"
    add("--like NAME", like)
    add("--gguf-file NAME", "which GGUF file of a folder with several")
    add("--weights FORMAT", "another format than the published one, e.g. int4")


def sweep(parser: ArgumentParser) -> None:
    """measure every setting of a grid, here or on a dask cluster; goes on where it stopped"""
    add = partial(_add, parser)
    add("grid GRID.yaml", "option: list of values, such as gamma: [2, 4]")
    add("--out DIR", "where rows.jsonl goes (sweeps/KEY of the grid)")
    add("--scheduler ADDRESS", "of dask.distributed, such as tcp://host:8786")
    add("--workers N", "processes on this machine (one run at a time)", int)
    add("--yes", "yes, that many runs are meant", bool)


def pack(parser: ArgumentParser) -> None:
    """one contiguous record per expert, with checksums, in a folder that loads as a checkpoint"""
    add = partial(_add, parser)
    add("model CHECKPOINT", MODEL)
    add("directory DIR", "where the records go")
    add("--gguf-file NAME", WHICH)
    add("--expert-bytes BYTES", WIDEN)


def verify(parser: ArgumentParser) -> None:
    """compare a packed checkpoint with its checksums"""
    _add(parser, "directory DIR", "what `specmoe pack` wrote")


def cache(parser: ArgumentParser) -> None:
    """list and remove the packed copies of checkpoints that are kept for the next load"""
    add, actions = partial(_add, parser), ("list", "remove")
    add("action list|remove", None, choices=actions, nargs="?", default="list")
    add("names NAME", "what to remove, as the list calls it", nargs="*")
    add("--all", "remove every packed copy", bool)


def report(parser: ArgumentParser) -> None:
    """list, describe, run and compare reports"""
    add = partial(_add, parser)
    add("action list|params|run|index", None, choices=("list", "params", "run", "index"))
    named = "of the report, for params and run; for index a folder of runs (reports)"
    add("name NAME", named, nargs="?", default=None)
    add("--parameters FILE.yaml", "parameters by name, for run; -p comes after")
    add("--sweep K=A,B", "one run for each value, for run", action="append")
    add("-p --parameter K=V", "a parameter, for run", action="append")
    add("--out DIR", "where the report goes (reports/NAME-TIME), for run")
    add("--overwrite", "replace a report that is there, for run", bool)
    add("--against DIR", "an earlier run to compare with, its folder, for run")


def train(parser: ArgumentParser) -> None:
    """follow the recipe of a shipped checkpoint"""
    add = partial(_add, parser)
    add("name NAME", "a shipped model (see `specmoe models`)")
    add("--out DIR", "where the checkpoint goes", required=True)
    add("--minutes", "of wall-clock time; default: the recipe's", float)
    add("--steps", "instead of minutes", int)


def doctor(parser: ArgumentParser) -> None:
    """what this machine can do: torch, device, disk rate, memory, kernel, hub"""
    add = partial(_add, parser)
    add("--directory DIR", "measure the disk of this folder")
    add("--record-bytes BYTES", "size of the random reads (3MiB)")
    add("--thorough", "longer measurements on a larger file", bool)
    add("--hub", "also ask the hub, for 3 s at most", bool)
    add("--workshop", "PASS or FAIL: is all here that a workshop needs?", bool)
    add("--notebooks DIR", "with --workshop: where 00_start_here lies")


def completion(parser: ArgumentParser) -> None:
    """print what makes Tab complete: eval "$(specmoe completion bash)" in ~/.bashrc"""
    shells = ("bash", "zsh", "tcsh")
    _add(parser, "shell bash|zsh|tcsh", None, choices=shells)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]
