"""The command line: ``specmoe COMMAND ... [--json]``. What may be typed, and how a failure ends.

Comes in: the words of a shell. Goes out: the arguments for one function of ``COMMANDS``, and an
exit code: 0 done, 1 something failed, 2 bad input (one line on stderr; with ``--json`` also an
object on stdout), 130 interrupted. Nothing heavy is imported here: torch and transformers come with
the command that needs them.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ..errors import OptionError, SpecMoEError, nearest
from ..options import spin_setting
from ..registry import plug_in
from . import arguments, commands, completion, decoding, planning, sweeping

# Each has a function of its name in its module, and one in ``arguments``.
COMMANDS = {
    "models": commands,
    "generate": decoding,
    "bench": decoding,
    "plan": planning,
    "sweep": sweeping,
    "pack": commands,
    "verify": commands,
    "cache": commands,
    "report": commands,
    "train": commands,
    "doctor": commands,
    "completion": completion,
}
IN_EVERY = ("--json", "-q", "--quiet", "--debug")
# What makes the bars of the libraries silent, and ours (``printing``).
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class _Parser(argparse.ArgumentParser):
    """Raises ``OptionError`` where argparse would print its usage and leave."""

    def __init__(self, *args, **kwargs):
        # Defaults live in options' dataclasses: an option that was not typed is not in the
        # namespace.
        super().__init__(*args, allow_abbrev=False, argument_default=argparse.SUPPRESS, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see {self.prog} --help)")


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """``settings`` while a command runs: who calls ``main`` from Python goes on as before."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
        with _environment(QUIET if {"-q", "--quiet"} & set(words) else {}):
            args = parse(words)
            plug_in(getattr(args, "plugin", []))
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
    args, unknown = parser.parse_known_args(_command_first(words))
    if unknown:
        options = by_name[args.command]._option_string_actions
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        close = difflib.get_close_matches(wrong.split("=")[0], options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see specmoe {args.command} --help"
        raise OptionError(f"unknown argument {wrong!r} for specmoe {args.command}: {hint}")
    args.json = getattr(args, "json", False)
    return args


def _command_first(words: list[str]) -> list[str]:
    """``words`` with the options of every command behind its name, also where they stood before;
    ``OptionError`` for a name that is no command."""
    before = [*itertools.takewhile(IN_EVERY.__contains__, words)]
    rest = words[len(before) :]
    if not rest:
        raise OptionError(f"name a COMMAND: one of {', '.join(COMMANDS)} (see specmoe --help)")
    if not rest[0].startswith("-") and rest[0] not in COMMANDS:
        raise OptionError(f"specmoe has no command {rest[0]!r}: {nearest(rest[0], COMMANDS)}")
    return [rest[0], *before, *rest[1:]]


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
    common.add_argument(
        "-q", "--quiet", action="store_true", help="no progress, only what was found"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )
    by_name = {}
    for name, module in COMMANDS.items():
        add = getattr(arguments, name)
        summary = add.__doc__
        by_name[name] = subparsers.add_parser(
            name, parents=[common], help=summary, description=summary
        )
        by_name[name].set_defaults(run=getattr(module, name))
        add(by_name[name])
    return parser, by_name
