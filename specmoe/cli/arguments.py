"""What may be typed after each command: a function per command, named as it is; its docstring is
the summary that ``--help`` shows.

Comes in: the command's parser. Goes out: the same, with its arguments. Defaults live in
``options``' dataclasses, so none stand here.
"""

from __future__ import annotations

from argparse import ArgumentParser


def models(parser: ArgumentParser) -> None:
    """shipped checkpoints: size, layers, experts, measured skew"""


def generate(parser: ArgumentParser) -> None:
    """continue prompts: texts with -p, or a file of JSON lines"""
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a folder, a GGUF or a hub id"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-p", "--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated"
    )
    source.add_argument("--prompts", metavar="IN.jsonl", help='lines {"prompt": ...}; - is stdin')
    parser.add_argument(
        "--out", metavar="OUT.jsonl", help="where the texts of --prompts go, in order; - is stdout"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on after the lines that --out already has"
    )
    parser.add_argument("--overwrite", action="store_true", help="start --out anew")
    add = parser.add_argument
    add("--method", help="auto (default), specmoe, on_demand, cached, overlapped or resident")
    add("--batch-size", type=int, metavar="B", help="rows in flight; finished ones are refilled")
    add("--num-return-sequences", type=int, metavar="N", help="texts per prompt, when sampling (1)")
    add("--max-new-tokens", type=int, metavar="T", help="at most this many new tokens each (64)")
    add("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens (0: all)")
    add(
        "--draft-top-k",
        type=int,
        metavar="K",
        help="experts per token while drafting; default: the model's",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="sample among the likeliest tokens up to this mass (1)",
    )
    add("--accept-rule", help="when sampling: coupled (default), rejection or block")
    add("--seed", type=int, help="of sampling")
    add(
        "--eos-token-id",
        type=int,
        metavar="ID",
        help="the token that ends a text; default: the model's",
    )
    add("--eviction", help="of method cached: temporal (default), lru, lfu or static")
    _languages(parser)
    _speculation(parser)
    _loading(parser)


def bench(parser: ArgumentParser) -> None:
    """measure methods side by side at the same fast memory; repeats alternate, figures are
    medians"""
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a folder, a GGUF or a hub id"
    )
    add = parser.add_argument
    add(
        "--methods",
        type=_words,
        metavar="M,M",
        help="on_demand,cached,overlapped,specmoe,auto,resident",
    )
    add("--batch", type=_numbers, metavar="B,B", help="rows in flight (1,16,64)")
    add("--repeats", type=int, metavar="R", help="timed runs of each method and batch (3)")
    add("--new-tokens", type=int, metavar="T", help="new tokens per prompt, at most (64)")
    add("--prompts", metavar="IN.jsonl", help="default: held-out prompts of the shipped models")
    add(
        "--num-prompts",
        type=int,
        metavar="P",
        help="prompts per run (two batches; four of sentences to translate)",
    )
    add(
        "--eviction",
        type=_words,
        metavar="E,E",
        help="of method cached: temporal (default), lru, lfu, static",
    )
    add("--seed", type=int, help="of prompts and sampling (0)")
    _languages(parser)
    _speculation(parser)
    _loading(parser)


def _languages(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("translation models (encoder-decoder)")
    group.add_argument(
        "--source-lang", metavar="CODE", help="language of the prompts; default: the tokenizer's"
    )
    group.add_argument(
        "--target-lang",
        metavar="CODE",
        help="language to translate into; default: the checkpoint's",
    )


def _speculation(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--gamma", type=int, metavar="G", help="drafted tokens per round; default: planned"
    )
    group.add_argument(
        "--draft",
        metavar="SOURCE",
        help="resident (default), ngram, low_bit:4, merged:4, layer_skip, ngram+resident, oracle",
    )
    group.add_argument("--draft-set", help="hot_temporal (default), hot_global or random")
    group.add_argument(
        "--substitute", help="affinity (default), router, random, drop or no_experts"
    )
    group.add_argument(
        "--no-prefetch", dest="prefetch", action="store_false", help="fetch only when asked for"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 (default) is greedy")


def _loading(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("memory and hardware")
    group.add_argument(
        "--draft-experts", type=int, metavar="N", help="resident experts per MoE layer"
    )
    group.add_argument(
        "--fast-memory", metavar="BYTES", help="all expert bytes in fast memory, e.g. 2GiB"
    )
    group.add_argument(
        "--store",
        help="where experts live: disk (a packed copy), memory, or checkpoint (no copy; the "
        "default for large experts)",
    )
    group.add_argument(
        "--link-bytes-per-s", type=float, metavar="RATE", help="throttle the store, e.g. 2.5e8"
    )
    group.add_argument(
        "--expert-bytes", metavar="BYTES", help="widen experts to this size, same outputs"
    )
    group.add_argument("--device", help="cpu (default) or cuda")
    group.add_argument("--dtype", help="of the arithmetic, e.g. float32")
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile around the experts (a minute of warm-up)",
    )
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub id")
    group.add_argument(
        "--num-readers", type=int, metavar="R", help="threads that read the store (4)"
    )


def plan(parser: ArgumentParser) -> None:
    """what to expect of a model on a machine, before anything is downloaded (simulated)"""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a name of the table of real models, a checkpoint folder or its config.json, a GGUF, "
        "a shipped model, or a hub id whose config is in the cache",
    )
    add = parser.add_argument
    add("--fast-memory", metavar="BYTES", help="of experts, e.g. 8GiB; default: what is left")
    add("--machine", metavar="NAME", help="a described machine, e.g. laptop; default: this one")
    add("--link", type=float, metavar="RATE", help="bytes/s from slow to fast memory, e.g. 3e9")
    add("--memory-rate", type=float, metavar="RATE", help="bytes/s of the fast memory")
    add("--compute", type=float, metavar="RATE", help="FLOP/s, multiply and add being two")
    add("--batch", type=_numbers, metavar="B,B", help="texts decoded together (1,16,64)")
    add(
        "--like",
        metavar="NAME",
        help="whose counted routing to assume (tiny-balanced; a shipped model: its own), or even",
    )
    add("--weights", metavar="FORMAT", help="another format than the published one, e.g. int4")


def sweep(parser: ArgumentParser) -> None:
    """measure every setting of a grid, here or on a dask cluster; goes on where it stopped"""
    parser.add_argument(
        "grid", metavar="GRID.yaml", help="option: list of values, such as gamma: [2, 4]"
    )
    add = parser.add_argument
    add("--out", metavar="DIR", help="where rows.jsonl goes (sweeps/KEY of the grid)")
    add("--scheduler", metavar="ADDRESS", help="of dask.distributed, such as tcp://host:8786")
    add("--workers", type=int, metavar="N", help="processes on this machine (one run at a time)")
    add("--yes", action="store_true", help="yes, that many runs are meant")


def pack(parser: ArgumentParser) -> None:
    """one contiguous record per expert, with checksums, in a folder that loads as a checkpoint"""
    parser.add_argument(
        "model",
        metavar="CHECKPOINT",
        help="a shipped model, a folder, a GGUF or a hub id",
    )
    parser.add_argument("directory", metavar="DIR", help="where the records go")
    parser.add_argument(
        "--expert-bytes", metavar="BYTES", help="widen experts to this size, same outputs"
    )


def verify(parser: ArgumentParser) -> None:
    """compare a packed checkpoint with its checksums"""
    parser.add_argument("directory", metavar="DIR", help="what `specmoe pack` wrote")


def cache(parser: ArgumentParser) -> None:
    """list and remove the packed copies of checkpoints that are kept for the next load"""
    parser.add_argument(
        "action", metavar="list|remove", choices=("list", "remove"), nargs="?", default="list"
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="what to remove, as the list calls it"
    )
    parser.add_argument("--all", action="store_true", help="remove every packed copy")


def report(parser: ArgumentParser) -> None:
    """list, describe and run reports"""
    parser.add_argument("action", metavar="list|params|run", choices=("list", "params", "run"))
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default=None, help="of the report, for params and run"
    )
    parser.add_argument(
        "-p", "--parameter", action="append", metavar="K=V", help="a parameter, for run"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="where the report goes (reports/NAME-TIME), for run"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a report that is there, for run"
    )
    parser.add_argument(
        "--against", metavar="DIR", help="an earlier run to compare with, its folder, for run"
    )


def train(parser: ArgumentParser) -> None:
    """follow the recipe of a shipped checkpoint"""
    parser.add_argument("name", metavar="NAME", help="a shipped model (see `specmoe models`)")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the checkpoint goes")
    parser.add_argument("--minutes", type=float, help="of wall-clock time; default: the recipe's")
    parser.add_argument("--steps", type=int, help="instead of minutes")


def doctor(parser: ArgumentParser) -> None:
    """what this machine can do: torch, device, disk rate, memory, kernel, hub"""
    parser.add_argument("--directory", metavar="DIR", help="measure the disk of this folder")
    parser.add_argument("--record-bytes", metavar="BYTES", help="size of the random reads (3MiB)")
    parser.add_argument(
        "--thorough", action="store_true", help="longer measurements on a larger file"
    )
    parser.add_argument("--hub", action="store_true", help="also ask the hub, for 3 s at most")
    parser.add_argument(
        "--workshop", action="store_true", help="PASS or FAIL: is all here that a workshop needs?"
    )
    parser.add_argument(
        "--notebooks", metavar="DIR", help="with --workshop: where 00_start_here lies"
    )


def completion(parser: ArgumentParser) -> None:
    """print what makes Tab complete: eval "$(specmoe completion bash)" in ~/.bashrc"""
    parser.add_argument("shell", metavar="bash|zsh|tcsh", choices=("bash", "zsh", "tcsh"))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]
