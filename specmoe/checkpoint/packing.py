"""Packing: every expert of a checkpoint becomes one contiguous record; atomic, resumable, small in memory.

Comes in: a checkpoint. Goes out: a folder that appears whole or not at all, opened as ``PackedExperts``.
While it is being written it is called ``<folder>.partial`` and keeps a journal of the records done, so that
an interrupted packing goes on where it stopped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch

from ..errors import CheckpointError, StoreError
from .files import open_checkpoint, resolve
from .layout import PackedExperts, Progress, open_packed, reporting, seal
from .plan import ExpertPlan, plan_experts

logger = logging.getLogger("specmoe")

SYNC_BYTES = 256 * 2**20  # written at most before it is forced to the disk, the journal after the data


def pack(
    path: str | Path,
    directory: str | Path | None = None,
    expert_bytes: int | None = None,
    progress: Progress = None,
) -> PackedExperts:
    """Pack the experts of a checkpoint into ``directory`` (None: the cache folder), or reuse what is there.

    ``expert_bytes`` widens every expert with zero columns to at least that payload. ``progress`` is called
    with the bytes done and the bytes in all; True shows a bar.
    """
    checkpoint = open_checkpoint(resolve(path))
    source, plan = checkpoint.identity(), plan_experts(checkpoint, expert_bytes)
    if directory is None:
        folder = cache_folder() / _folder_name(source, expert_bytes)
    else:
        folder = Path(directory).expanduser().absolute()
    partial = folder.with_name(folder.name + ".partial")
    try:
        if _is_free(folder):
            _pack_into(folder, partial, plan, source, progress)
    except OSError as error:
        raise _store_error(error, partial) from error
    return _checked(open_packed(folder), source, plan)


def _pack_into(folder: Path, partial: Path, plan: ExpertPlan, source: dict[str, Any], progress: Progress) -> None:
    _check_space(plan, partial)
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        if _is_free(folder):
            _write(plan, source, partial, progress)
            _publish(partial, folder)
        else:  # another process packed while this one waited
            shutil.rmtree(partial, ignore_errors=True)


def cache_folder() -> Path:
    """Where experts are kept unless told otherwise: $SPECMOE_CACHE, or ~/.cache/specmoe."""
    return Path(os.environ.get("SPECMOE_CACHE") or "~/.cache/specmoe").expanduser().absolute()


def _folder_name(source: dict[str, Any], expert_bytes: int | None) -> str:
    digest = hashlib.sha256(json.dumps(_contents(source), sort_keys=True).encode()).hexdigest()[:12]
    return f"{source['name']}-{digest}" + ("" if expert_bytes is None else f"-{expert_bytes}")


def _contents(source: dict[str, Any]) -> dict[str, Any]:
    """The identity without the name of the folder: a copy elsewhere is the same checkpoint."""
    return {key: value for key, value in source.items() if key != "name"}


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _checked(packed: PackedExperts, source: dict[str, Any], plan: ExpertPlan) -> PackedExperts:
    """``packed``, if it holds what ``plan`` would write."""
    if _contents(packed.source) != _contents(source):
        raise CheckpointError(
            f"{packed.directory} holds the experts of another checkpoint, or of this one before it changed:"
            " delete the folder or pack into another one"
        )
    if (packed.layout, packed.widened_from) != (plan.layout, plan.widened_from):
        raise CheckpointError(
            f"{packed.directory} holds experts of {packed.layout.payload_bytes} bytes, but"
            f" {plan.layout.payload_bytes} are asked for (expert_bytes): delete it or use another folder"
        )
    if (packed.layers, packed.num_experts) != (plan.layers, plan.num_experts):
        raise CheckpointError(
            f"{packed.directory} was packed with another version of transformers (first layer"
            f" {packed.layers[0]}, now {plan.layers[0]}): delete the folder"
        )
    return packed


def _write(plan: ExpertPlan, source: dict[str, Any], partial: Path, progress: Progress) -> None:
    """Write all records and the manifest into ``partial``, starting after the good records that are there."""
    packed = PackedExperts(partial, plan.layers, plan.num_experts, plan.layout, (), source, plan.widened_from)
    done = _resume(packed, partial / "journal")
    logger.info("packing %d experts into %s, %d are there", plan.num_records, partial, len(done))
    with (
        open(packed.data_file, "ab") as data,
        open(partial / "journal", "a", encoding="utf-8") as journal,
        reporting(progress, packed.data_bytes, "packing") as report,
        _one_thread(),
    ):
        _append_records(plan, data, journal, done, report)
    rows = [done[i : i + plan.num_experts] for i in range(0, len(done), plan.num_experts)]
    manifest = {**packed.manifest(), "checksums": rows}
    with open(partial / "manifest.json", "w", encoding="utf-8") as stream:
        stream.write(seal(manifest))
        _force(stream)


def _append_records(
    plan: ExpertPlan, data: BinaryIO, journal: TextIO, done: list[int], report: Callable[[int], None]
) -> None:
    """Append the missing records; ``done`` gets their checksums. The journal never runs ahead of the data."""
    record = torch.zeros(plan.layout.record_bytes, dtype=torch.uint8)  # what no expert fills stays zero
    waiting: list[int] = []
    for index in range(len(done), plan.num_records):
        plan.fill(record, *divmod(index, plan.num_experts))
        content = memoryview(record.numpy())
        data.write(content)
        waiting.append(zlib.crc32(content))
        report((index + 1) * len(content))
        if index + 1 == plan.num_records or len(waiting) * len(content) >= SYNC_BYTES:
            _force(data)
            journal.writelines(f"{checksum}\n" for checksum in waiting)
            _force(journal)
            done += waiting
            waiting = []


def _resume(packed: PackedExperts, journal: Path) -> list[int]:
    """Checksums of the records that an interrupted packing left whole; cuts off what came after them."""
    head = json.dumps({**packed.manifest(), "checksums": []}, sort_keys=True)
    lines = journal.read_text(encoding="utf-8", errors="replace").split("\n") if journal.is_file() else []
    good: list[int] = []
    if lines and lines[0] == head and packed.data_file.is_file():
        with open(packed.data_file, "rb") as stream:
            for line in lines[1:]:
                content = stream.read(packed.layout.record_bytes)
                if len(content) < packed.layout.record_bytes or line != str(zlib.crc32(content)):
                    break
                good.append(int(line))
    journal.write_text("\n".join([head, *map(str, good)]) + "\n", encoding="utf-8")
    with open(packed.data_file, "ab") as stream:
        stream.truncate(len(good) * packed.layout.record_bytes)
    return good


def _check_space(plan: ExpertPlan, partial: Path) -> None:
    data = partial / "experts.bin"
    written = data.stat().st_size if data.is_file() else 0
    needed = plan.num_records * plan.layout.record_bytes - written
    place = next(folder for folder in partial.parents if folder.is_dir())
    available = shutil.disk_usage(place).free
    if needed > available:
        raise StoreError(
            f"no space to pack into {partial.parent}: {needed} bytes needed, {available} available; free"
            " some, or choose another place with `specmoe pack CHECKPOINT DIR` or $SPECMOE_CACHE"
        )


def _store_error(error: OSError, partial: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left while packing into {partial} ({error.strerror}): free some and run it again (it"
            " goes on where it stopped), or delete that folder and choose another place"
        )
    return StoreError(f"could not pack into {partial} ({error}): choose another place or set $SPECMOE_CACHE")


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, in one step."""
    if folder.exists():
        folder.rmdir()  # an empty one
    os.replace(partial, folder)
    for name in ("journal", "lock"):
        (folder / name).unlink(missing_ok=True)
    if os.name == "posix":
        handle = os.open(folder.parent, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _force(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Packing is copying: more threads gain nothing, and on a busy machine they wait for each other (2x slower)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the folder against other processes; waits for the one that has it. No lock without ``fcntl``."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(partial / "lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is packing into %s: waiting for it", partial)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
