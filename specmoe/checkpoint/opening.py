"""The experts of a checkpoint for an engine: where they lie, or in a packed copy.

Comes in: a folder and what was asked for. Goes out: ``InPlaceExperts`` where that costs nothing, or
``PackedExperts``. Small experts are packed: the blocks around each would be a good part of what is
read, and the copy is small too.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import CheckpointError
from .files import open_checkpoint
from .in_place import InPlaceExperts, placed
from .packed import PackedExperts
from .packing import known_copy, pack_planned
from .plan import ExpertPlan, plan_experts
from .rest import as_asked, packed_plan

logger = logging.getLogger("specmoe")

LEAST_BYTES = 2**20  # of an expert that is read in place without being asked
MOST_AMPLIFICATION = 1.01
MOUNTS = Path("/proc/self/mountinfo")
# File systems of another machine, or of a program: reads there are not a disk's.
REMOTE = ("nfs", "cifs", "smb", "9p", "ceph", "lustre", "afs", "glusterfs", "gpfs", "fuse.")


def open_experts(
    folder: Path, store: str | None = None, expert_bytes: int | None = None
) -> InPlaceExperts | PackedExperts:
    """The experts of the checkpoint in ``folder``, which ``resolve`` gave. ``store``: "checkpoint"
    where they lie, "disk" or "memory" packed; None chooses. Raises ``CheckpointError`` where they
    cannot be read where they are asked for, ``StoreError`` where a copy cannot be made."""
    if there := packed_plan(folder):
        return as_asked(there.packed, expert_bytes)
    plan = plan_experts(open_checkpoint(folder), expert_bytes)
    if store == "checkpoint":
        return placed(plan)
    found = _chosen(plan) if store is None else None
    return found or pack_planned(plan, None, progress=True)


def _chosen(plan: ExpertPlan) -> InPlaceExperts | PackedExperts | None:
    """A copy that is there, or the experts where they lie; None: a copy has to be made."""
    if plan.layout.payload_bytes < LEAST_BYTES or plan.widened_from is not None:
        return None
    if copy := known_copy(plan):
        return copy
    if not all(map(is_local, plan.checkpoint.shards)):
        return None
    try:
        experts = placed(plan)
    except CheckpointError as refusal:
        logger.info("%s", refusal)
        return None
    return experts if experts.amplification() <= MOST_AMPLIFICATION else None


def is_local(file: Path) -> bool:
    """Whether ``file`` lies on a disk of this machine, as far as the system says."""
    device = file.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
    try:
        mounts = MOUNTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return True
    kinds = [line.partition(" - ")[2] for line in mounts if line.split()[2:3] == [number]]
    return not any(kind.startswith(REMOTE) for kind in kinds)
