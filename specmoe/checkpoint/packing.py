"""Packing: every expert of a checkpoint becomes one contiguous record, one at a time.

The folder appears whole or not at all. While it is being written it is called ``<folder>.partial``
and keeps a journal of the records done: an interrupted packing goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
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

from ..errors import CheckpointError, SpecMoEError, path_of
from . import cache
from .cache import force, lock, write_whole
from .files import display_name, open_checkpoint, resolve
from .identity import Contents
from .packed import PackedExperts, open_packed, seal
from .plan import ExpertPlan, plan_experts
from .reporting import Progress, reporting
from .rest import as_asked, packed_plan, write_rest
from .space import check_space, store_error

logger = logging.getLogger("specmoe")

Files = tuple[BinaryIO, TextIO]  # the records, their journal
Done = dict[int, tuple[int, str]]  # index of a record -> its checksum, the digest of its source
# Written at most before it is forced to the disk, the journal after the data.
SYNC_BYTES = 256 * 2**20


def pack(
    path: str | Path,
    directory: str | Path | None = None,
    expert_bytes: int | None = None,
    progress: Progress = None,
) -> PackedExperts:
    """Pack the experts of a checkpoint into ``directory`` (None: the cache folder), or reuse what
    is there. ``expert_bytes`` widens every expert with zero columns to at least that payload.
    A ``directory`` also gets the rest of the model (``rest``), so that it can be loaded by itself;
    packed already, it is given back as it is."""
    source = resolve(path)
    if there := packed_plan(source):
        if directory is not None:
            what = f"{there.packed.directory} is packed already"
            raise CheckpointError(f"{what}: copy the folder, or pack the checkpoint it came from")
        return as_asked(there.packed, expert_bytes)
    return pack_planned(plan_experts(open_checkpoint(source), expert_bytes), directory, progress)


def pack_planned(
    plan: ExpertPlan, directory: str | Path | None, progress: Progress
) -> PackedExperts:
    """``pack`` what is planned."""
    contents = Contents(plan)
    folder, partial = _places(plan, directory)
    try:
        packed = _find(contents, folder)
        if packed and folder is not None:
            write_rest(plan, folder)
        packed = packed or _pack_into(folder, partial, contents, progress)
        contents.keep()
        with suppress(OSError):
            os.utime(packed.directory / "manifest.json")  # when it was last used
        return packed
    except OSError as error:
        raise store_error(error, partial) from error


def known_copy(plan: ExpertPlan) -> PackedExperts | None:
    """The copy in the cache, where it shows without reading them that it is of these experts."""
    contents = Contents(plan)
    return _find(contents, None) if contents.records else None


def _places(plan: ExpertPlan, directory: str | Path | None) -> tuple[Path | None, Path]:
    """Where the packed experts go (None: the cache, under a name to be found), and where they are
    while they are written."""
    if directory is None:
        source = plan.checkpoint.folder
        # two checkpoints of one name never share what is half packed
        digest = hashlib.sha256(os.fsencode(f"{source.resolve()}\n{_shape_of(plan)}"))
        name = f"{display_name(source)}-{digest.hexdigest()[:12]}.partial"
        return None, cache.cache_folder() / name
    folder = path_of(directory, "a folder").absolute()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: name one for the packed experts")
    return folder, folder.with_name(folder.name + ".partial")


def _find(contents: Contents, folder: Path | None) -> PackedExperts | None:
    """What is packed already: in the cache, or in ``folder``, which must be free or hold these."""
    if folder is not None:
        if not folder.exists() or not any(folder.iterdir()):
            return None
        packed = open_packed(folder)
        contents.measure()
        return _checked(packed, contents)
    if alike := _alike(contents.plan):
        contents.measure()  # one of them may be this checkpoint's: reading tells
    return next((packed for packed in alike if packed.records == contents.records), None)


def _alike(plan: ExpertPlan) -> list[PackedExperts]:
    """The packed copies in the cache whose experts have the names and the shapes of ``plan``."""
    found = []
    for folder in cache.folders():
        with suppress(SpecMoEError, OSError):
            found.append(open_packed(folder))
    return [packed for packed in found if _shape_of(packed) == _shape_of(plan)]


def _shape_of(experts: PackedExperts | ExpertPlan) -> tuple:
    return experts.layers, experts.num_experts, experts.layout, experts.widened_from


def _pack_into(
    folder: Path | None, partial: Path, contents: Contents, progress: Progress
) -> PackedExperts:
    """``folder`` None: into the cache, where a copy is named after what turns out to be in it."""
    _refuse_foreign(partial)
    check_space(contents.plan, partial, with_rest=folder is not None)
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / "lock", "w") as stream:
        if not lock(stream.fileno(), "LOCK_EX"):
            logger.info("another process may be packing into %s: waiting for it", partial)
            lock(stream.fileno(), "LOCK_EX", wait=True)
        contents.reload()
        if found := _find(contents, folder):  # another process packed while this one waited
            shutil.rmtree(partial, ignore_errors=True)
            return found
        if folder is None:
            _take_over(contents, partial)
        packed = _write(contents, partial, progress, with_rest=folder is not None)
        if folder is None:
            digest = hashlib.sha256(json.dumps([packed.records, str(_shape_of(packed))]).encode())
            folder = partial.with_name(f"{packed.source['name']}-{digest.hexdigest()[:12]}")
        _publish(partial, folder)
    return open_packed(folder)


def _refuse_foreign(partial: Path) -> None:
    """What an interrupted packing left has our journal; any other folder is somebody's own."""
    names = {path.name for path in partial.iterdir()} if partial.exists() else set()
    ours = names <= cache.OURS and cache.is_journal(partial / "journal")
    if names - {"lock", "journal.partial"} and not ours:
        what = f"{partial} is not specmoe's, and packing needs that name"
        raise CheckpointError(f"{what}: rename it or pack into another folder")


def _take_over(contents: Contents, partial: Path) -> None:
    """Where this checkpoint was packed before and then edited, go on from that copy, so that only
    experts that changed are written; not if another checkpoint or a running engine needs it."""
    plan, before = contents.plan, contents.before
    old = next((packed for packed in _alike(plan) if packed.records == before), None)
    if old is None or (partial / "experts.bin").exists() or before in contents.others():
        return
    # engines lock what they read, and while this lasts none begins to
    with open(old.data_file, "rb") as stream:
        if lock(stream.fileno(), "LOCK_EX"):
            checksums = [crc for row in old.checksums for crc in row]
            # before the data moves: a packing killed at any moment is an interrupted one
            write_whole(partial / "journal", _journal(old, zip(checksums, before)).encode())
            os.replace(old.data_file, partial / "experts.bin")
            cache.remove_packed(old.directory)


def _checked(packed: PackedExperts, contents: Contents) -> PackedExperts:
    """``packed``, if it holds what ``contents`` would give."""
    plan = contents.plan
    if (packed.layout, packed.widened_from) != (plan.layout, plan.widened_from):
        have, want = packed.layout.payload_bytes, plan.layout.payload_bytes
        what = f"holds experts of {have} bytes, but {want} are asked for (expert_bytes)"
        remedy = "delete it or use another folder"
    elif (packed.layers, packed.num_experts) != (plan.layers, plan.num_experts):
        first = f"first layer {packed.layers[0]}, now {plan.layers[0]}"
        what = f"was packed with another version of transformers ({first})"
        remedy = "delete the folder"
    elif packed.records != contents.records:
        what = "holds the experts of another checkpoint, or of this one before it changed"
        remedy = "delete the folder or pack into another one"
    else:
        return packed
    raise CheckpointError(f"{packed.directory} {what}: {remedy}")


def _write(contents: Contents, partial: Path, progress: Progress, with_rest: bool) -> PackedExperts:
    """Write all records and the manifest into ``partial``, but for the good records there."""
    plan, name = contents.plan, display_name(contents.plan.checkpoint.folder)
    layers, num_experts, layout, widened = _shape_of(plan)
    packed = PackedExperts(partial, layers, num_experts, layout, (), {"name": name}, widened)
    done = _resume(packed, contents)
    if with_rest:
        write_rest(plan, partial)
    logger.info("packing %d experts into %s, %d are there", plan.num_records, partial, len(done))
    with (
        open(packed.data_file, "r+b") as data,
        open(partial / "journal", "a", encoding="utf-8") as journal,
        reporting(progress, packed.data_bytes, "packing") as report,
        _one_thread(),
    ):
        _write_records(plan, packed, (data, journal), done, report)
    if not contents.unchanged():
        what = f"{plan.checkpoint.folder} changed while its experts were packed"
        raise CheckpointError(f"{what}: run it again when nothing writes to it")
    sums, contents.records = map(list, zip(*(done[index] for index in sorted(done))))
    rows = tuple(tuple(sums[i : i + num_experts]) for i in range(0, len(sums), num_experts))
    source = {"name": name, "records": contents.records}
    packed = dataclasses.replace(packed, checksums=rows, source=source)
    write_whole(partial / "manifest.json", seal(packed.manifest()).encode())
    return packed


def _write_records(
    plan: ExpertPlan, packed: PackedExperts, files: Files, done: Done, report: Callable
) -> None:
    """Write the records missing in ``done``, which gets them; the journal follows the data."""
    (data, journal), waiting = files, {}
    # what no expert fills stays zero
    record = torch.zeros(plan.layout.record_bytes, dtype=torch.uint8)
    missing = [index for index in range(plan.num_records) if index not in done]
    for index in missing:
        layer, expert = divmod(index, plan.num_experts)
        content = memoryview(record.numpy())[: packed.bytes_of(layer)]
        digest = plan.fill(record, layer, expert)
        data.seek(packed.offset(layer, expert))
        data.write(content)
        waiting[index] = zlib.crc32(content), digest
        report(packed.data_bytes * (len(done) + len(waiting)) // plan.num_records)
        if index == missing[-1] or len(waiting) * len(record) >= SYNC_BYTES:
            force(data)
            journal.writelines(f"{i} {crc} {digest}\n" for i, (crc, digest) in waiting.items())
            force(journal)
            done |= waiting
            waiting = {}


def _journal(packed: PackedExperts, lines: Iterable[tuple[int, str]]) -> str:
    """The journal of a packing: what is packed, then "index checksum digest" for each line."""
    head = {**packed.manifest(), "source": None, "checksums": None}
    written = [f"{index} {crc} {digest}" for index, (crc, digest) in enumerate(lines)]
    return "\n".join([json.dumps(head, sort_keys=True), *written]) + "\n"


def _resume(packed: PackedExperts, contents: Contents) -> Done:
    """The journal's lines of the records that lie whole there and are still the checkpoint's."""
    journal = packed.directory / "journal"
    head = _journal(packed, [])
    text = journal.read_text(encoding="utf-8", errors="replace") if journal.is_file() else ""
    if not text.startswith(head):
        write_whole(journal, head.encode())
        text = ""
    packed.data_file.touch()
    # the last line of a killed packing may be torn
    lines = re.findall(r"^([0-9]{1,18}) ([0-9]{1,18}) ([0-9a-f]+)\n", text, re.MULTILINE)
    found = {int(index): (int(crc), digest) for index, crc, digest in lines}
    good: Done = {}
    with open(packed.data_file, "rb") as data:
        for index in sorted(found.keys() & range(contents.plan.num_records)):
            crc, digest = found[index]
            now = contents.records[index] if contents.records else None
            place = divmod(index, packed.num_experts)
            data.seek(packed.offset(*place))
            whole = zlib.crc32(data.read(packed.bytes_of(place[0]))) == crc
            if whole and (now or contents.plan.digest(*place)) == digest:
                good[index] = crc, digest
    return good


def _publish(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, in one step."""
    if folder.exists():  # an empty one, or in the cache one that cannot be opened
        cache.remove_packed(folder)
    cache.force_folder(partial)
    os.replace(partial, folder)
    for name in ("journal", "lock"):
        (folder / name).unlink(missing_ok=True)
    cache.force_folder(folder.parent)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Packing is copying: more threads gain nothing, and on a busy machine wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
