"""What ties a job's output to its model: a hash of all that decides tokens and texts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..checkpoint.files import open_checkpoint, resolve
from ..checkpoint.identity import SETTINGS, Contents
from ..checkpoint.plan import ExpertPlan, plan_experts


def identity_of(path: str | Path, revision: str | None = None) -> str:
    """Sixteen digits that change with any byte of weights, config, tokenizer or generation config,
    and with nothing else. The first call for a checkpoint reads all of it; later ones only the
    small files, until a time stamp of its shards changes."""
    folder = resolve(path, revision)
    weights = _weights(Contents(plan_experts(open_checkpoint(folder))))
    digest = hashlib.sha256(weights.encode())
    files = {file for pattern in SETTINGS for file in folder.glob(pattern) if file.is_file()}
    for file in sorted(files):
        digest.update(f"\n{file.relative_to(folder)} ".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _weights(contents: Contents) -> str:
    """One digest of all weights, whichever shards they lie in; reads what is not known."""
    contents.measure()
    if contents.rest is None:
        contents.rest = _rest(contents.plan)
    contents.keep()
    return hashlib.sha256(json.dumps([contents.records, contents.rest]).encode()).hexdigest()


def _rest(plan: ExpertPlan) -> str:
    """The digest of every tensor that is no expert's, by name, dtype, shape and bytes."""
    groups = [g for layer in plan.recipes for recipe in layer for g in recipe.sources.values()]
    experts = {stored.name for group in groups for stored in group}
    digest = hashlib.sha256()
    for name, stored in sorted(plan.checkpoint.tensors.items()):
        if name not in experts:
            digest.update(name.encode())
            stored.add_to(digest)
    return digest.hexdigest()
