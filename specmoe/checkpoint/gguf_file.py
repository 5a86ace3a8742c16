"""A GGUF as a checkpoint: the config that it stands for, through transformers' own mapping, and a
part of it as a file of its own.
"""

from __future__ import annotations

import struct
import tempfile
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from ..errors import CheckpointError, UnsupportedModelError
from .cache import force
from .gguf_header import OF_SPLIT, Header, aligned, part_of

# What transformers' mapping of the older families leaves at the default of their configs.
WIDTHS = {"moe_intermediate_size": "expert_feed_forward_length"}
WIDTHS |= {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"}


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
        return _config_of_copy(header)
    if find_spec("gguf") is None:
        what = f"{file}: to read {architecture!r} transformers takes the package gguf"
        raise CheckpointError(f"{what}: pip install 'specmoe[gguf]'")
    config = _config_of_copy(header)
    is_moe = any("expert" in name for name in config.to_dict())
    if header.settings.get(f"{architecture}.expert_count") and not is_moe:
        what = f"transformers reads the experts of {file} as {architecture!r}, a dense model"
        raise UnsupportedModelError(f"{what}: use the safetensors of that model")
    for name, key in WIDTHS.items():
        if hasattr(config, name) and (width := header.settings.get(f"{architecture}.{key}")):
            setattr(config, name, width)
    return config


def _config_of_copy(header: Header) -> PreTrainedConfig:
    """Of a copy of the header without the vocabulary, on which transformers' older reader spends
    most of a minute; it names the tensors of all files of a split GGUF."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / header.file.name
        copy.write_bytes(_without_vocabulary(header))
        return AutoConfig.from_pretrained(folder, gguf_file=copy.name)


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
    start = aligned(len(made), header.settings.get("general.alignment", 32))
    return made.ljust(start, b"\0") + bytes(4)


def write_part(header: Header, names: set[str], file: Path) -> None:
    """A GGUF of all settings, but that it is split, and those tensors alone, byte for byte and a
    piece at a time."""
    mine = (info for info in header.infos if info.name in names)
    kept = sorted(mine, key=lambda info: (info.file, info.start))
    to = header.settings.get("general.alignment", 32)
    table, end = b"", 0
    for info in kept:
        shape = info.shape[::-1]
        fields = f"<I{len(shape)}QIQ"
        table += _text(info.name) + struct.pack(fields, len(shape), *shape, info.kind, end)
        end = aligned(end + part_of(info).num_bytes, to)
    count = sum(not key.startswith(OF_SPLIT) for key in header.settings)
    with open(file, "wb") as stream:
        stream.write(b"GGUF" + struct.pack("<IQQ", 3, len(kept), count))
        stream.write(header.described_bytes() + table)
        for info in kept:
            stream.write(bytes(aligned(stream.tell(), to) - stream.tell()))
            stream.writelines(part_of(info).pieces())
        force(stream)
