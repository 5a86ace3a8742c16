"""The errors a user can meet. Every message says what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_CHARACTERS = 2000  # of a message: names in a file may be as long as the file


class SpecMoEError(Exception):
    """Base of every error that specmoe raises on purpose. Its message is one line, whatever names
    stand in it."""

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


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


def one_line(text: object) -> str:
    """``text`` without line breaks and without characters that steer a terminal; shortened where it
    is very long."""
    line = " ".join(str(text).split("\n"))
    if len(line) > MAX_CHARACTERS:
        line = f"{line[: MAX_CHARACTERS // 2]} ... {line[-MAX_CHARACTERS // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@contextmanager
def door(what: str, remedy: str, kind: type[SpecMoEError] = CheckpointError) -> Iterator[None]:
    """What another library or the disk raises within becomes ``kind``: ``what`` (first line of the
    error): ``remedy``."""
    try:
        yield
    except SpecMoEError:
        raise
    except MemoryError as error:
        raise FastMemoryError(f"{what} (no memory left): free some, or {remedy}") from error
    except Exception as error:
        raise kind(f"{what} ({_said(error)}): {remedy}") from error


def _said(error: BaseException) -> str:
    """Name and first line of ``error``, or of its cause where that line only announces one (as
    errors of a config's validation do)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":") and error.__cause__ is not None:
        return _said(error.__cause__)
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def path_of(name: Any, what: str = "a file") -> Path:
    """``name`` as a path, ``~`` being the home; ``OptionError`` where no system could have such a
    path."""
    with door(f"{name!r} is no name of {what}", "give a path as text", OptionError):
        path = Path(name).expanduser()
        # Not every name that Python can hold is one: half a surrogate pair, a null byte.
        with suppress(OSError):
            os.lstat(path)
        return path


def nearest(name: object, choices: Iterable[str]) -> str:
    """What ends the sentence on an unknown name: ``did you mean 'lru'? (one of: lfu, lru)``, or
    ``use one of lfu, lru`` where none is near."""
    names = sorted(choices)
    known = ", ".join(names)
    if len(names) > 40:  # a translation model's languages
        known = f"the {len(names)} from {names[0]} to {names[-1]}"
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? (one of: {known})" if close else f"use one of {known}"


def check_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Raise ``OptionError`` naming the nearest valid value when ``value`` is not one of
    ``choices``."""
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise OptionError(f"{option}={value!r} is unknown: {nearest(value, names)}")
