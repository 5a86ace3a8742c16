"""A small fuzzer of what reads files: safetensors headers, manifests, journals, JSON lines.

``python -m tests.fuzz --seconds 60 --seed 1 [--only header]`` spoils the files of
``tests/fuzz_corpus`` and of its own making until the time is over. Right is a result or a
``SpecMoEError`` in one line; anything else is a crash, and printed.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from tiny_architectures import make_checkpoint

from specmoe.checkpoint import packing
from specmoe.checkpoint.header import read_header
from specmoe.checkpoint.packed import open_packed
from specmoe.cli import job_lines
from specmoe.errors import SpecMoEError

CORPUS = Path(__file__).parent / "fuzz_corpus"
ODD = [None, True, -1, 0, 1, 2**31, 2**63, 2**70, 0.5, 1e308, float("nan")]
ODD += ["", "x", "\ud800", [], {}, [[]], [1, "a"], "a" * 300]
PIECES = [b"[", b"]", b"{", b"}", b'"', b",", b":", b"\0", b"\xff", b"\n", b"\xef\xbb\xbf"]
PIECES += [b"1e999", b"-1", b"NaN", b"null", b"[" * 5000]


def spoil_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bits turned over, parts left out, doubled or swapped, odd pieces put in."""
    made = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at = draw.randrange(len(made) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del made[at : at + draw.choice([1, 2, 8, 64, 1024])]
        elif kind == 2:
            made[at:at] = made[at : at + draw.choice([1, 8, 64])]
        elif kind == 3:
            made[at:at] = draw.choice(PIECES)
        else:
            made[at : at + 8] = struct.pack(
                "<Q", draw.choice([0, 1, 255, 2**16, 2**31, 2**32, 2**63, 2**64 - 1])
            )
    return bytes(made)


def spoil_json(value: object, draw: random.Random) -> object:
    """One place of a JSON value, however deep, becomes something else."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        name = draw.choice(sorted(value))
        kind = draw.randrange(8)
        if kind == 0:
            return {key: item for key, item in value.items() if key != name}
        if kind == 1:
            return {**value, draw.choice(["", "x", "dtype", "__metadata__"]): value[name]}
        return {**value, name: spoil_json(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        kind = draw.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value + [value[at]]
        return [*value[:at], spoil_json(value[at], draw), *value[at + 1 :]]
    if type(value) is int and draw.random() < 0.6:
        return value + draw.choice([-value, -1, 1, 8, -8, 4096, 2**31, -(2**63), 2**63])
    return draw.choice(ODD)


def split(content: bytes) -> tuple[object, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def spoil_header(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return spoil_bytes(content, draw)
    header, data = split(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        header = spoil_json(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def spoil_manifest(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return spoil_bytes(content, draw)
    manifest = json.loads(content)
    manifest.pop("manifest_crc32", None)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        manifest = spoil_json(manifest, draw)
    if not isinstance(manifest, dict):
        return json.dumps(manifest).encode()
    body = json.dumps(manifest, sort_keys=True)
    # who tampers can count
    return json.dumps({**manifest, "manifest_crc32": zlib.crc32(body.encode())}).encode()


def spoil_lines(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return spoil_bytes(content, draw)
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    try:
        lines[at] = json.dumps(spoil_json(json.loads(lines[at]), draw)).encode()
    except ValueError:
        lines[at] = spoil_bytes(lines[at], draw)
    return b"\n".join(lines)


@functools.cache
def packed_folders() -> tuple[Path, Path, Path]:
    """A tiny checkpoint, its experts packed, and the folder of a packing that was interrupted
    half-way."""
    folder = Path(tempfile.mkdtemp(prefix="specmoe-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    small = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    made = make_checkpoint(
        "mixtral", folder / "model", num_hidden_layers=1, num_local_experts=4, **small
    )
    packing.pack(made, folder / "packed")

    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise KeyboardInterrupt

    before, packing.SYNC_BYTES = packing.SYNC_BYTES, 1  # the journal is written after each record
    try:
        packing.pack(made, folder / "half", progress=stop)
    except KeyboardInterrupt:
        pass
    packing.SYNC_BYTES = before
    return made, folder / "packed", folder / "half.partial"


def read_manifest(file: Path) -> None:
    if not (file.parent / "experts.bin").exists():
        shutil.copy(packed_folders()[1] / "experts.bin", file.parent)
    open_packed(file.parent)


def read_journal(file: Path) -> None:
    """An interrupted packing with this journal is taken up again: the same bytes, or a typed
    error."""
    made, packed, half = packed_folders()
    folder, partial = file.parent / "again", file.parent / "again.partial"
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(half, partial)
    shutil.copy(file, partial / "journal")
    packing.pack(made, folder)
    assert (folder / "experts.bin").read_bytes() == (packed / "experts.bin").read_bytes()


def seeds_of(name: str) -> list[bytes]:
    """What is spoilt: the corpus, and what this version of the package writes."""
    found = [file.read_bytes() for file in sorted(CORPUS.glob(TARGETS[name][0]))]
    if name == "manifest":
        found.append((packed_folders()[1] / "manifest.json").read_bytes())
    if name == "journal":
        found.append((packed_folders()[2] / "journal").read_bytes())
    return found


def read_lines(path: Path) -> None:
    with open(path, "rb") as stream:
        list(job_lines.read_items(stream, path.name))


Target = tuple[str, Callable[[bytes, random.Random], bytes], Callable[[Path], object]]
TARGETS: dict[str, Target] = {
    "header": ("*.safetensors", spoil_header, read_header),
    "manifest": ("*.manifest", spoil_manifest, read_manifest),
    "journal": ("*.journal", spoil_bytes, read_journal),
    "lines": ("*.jsonl", spoil_lines, read_lines),
}


def fuzz(
    name: str, seed: int, folder: Path, is_over: Callable[[int], bool]
) -> Iterator[tuple[bytes, str]]:
    """(spoilt content, what happened: "read", an error's class, or "crash: ...") until
    ``is_over(number of cases)``."""
    _, spoil, read = TARGETS[name]
    corpus = seeds_of(name)
    draw, count = random.Random(f"{name} {seed}"), 0
    file = folder / ("manifest.json" if name == "manifest" else "case")
    while not is_over(count):
        content = spoil(draw.choice(corpus), draw)
        file.write_bytes(content)
        count += 1
        try:
            read(file)
            yield content, "read"
        except SpecMoEError as error:
            good = str(error).isprintable() and len(str(error)) < 2100
            yield content, type(error).__name__ if good else "crash: no sentence"
        except Exception as error:
            yield content, f"crash: {type(error).__name__}"


def _is_late(end_s: float, count: int) -> bool:
    return time.monotonic() > end_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, action="append")
    given = parser.parse_args()
    names, crashed = given.only or list(TARGETS), 0
    for name in names:
        seen: Counter[str] = Counter()
        end_s = time.monotonic() + given.seconds / len(names)
        with tempfile.TemporaryDirectory() as folder:
            for content, what in fuzz(
                name, given.seed, Path(folder), functools.partial(_is_late, end_s)
            ):
                if what.startswith("crash") and not seen[what]:
                    print(what, content[:300], flush=True)
                seen[what] += 1
        crashed += sum(count for what, count in seen.items() if what.startswith("crash"))
        print(name, "seed", given.seed, sum(seen.values()), "cases", dict(seen), flush=True)
    return crashed > 0


if __name__ == "__main__":
    raise SystemExit(main())
