"""The file of a sweep: ``rows.jsonl``, one line for each run that is over.

Comes in: a folder, and the keys of the sweep. Goes out: the rows that are there, and a place for
more. One sweep writes at a time; a line that a killed sweep left half is cut off.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...errors import OptionError, StoreError, door
from ..writing import REMEDY, check_folder, plain

NAME = "rows.jsonl"


class Rows:
    """Open from ``__init__`` to ``close``; ``done`` are the rows by key."""

    def __init__(self, folder: Any, keys: Collection[str]):
        self.path = check_folder(folder) / NAME
        with door(f"{self.path} cannot be opened", REMEDY, OptionError):
            self._file = open(self.path, "ab+")
        try:
            _lock(self._file.fileno(), self.path)
            self.done = self._read()
            self._check(keys)
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> dict[str, dict]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        with door(
            f"{self.path} is not what a sweep writes", "name another folder (--out)", OptionError
        ):
            rows = [json.loads(line) for line in content[:whole].splitlines()]
            found = {row["key"]: row for row in rows if isinstance(row["settings"], dict)}
        # nothing is cut off of a file that is not ours
        os.ftruncate(self._file.fileno(), whole)
        return found

    def _check(self, keys: Collection[str]) -> None:
        others = [row for key, row in self.done.items() if key not in keys]
        if others:
            said = ", ".join(f"{name}={value}" for name, value in others[0]["settings"].items())
            raise OptionError(
                f"{self.path} is of another sweep (it has a run of {said}, which this grid has "
                "not): name another folder (--out)"
            )

    def add(self, row: dict) -> None:
        with door(f"{self.path} cannot be written", REMEDY, StoreError):
            self._file.write(json.dumps(plain(row), ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        self.done[row["key"]] = row

    def close(self) -> None:
        self._file.close()


def _lock(fd: int, path: Path) -> None:
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OptionError(
            f"another sweep is writing {path}: wait for it, or name another folder (--out)"
        ) from None
    except (ImportError, OSError) as failure:
        warnings.warn(
            f"{path} cannot be locked ({failure}): see to it that no other sweep writes it",
            stacklevel=3,
        )
