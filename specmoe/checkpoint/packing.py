"""Packing: every expert of a checkpoint becomes one contiguous record; atomic, resumable, small in
memory.

Comes in: a checkpoint. Goes out: a folder that appears whole or not at all, opened as
``PackedExperts``. While it is being written it is called ``<folder>.partial`` and keeps a journal
of the records done, so that an interrupted packing goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

import torch

from ..errors import CheckpointError, StoreError
from .cache import (
    OURS,
    cache_folder,
    cached,
    force_folder,
    free_of_readers,
    is_journal,
    remove_packed,
    write_whole,
)
from .files import display_name, open_checkpoint, resolve
from .identity import Contents
from .layout import PackedExperts, Progress, open_packed, reporting, seal
from .plan import ExpertPlan, plan_experts

logger = logging.getLogger("specmoe")

Done = dict[int, tuple[int, str]]  # index of a record -> its checksum, the digest of its source
SYNC_BYTES = (
    256 * 2**20
)  # written at most before it is forced to the disk, the journal after the data


def pack(
    path: str | Path,
    directory: str | Path | None = None,
    expert_bytes: int | None = None,
    progress: Progress = None,
) -> PackedExperts:
    """Pack the experts of a checkpoint into ``directory`` (None: the cache folder), or reuse what
    is there.

    ``expert_bytes`` widens every expert with zero columns to at least that payload. ``progress`` is
    called with the bytes done and the bytes in all; True shows a bar.
    """
    plan = plan_experts(open_checkpoint(resolve(path)), expert_bytes)
    contents = Contents(plan)
    if directory is None:
        root, name = cache_folder(), display_name(plan.checkpoint.folder)
        folder, partial = None, root / f"{name}-{_place(plan)}.partial"
    else:
        folder = Path(directory).expanduser().absolute()
        partial = folder.with_name(folder.name + ".partial")
    try:
        found = _find(contents, folder)
        packed = found or _pack_into(folder, partial, contents, progress)
        contents.keep()
        with suppress(OSError):
            os.utime(packed.directory / "manifest.json")  # when it was last used
        return packed
    except OSError as error:
        raise _store_error(error, partial) from error


def _find(contents: Contents, folder: Path | None) -> PackedExperts | None:
    """What is packed already: in the cache, or in ``folder``, which must be free or hold these."""
    if folder is not None:
        if _is_free(folder):
            return None
        packed = open_packed(folder)
        contents.measure()
        return _checked(packed, contents)
    alike = _alike(contents.plan)
    if alike:
        contents.measure()  # one of them may be this checkpoint's: reading tells
    return next((packed for packed in alike if packed.records == contents.records), None)


def _alike(plan: ExpertPlan) -> list[PackedExperts]:
    """The packed copies in the cache whose experts have the names and the shapes of ``plan``."""
    return [packed for packed in cached() if _shape_of(packed) == _shape_of(plan)]


def _shape_of(experts: PackedExperts | ExpertPlan) -> tuple:
    return experts.layers, experts.num_experts, experts.layout, experts.widened_from


def _pack_into(
    folder: Path | None, partial: Path, contents: Contents, progress: Progress
) -> PackedExperts:
    """``folder`` None: the cache, where a copy is named after what turns out to be in it."""
    _refuse_foreign(partial)
    _check_space(contents.plan, partial)
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        contents.reload()
        if found := _find(contents, folder):  # another process packed while this one waited
            shutil.rmtree(partial, ignore_errors=True)
            return found
        if folder is None:
            _take_over(contents, partial)
        packed = _write(contents, partial, progress)
        if folder is None:
            digest = hashlib.sha256(json.dumps([packed.records, str(_shape_of(packed))]).encode())
            name = display_name(contents.plan.checkpoint.folder)
            folder = partial.with_name(f"{name}-{digest.hexdigest()[:12]}")
        _publish(partial, folder)
    return open_packed(folder)


def _place(plan: ExpertPlan) -> str:
    """Twelve digits: two checkpoints of one name never share what is half packed."""
    text = f"{plan.checkpoint.folder.resolve()}\n{_shape_of(plan)}"
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:12]


def _refuse_foreign(partial: Path) -> None:
    """What an interrupted packing left has our journal; any other folder is somebody's own."""
    names = {path.name for path in partial.iterdir()} if partial.exists() else set()
    if names - {"lock", "journal.partial"} and not (
        names <= OURS and is_journal(partial / "journal")
    ):
        raise CheckpointError(
            f"{partial} is not specmoe's, and packing needs that name: rename it or pack into"
            " another folder"
        )


def _take_over(contents: Contents, partial: Path) -> None:
    """Where this checkpoint was packed before and then edited, go on from that copy: only experts
    that changed are written.

    Not if another checkpoint or a running engine needs it. The journal is there before the data
    moves, so that a packing killed at any moment is an interrupted one.
    """
    plan, before = contents.plan, contents.before
    old = next((packed for packed in _alike(plan) if packed.records == before), None)
    if old is None or (partial / "experts.bin").exists() or before in contents.others():
        return
    with free_of_readers(old.data_file) as is_free:
        if not is_free:
            return
        checksums = [crc for row in old.checksums for crc in row]
        write_whole(partial / "journal", _journal(old, zip(checksums, before)).encode())
        os.replace(old.data_file, partial / "experts.bin")
        remove_packed(old.directory)


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _checked(packed: PackedExperts, contents: Contents) -> PackedExperts:
    """``packed``, if it holds what ``contents`` would give."""
    plan = contents.plan
    if (packed.layout, packed.widened_from) != (plan.layout, plan.widened_from):
        raise CheckpointError(
            f"{packed.directory} holds experts of {packed.layout.payload_bytes} bytes, but"
            f" {plan.layout.payload_bytes} are asked for (expert_bytes): delete it or use another "
            "folder"
        )
    if (packed.layers, packed.num_experts) != (plan.layers, plan.num_experts):
        raise CheckpointError(
            f"{packed.directory} was packed with another version of transformers (first layer"
            f" {packed.layers[0]}, now {plan.layers[0]}): delete the folder"
        )
    if packed.records != contents.records:
        raise CheckpointError(
            f"{packed.directory} holds the experts of another checkpoint, or of this one before it "
            "changed:"
            " delete the folder or pack into another one"
        )
    return packed


def _write(contents: Contents, partial: Path, progress: Progress) -> PackedExperts:
    """Write all records and the manifest into ``partial``, but for the good records that are
    there."""
    plan = contents.plan
    source = {"name": display_name(plan.checkpoint.folder), "records": []}
    packed = PackedExperts(
        partial, plan.layers, plan.num_experts, plan.layout, (), source, plan.widened_from
    )
    done = _resume(packed, contents)
    logger.info("packing %d experts into %s, %d are there", plan.num_records, partial, len(done))
    with (
        open(packed.data_file, "r+b") as data,
        open(partial / "journal", "a", encoding="utf-8") as journal,
        reporting(progress, packed.data_bytes, "packing") as report,
        _one_thread(),
    ):
        _write_records(plan, data, journal, done, report)
    if not contents.unchanged():
        raise CheckpointError(
            f"{plan.checkpoint.folder} changed while its experts were packed: run it again when"
            " nothing writes to it"
        )
    lines = [done[index] for index in range(plan.num_records)]
    contents.records = source["records"] = [digest for _, digest in lines]
    checksums, width = [crc for crc, _ in lines], plan.num_experts
    rows = tuple(tuple(checksums[i : i + width]) for i in range(0, len(checksums), width))
    packed = dataclasses.replace(packed, checksums=rows)
    write_whole(partial / "manifest.json", seal(packed.manifest()).encode())
    return packed


def _write_records(
    plan: ExpertPlan, data: BinaryIO, journal: TextIO, done: Done, report: Callable[[int], None]
) -> None:
    """Write the records missing in ``done``, which gets them. The journal never runs ahead of the
    data."""
    record = torch.zeros(
        plan.layout.record_bytes, dtype=torch.uint8
    )  # what no expert fills stays zero
    content = memoryview(record.numpy())
    missing = [index for index in range(plan.num_records) if index not in done]
    num_good, waiting = len(done), {}
    for number, index in enumerate(missing, start=1):
        digest = plan.fill(record, *divmod(index, plan.num_experts))
        data.seek(index * len(content))
        data.write(content)
        waiting[index] = zlib.crc32(content), digest
        report((num_good + number) * len(content))
        if number == len(missing) or len(waiting) * len(content) >= SYNC_BYTES:
            _force(data)
            journal.writelines(f"{i} {crc} {digest}\n" for i, (crc, digest) in waiting.items())
            _force(journal)
            done |= waiting
            waiting = {}


def _journal(packed: PackedExperts, lines: Iterable[tuple[int, str]]) -> str:
    """The journal of a packing that has written ``lines``: what is packed, then "index checksum
    digest"."""
    head = {**packed.manifest(), "source": None, "checksums": None}
    written = [f"{index} {crc} {digest}" for index, (crc, digest) in enumerate(lines)]
    return "\n".join([json.dumps(head, sort_keys=True), *written]) + "\n"


def _resume(packed: PackedExperts, contents: Contents) -> Done:
    """Checksum and digest of the records that lie whole in the file and are still the
    checkpoint's."""
    journal, plan = packed.directory / "journal", contents.plan
    head, lines = _journal(packed, []), []
    if journal.is_file():
        lines = journal.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if lines[:1] != [head]:
        write_whole(journal, head.encode())
        lines = []
    packed.data_file.touch()
    found = dict(filter(None, map(_journal_line, lines[1:])))
    good: Done = {}
    with open(packed.data_file, "rb") as data:
        for index, (crc, digest) in sorted(found.items()):
            if index >= plan.num_records:
                continue
            data.seek(index * packed.layout.record_bytes)
            now = contents.records[index] if contents.records else None
            if now not in (None, digest):
                continue
            whole = zlib.crc32(data.read(packed.layout.record_bytes)) == crc
            if whole and (now or plan.digest(*divmod(index, plan.num_experts))) == digest:
                good[index] = crc, digest
    return good


def _journal_line(line: str) -> tuple[int, tuple[int, str]] | None:
    """What a line says; None for the torn one of a killed packing."""
    match = re.fullmatch(r"(\d+) (\d+) ([0-9a-f]+)\n", line)
    return (int(match[1]), (int(match[2]), match[3])) if match else None


def _check_space(plan: ExpertPlan, partial: Path) -> None:
    data = partial / "experts.bin"
    written = data.stat().st_size if data.is_file() else 0
    needed = plan.num_records * plan.layout.record_bytes - written
    place = next(folder for folder in partial.parents if folder.is_dir())
    available = shutil.disk_usage(place).free
    if needed > available:
        raise StoreError(
            f"no space to pack into {partial.parent}: {needed} bytes needed, {available} "
            "available; free"
            " some, or choose another place with `specmoe pack CHECKPOINT DIR` or $SPECMOE_CACHE"
        )


def _store_error(error: OSError, partial: Path) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"no space left while packing into {partial} ({error.strerror}): free some and run it "
            "again (it"
            " goes on where it stopped), or delete that folder and choose another place"
        )
    return StoreError(
        f"could not pack into {partial} ({error}): choose another place or set $SPECMOE_CACHE"
    )


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, in one step."""
    if folder.exists():  # an empty one, or in the cache one that cannot be opened
        remove_packed(folder)
    force_folder(partial)
    os.replace(partial, folder)
    for name in ("journal", "lock"):
        (folder / name).unlink(missing_ok=True)
    force_folder(folder.parent)


def _force(stream) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Packing is copying: more threads gain nothing, and on a busy machine they wait for each other
    (2x slower)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the folder against other processes; waits for the one that has it. No lock without
    ``fcntl``."""
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
