"""specmoe: Mixture-of-Experts inference with experts in slow memory, by self-assisted speculative
decoding.

import specmoe
engine = specmoe.load("tiny-skewed", store="disk")
output = engine.generate(["SELECT name FROM"], max_new_tokens=32)
"""

from __future__ import annotations

from .errors import (
    CheckpointError,
    FastMemoryError,
    OptionError,
    SpecMoEError,
    StoreError,
    UnsupportedModelError,
)
from .registry import register

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Engine",
    "FastMemoryError",
    "OptionError",
    "SpecMoEError",
    "StoreError",
    "UnsupportedModelError",
    "load",
    "register",
    "sweep",
]


def __getattr__(name: str):
    """``load`` and ``Engine`` bring torch and transformers with them, so they come when first asked
    for; ``sweep`` lies below the wall, and nothing here needs it."""
    if name in ("load", "Engine"):
        from .engine import engine

        return getattr(engine, name)
    if name == "sweep":
        from importlib import import_module

        return import_module(".lab.sweep", __name__).sweep
    raise AttributeError(f"module 'specmoe' has no attribute {name!r}")
