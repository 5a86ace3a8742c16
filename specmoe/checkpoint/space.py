"""Whether a disk has room for what is packed, and what it says when it has none."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from ..errors import StoreError
from .plan import ExpertPlan
from .rest import rest_bytes


def check_space(plan: ExpertPlan, partial: Path, with_rest: bool) -> None:
    data = partial / "experts.bin"
    written = data.stat().st_size if data.is_file() else 0
    needed = plan.layout.first_byte(len(plan.layers), plan.num_experts) - written
    needed += rest_bytes(plan) if with_rest else 0
    available = shutil.disk_usage(next(filter(Path.is_dir, partial.parents))).free
    if needed > available:
        how = f"{needed} bytes needed, {available} available"
        where = "choose another place with `specmoe pack CHECKPOINT DIR` or $SPECMOE_CACHE"
        raise StoreError(f"no space to pack into {partial.parent}: {how}; free some, or {where}")


def store_error(error: OSError, partial: Path) -> StoreError:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        todo = "choose another place or set $SPECMOE_CACHE"
        return StoreError(f"could not pack into {partial} ({error}): {todo}")
    what = f"no space left while packing into {partial} ({error.strerror})"
    again = "free some and run it again (it goes on where it stopped)"
    return StoreError(f"{what}: {again}, or delete that folder and choose another place")
