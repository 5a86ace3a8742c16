"""A GGUF file: its header, believed only where all of it fits, and the config that it stands for.

Comes in: the path of one file. Goes out: where its tensors lie, in blocks as they are; its config,
through transformers' own mapping. Plain reads, as in ``header``. The package ``gguf`` would read
the header, too, but takes half a minute for the vocabulary of a Qwen3, and specmoe asks often.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from ..errors import CheckpointError, UnsupportedModelError, door
from .blocks import TYPES
from .cache import force
from .header import MAX_DIMS, StoredTensor, read_into
from .low_bit import LowBitTensor, Serialised, Tensors, parts_of

PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
# What is refused by name.
OTHER = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"}
OTHER |= {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 9: "Q8_1", 15: "Q8_K"}
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
SCALARS |= {12: "d"}
# Longer arrays are vocabularies, which a config has no use for.
LONG = 1024
# What transformers' mapping of the older families leaves at the default of their configs.
WIDTHS = {"moe_intermediate_size": "expert_feed_forward_length"}
WIDTHS |= {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"}
AGAIN = "download it again"


class Info(NamedTuple):
    """A tensor as the header describes it; ``shape`` in torch's order, ``start`` in the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """``settings``: of each key its value, of long arrays the number of entries; ``raw``: how the
    others are written, key included; ``described``: where all of them lie, in bytes."""

    file: Path
    settings: dict[str, Any]
    raw: dict[str, bytes]
    infos: tuple[Info, ...]
    described: tuple[int, int]

    @property
    def architecture(self) -> str:
        return str(self.settings.get("general.architecture", "unnamed"))

    def described_bytes(self) -> bytes:
        begin, end = self.described
        content = bytearray(end - begin)
        read_into(self.file, begin, memoryview(content))
        return bytes(content)

    def tensors(self) -> Tensors:
        return {info.name: _stored(self.file, info) for info in self.infos}


def read_gguf(file: Path) -> Header:
    """The header of ``file``; its tensors lie within it, in types that are known here."""
    stamp = file.stat()
    return _read(file, (stamp.st_size, stamp.st_mtime_ns, stamp.st_ino))


@lru_cache(maxsize=4)
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
        start = _aligned(stream.tell(), settings.get("general.alignment", 32))
        infos = tuple(info._replace(start=info.start + start) for info in infos)
        found = Header(file, settings, raw, infos, described)
    _check(found, stamp[0])
    return found


def _aligned(at: int, to: int) -> int:
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
        return Info(name, kind, shape[::-1], start)


def _check(header: Header, size: int) -> None:
    """Every tensor is of a known type and lies within the file, after the one before it."""
    file, end = header.file, 0
    if len({info.name for info in header.infos}) < len(header.infos):
        raise CheckpointError(f"{file} names a tensor twice: {AGAIN}")
    parts = header.settings.get("split.count", 0)
    if parts > 1:
        what = f"{file} is one of {parts} parts of a split GGUF, which transformers does not read"
        raise CheckpointError(f"{what}: join them with llama.cpp's llama-gguf-split --merge")
    for info in sorted(header.infos, key=lambda info: info.start):
        part = _part(file, info)
        if info.start < end:
            what = f"tensor {info.name!r} in {file} lies over another tensor"
            raise CheckpointError(f"{what}: the file was altered, {AGAIN}")
        end = info.start + part.num_bytes
        if end > size:
            what = f"{file} is cut short ({size} bytes): tensor {info.name!r} ends at {end}"
            raise CheckpointError(f"{what}; {AGAIN}")


def _part(file: Path, info: Info) -> StoredTensor:
    [part] = parts_of(_stored(file, info))
    return part


def _stored(file: Path, info: Info) -> StoredTensor | LowBitTensor:
    if info.kind in PLAIN:
        return StoredTensor(info.name, file, PLAIN[info.kind], info.shape, info.start)
    if info.kind not in TYPES:
        kind = OTHER.get(info.kind, f"number {info.kind}")
        known = ", ".join(made.__name__.upper() for made, *_ in TYPES.values())
        what = f"tensor {info.name!r} in {file} is of the ggml type {kind}, which is not read"
        raise CheckpointError(f"{what}: use a file in {', '.join(PLAIN.values())}, {known}")
    made, elements, num_bytes = TYPES[info.kind]
    if not info.shape or info.shape[-1] % elements:
        what = f"tensor {info.name!r} in {file} has shape {list(info.shape)}"
        kind = made.__name__.upper()
        raise CheckpointError(f"{what}, no rows of blocks of {elements} as in {kind}: {AGAIN}")
    shape = (*info.shape[:-1], info.shape[-1] // elements * num_bytes)
    part = Serialised(info.name, file, "U8", shape, info.start)
    return LowBitTensor(info.name, made.__name__, info.shape, (part,))


def is_modern(architecture: str) -> bool:
    """Whether transformers reads it as it reads safetensors: by renamings and converters."""
    try:
        from transformers.integrations.gguf import GGUF_ARCHS
    except ImportError:  # an older transformers
        return False
    return architecture in GGUF_ARCHS


def config_of(header: Header) -> PreTrainedConfig:
    """transformers' config of the file."""
    file, architecture = header.file, header.architecture
    if is_modern(architecture):
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    config = _config_of_old(header)
    is_moe = any("expert" in name for name in config.to_dict())
    if header.settings.get(f"{architecture}.expert_count") and not is_moe:
        what = f"transformers reads the experts of {file} as {architecture!r}, a dense model"
        raise UnsupportedModelError(f"{what}: use the safetensors of that model")
    for name, key in WIDTHS.items():
        if hasattr(config, name) and (width := header.settings.get(f"{architecture}.{key}")):
            setattr(config, name, width)
    return config


def _config_of_old(header: Header) -> PreTrainedConfig:
    """transformers' older reader takes a copy of the header without the vocabulary: it spends most
    of a minute on one."""
    file = header.file
    if find_spec("gguf") is None:
        what = f"{file}: to read {header.architecture!r} transformers takes the package gguf"
        raise CheckpointError(f"{what}: pip install 'specmoe[gguf]'")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        copy.write_bytes(_without_vocabulary(header))
        return AutoConfig.from_pretrained(folder, gguf_file=file.name)


def _text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def _without_vocabulary(header: Header) -> bytes:
    """A GGUF with the short settings, the names of the tensors, and one number as their content."""
    raw = dict(header.raw)
    key = f"{header.architecture}.vocab_size"
    if key not in raw and (tokens := header.settings.get("tokenizer.ggml.tokens")):
        count = tokens if isinstance(tokens, int) else len(tokens)
        raw[key] = _text(key) + struct.pack("<II", 4, count)
    made = b"GGUF" + struct.pack("<IQQ", 3, len(header.infos), len(raw)) + b"".join(raw.values())
    one_number = struct.pack("<IQIQ", 1, 1, 0, 0)
    made += b"".join(_text(info.name) + one_number for info in header.infos)
    start = _aligned(len(made), header.settings.get("general.alignment", 32))
    return made.ljust(start, b"\0") + bytes(4)


def write_part(header: Header, names: set[str], file: Path) -> None:
    """A GGUF of all settings and those tensors alone, byte for byte and a piece at a time."""
    kept = sorted((info for info in header.infos if info.name in names), key=lambda i: i.start)
    to = header.settings.get("general.alignment", 32)
    table, end = b"", 0
    for info in kept:
        shape = info.shape[::-1]
        described = f"<I{len(shape)}QIQ"
        table += _text(info.name) + struct.pack(described, len(shape), *shape, info.kind, end)
        end = _aligned(end + _part(header.file, info).num_bytes, to)
    with open(file, "wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(kept), len(header.settings)))
        stream.write(header.described_bytes() + table)
        for info in kept:
            stream.write(bytes(_aligned(stream.tell(), to) - stream.tell()))
            stream.writelines(_part(header.file, info).pieces())
        force(stream)
