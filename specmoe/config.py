"""What a user can ask for: frozen dataclasses that check themselves.

Comes in: the keyword arguments of ``specmoe.load`` and ``Engine.generate``. Goes out: ``LoadOptions`` and
``GenerateOptions`` for ``engine``. Every bad value raises ``OptionError`` with the value and the way out.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import OptionError, check_choice, nearest

STORES = ("disk", "memory")
METHODS = ("specmoe", "on_demand", "cached", "overlapped", "resident", "auto")
EVICTIONS = ("lru", "lfu", "static", "temporal")
DRAFT_SETS = ("random", "hot_global", "hot_temporal")
SUBSTITUTES = ("affinity", "router", "random", "drop", "no_experts")
ACCEPT_RULES = ("coupled", "rejection")
# What the command line and a report's kernel set before torch is loaded, where it brings GNU's OpenMP: how long its idle
# threads spin. Not at all, and a draft step of many small products takes up to twice as long; much longer, and readers miss
# the core.
SPIN = ("GOMP_SPINCOUNT", "30000")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def spin_setting() -> dict[str, str]:
    """``SPIN`` as something to add to the environment; nothing where the user has said how threads wait."""
    return {} if {SPIN[0], "OMP_WAIT_POLICY"} & os.environ.keys() else dict([SPIN])


def parse_bytes(option: str, value: int | float | str | None) -> int | None:
    """Bytes from ``4096``, ``"2GiB"`` or ``"1.5 MB"``; ``None`` stays ``None``."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\+?\d{1,2})?|\.\d+)\s*([kmgt]?i?)b?\s*", str(value).lower())
    if not match or match[2] not in _UNITS:
        raise OptionError(f"{option}={value!r} is not a size: write bytes or e.g. '2GiB', '500MB'")
    num_bytes = int(float(match[1]) * _UNITS[match[2]])
    if num_bytes <= 0:
        raise OptionError(f"{option}={value!r} must be more than zero bytes")
    return num_bytes


def torch_dtype(dtype):
    """A ``torch.dtype`` from one or from its name; ``None`` stays ``None``."""
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(f"dtype={dtype!r} is unknown: use 'float32', 'bfloat16', 'float16' or 'float64'")
    return found


def check_device(device) -> None:
    """``OptionError`` unless torch has ``device`` here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as failure:
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise OptionError(f"device={device!r} cannot be used here ({reason}): try device='cpu'") from None


def _check_at_least(options: object, least: dict[str, float]) -> None:
    for name, bound in least.items():
        value = getattr(options, name)
        if value is None and type(options).__dataclass_fields__[name].default is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise OptionError(f"{name}={value!r} must be a number")
        if not value >= bound:
            raise OptionError(f"{name}={value!r} must be at least {bound}")


def _check_integers(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise OptionError(f"{name}={value!r} must be a whole number")


def from_kwargs(cls: type, kwargs: dict[str, Any]):
    """Build the dataclass ``cls`` from keyword arguments; an unknown one raises with the nearest name."""
    names = [field.name for field in dataclasses.fields(cls)]
    for name in kwargs:
        if name not in names:
            raise OptionError(f"unknown option {name!r}: {nearest(name, {*names} - {'own'})}")
    return cls(**kwargs)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model (``specmoe.load``). Sizes in bytes, rates in bytes per second."""

    store: str = "disk"
    device: str = "cpu"
    dtype: Any = None
    draft_experts: int | None = None
    fast_memory: int | str | None = None
    link_bytes_per_s: float | None = None
    expert_bytes: int | str | None = None
    compile: bool = False
    trace: bool = True
    num_readers: int = 4
    revision: str | None = None  # branch, tag or commit of a hub id

    def __post_init__(self):
        check_choice("store", self.store, STORES)
        _check_integers(self, "draft_experts", "num_readers")
        _check_at_least(self, {"draft_experts": 1, "num_readers": 1})
        object.__setattr__(self, "fast_memory", parse_bytes("fast_memory", self.fast_memory))
        object.__setattr__(self, "expert_bytes", parse_bytes("expert_bytes", self.expert_bytes))
        if not isinstance(self.revision, str | None) or self.revision == "":
            raise OptionError(f"revision={self.revision!r} is no branch, tag or commit of a hub id")
        if self.link_bytes_per_s is not None:
            _check_at_least(self, {"link_bytes_per_s": 1})


@dataclass(frozen=True)
class GenerateOptions:
    """How to decode (``Engine.generate``). ``top_k`` and ``top_p`` are sampling's, as in transformers."""

    max_new_tokens: int = 64
    method: str = "auto"
    gamma: int | None = None
    draft_set: str | Callable = "hot_temporal"
    substitute: str = "affinity"
    draft_top_k: int | None = (
        None  # experts per token while drafting; None: the model's (half of them where gamma is the planner's)
    )
    eviction: str = "temporal"
    prefetch: bool = True
    batch_size: int | None = None
    # None: what generation_config or the checkpoint says, else greedy; then 1.0, 0 and 1.0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    first_prompt: int = 0  # number of the first prompt in a longer job: sampling noise depends on it
    accept_rule: str = "coupled"
    eos_token_id: int | list[int] | None = None
    logits_processor: Any = None
    stopping_criteria: Any = None
    settings: Any = None  # a dict of generation settings or None, one per prompt
    own: Any = dataclasses.field(default_factory=dict)  # other generation settings by name; ``settings.gather`` fills it
    source_lang: str | None = None
    target_lang: str | None = None
    streamer: Any = None
    progress: Any = None

    def __post_init__(self):
        check_choice("method", self.method, METHODS)
        check_choice("eviction", self.eviction, EVICTIONS)
        check_choice("substitute", self.substitute, SUBSTITUTES)
        check_choice("accept_rule", self.accept_rule, ACCEPT_RULES)
        if not callable(self.draft_set):
            check_choice("draft_set", self.draft_set, DRAFT_SETS)
        _check_integers(self, "max_new_tokens", "gamma", "batch_size", "top_k", "seed", "first_prompt", "draft_top_k")
        _check_at_least(self, {"max_new_tokens": 1, "gamma": 0, "batch_size": 1, "top_k": 0, "seed": 0, "first_prompt": 0})
        _check_at_least(self, {"draft_top_k": 1})
        _check_at_least(self, {"temperature": 0, "top_p": 0})
        if self.do_sample is not None and not isinstance(self.do_sample, bool):
            raise OptionError(f"do_sample={self.do_sample!r} must be True or False")
        if self.do_sample and self.temperature == 0:
            raise OptionError("temperature=0 with do_sample=True: use do_sample=False for greedy decoding")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionError(f"top_p={self.top_p!r} must be above 0 and at most 1")
