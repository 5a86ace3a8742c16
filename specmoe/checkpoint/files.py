"""A checkpoint's files: safetensors headers, single tensors, and what makes a copy of it
recognisable.

Comes in: a name, folder or hub id. Goes out: a ``Checkpoint`` whose headers agree with its file
sizes, for ``recipes`` and ``model``. Tensors are read with plain reads: a mapped file that shrinks
kills the process, and mapped pages count as memory.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from ..errors import CheckpointError, OptionError, door
from .header import TensorInfo, quantised, read_header

logger = logging.getLogger("specmoe")

SHIPPED = Path(__file__).resolve().parents[1] / "tiny" / "checkpoints"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Read and hashed at a time: stays in the processor's cache.
PIECE_BYTES = 2**20
MAX_JSON_BYTES = 100_000_000
# Keys of config.json that say how many modules, or entries of a list, transformers is to make.
COUNTS = re.compile(r"^(?!max_).*(layers?|experts?|labels|blocks|depth)$")
LEAST_BOUND = 512  # counts up to it cost nothing


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: headers read and checked, no weights in memory."""

    folder: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    tensors: dict[str, TensorInfo]

    def read(self, key: str, first: int | None = None) -> torch.Tensor:
        """The tensor ``key``; with ``first`` only that index of its leading dimension: ``[1,
        ...]``."""
        info, dtype = self.tensors[key], self.dtype(key)
        shape = info.shape if first is None else (1, *info.shape[1:])
        with door(f"tensor {key!r} in {info.file} could not be made", "download it again"):
            tensor = torch.empty(shape, dtype=dtype)
        num_bytes = tensor.numel() * tensor.element_size()
        if num_bytes:
            start = info.start + (first or 0) * num_bytes
            _read_into(info.file, start, tensor.reshape(-1).view(torch.uint8).numpy())
        return tensor

    def add_to(self, digest: Any, key: str, first: int | None = None) -> None:
        """Add dtype, shape and bytes of what ``read`` would give to ``digest``, a piece at a
        time."""
        info, dtype = self.tensors[key], self.dtype(key)
        shape = info.shape if first is None else (1, *info.shape[1:])
        digest.update(repr((dtype, shape)).encode())
        left = math.prod(shape) * dtype.itemsize
        start = info.start + (first or 0) * left
        piece = memoryview(bytearray(min(left, PIECE_BYTES)))
        while left:
            piece = piece[:left]
            _read_into(info.file, start, piece)
            digest.update(piece)
            start, left = start + len(piece), left - len(piece)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype of the tensor ``key``; refuses a quantised one."""
        if self.tensors[key].dtype is None:
            raise CheckpointError(quantised(key, self.tensors[key]))
        return self.tensors[key].dtype

    def lacks(self, what: str) -> CheckpointError:
        """The error about tensors that are not there: quantised ones, if there are any, stand in
        their place."""
        odd = next((key for key, info in self.tensors.items() if info.dtype is None), None)
        if odd is not None:
            return CheckpointError(quantised(odd, self.tensors[odd]))
        return CheckpointError(f"{self.folder} {what}: download it again")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder of a shipped model, of a local checkpoint, or of a hub id (downloaded: weights,
    tokenizer).

    In this order: ``./tiny-skewed`` is a folder of yours even where ``tiny-skewed`` is a shipped
    name. ``revision`` is a branch, tag or commit of a hub id; ``OptionError`` where the name is
    none.
    """
    folder = _local(name_or_path)
    if folder is None:
        return _download(str(name_or_path), revision)
    if revision is not None:
        raise OptionError(
            f"revision={revision!r} belongs to hub ids, and {str(name_or_path)!r} is a folder "
            "here: leave it out"
        )
    return folder


def _local(name_or_path: str | Path) -> Path | None:
    """The folder of a shipped model or of a local checkpoint; None for a hub id."""
    name = str(name_or_path)
    if not name:
        raise CheckpointError(
            "the model's name is empty: give a folder, a hub id (owner/name) or "
            "a shipped model's name"
        )
    if (
        name_or_path == name
        and len(name) < 256
        and re.fullmatch(r"[\w-][\w.-]*", name)
        and (SHIPPED / name / "config.json").is_file()
    ):
        return SHIPPED / name
    with door(
        f"{name!r} is no path", "give a folder, a hub id (owner/name) or a shipped model's name"
    ):
        path = Path(name).expanduser()
        is_there, is_folder = path.exists(), path.is_dir()
    if is_folder:
        return path.resolve()
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))) or "none"
    what = "is a file, not a checkpoint folder" if is_there else "does not exist"
    raise CheckpointError(
        f"{name!r} {what}: give a folder, a hub id (owner/name) or a shipped "
        f"model's name ({shipped})"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check config, index and headers of the checkpoint in ``folder``."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    with door(f"checkpoint folder {folder} could not be opened", "download it again"):
        return _open(folder)


def _open(folder: Path) -> Checkpoint:
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), which is not applied here: merge it "
            "into its model with "
            "peft's merge_and_unload, save that, and load it"
        )
    for entry in folder.iterdir():
        # Whoever opened a pipe would wait for ever; a link counts as what it leads to.
        if not (entry.is_file() or entry.is_dir()):
            raise CheckpointError(
                f"{entry} is a broken link, a pipe or a device, not a file: take "
                "it out of the checkpoint"
            )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json: not a Hugging Face checkpoint folder")
    config = _read_json(folder / "config.json")
    _refuse_quantised_config(folder, config)
    shards, shard_of = _find_shards(folder)
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for key, info in read_header(shard).items():
            if shard_of is None or shard_of.get(key) == shard:
                tensors[key] = info
    if shard_of is not None and (lost := sorted(shard_of.keys() - tensors.keys())):
        raise CheckpointError(
            f"{shard_of[lost[0]]} lacks the tensor {lost[0]!r} that the index of {folder} promises"
            f" ({len(lost)} in all): download the checkpoint again"
        )
    _refuse_absurd_counts(folder / "config.json", config, tensors)
    return Checkpoint(folder, config, shards, tensors)


def display_name(folder: Path) -> str:
    """A readable name: the folder's, or the repository's for a folder in the hub's download
    cache."""
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Subfolders and "consolidated" files hold second copies of the weights in other formats.
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=HUB_FILES,
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:  # the hub has a dozen error classes; each one means: not here
        reason = str(error).strip().split("\n")[0] or "no answer"
        raise CheckpointError(
            f"{name!r} is no local folder, and the hub did not give it ({type(error).__name__}: "
            f"{reason}):"
            " check the name and the connection, log in for a gated model, or give a local folder"
        ) from error
    return Path(folder)


def _find_shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path] | None]:
    """The weight files, and with an index the file of each tensor; one file first, as transformers
    does."""
    if (folder / "model.safetensors").is_file():
        return (folder / "model.safetensors",), None
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _read_index(index)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run any code when opened, "
            "and specmoe"
            " reads safetensors only: if you trust it, convert it with transformers' "
            "from_pretrained(...) and"
            " save_pretrained(...)"
        )
    raise CheckpointError(
        f"{folder} has neither model.safetensors nor "
        "model.safetensors.index.json: download it again"
    )


def _read_index(index: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download the checkpoint again")
    names = sorted({_safe_name(index, name) for name in weight_map.values()})
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards, first {missing[0]!r}:"
            " download the checkpoint again"
        )
    return tuple(index.parent / name for name in names), {
        k: index.parent / v for k, v in weight_map.items()
    }


def _safe_name(index: Path, name: object) -> str:
    """``name``, if it names a safetensors file inside the folder of the index."""
    posix, windows = PurePosixPath(str(name)), PureWindowsPath(str(name))
    leaves = posix.is_absolute() or windows.anchor or ".." in windows.parts
    if not isinstance(name, str) or leaves or posix.suffix != ".safetensors":
        raise CheckpointError(
            f"{index} names {name!r}, which is no .safetensors file inside its folder: do not "
            "trust this checkpoint"
        )
    return name


def _refuse_quantised_config(folder: Path, config: dict[str, Any]) -> None:
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        quantised = part.get("quantization_config") or part.get("compression_config")
        if quantised:
            method = (
                quantised.get("quant_method", "unnamed")
                if isinstance(quantised, dict)
                else quantised
            )
            raise CheckpointError(
                f"{folder} is quantised ({method}, says its config.json): specmoe runs weights as "
                "they are;"
                " use an unquantised checkpoint (bf16, fp16, fp32)"
            )


def _refuse_absurd_counts(
    file: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]
) -> None:
    """Refuse counts that the weights cannot have, before anything is built of so many parts."""
    most = max(
        LEAST_BOUND, len(tensors), *(info.shape[0] for info in tensors.values() if info.shape)
    )
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for name, value in part.items():
            if COUNTS.search(name) and isinstance(value, int | float) and value > most:
                raise CheckpointError(
                    f"{file} says {name}={value}, more than the {len(tensors)} tensors there can "
                    "hold:"
                    " correct it or download the checkpoint again"
                )


def _read_json(file: Path) -> dict[str, Any]:
    with door(f"{file} is not readable JSON", "download it again"):
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{file} has {size} bytes, and no real one is so large: do not trust it"
            )
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object: download it again")
    return content


def _read_into(file: Path, start: int, buffer: Any) -> None:
    view = memoryview(buffer)
    try:
        with open(file, "rb", buffering=0) as stream:
            stream.seek(start)
            while len(view):
                count = stream.readinto(view)
                if not count:
                    raise CheckpointError(
                        f"{file} ended {len(view)} bytes early: cut short while it was read"
                    )
                view = view[count:]
    except OSError as error:
        raise CheckpointError(f"{file} could not be read ({error})") from error
