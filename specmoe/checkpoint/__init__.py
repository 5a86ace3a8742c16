"""From a Hugging Face checkpoint to a model without experts and a folder with one record per
expert.

Comes in: a shipped name, a folder or a hub id. Goes out: ``build_model`` gives the transformers
model with its expert parameters still on ``meta``; ``pack`` gives ``PackedExperts``, which
``offload.store`` reads next.

header    the header of a safetensors file: names, shapes and bytes, believed only where all of it
          fits
files     a checkpoint's files, read without mmap; what is no safe checkpoint is refused there
recipes   transformers' own conversion mapping: which checkpoint tensors make which tensor of the
          model
model     the model on meta, its experts modules, the loading of everything that is not an expert
layout    how a record is laid out; a packed folder, opened and checked
plan      where in the checkpoint every expert lies, checked by shapes before weights are read
padding   zero FFN columns, so that small experts cost what large ones do
cache     the folder of packed copies: what is in it, and removing it
identity  a hash of every byte, and the time stamps that say whether to read them again
packing   writing the records: atomic, resumable, one expert in memory at a time
"""

from .cache import cache_folder, hold, write_whole
from .files import resolve
from .identity import TICK_NS, identity_of, unchanged
from .layout import ExpertLayout, PackedExperts, open_packed, verify_packed
from .model import build_model, expert_modules
from .packing import pack

__all__ = [
    "TICK_NS",
    "ExpertLayout",
    "PackedExperts",
    "build_model",
    "cache_folder",
    "expert_modules",
    "hold",
    "identity_of",
    "open_packed",
    "pack",
    "resolve",
    "unchanged",
    "verify_packed",
    "write_whole",
]
