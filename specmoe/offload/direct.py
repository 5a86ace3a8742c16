"""Reading around the page cache: what a benchmark reads must come from the disk."""

from __future__ import annotations

import os
import sys

from ..errors import StoreError
from .transfers import aligned_bytes, memory_of


def open_around_page_cache(path) -> tuple[int, str]:
    """A file descriptor and how it reads: "direct", or "page cache dropped" after every read."""
    try:
        if hasattr(os, "O_DIRECT"):
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            page = aligned_bytes(4096)
            try:
                os.preadv(file, [memory_of(page)], 0)
                return file, "direct"
            except OSError:  # tmpfs and some network file systems open, but do not read
                os.close(file)
    except OSError:
        pass
    if not hasattr(os, "posix_fadvise"):
        raise StoreError(
            f"no way to read {path} around the page cache on {sys.platform}: use store='memory'"
        )
    return os.open(path, os.O_RDONLY), "page cache dropped"
