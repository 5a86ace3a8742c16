"""Reading around the page cache, and the memory that it needs: what a benchmark reads must come
from the disk. No torch."""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress

from ..errors import StoreError

PAGE = 4096  # what direct I/O reads whole, into memory that begins with one
LARGE_PAGE = 2**21


def pages(num_bytes: int, large: bool = True) -> mmap.mmap:
    """Memory in whole pages; ``large`` ones where it holds one and the system has them: a disk is
    asked for less at a time where many small ones are to be filled."""
    # what is shared with another process gets no large pages
    alone = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    found = mmap.mmap(-1, max(num_bytes, 1), **alone)
    if large and num_bytes >= LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


def open_around_page_cache(path) -> tuple[int, str]:
    """A file descriptor and how it reads: "direct", or "page cache dropped" after every read."""
    try:
        if hasattr(os, "O_DIRECT"):
            file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            try:
                os.preadv(file, [pages(PAGE)], 0)
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
