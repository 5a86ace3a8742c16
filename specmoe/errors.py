"""The errors a user can meet. Every message says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecMoEError(Exception):
    """Base of every error that specmoe raises on purpose."""


class CheckpointError(SpecMoEError):
    """A checkpoint is missing, incomplete, altered or in a format that is refused."""


class UnsupportedModelError(SpecMoEError):
    """The model cannot be run exactly with offloaded experts; the message names the reason."""


class FastMemoryError(SpecMoEError):
    """The fast memory cannot hold what one step needs; the message says how much it would take."""


class StoreError(SpecMoEError):
    """The slow tier failed: a read, a checksum, or no space left."""


class OptionError(SpecMoEError, ValueError):
    """An argument is unknown or out of range."""


def nearest(name: object, choices: Iterable[str]) -> str:
    """A hint for an unknown name: ``did you mean 'lru'? (one of: lfu, lru)``."""
    names = sorted(choices)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) > 40:  # a translation model's languages
        return f"{hint}({len(names)} are known, from {names[0]} to {names[-1]})"
    return f"{hint}(one of: {', '.join(names)})"


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Raise ``OptionError`` naming the nearest valid value when ``value`` is not one of ``choices``."""
    names = list(choices)
    if value not in names:
        raise OptionError(f"{option}={value!r} is unknown: {nearest(value, names)}")
