"""The two files of a job on the disk: prompts that are read as a stream, and an output with one
writer.

Comes in: paths, ``-`` for stdin and stdout. Goes out: a binary stream, and an ``OutFile`` or
``OutStream`` that takes one record at a time. ``jobs`` calls this.

A record is handed to the operating system whole before the next one is made (a killed process loses
none), and the file is synced to the disk after every chunk (a power cut loses a chunk at most).
Where writing fails, the file is cut back to its last whole line. The writer holds an exclusive
``flock`` on the output itself, which ends with the process; where there is no such lock (Windows,
some network file systems) a warning says so and the job goes on.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

from ..errors import OptionError, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def open_input(path: str | os.PathLike) -> tuple[BinaryIO, str]:
    """The stream of prompts and its name in messages; ``-`` is stdin."""
    if str(path) == "-":
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None:
            raise OptionError("--prompts -: stdin is closed")
        _check_ends(stream, "stdin")
        return stream, "stdin"
    try:
        stream = open(path, "rb")
    except (OSError, ValueError, TypeError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise OptionError(f"cannot read prompts from {path}: {reason}") from failure
    try:
        _check_ends(stream, str(path))
    except BaseException:
        stream.close()
        raise
    return stream, str(path)


def _check_ends(stream: BinaryIO, name: str) -> None:
    """Of the devices, a terminal and the null device end; /dev/zero never does, nor has it a
    line."""
    try:
        mode, is_terminal = os.fstat(stream.fileno()), stream.isatty()
    except (OSError, ValueError, AttributeError):
        # No file at all: a test's stream.
        return
    is_device = stat.S_ISCHR(mode.st_mode) or stat.S_ISBLK(mode.st_mode)
    if is_device and not is_terminal and not os.path.samestat(mode, os.stat(os.devnull)):
        raise OptionError(
            f"{name} is a device, which has no lines and may never end: give a file or a pipe"
        )


def encode(record: dict) -> bytes:
    """One line. Half a surrogate pair, which a file's name can bring into a message, becomes JSON's
    own escape."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


class OutStream:
    """Lines to stdout. Whoever reads them may leave: ``BrokenPipeError`` is the caller's."""

    name = "stdout"
    size = 0

    def __init__(self):
        if getattr(sys.stdout, "buffer", None) is None:
            raise OptionError("--out -: stdout is closed")
        # Not through the buffer: what could not be written would be tried again at exit.
        self._raw = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)

    def begin(self, at: int = 0) -> None:
        """There is nothing to cut off."""

    def append(self, record: dict) -> None:
        rest = memoryview(encode(record))
        try:
            while rest:
                written = self._raw.write(rest)
                if written is None:
                    raise OSError("it takes no more (a pipe that does not block)")
                rest = rest[written:]
        except BrokenPipeError:
            raise
        except OSError as failure:
            raise StoreError(
                f"stdout cannot be written: {failure.strerror or failure}"
            ) from failure

    def sync(self) -> None:
        """What a reader has is its own affair."""

    def is_same_file(self, stream: BinaryIO) -> bool:
        return _is_same_file(self._raw, stream)

    def close(self) -> None:
        """stdout stays open."""


class OutFile:
    """The output file, locked from ``__init__`` to ``close``; nothing in it changes before
    ``begin``."""

    def __init__(self, path: str | os.PathLike):
        self.name = str(path)
        self._path = Path(path)
        self._is_new = not os.path.lexists(path)
        self._fd = self._open()
        self._begun = False
        self.size = os.fstat(
            self._fd
        ).st_size  # bytes of whole lines; before ``begin``: of what is there

    def _open(self) -> int:
        if not self._path.parent.is_dir():
            raise OptionError(f"--out {self.name}: there is no folder {self._path.parent}")
        while True:
            try:
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except (OSError, ValueError) as failure:
                reason = getattr(failure, "strerror", None) or failure
                raise OptionError(f"cannot write --out {self.name}: {reason}") from failure
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OptionError(
                        f"--out {self.name} is no regular file: use --out - and send it on"
                    )
                _lock(fd, self.name)
                if self._is_at_its_path(fd):
                    return fd
                os.close(fd)
            except BaseException:
                os.close(fd)
                raise

    def _is_at_its_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except OSError:
            return False

    def read(self) -> BinaryIO:
        """What is there, from its beginning."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._fd), "rb", buffering=2**20)

    def begin(self, at: int = 0) -> None:
        """Writing begins after the first ``at`` bytes; what follows them is cut off."""
        if not self._begun:
            self._begun = True
            self.size = at
            self._try(os.ftruncate, self._fd, at)

    def append(self, record: dict) -> None:
        rest, at = memoryview(encode(record)), self.size
        while rest:
            written = self._try(os.pwrite, self._fd, rest, at)
            rest, at = rest[written:], at + written
        self.size = at

    def sync(self) -> None:
        """To the disk; and the file must still be the one that is found under its name."""
        self._try(os.fsync, self._fd)
        if not self._is_at_its_path(self._fd):
            raise StoreError(
                f"{self.name} was removed or replaced while it was written: start the job again"
            )

    def _try(self, call, *arguments):
        try:
            return call(*arguments)
        except OSError as failure:
            self._cut()
            reason = failure.strerror or failure
            raise StoreError(
                f"{self.name} cannot be written: {reason}; go on with --resume when it can be"
            ) from failure

    def _cut(self) -> None:
        """Off with the half of a line."""
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            pass  # the next --resume cuts it off

    def is_same_file(self, stream: BinaryIO) -> bool:
        return _is_same_file(self._fd, stream)

    def close(self) -> None:
        """The lock ends here. A file that was made here and into which nothing came is removed."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            if self._begun:
                os.ftruncate(fd, self.size)
            if self._is_new and os.fstat(fd).st_size == 0 and self._is_at_its_path(fd):
                os.unlink(self._path)
        except OSError:
            pass  # the lines are there; an empty file is no loss
        finally:
            os.close(fd)


def _lock(fd: int, name: str) -> None:
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as failure:
        raise OptionError(
            f"another job is writing --out {name}: wait for it, or name another file"
        ) from failure
    except OSError as failure:
        reason = failure.strerror or failure
        warnings.warn(
            f"{name} cannot be locked ({reason}): see to it that no other job writes it",
            stacklevel=2,
        )


def _is_same_file(ours, stream: BinaryIO) -> bool:
    try:
        first, second = (os.fstat(f if isinstance(f, int) else f.fileno()) for f in (ours, stream))
    except (
        OSError,
        ValueError,
        AttributeError,
    ):  # no file at all: a test's stream, a notebook's stdout
        return False
    return stat.S_ISREG(first.st_mode) and os.path.samestat(first, second)
