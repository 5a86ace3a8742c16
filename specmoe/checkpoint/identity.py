"""What a checkpoint's content is, whatever it is called and wherever it lies: a hash of every byte.

``packing`` compares the digest of each expert with what it packed before. The size and the time
stamps of the shards decide whether they have to be read again; they are kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from ..errors import CheckpointError, SpecMoEError, StoreError
from .cache import cache_folder, write_whole
from .gguf_header import files_of
from .packed import seal, unseal
from .plan import ExpertPlan

logger = logging.getLogger("specmoe")

# What decides tokens and texts beside the weights. An index or a README does not.
SETTINGS = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json")
SETTINGS += ("added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken")
SETTINGS += ("chat_template*", "additional_chat_templates/*")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# A file changed twice within a tick of the clock has one time stamp for both: such a stamp proves
# nothing.
TICK_NS = 50_000_000
NUM_READERS = 2  # one hashes while the other reads


class Contents:
    """Digests of the weights that ``plan`` finds. ``records``: one for each expert, layer by layer,
    or None while only reading can tell; ``before``: those of the last time."""

    def __init__(self, plan: ExpertPlan):
        self.plan = plan
        self.records: list[str] | None = None
        self.rest: str | None = None
        self.before: list[str] | None = None
        self.began_ns = time.time_ns()
        self.stamps = self._stamps()
        self.reload()

    def reload(self) -> None:
        """Take what is written down for this checkpoint, as far as its time stamps are the same."""
        known = read_kept(self._file())
        if known.get("transformers") != transformers.__version__:
            return
        self.before = known.get("records")
        newest = max((stamp[2] for stamp in self.stamps.values() if stamp), default=0)
        if known["stamps"] == self.stamps and newest + TICK_NS < known["began_ns"]:
            self.records = known["records"]
            self.rest = known["rest"]
            self.began_ns = known["began_ns"]

    def measure(self) -> None:
        """Read every expert, unless its digest is known."""
        if self.records is None:
            plan = self.plan
            places = [divmod(index, plan.num_experts) for index in range(plan.num_records)]
            with ThreadPoolExecutor(NUM_READERS) as readers:
                self.records = list(readers.map(lambda place: plan.digest(*place), places))

    def unchanged(self) -> bool:
        """Whether the shards are still those that were read."""
        return self._stamps() == self.stamps

    def keep(self) -> None:
        """Write down what is known; where nothing can be written, the next load reads it again."""
        folder, file = str(self.plan.checkpoint.folder), self._file()
        known = {"checkpoint": folder, "transformers": transformers.__version__}
        known |= {name: getattr(self, name) for name in ("stamps", "began_ns", "records", "rest")}
        if not self.unchanged() or read_kept(file) == known:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, seal(known).encode())
        except OSError as error:
            logger.info("time stamps of %s not kept (%s)", folder, error)

    def others(self) -> list[list[str]]:
        """The records of every other checkpoint that is written down."""
        mine = self._file()
        files = [file for file in mine.parent.glob("*.json") if file != mine]
        return [read_kept(file).get("records") for file in files]

    def _stamps(self) -> dict[str, list[int] | None]:
        return {shard.name: stamp_of(shard) for shard in self.plan.checkpoint.shards}

    def _file(self) -> Path:
        return kept_of(self.plan.checkpoint.folder, ".json")


def kept_of(folder: Path, ending: str) -> Path:
    """Where the cache keeps what is known of the checkpoint in ``folder``."""
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    try:
        root = cache_folder()
    except StoreError:
        # nothing is ever found there, or can be written
        root = Path(os.devnull)
    return root / "stamps" / f"{place}{ending}"


def stamp_of(file: Path) -> list[int] | None:
    """Size, change of content, change of inode (no tool sets it back), inode; None: unreachable."""
    try:
        s = file.stat()
    except OSError:
        return None
    return [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Whatever is read within is of one checkpoint: ``CheckpointError`` where a file of it was
    replaced, altered or taken away meanwhile, to whatever other error that led."""
    before, cause = _stamps_of_all(folder), None
    try:
        yield
    except SpecMoEError as error:
        cause = error
    now = _stamps_of_all(folder)
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    if changed:
        what = f"{folder} changed while it was read ({changed[0]})"
        raise CheckpointError(f"{what}: load it again when nothing writes to it") from cause
    if cause is not None:
        raise cause


def _stamps_of_all(folder: Path) -> dict[str, list[int] | None]:
    """Of each file whose content counts: weights, their index, settings, tokenizer; of a GGUF."""
    if folder.is_file() or folder.suffix == ".gguf":
        return {file.name: stamp_of(file) for file in files_of(folder)}
    files = {file for pattern in (*WEIGHTS, *SETTINGS) for file in folder.glob(pattern)}
    return {str(file.relative_to(folder)): stamp_of(file) for file in files}


def read_kept(file: Path) -> dict[str, Any]:
    """What ``Contents.keep`` wrote; empty where there is nothing, or nothing whole."""
    try:
        return unseal(file.read_bytes())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return {}
