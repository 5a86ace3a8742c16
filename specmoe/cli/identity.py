"""What ties a job's output to its model: a hash of all that decides tokens and texts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..checkpoint.files import open_checkpoint, resolve
from ..checkpoint.gguf_header import read_gguf
from ..checkpoint.identity import SETTINGS, Contents
from ..checkpoint.plan import ExpertPlan, plan_experts
from ..checkpoint.rest import PackedPlan, packed_plan


def identity_of(path: str | Path, **hub) -> str:
    """Sixteen digits that change with any byte of weights, config, tokenizer or generation config,
    and with nothing else. The first call for a checkpoint reads all of it; later ones only the
    small files, until a time stamp of its shards changes. A packed folder has the identity of the
    checkpoint that it was packed from."""
    folder = resolve(path, **hub)
    plan = packed_plan(folder) or plan_experts(open_checkpoint(folder))
    weights = _weights(Contents(plan))
    digest = hashlib.sha256(weights.encode())
    if folder.is_file():
        # config, tokenizer and the rest, whatever lies beside it
        digest.update(read_gguf(folder).described_bytes())
        return digest.hexdigest()[:16]
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


def _rest(plan: ExpertPlan | PackedPlan) -> str:
    """The digest of every tensor that is no expert's, by name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for stored in plan.others():
        digest.update(stored.name.encode())
        stored.add_to(digest)
    return digest.hexdigest()
