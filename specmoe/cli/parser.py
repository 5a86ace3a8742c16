"""The command line: ``specmoe COMMAND ... [--json]``. What may be typed, and how a failure ends.

Comes in: the words of a shell. Goes out: the arguments for one function of ``commands``, and an
exit code: 0 done, 1 something failed, 2 bad input (one line on stderr; with ``--json`` also an
object on stdout), 130 interrupted. Nothing heavy is imported here: torch and transformers come with
the command that needs them.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from typing import NoReturn

from ..errors import OptionError, SpecMoEError
from ..options import spin_setting
from . import commands


class _Parser(argparse.ArgumentParser):
    """Raises ``OptionError`` where argparse would print its usage and leave."""

    def __init__(self, *args, **kwargs):
        # Defaults live in config's dataclasses: an option that was not typed is not in the
        # namespace.
        super().__init__(*args, allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    os.environ.update(spin_setting())
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character must not cost the work that was done to print it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    as_json, debug = "--json" in words, "--debug" in words
    try:
        args = parse(words)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("specmoe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as failure:  # the last resort of a program: say it, and leave with a code
        return _fail(failure, as_json, debug)


def _fail(failure: Exception, as_json: bool, debug: bool) -> int:
    """One line on stderr (``debug``: the traceback before it), with ``--json`` the same as an
    object on stdout."""
    if debug:
        traceback.print_exception(failure, file=sys.stderr)
    kind, expected = type(failure).__name__, isinstance(failure, SpecMoEError)
    message = " ".join(str(failure).split()) or kind
    if not expected:
        message = f"{kind}: {message}" + ("" if debug else " (--debug shows where)")
    print(f"specmoe: error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message}}))
    return 2 if expected else 1


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments; an unknown option raises ``OptionError`` with the nearest one."""
    parser, by_name = build_parser()
    args, unknown = parser.parse_known_args(words)
    if unknown:
        options = by_name[args.command]._option_string_actions
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        close = difflib.get_close_matches(wrong.split("=")[0], options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see specmoe {args.command} --help"
        raise OptionError(f"unknown argument {wrong!r} for specmoe {args.command}: {hint}")
    args.json = getattr(args, "json", False)
    return args


def build_parser() -> tuple[_Parser, dict[str, _Parser]]:
    """The parser, and those of the commands by name."""
    parser = _Parser(
        prog="specmoe",
        description="Mixture-of-Experts decoding with the experts in slow memory, exact tokens.",
    )
    from .. import __version__

    parser.add_argument("--version", action="version", version=f"specmoe {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    by_name = {}
    for add in (_models, _generate, _bench, _pack, _verify, _cache, _report, _train, _doctor):
        name, summary = add.__name__[1:], add.__doc__
        by_name[name] = subparsers.add_parser(
            name, parents=[common], help=summary, description=summary
        )
        by_name[name].set_defaults(run=getattr(commands, name))
        add(by_name[name])
    return parser, by_name


def _models(parser: _Parser) -> None:
    """shipped checkpoints: size, layers, experts, measured skew"""


def _generate(parser: _Parser) -> None:
    """continue prompts: texts with -p, or a file of JSON lines"""
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a checkpoint folder or a hub id"
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
    add("--accept-rule", help="when sampling: coupled (default) or rejection")
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


def _bench(parser: _Parser) -> None:
    """measure methods side by side at the same fast memory; repeats alternate, figures are
    medians"""
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a checkpoint folder or a hub id"
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


def _languages(parser: _Parser) -> None:
    group = parser.add_argument_group("translation models (encoder-decoder)")
    group.add_argument(
        "--source-lang", metavar="CODE", help="language of the prompts; default: the tokenizer's"
    )
    group.add_argument(
        "--target-lang",
        metavar="CODE",
        help="language to translate into; default: the checkpoint's",
    )


def _speculation(parser: _Parser) -> None:
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--gamma", type=int, metavar="G", help="drafted tokens per round; default: planned"
    )
    group.add_argument("--draft-set", help="hot_temporal (default), hot_global or random")
    group.add_argument(
        "--substitute", help="affinity (default), router, random, drop or no_experts"
    )
    group.add_argument(
        "--no-prefetch", dest="prefetch", action="store_false", help="fetch only when asked for"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 (default) is greedy")


def _loading(parser: _Parser) -> None:
    group = parser.add_argument_group("memory and hardware")
    group.add_argument(
        "--draft-experts", type=int, metavar="N", help="resident experts per MoE layer"
    )
    group.add_argument(
        "--fast-memory", metavar="BYTES", help="all expert bytes in fast memory, e.g. 2GiB"
    )
    group.add_argument("--store", help="where experts live: disk (default) or memory")
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


def _pack(parser: _Parser) -> None:
    """one contiguous record per expert, with checksums, in a folder that loads as a checkpoint"""
    parser.add_argument(
        "model", metavar="CHECKPOINT", help="a shipped model, a checkpoint folder or a hub id"
    )
    parser.add_argument("directory", metavar="DIR", help="where the records go")
    parser.add_argument(
        "--expert-bytes", metavar="BYTES", help="widen experts to this size, same outputs"
    )


def _verify(parser: _Parser) -> None:
    """compare a packed checkpoint with its checksums"""
    parser.add_argument("directory", metavar="DIR", help="what `specmoe pack` wrote")


def _cache(parser: _Parser) -> None:
    """list and remove the packed copies of checkpoints that are kept for the next load"""
    parser.add_argument(
        "action", metavar="list|remove", choices=("list", "remove"), nargs="?", default="list"
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="what to remove, as the list calls it"
    )
    parser.add_argument("--all", action="store_true", help="remove every packed copy")


def _report(parser: _Parser) -> None:
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


def _train(parser: _Parser) -> None:
    """follow the recipe of a shipped checkpoint"""
    parser.add_argument("name", metavar="NAME", help="a shipped model (see `specmoe models`)")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the checkpoint goes")
    parser.add_argument("--minutes", type=float, help="of wall-clock time; default: the recipe's")
    parser.add_argument("--steps", type=int, help="instead of minutes")


def _doctor(parser: _Parser) -> None:
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


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]
