"""The header of a GGUF, in one file or several, believed only where all of it fits.

Comes in: the path of the file, or of the first of them. Goes out: its settings, and where its
tensors lie, in blocks as they are. Plain reads, as in ``header``. The package ``gguf`` would read
it, too, but takes half a minute for the vocabulary of a Qwen3, and specmoe asks often.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import CheckpointError, door
from .blocks import LIBRARY, TYPES, kind_of, library_type
from .header import MAX_DIMS, StoredTensor, read_into
from .low_bit import LowBitTensor, Serialised, Tensors, parts_of

PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
# What is refused by name.
OTHER = {40: "NVFP4", 9: "Q8_1", 15: "Q8_K"}
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
SCALARS |= {12: "d"}
# Longer arrays are vocabularies, which a config has no use for.
LONG = 1024
# How llama.cpp names the files of a split GGUF.
SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")
OF_SPLIT = "split."
AGAIN = "download it again"


class Info(NamedTuple):
    """A tensor as the header describes it; ``shape`` in torch's order, ``start`` in the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    file: Path


@dataclass(frozen=True)
class Header:
    """``settings``: of each key its value, of long arrays the number of entries; ``raw``: how the
    others are written, key included; ``described``: where all of them lie, in bytes; ``files``: all
    in which tensors lie, the first is ``file``."""

    file: Path
    settings: dict[str, Any]
    raw: dict[str, bytes]
    infos: tuple[Info, ...]
    described: tuple[int, int]
    files: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        return str(self.settings.get("general.architecture", "unnamed"))

    def described_bytes(self) -> bytes:
        """All settings as they are written, but for what says that the file is split."""
        begin, end = self.described
        content = bytearray(end - begin)
        read_into(self.file, begin, memoryview(content))
        split = [raw for key, raw in self.raw.items() if key.startswith(OF_SPLIT)]
        return reduce(lambda left, raw: left.replace(raw, b"", 1), split, bytes(content))

    def tensors(self) -> Tensors:
        return {info.name: _stored(info) for info in self.infos}


def read_gguf(file: Path) -> Header:
    """The header of ``file``, and of a split GGUF, of which it is the first, of all files together;
    tensors lie within them, in types that are known here."""
    first = _read_one(file)
    count = first.settings.get("split.count", 0)
    return _joined(first, count) if type(count) is int and count > 1 else first


def files_of(file: Path) -> list[Path]:
    """By their names, ``file`` and the others of a split GGUF that are there, in order."""
    if not (named := SPLIT.fullmatch(file.name)):
        return [file]
    alike = (SPLIT.fullmatch(other.name) for other in file.parent.glob("*.gguf"))
    return sorted(
        file.parent / other[0]
        for other in alike
        if other and other.group(1, 3) == named.group(1, 3)
    )


def _joined(first: Header, count: int) -> Header:
    """All of a split GGUF; the settings are those of its first file."""
    named = SPLIT.fullmatch(first.file.name)
    if not named or (int(named[2]), int(named[3])) != (1, count):
        what = f"{first.file} is one of the {count} files of a split GGUF, and not by its name"
        raise CheckpointError(f"{what} the first: give NAME-00001-of-{count:05}.gguf beside them")
    files = [
        first.file.with_name(f"{named[1]}-{n + 1:05}-of-{named[3]}.gguf") for n in range(count)
    ]
    if lost := [file.name for file in files if not file.is_file()]:
        what = f"{first.file.parent} lacks {len(lost)} of the {count} files of a split GGUF"
        raise CheckpointError(f"{what}, first {lost[0]!r}: download them")
    headers = [_read_one(file) for file in files]
    for number, header in enumerate(headers):
        if [header.settings.get(f"split.{key}") for key in ("no", "count")] != [number, count]:
            what = f"{header.file} is not by its header the file {number + 1} of {count}"
            raise CheckpointError(f"{what} that its name says: {AGAIN}")
    infos = tuple(chain(*(header.infos for header in headers)))
    names = {info.name for info in infos}
    if not len(names) == len(infos) == first.settings.get("split.tensors.count", len(infos)):
        what = f"the {count} files of {first.file} hold {len(infos)} tensors of {len(names)} names"
        raise CheckpointError(f"{what}, which is not what the first promises: {AGAIN}")
    return replace(first, infos=infos, files=tuple(files))


def _read_one(file: Path) -> Header:
    stamp = file.stat()
    return _read(file, (stamp.st_size, stamp.st_mtime_ns, stamp.st_ino))


# a large model may have dozens of files
@lru_cache(maxsize=64)
def _read(file: Path, stamp: tuple) -> Header:
    with door(f"{file} has no readable GGUF header", AGAIN), open(file, "rb") as stream:
        reader = _Reader(file, stream, stamp[0])
        if stream.read(4) != b"GGUF":
            raise CheckpointError(f"{file} does not begin as a GGUF file does: {AGAIN}")
        version = reader.number("I")
        if version not in VERSIONS:
            what = f"{file} is GGUF of version {version}, and {VERSIONS} are read"
            raise CheckpointError(f"{what}: convert it with a newer llama.cpp")
        num_tensors, num_settings = reader.number("Q"), reader.number("Q")
        begin, settings, raw = stream.tell(), {}, {}
        for _ in range(num_settings):
            reader.setting(settings, raw)
        described = begin, stream.tell()
        infos = [reader.info() for _ in range(num_tensors)]
        start = aligned(stream.tell(), settings.get("general.alignment", 32))
        infos = tuple(info._replace(start=info.start + start) for info in infos)
        found = Header(file, settings, raw, infos, described, (file,))
    _check(found, stamp[0])
    return found


def aligned(at: int, to: int) -> int:
    if type(to) is not int or to < 1:
        raise ValueError(f"an alignment of {to}")
    return -(-at // to) * to


class _Reader:
    """Reads the header of ``file``, never beyond its end."""

    def __init__(self, file: Path, stream: BinaryIO, size: int):
        self.file = file
        self.stream = stream
        self.size = size

    def take(self, num_bytes: int) -> bytes:
        content = self.stream.read(num_bytes) if num_bytes <= self.size else b""
        if len(content) < num_bytes:
            what = f"{self.file} is cut short inside its header ({self.size} bytes)"
            raise CheckpointError(f"{what}: {AGAIN}")
        return content

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def setting(self, settings: dict[str, Any], raw: dict[str, bytes]) -> None:
        begin = self.stream.tell()
        key = self.text()
        if key in settings:
            raise ValueError(f"{key!r} stands there twice")
        settings[key], is_long = self._value(self.number("I"))
        if not is_long:
            end = self.stream.tell()
            self.stream.seek(begin)
            raw[key] = self.take(end - begin)

    def _value(self, kind: int) -> tuple[Any, bool]:
        """A value, and whether it is a long array, of which only the length is kept."""
        if kind == STRING:
            return self.text(), False
        if kind != ARRAY:
            return self.number(SCALARS[kind]), False
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            found = [self.take(self.number("Q")) for _ in range(count)]
        else:
            width = struct.calcsize(f"<{SCALARS[kind]}")
            content = self.take(count * width)
            found = struct.unpack(f"<{count}{SCALARS[kind]}", content) if count <= LONG else ()
        return (count, True) if count > LONG else (list(found), False)

    def info(self) -> Info:
        name, num_dims = self.text(), self.number("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"tensor {name!r} has {num_dims} dimensions")
        shape = tuple(self.number("Q") for _ in range(num_dims))
        kind, start = self.number("I"), self.number("Q")
        return Info(name, kind, shape[::-1], start, self.file)


def _check(header: Header, size: int) -> None:
    """Every tensor is of a known type and lies within the file, after the one before it."""
    file, end = header.file, 0
    if len({info.name for info in header.infos}) < len(header.infos):
        raise CheckpointError(f"{file} names a tensor twice: {AGAIN}")
    for info in sorted(header.infos, key=lambda info: info.start):
        part = part_of(info)
        if info.start < end:
            what = f"tensor {info.name!r} in {file} lies over another tensor"
            raise CheckpointError(f"{what}: the file was altered, {AGAIN}")
        end = info.start + part.num_bytes
        if end > size:
            what = f"{file} is cut short ({size} bytes): tensor {info.name!r} ends at {end}"
            raise CheckpointError(f"{what}; {AGAIN}")


def part_of(info: Info) -> StoredTensor:
    [part] = parts_of(_stored(info))
    return part


def _stored(info: Info) -> StoredTensor | LowBitTensor:
    file, where = info.file, f"tensor {info.name!r} in {info.file}"
    if info.kind in PLAIN:
        return StoredTensor(info.name, file, PLAIN[info.kind], info.shape, info.start)
    if info.kind not in TYPES:
        kind = OTHER.get(info.kind, f"number {info.kind}")
        known = ", ".join(kind_of(made.__name__) for made, *_ in TYPES.values())
        what = f"{where} is of the ggml type {kind}, which is not read"
        raise CheckpointError(f"{what}: use a file in {', '.join(PLAIN.values())}, {known}")
    made, elements, num_bytes = TYPES[info.kind]
    if info.kind in LIBRARY:
        library_type(made.__name__, where)
    if not info.shape or info.shape[-1] % elements:
        what = f"{where} has shape {list(info.shape)}"
        kind = kind_of(made.__name__)
        raise CheckpointError(f"{what}, no rows of blocks of {elements} as in {kind}: {AGAIN}")
    shape = (*info.shape[:-1], info.shape[-1] // elements * num_bytes)
    part = Serialised(info.name, file, "U8", shape, info.start)
    return LowBitTensor(info.name, made.__name__, info.shape, (part,))
