"""What experts read in place were, by their checksums, from one session to the next.

Nothing published says what the bytes of a checkpoint ought to be. But while the time stamps of its
shards are the same, they must be what they were: where they are not, a disk has failed.
"""

from __future__ import annotations

import logging

from .cache import write_whole
from .identity import kept_of, read_kept
from .in_place import InPlaceExperts
from .packed import seal

logger = logging.getLogger("specmoe")

Sums = dict[int, int]  # index of a record -> crc32 of its extents


class KeptSums:
    """``before``: of earlier sessions; ``add`` those of this one, then ``keep``."""

    def __init__(self, experts: InPlaceExperts):
        self.file = kept_of(experts.directory, ".sums")
        self.stamps = experts.checksums
        self.before = self._read()
        self.now: Sums = {}

    def _read(self) -> Sums:
        """Empty where the shards are others now."""
        known = read_kept(self.file)
        return dict(known["sums"]) if known.get("stamps") == self.stamps else {}

    def keep(self) -> None:
        """Write all of them down; where nothing can be written, the next session begins anew."""
        there = self._read()  # another session may have added its own meanwhile
        found = self.now | there
        if found == there:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = seal({"stamps": self.stamps, "sums": sorted(found.items())})
            write_whole(self.file, content.encode())
        except OSError as error:
            logger.info("checksums of experts not kept in %s (%s)", self.file, error)
