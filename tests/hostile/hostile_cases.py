"""Files that no honest tool writes, made by small builders: each spoils a copy of a good checkpoint
in its own way.

Comes in: a folder with a tiny Mixtral. Goes out: the folder, spoilt. ``test_hostile_files`` opens
each of them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Builder = Callable[[Path], None]
WEIGHTS = "model.safetensors"
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"


def split(file: Path) -> tuple[dict, bytes]:
    """Header and data of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def cut(place: Callable[[int, int], int]) -> Builder:
    """Keep the first ``place(header_bytes, file_bytes)`` bytes of the weights."""

    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        (folder / WEIGHTS).write_bytes(content[: place(length, len(content))])

    return spoil


def header(edit: Callable[[dict], object]) -> Builder:
    """Let ``edit`` change the header; what it returns, if anything, is written instead."""

    def spoil(folder: Path) -> None:
        found, data = split(folder / WEIGHTS)
        made = edit(found)
        (folder / WEIGHTS).write_bytes(join(found if made is None else made, data))

    return spoil


def first(**fields) -> Builder:
    """Other fields for the first tensor; the value ``...`` takes a field out."""

    def edit(found: dict) -> None:
        name = first_name(found)
        found[name] = {
            key: value for key, value in {**found[name], **fields}.items() if value is not ...
        }

    return header(edit)


def first_name(found: dict) -> str:
    return next(name for name in found if name != "__metadata__")


def moved(by: int, length: int = 0) -> Builder:
    """The second tensor lies elsewhere (``by``) or is longer (``length``)."""

    def edit(found: dict) -> None:
        name = sorted(found.keys() - {"__metadata__"}, key=lambda key: found[key]["data_offsets"])[
            1
        ]
        begin, end = found[name]["data_offsets"]
        found[name]["data_offsets"] = [begin + by, end + by + length]

    return header(edit)


def swapped(found: dict) -> None:
    """Two tensors of one shape both lie where the first one lies; the bytes of the other are a
    hole."""
    a, b = [name for name in found if name.endswith("experts.0.w1.weight")][:2]
    found[b]["data_offsets"] = found[a]["data_offsets"]


def raw_length(length: int) -> Builder:
    def spoil(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])

    return spoil


def sparse_header(num_bytes: int) -> Builder:
    """A header so long that it is not to be read; the file is sparse and takes no space."""

    def spoil(folder: Path) -> None:
        with open(folder / WEIGHTS, "wb") as stream:
            stream.write(struct.pack("<Q", num_bytes))
            stream.truncate(8 + num_bytes)

    return spoil


def text(name: str, content: str | bytes) -> Builder:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def setting(**values) -> Builder:
    """Other values in config.json."""

    def spoil(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return spoil


def indexed(weight_map: object, whole: object = None) -> Builder:
    """One shard and an index with ``weight_map``: a function of the true one, or the thing
    itself."""

    def spoil(folder: Path) -> None:
        os.rename(folder / WEIGHTS, folder / SHARD)
        found = dict.fromkeys(load_file(folder / SHARD), SHARD)
        made = weight_map(found) if callable(weight_map) else weight_map
        (folder / INDEX).write_text(json.dumps({"weight_map": made} if whole is None else whole))

    return spoil


def instead(name: str, make: Callable[[Path], None]) -> Builder:
    """In place of the file ``name`` something that is no file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Builder:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def filled(value: float, part: str) -> Builder:
    return weights(lambda tensors: [t.fill_(value) for name, t in tensors.items() if part in name])


DEEP = b"[" * 100_000 + b"]" * 100_000
HEADERS: dict[str, Builder] = {
    "empty file": cut(lambda header, size: 0),
    "cut inside the length": cut(lambda header, size: 7),
    "cut after the length": cut(lambda header, size: 8),
    "cut inside the header": cut(lambda header, size: 8 + header // 2),
    "cut one byte before the header ends": cut(lambda header, size: 7 + header),
    "cut after the header": cut(lambda header, size: 8 + header),
    "cut inside the first tensor": cut(lambda header, size: 9 + header),
    "cut in the middle of the data": cut(lambda header, size: (8 + header + size) // 2),
    "cut one byte before the end": cut(lambda header, size: size - 1),
    "a byte too many": lambda folder: open(folder / WEIGHTS, "ab").write(b"x"),
    "header length zero": raw_length(0),
    "header length 2**63": raw_length(2**63),
    "header length 2**64 - 1": raw_length(2**64 - 1),
    "header length of the file": lambda folder: raw_length((folder / WEIGHTS).stat().st_size)(
        folder
    ),
    "header of 200 MB": sparse_header(200_000_000),
    "header of 90 GB": sparse_header(90_000_000_000),
    "header is deep": header(lambda found: DEEP),
    "header is a list": header(lambda found: [1, 2]),
    "header is null": header(lambda found: b"null"),
    "header is no JSON": header(lambda found: b"{oops"),
    "header is no UTF-8": header(lambda found: b'{"\xff": 1}'),
    "header holds NaN": header(
        lambda found: b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'
    ),
    "header is empty": header(lambda found: {}),
    "header with a name twice": header(
        lambda found: (
            json.dumps(found)[:-1] + ", " + json.dumps({(n := first_name(found)): found[n]})[1:]
        ).encode()
    ),
    "header with a field twice": header(
        lambda found: json.dumps(found).replace('"dtype"', '"dtype": 1, "dtype"', 1).encode()
    ),
    "tensors over each other": moved(-4),
    "a hole between tensors": moved(4),
    "two tensors in one place": header(swapped),
    "a tensor past the end": moved(0, 10**9),
    "offsets negative": first(data_offsets=[-4, 0]),
    "offsets turned": first(data_offsets=[4, 0]),
    "offsets as floats": first(data_offsets=[0.0, 4.0]),
    "offsets as texts": first(data_offsets=["0", "4"]),
    "offsets as booleans": first(data_offsets=[False, True]),
    "offsets null": first(data_offsets=None),
    "one offset": first(data_offsets=[0]),
    "three offsets": first(data_offsets=[0, 4, 8]),
    "offsets of 2**70": first(data_offsets=[2**70, 2**71]),
    "no offsets": first(data_offsets=...),
    "shape missing": first(shape=...),
    "shape null": first(shape=None),
    "shape a text": first(shape="97"),
    "shape negative": first(shape=[-97, -32]),
    "shape of floats": first(shape=[97.0, 32.0]),
    "shape of booleans": first(shape=[True]),
    "shape nested": first(shape=[[97, 32]]),
    "shape overflows": first(shape=[2**40, 2**40]),
    "shape of 2**70": first(shape=[2**70]),
    "shape of a million ones": first(shape=[1] * 1_000_000),
    "shape unlike the size": first(shape=[97, 33]),
    "dtype missing": first(dtype=...),
    "dtype null": first(dtype=None),
    "dtype a list": first(dtype=["F32"]),
    "dtype unknown and read": first(dtype="X99"),
    "dtype packed and read": first(dtype="U8"),
    "dtype of another size": first(dtype="F64"),
    "a field too many": first(extra=1),
    "a tensor is a number": header(lambda found: found.update({first_name(found): 7})),
    "a tensor is null": header(lambda found: found.update({first_name(found): None})),
    "a name of a megabyte": header(
        lambda found: found.update({"x" * 10**6: found.pop(first_name(found))})
    ),
    "a name with line breaks": header(
        lambda found: found.update({"a\nb\x1b[31m": found.pop(first_name(found))})
    ),
}

JSON_FILES: dict[str, Builder] = {
    f"{name} is {what}": text(name, content)
    for name in ("config.json", "generation_config.json")
    for what, content in {
        "empty": "",
        "null": "null",
        "a list": "[1]",
        "a text": '"x"',
        "a number": "7",
        "cut short": '{"a": ',
        "no UTF-8": b'{"a": "\xff"}',
        "deep": DEEP,
        "zeros": bytes(4096),
    }.items()
}

PLACES: dict[str, Builder] = {
    "config.json is a folder": instead("config.json", Path.mkdir),
    "config.json is a pipe": instead("config.json", os.mkfifo),
    "config.json is a broken link": instead("config.json", lambda path: path.symlink_to("nowhere")),
    "config.json is a device": instead("config.json", lambda path: path.symlink_to("/dev/zero")),
    "config.json is missing": instead("config.json", lambda path: None),
    "generation_config.json is a folder": instead("generation_config.json", Path.mkdir),
    "generation_config.json is a pipe": instead("generation_config.json", os.mkfifo),
    "tokenizer.json is a pipe": instead("tokenizer.json", os.mkfifo),
    "weights are a folder": instead(WEIGHTS, Path.mkdir),
    "weights are a pipe": instead(WEIGHTS, os.mkfifo),
    "weights are a device": instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "weights are a circle of links": instead(WEIGHTS, lambda path: path.symlink_to(WEIGHTS)),
    "weights are missing": instead(WEIGHTS, lambda path: None),
    "weights are pickled": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    "config.json of 300 MB": lambda folder: os.truncate(folder / "config.json", 300_000_000),
}

INDICES: dict[str, Builder] = {
    "index without a map": indexed(None),
    "index with an empty map": indexed({}),
    "index with a list": indexed([SHARD]),
    "index with numbers": indexed(lambda found: dict.fromkeys(found, 7)),
    "index with nulls": indexed(lambda found: dict.fromkeys(found)),
    "index with lists": indexed(lambda found: dict.fromkeys(found, [SHARD])),
    "index is a list": indexed(None, whole=[1]),
    "index leads above": indexed(lambda found: dict.fromkeys(found, f"../{SHARD}")),
    "index leads above in the middle": indexed(
        lambda found: dict.fromkeys(found, f"a/../../{SHARD}")
    ),
    "index leads to the root": indexed(lambda found: dict.fromkeys(found, f"/etc/{SHARD}")),
    "index leads to a drive": indexed(lambda found: dict.fromkeys(found, f"C:\\{SHARD}")),
    "index leads to a share": indexed(
        lambda found: dict.fromkeys(found, f"\\\\host\\share\\{SHARD}")
    ),
    "index names a pickle": indexed(lambda found: dict.fromkeys(found, "pytorch_model.bin")),
    "index with a zero byte": indexed(lambda found: dict.fromkeys(found, "a\0b.safetensors")),
    "index with a long name": indexed(
        lambda found: dict.fromkeys(found, "x" * 10_000 + ".safetensors")
    ),
    "index with a missing shard": indexed(
        lambda found: dict.fromkeys(found, "model-00002-of-00002.safetensors")
    ),
    "index with a tensor too many": indexed(lambda found: {**found, "ghost": SHARD}),
    "index with an empty name": indexed(lambda found: dict.fromkeys(found, "")),
}

COUNTS: dict[str, Builder] = {
    f"{name} = {value:g}": setting(**{name: value})
    for name in ("num_hidden_layers", "num_local_experts", "num_labels")
    for value in (10**9, 2**62, 1e30)
}

WEIGHT_VALUES: dict[str, Builder] = {
    "NaN in the trunk": filled(torch.nan, "o_proj"),
    "Inf in the trunk": filled(torch.inf, "q_proj"),
    "NaN in the embedding": filled(torch.nan, "embed_tokens"),
    "NaN in the experts": filled(torch.nan, ".w2."),
    "Inf in the experts": filled(torch.inf, ".w1."),
    "NaN in the router": filled(torch.nan, "block_sparse_moe.gate"),
}
