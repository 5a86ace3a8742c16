"""``specmoe completion SHELL``: a script for bash, zsh or tcsh, made from the parser by shtab.

Comes in: the parser. Goes out: the script on stdout. It holds every command and option, the shipped
models, the words that an option takes, and where a file or a folder is meant.
"""

from __future__ import annotations

from argparse import Action, Namespace

from .. import options, registry

# Options' words are checked by ``options``, not by the parser.
WORDS = {
    "method": options.METHODS,
    **registry.BUILT_IN,
    "store": options.STORES,
    "accept_rule": options.ACCEPT_RULES,
}


def completion(args: Namespace) -> int:
    import shtab

    from .parser import build_parser

    parser, by_name = build_parser()
    for command in by_name.values():
        for action in command._actions:
            _tell(action)
    print(shtab.complete(parser, args.shell))
    return 0


def _tell(action: Action) -> None:
    """What may stand for ``action``, in shtab's words."""
    import shtab

    from ..tiny import SHIPPED

    if action.dest == "model":
        action.choices = [*SHIPPED, *shtab.Optional.DIRECTORY]
    elif action.dest in WORDS:
        action.choices = list(WORDS[action.dest])
    elif action.metavar == "DIR":
        action.complete = shtab.DIRECTORY
    elif str(action.metavar).endswith(".jsonl"):
        action.complete = shtab.FILE
