"""A checkpoint's files: found by name, folder or hub id, refused where they are not safe."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import CheckpointError, OptionError, door
from ..shipped import package_path
from .cache import is_journal
from .gguf_header import SPLIT, read_gguf
from .header import DTYPES, StoredTensor, read_header
from .low_bit import Tensors, fold, refuse_unknown
from .packed import open_packed

SHIPPED = package_path("tiny/checkpoints")
SINGLE = "model.safetensors"
GGUF = ".gguf"
# Of a packed folder, the checkpoint without experts inside it.
REST = "model"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_JSON_BYTES = 100_000_000
# Keys of config.json that say how many modules, or entries of a list, transformers is to make.
COUNTS = re.compile(r"^(?!max_).*(layers?|experts?|labels|blocks|depth)$")
LEAST_BOUND = 512  # counts up to it cost nothing
NAME = r"[\w-][\w.-]*"
GIVE = "give a folder, a hub id (owner/name) or a shipped model's name"
AGAIN = "download the checkpoint again"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: headers read and checked, no weights in memory. ``folder`` of a GGUF is
    the file, ``architecture`` what it says of its own."""

    folder: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    tensors: Tensors
    architecture: str | None = None

    def lacks(self, what: str) -> CheckpointError:
        """The error about missing tensors; quantised ones, if any, stand in their place."""
        stored = [found for found in self.tensors.values() if isinstance(found, StoredTensor)]
        odd = (found.refusal() for found in stored if found.format not in DTYPES)
        return next(odd, CheckpointError(f"{self.folder} {what}: download it again"))


def resolve(name_or_path: str | Path, gguf_file: str | None = None, **hub) -> Path:
    """The folder of a shipped model, of a local checkpoint, or of a hub id, which is downloaded.

    In this order: ``./tiny-skewed`` is a folder of yours even where ``tiny-skewed`` is a shipped
    name. ``gguf_file`` is the one of a folder or hub id to take, as transformers calls it, of a
    split one the first. ``hub``: of a hub id, its ``revision`` (branch, tag or commit), ``token``
    and ``cache_dir``; None: huggingface_hub's own.
    """
    folder, name = _local(name_or_path, gguf_file), str(name_or_path)
    hub = {option: value for option, value in hub.items() if value is not None}
    if folder is None:
        found = _download(name, gguf_file, hub)
        return found if gguf_file is None else _named(found, gguf_file)
    for option, value in hub.items():
        said = option if option == "token" else f"{option}={value!r}"  # a token is a secret
        what = f"{said} belongs to hub ids, and {name!r} is a folder here"
        raise OptionError(f"{what}: leave it out")
    return folder


def _named(folder: Path, gguf_file: str) -> Path:
    if not gguf_file.endswith(GGUF):
        what = f"gguf_file={gguf_file!r} is no GGUF file's name"
        raise OptionError(f"{what}: leave it out, or name one that ends in {GGUF}")
    if folder.is_file():
        what = f"gguf_file={gguf_file!r} belongs to a folder or hub id, and {folder} is a file"
        raise OptionError(f"{what}: leave it out")
    if not (folder / gguf_file).is_file():
        there = ", ".join(sorted(path.name for path in folder.glob(f"*{GGUF}"))[:5])
        what = f"{folder} has no file {gguf_file!r} (gguf_file)"
        raise CheckpointError(f"{what}: " + (f"name one of {there}" if there else "it has no GGUF"))
    return folder / gguf_file


def _local(name_or_path: str | Path, gguf_file: str | None = None) -> Path | None:
    """The folder of a shipped model or of a local checkpoint; None for a hub id."""
    name = str(name_or_path)
    if not name:
        raise CheckpointError(f"the model's name is empty: {GIVE}")
    given = name if isinstance(name_or_path, str) and len(name) < 256 else ""
    if re.fullmatch(NAME, given) and (SHIPPED / name / "config.json").is_file():
        return _named(SHIPPED / name, gguf_file) if gguf_file else SHIPPED / name
    with door(f"{name!r} is no path", GIVE):
        path = Path(name).expanduser()
        is_there, is_folder = path.exists(), path.is_dir()
    if gguf_file is not None and is_there:
        return _named(path.resolve(), gguf_file)
    if is_folder:
        return _inside(path.resolve())
    if path.suffix == GGUF and path.is_file():
        # a link in the cache of downloads leads to a file without an ending
        return path.parent.resolve() / path.name
    if isinstance(name_or_path, str) and re.fullmatch(f"{NAME}/{NAME}", name):
        return None
    shipped = ", ".join(sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))) or "none"
    what = "is a file, not a checkpoint folder" if is_there else "does not exist"
    raise CheckpointError(f"{name!r} {what}: {GIVE} ({shipped})")


def _inside(folder: Path) -> Path:
    """``folder``, or of a packed one, which must be whole, the checkpoint without experts in it."""
    manifest = folder / "manifest.json"
    if gguf := _gguf_in(folder):
        return gguf
    if (folder / "config.json").exists() or not is_journal(manifest):
        return folder
    open_packed(folder)
    if gguf := _gguf_in(folder / REST):
        return gguf
    if not (folder / REST / "config.json").is_file():
        what = f"{folder} holds packed experts, but not the rest of the model ({REST}/config.json)"
        raise CheckpointError(f"{what}: load the checkpoint it was packed from, or pack that again")
    return folder / REST


def _gguf_in(folder: Path) -> Path | None:
    """The one GGUF of a folder without safetensors; of a split one its first file that is there."""
    found = sorted(path.name for path in folder.glob(f"*{GGUF}"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    firsts = {(m[1], m[3]) if (m := SPLIT.fullmatch(name)) else name: name for name in found[::-1]}
    if len(firsts) > 1:
        what = f"{folder} holds {len(firsts)} GGUF files ({', '.join(sorted(firsts.values())[:5])})"
        raise CheckpointError(f"{what}: say which with gguf_file=, or give the path of one of them")
    return folder / found[0]


def _download(name: str, gguf_file: str | None, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Subfolders and "consolidated" files hold second copies of the weights in other formats.
        skipped = ["*/*", "consolidated*"]
        patterns = {"allow_patterns": HUB_FILES, "ignore_patterns": skipped}
        if gguf_file is not None:
            # the others of a split one, too
            patterns = {"allow_patterns": re.sub("-[0-9]{5}-of-", "-*-of-", gguf_file)}
        return Path(snapshot_download(name, **hub, **patterns))
    except Exception as error:  # the hub has a dozen error classes; each one means: not here
        reason = str(error).strip().split("\n")[0] or "no answer"
        why = f"the hub did not give it ({type(error).__name__}: {reason})"
        todo = "check the name and the connection, log in for a gated model, or give a local folder"
        raise CheckpointError(f"{name!r} is no local folder, and {why}: {todo}") from error


def display_name(folder: Path) -> str:
    """The folder's name, or the repository's for a folder in the hub's download cache; of a GGUF
    the file's without its ending."""
    if folder.suffix == GGUF:
        return folder.stem
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and check config, index and headers of the checkpoint in ``folder``."""
    folder = Path(folder)
    if folder.suffix == GGUF and folder.is_file():
        header = read_gguf(folder)
        config = {"model_type": header.architecture}
        return Checkpoint(folder, config, header.files, header.tensors(), header.architecture)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    with door(f"checkpoint folder {folder} could not be opened", "download it again"):
        _refuse_odd_files(folder)
        config = _read_json(folder / "config.json")
        settings = _low_bit_settings(folder, config)
        shard_of = _find_shards(folder)
        shards = tuple(sorted(set((shard_of or {"": folder / SINGLE}).values())))
        found = [item for shard in shards for item in read_header(shard).items()]
        tensors = {k: t for k, t in found if not shard_of or shard_of.get(k) == t.file}
        if lost := sorted(shard_of.keys() - tensors.keys()):
            what = f"{shard_of[lost[0]]} lacks the tensor {lost[0]!r} that the index of {folder}"
            raise CheckpointError(f"{what} promises ({len(lost)} in all): {AGAIN}")
        _refuse_absurd_counts(folder / "config.json", config, tensors)
        return Checkpoint(folder, config, shards, fold(tensors, settings) if settings else tensors)


def _refuse_odd_files(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        what = f"{folder} holds an adapter (adapter_config.json), which is not applied here"
        how = "merge it into its model with peft's merge_and_unload, save that, and load it"
        raise CheckpointError(f"{what}: {how}")
    for entry in folder.iterdir():
        # Whoever opened a pipe would wait for ever; a link counts as what it leads to.
        if not (entry.is_file() or entry.is_dir()):
            what = f"{entry} is a broken link, a pipe or a device, not a file"
            raise CheckpointError(f"{what}: take it out of the checkpoint")
    if not (folder / "config.json").is_file():
        what = f"{folder} has no config.json: not a Hugging Face checkpoint folder"
        raise CheckpointError(f"{what} (of a GGUF repository name the file: gguf_file=)")


def _find_shards(folder: Path) -> dict[str, Path]:
    """The file of each tensor in the index; empty for a single file, which comes first."""
    if (folder / SINGLE).is_file():
        return {}
    index = folder / f"{SINGLE}.index.json"
    if index.is_file():
        return _read_index(index)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        raise CheckpointError(f"{folder} has neither {SINGLE} nor {index.name}: download it again")
    what = f"{folder} holds pickled weights ({pickles[0]}), which can run any code when opened"
    how = "convert it with transformers' from_pretrained(...) and save_pretrained(...)"
    raise CheckpointError(f"{what}, and specmoe reads safetensors only: if you trust it, {how}")


def _read_index(index: Path) -> dict[str, Path]:
    folder, weight_map = index.parent, _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: {AGAIN}")
    for name in weight_map.values():
        posix, windows = PurePosixPath(str(name)), PureWindowsPath(str(name))
        leaves = posix.is_absolute() or windows.anchor or ".." in windows.parts
        if not isinstance(name, str) or leaves or posix.suffix != ".safetensors":
            what = f"{index} names {name!r}, which is no .safetensors file inside its folder"
            raise CheckpointError(f"{what}: do not trust this checkpoint")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        what = f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]!r}"
        raise CheckpointError(f"{what}: {AGAIN}")
    return {key: folder / name for key, name in weight_map.items()}


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A config, and those of the models it is made of."""
    return [config, *(value for value in config.values() if isinstance(value, dict))]


def _low_bit_settings(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What a config says about low bits; refused where it names what is not read here."""
    names = ("quantization_config", "compression_config")
    found = [part[name] for part in _parts(config) for name in names if part.get(name)]
    for settings in found:
        refuse_unknown(folder, settings)
    return found[0] if found else {}


def _refuse_absurd_counts(file: Path, config: dict[str, Any], tensors: dict) -> None:
    """Refuse counts that the weights cannot have, before anything is built of so many parts."""
    first = [stored.shape[0] for stored in tensors.values() if stored.shape]
    most = max(LEAST_BOUND, len(tensors), *first)
    for name, value in (setting for part in _parts(config) for setting in part.items()):
        if COUNTS.search(name) and isinstance(value, int | float) and value > most:
            what = f"{file} says {name}={value}, more than the {len(tensors)} tensors there"
            raise CheckpointError(f"{what} can hold: correct it or {AGAIN}")


def _read_json(file: Path) -> dict[str, Any]:
    with door(f"{file} is not readable JSON", "download it again"):
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            what = f"{file} has {size} bytes, and no real one is so large"
            raise CheckpointError(f"{what}: do not trust it")
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object: download it again")
    return content
