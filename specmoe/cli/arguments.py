"""What may be typed after each command: a function per command, named as it is; its docstring is
the summary that ``--help`` shows.

Comes in: the command's parser. Goes out: the same, with its arguments. Defaults live in
``options``' dataclasses, so none stand here.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import fields
from functools import partial

from ..engine.typed import GenerateArguments, LoadArguments, said
from ..options import GenerateOptions, LoadOptions

MODEL = "a shipped model, a checkpoint folder or a hub id"
WHICH = "which GGUF file of a folder or hub id with several"
SAID = said(LoadArguments) | said(GenerateArguments)
DEFAULTS = {each.name: each.default for of in (LoadOptions, GenerateOptions) for each in fields(of)}
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


def _say(parser, words: str, kind: Callable | None = None, **how) -> None:
    """One option of ``load`` or ``generate``, with the text and the default that it has there."""
    name = words.split()[0].removeprefix("--").replace("-", "_")
    default = DEFAULTS[name]
    ending = "" if default is None or kind is bool else f" ({default})"
    _add(parser, words, SAID[name] + ending, kind, **how)


def models(parser: ArgumentParser) -> None:
    """shipped checkpoints: size, layers, experts, measured skew"""


def generate(parser: ArgumentParser) -> None:
    """continue prompts: texts with -p, or a file of JSON lines"""
    add, say = partial(_add, parser), partial(_say, parser)
    add("model MODEL", MODEL)
    source = parser.add_mutually_exclusive_group(required=True)
    _add(source, "-p --prompt TEXT", "a prompt; may be repeated", action="append")
    _add(source, "--prompts IN.jsonl", 'lines {"prompt": ...}; - is stdin')
    add("--out OUT.jsonl", "where the texts of --prompts go, in order; - is stdout")
    add("--resume", "go on after the lines that --out already has", bool)
    add("--overwrite", "start --out anew", bool)
    say("--method")
    say("--batch-size B", int)
    say("--num-return-sequences N", int)
    say("--max-new-tokens T", int)
    say("--top-k K", int)
    say("--draft-top-k K", int)
    say("--top-p P", float)
    say("--accept-rule")
    say("--seed", int)
    say("--eos-token-id ID", int)
    say("--eviction")
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
    group = parser.add_argument_group("translation models (encoder-decoder)")
    say = partial(_say, group)
    say("--source-lang CODE")
    say("--target-lang CODE")
    group = parser.add_argument_group("speculation")
    add, say = partial(_add, group), partial(_say, group)
    say("--gamma G", int)
    say("--draft SOURCE")
    say("--draft-set")
    say("--substitute")
    say("--planner")
    how = {"dest": "prefetch", "action": "store_false"}
    add("--no-prefetch", "fetch only when asked for", **how)
    say("--temperature T", float)
    how = {"action": "append"}
    add("--plugin FILE.py", "run first: names your own parts by specmoe.register", **how)
    group = parser.add_argument_group("memory and hardware")
    say = partial(_say, group)
    say("--draft-experts N", int)
    say("--fast-memory BYTES")
    say("--store")
    say("--link-bytes-per-s RATE", float)
    say("--expert-bytes BYTES")
    say("--device")
    say("--dtype")
    say("--compile", bool)
    say("--revision REV")
    say("--gguf-file NAME")
    say("--num-readers R", int)


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
    add("--yes", "yes, that many runs are meant", bool)
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
