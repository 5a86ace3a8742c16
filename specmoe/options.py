"""What a user can ask for: frozen dataclasses that check themselves.

Comes in: the keyword arguments of ``specmoe.load`` and ``Engine.generate``. Goes out:
``LoadOptions`` and ``GenerateOptions`` for ``engine``. Every bad value raises ``OptionError`` with
the value and the way out.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError, check_choice, nearest
from .registry import BUILT_IN, check_part, names

STORES = ("disk", "memory", "checkpoint")
METHODS = ("specmoe", "on_demand", "cached", "overlapped", "resident", "auto")
EVICTIONS, DRAFT_SETS, SUBSTITUTES = map(BUILT_IN.get, ("eviction", "draft_set", "substitute"))
ACCEPT_RULES = ("coupled", "rejection", "block")
# What the command line and a report's kernel set before torch is loaded, where it brings GNU's
# OpenMP: how long its idle threads spin. Not at all, and a draft step of many small products takes
# up to twice as long; much longer, and readers miss the core.
SPIN = ("GOMP_SPINCOUNT", "30000")
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def spin_setting() -> dict[str, str]:
    """``SPIN`` as something to add to the environment; nothing where the user has said how threads
    wait."""
    return {} if {SPIN[0], "OMP_WAIT_POLICY"} & os.environ.keys() else dict([SPIN])


def parse_bytes(option: str, value: int | float | str | None) -> int | None:
    """Bytes from ``4096``, ``"2GiB"`` or ``"1.5 MB"``; ``None`` stays ``None``."""
    if value is None:
        return None
    match = re.fullmatch(
        r"\s*(\d+\.?\d*(?:e\+?\d{1,2})?|\.\d+)\s*([kmgt]?i?)b?\s*", str(value).lower()
    )
    size = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else math.inf
    if math.isinf(size):
        raise OptionError(f"{option}={value!r} is not a size: write bytes or e.g. '2GiB', '500MB'")
    num_bytes = int(size)
    if num_bytes <= 0:
        raise OptionError(f"{option}={value!r} must be more than zero bytes")
    return num_bytes


def torch_dtype(dtype):
    """A ``torch.dtype`` from one or from its name; ``None`` and "auto" stay what they are."""
    import torch

    is_auto = isinstance(dtype, str) and dtype == "auto"
    if dtype is None or is_auto or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(
            f"dtype={dtype!r} is unknown: use 'float32', 'bfloat16', 'float16', 'float64' or 'auto'"
        )
    return found


def check_device(device) -> None:
    """``OptionError`` unless torch has ``device`` here."""
    import torch

    if not isinstance(device, str | torch.device):
        raise OptionError(f"device={device!r} is no device: use 'cpu', 'cuda' or 'cuda:0'")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as failure:
        reason = str(failure).splitlines()[0] if str(failure) else type(failure).__name__
        raise OptionError(
            f"device={device!r} cannot be used here ({reason}): try device='cpu'"
        ) from None


# What every number and flag may be: whole or not, least, most. None is allowed where it is the
# default.
_WHOLE = {
    "draft_experts": (1, 10**9),
    "num_readers": (1, 1024),
    "max_new_tokens": (1, 2**31),
    "gamma": (0, 10**6),
    "batch_size": (1, 10**6),
    "top_k": (0, 2**31),
    "seed": (0, 2**63),
    "first_prompt": (0, 2**63),
    "draft_top_k": (1, 10**6),
    "num_return_sequences": (1, 10**6),
}
_REAL = {"temperature": (0, float("inf")), "top_p": (0, 1), "link_bytes_per_s": (1, 1e18)}
# of torch.compile: "reduce-overhead" replays a GPU's work as a graph where it can
COMPILE_MODES = ("reduce-overhead",)
_FLAGS = ("compile", "trace", "prefetch", "do_sample")
_TEXTS = ("revision", "gguf_file", "cache_dir", "source_lang", "target_lang")
# Options of where a checkpoint is found.
FOUND_BY = ("gguf_file", "revision", "token", "cache_dir")
# What ``from_pretrained`` takes, and what is here in its place.
ELSEWHERE = {
    "torch_dtype": "use dtype=",
    "device_map": "use device= for all but the experts, and store= for them",
    "max_memory": "use fast_memory=, all bytes of experts in fast memory",
    "offload_folder": "use store='disk'; specmoe cache list shows where the copies lie",
    "quantization_config": "a checkpoint is run as it is stored: load one with low-bit experts",
    "load_in_4bit": "a checkpoint is run as it is stored: load one with low-bit experts",
    "load_in_8bit": "a checkpoint is run as it is stored: load one with low-bit experts",
    "attn_implementation": "rows of different lengths need specmoe's own attention",
    "experts_implementation": "the experts are run by specmoe's own kernels",
    "trust_remote_code": "code of a checkpoint never runs",
    "low_cpu_mem_usage": "experts never lie in memory all at once",
    "use_safetensors": "only safetensors and GGUF are read",
    "subfolder": "give the folder itself as the model",
    "local_files_only": "set HF_HUB_OFFLINE=1 in the environment",
    "force_download": "remove the model from the hub's cache first",
    "tokenizer": "the checkpoint's own is loaded; pass token ids for another",
    "max_length": "lengths belong to generate",
}


def _check_types(options: Any) -> None:
    """Numbers, flags and names: numpy's and torch's scalars become Python's; everything else of
    another type is refused."""
    for name, field in type(options).__dataclass_fields__.items():
        value = _as_python(getattr(options, name))
        object.__setattr__(options, name, value)
        if value is not None or field.default is not None:
            _check_type(options, name, value)


def _check_type(options: Any, name: str, value: Any) -> None:
    if name in _WHOLE and type(value) is not int:
        raise OptionError(f"{name}={value!r} must be a whole number")
    if name in _REAL and type(value) not in (int, float):
        raise OptionError(f"{name}={value!r} must be a number")
    if name in ("temperature", "top_p"):  # transformers' warpers take floats only
        object.__setattr__(options, name, float(value))
    if name in _WHOLE | _REAL:
        _check_range(name, value, *(_WHOLE | _REAL)[name])
    modes = COMPILE_MODES if name == "compile" else ()
    is_mode = isinstance(value, str) and value in modes
    if name in _FLAGS and type(value) is not bool and not is_mode:
        raise OptionError(f"{name}={value!r} must be {', '.join(('True', *modes))} or False")
    if name in _TEXTS and (not isinstance(value, str) or not value):
        raise OptionError(f"{name}={value!r} must be a name")


def _as_python(value) -> Any:
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not value >= least:
        raise OptionError(f"{name}={value!r} must be at least {least}")
    if not value <= most or value == float("inf"):
        raise OptionError(f"{name}={value!r} must be at most {most}")


def from_kwargs(cls: type, kwargs: Mapping[str, Any]):
    """Build the dataclass ``cls`` from keyword arguments; an unknown one raises with the nearest
    name."""
    names = [field.name for field in dataclasses.fields(cls)]
    for name in kwargs:
        if name in ELSEWHERE and cls is LoadOptions:
            raise OptionError(f"{name} is not an option here: {ELSEWHERE[name]}")
        if name not in names:
            raise OptionError(f"unknown option {name!r}: {nearest(name, {*names} - {'own'})}")
    return cls(**kwargs)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model (``specmoe.load``). Sizes in bytes, rates in bytes per second."""

    # "checkpoint" reads the published files themselves, and writes no packed copy; None: so do
    # experts of a MiB and more that lie well there, all others "disk", a packed copy
    store: str | None = None
    device: str = "cpu"
    dtype: Any = None
    draft_experts: int | None = None
    fast_memory: int | str | None = None
    link_bytes_per_s: float | None = None
    expert_bytes: int | str | None = None
    compile: bool | str = False  # or one of ``COMPILE_MODES``
    trace: bool = True
    num_readers: int = 4
    revision: str | None = None  # branch, tag or commit of a hub id
    gguf_file: str | None = None  # which one of a folder or hub id with several
    # of the hub; None: what ``hf auth login`` kept. A secret, so no message shows it
    token: str | bool | None = dataclasses.field(default=None, repr=False)
    cache_dir: str | None = None  # of downloads; None: huggingface_hub's

    def __post_init__(self):
        if isinstance(self.cache_dir, os.PathLike):
            object.__setattr__(self, "cache_dir", os.fspath(self.cache_dir))
        _check_types(self)
        if not isinstance(self.token, str | bool | None) or self.token == "":
            raise OptionError("token must be a text, True or False")
        if self.store is not None:
            check_choice("store", self.store, STORES)
        object.__setattr__(self, "fast_memory", parse_bytes("fast_memory", self.fast_memory))
        object.__setattr__(self, "expert_bytes", parse_bytes("expert_bytes", self.expert_bytes))


@dataclass(frozen=True)
class GenerateOptions:
    """How to decode (``Engine.generate``). ``top_k`` and ``top_p`` are sampling's, as in
    transformers."""

    max_new_tokens: int = 64
    method: str = "auto"
    gamma: int | None = None
    # how far to draft (``speculate.planner``); None: ``gamma`` tokens, or what suits the method
    planner: Any = None
    # where drafted tokens come from (``speculate.sources``). Like the other parts that
    # ``registry.register`` gives names to, it may be a name, a function, a class
    draft: Any = "resident"
    draft_set: Any = "hot_temporal"
    substitute: Any = "affinity"
    # experts per token while drafting; None: the model's (half of them where gamma is planned)
    draft_top_k: int | None = None
    eviction: Any = "temporal"
    prefetch: bool = True
    batch_size: int | None = None
    num_return_sequences: int = 1
    # None: what generation_config or the checkpoint says, else greedy; then 1.0, 0 and 1.0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    # number of the first prompt in a longer job: sampling noise depends on it
    first_prompt: int = 0
    accept_rule: str = "coupled"
    eos_token_id: int | list[int] | None = None
    logits_processor: Any = None
    stopping_criteria: Any = None
    settings: Any = None  # a dict of generation settings or None, one per prompt
    # other generation settings by name; ``settings.gather`` fills it
    own: Any = dataclasses.field(default_factory=dict)
    source_lang: str | None = None
    target_lang: str | None = None
    streamer: Any = None
    progress: Any = None

    def __post_init__(self):
        _check_types(self)
        check_choice("method", self.method, METHODS)
        for kind in ("eviction", "substitute", "draft_set"):
            check_part(kind, getattr(self, kind))
        if self.planner is not None:
            check_part("planner", self.planner)
        check_choice("accept_rule", self.accept_rule, ACCEPT_RULES)
        for part in self.draft.split("+") if isinstance(self.draft, str) else ():
            check_choice("draft", part.partition(":")[0], names("draft"))
        if self.do_sample and self.temperature == 0:
            raise OptionError(
                "temperature=0 with do_sample=True: use do_sample=False for greedy decoding"
            )
        if self.top_p == 0:
            raise OptionError(f"top_p={self.top_p!r} must be above 0 and at most 1")
        for name in ("put", "end"):
            if self.streamer is not None and not callable(getattr(self.streamer, name, None)):
                raise OptionError(
                    f"streamer={self.streamer!r} has no {name}(): pass one of "
                    "transformers' streamers"
                )
        if not (isinstance(self.progress, bool | None) or callable(self.progress)):
            raise OptionError(
                f"progress={self.progress!r} must be True, False or a function of "
                "(finished, prompts)"
            )
