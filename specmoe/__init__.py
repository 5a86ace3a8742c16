"""specmoe: Mixture-of-Experts inference with experts in slow memory, by self-assisted speculative
decoding.

import specmoe
engine = specmoe.load("tiny-skewed", store="disk")
output = engine.generate(["SELECT name FROM"], max_new_tokens=32)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    FastMemoryError,
    OptionError,
    SpecMoEError,
    StoreError,
    UnsupportedModelError,
)
from .registry import register

if TYPE_CHECKING:
    from .engine.custom import custom_generate
    from .engine.engine import Engine, load

    plan: Any
    sweep: Any

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Engine",
    "FastMemoryError",
    "OptionError",
    "SpecMoEError",
    "StoreError",
    "UnsupportedModelError",
    "custom_generate",
    "load",
    "plan",
    "register",
    "sweep",
]


# Where the rest lies. It brings torch and transformers with it, so it comes when first asked for;
# ``plan`` and ``sweep`` lie below the wall, and nothing here needs them.
_LATER = {
    "load": ".engine.engine",
    "Engine": ".engine.engine",
    "custom_generate": ".engine.custom",
    "plan": ".lab.simulate",
    "sweep": ".lab.sweep",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module 'specmoe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]  # what Tab shows: nothing that only this file needs
