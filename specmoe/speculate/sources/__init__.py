"""Where drafts come from, by name: ``generate(draft=...)``.

Comes in: a name, maybe with an argument behind a colon ("ngram:3"), or your own function or object
(``base.DraftSource`` is the contract). Goes out: the source of one run. ``register`` gives yours a
name, in this process.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import OptionError
from ...options import DRAFTS
from .base import DraftSource, Own
from .resident import Resident
from .text import LONGEST, Ngram, NgramOrModel, Oracle

__all__ = ["DraftSource", "Oracle", "make_source", "register"]


def _ngram(argument: str, _) -> DraftSource:
    return Ngram(_whole("ngram", argument, LONGEST))


def _resident(argument: str, _) -> DraftSource:
    _no_argument("resident", argument)
    return Resident()


def _oracle(argument: str, _) -> DraftSource:
    _no_argument("oracle", argument)
    return Oracle({})


# name -> (what stands behind its colon, the checkpoint's ``PackedExperts``) -> a source
_MAKERS: dict[str, Callable] = {"resident": _resident, "ngram": _ngram, "oracle": _oracle}


def register(name: str, source) -> None:
    """``source`` (a function, or an object with ``draft``) is called ``name`` from now on."""
    if not isinstance(name, str) or not name.replace("_", "").isalnum():
        raise OptionError(f"name {name!r} of a draft source must be a word")
    if not callable(source) and not hasattr(source, "draft"):
        raise OptionError(
            f"draft source {name} must be a function or have a method draft, not {source!r}"
        )
    _MAKERS[name] = lambda argument, packed: make_source(source, packed)
    DRAFTS.extend({name} - {*DRAFTS})


def make_source(draft, packed=None) -> DraftSource:
    """The source that ``draft`` names (``GenerateOptions`` has checked the name), or one around a
    user's own. ``A+B``: the n-gram ``A`` where a row's text has one, else ``B``."""
    if isinstance(draft, type):  # a class: each run has an object of its own
        draft = draft()
    if not isinstance(draft, str):
        if callable(draft) or hasattr(draft, "draft"):
            return Own(draft)
        raise OptionError(f"draft={draft!r} must be a name, a function or have a method draft")
    first, plus, second = draft.partition("+")
    if plus:
        ngram, model = make_source(first, packed), make_source(second, packed)
        if not isinstance(ngram, Ngram):
            raise OptionError(f"draft={draft!r}: only ngram can stand before the plus")
        return NgramOrModel(ngram, model)
    name, _, argument = draft.partition(":")
    return _MAKERS[name](argument, packed)


def _whole(name: str, argument: str, default: int) -> int:
    """What stands behind the colon, as a number of at least 1."""
    if not argument:
        return default
    if not argument.isdecimal() or int(argument) < 1:
        raise OptionError(f"draft='{name}:{argument}': write a whole number, as in '{name}:3'")
    return int(argument)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise OptionError(f"draft='{name}:{argument}': {name} takes nothing behind a colon")
