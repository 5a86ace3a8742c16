"""What to expect of a model on a machine before anything is downloaded: bytes, what a budget of fast
memory buys, tokens per second by method. Calculated; nothing is run.

Comes in: a model (a folder, a GGUF, a shipped name, a hub id whose config is in the cache, a name of the
table of real models, a config), a budget, a ``Hardware``. Goes out: a frozen ``Plan``. Slots are
the engine's own arithmetic (``plan_memory``), speeds are ``expect``'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from ...errors import FastMemoryError, OptionError, SpecMoEError, nearest
from ...options import LoadOptions, parse_bytes
from .expectation import EVEN, GAMMA, LIKE, Expectation, expect
from .hardware import Hardware
from .here import machine_of
from .real_models import known_models, read_config, size_of
from .shipped import SHIPPED
from .sizes import ModelSize

BATCHES = (1, 16, 64)
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the experts, for the curve of budgets
PAGE_BYTES = 4096  # records begin where direct I/O can read them
NAMES = {"F64": "fp32", "F32": "fp32", "F16": "bf16", "BF16": "bf16"}
ASSUMED = (
    "assumed: the pool's misses, and a round's tokens and reads, are those counted with {like} "
    "(gamma {gamma}) at the same share of experts in fast memory{more}; {speeds}"
)
ASSUMED_EVEN = (
    "assumed: every expert is as likely as any other, whatever came before, and a round's tokens are "
    "those counted with {like} (gamma {gamma}){more}; {speeds}"
)
IN_FILE = "experts as they lie in the file, the rest dequantised to bf16"
CARRIED = "; of a batch, distinct experts grow with the number of experts as even use lets them"
CEILINGS = "link, memory and arithmetic overlap fully, so speeds are ceilings"
PROBED = "seconds are those of the engine's own parts, timed here on a small cut of the model"


@dataclass(frozen=True)
class Plan:
    """``rows``: one ``Expectation`` per method and batch at the budget; ``curve``: the
    same at other shares of the experts in fast memory."""

    model: ModelSize
    machine: Hardware
    fast_memory_bytes: int  # of experts, as ``specmoe.load(fast_memory=...)`` takes it
    slots: int
    draft_experts: int  # of each layer, that draft
    cached_experts: int  # of each layer, that ``cached`` keeps
    # of slots as large as the largest layer's experts, where layers differ: what the others leave
    unused_bytes: int
    kv_bytes_per_token: int | None  # of one text, in bf16; None: not counted
    rows: tuple[Expectation, ...]
    curve: tuple[tuple[float, Expectation], ...]
    assumption: str

    @property
    def share(self) -> float:
        """Of all experts, in fast memory."""
        return min(1.0, self.slots / (self.model.num_layers * self.model.num_experts))

    def to_frame(self) -> pd.DataFrame:
        """A row per method and batch."""
        return frame_of(self.rows)

    def to_json(self) -> dict:
        size, machine = self.model, self.machine
        model = {
            "name": size.name,
            "layers": size.num_layers,
            "experts": size.num_experts,
            "top_k": size.top_k,
            "expert_bytes": size.expert_bytes,
            "experts_bytes": size.experts_bytes + size.encoder_bytes,
            "trunk_bytes": size.held_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "bytes_per_token": size.bytes_per_token,
            "source": size.source,
        }
        rates = ("link_bytes_per_s", "memory_bytes_per_s", "flop_per_s")
        names = ("fast_memory_bytes", "slots", "draft_experts", "cached_experts", "share")
        names += ("unused_bytes",)
        return {
            "model": model,
            "machine": {name: getattr(machine, name) for name in ("name", *rates, "source")},
            "budget": {name: getattr(self, name) for name in names},
            "rows": self.to_frame().to_dict("records"),
            "simulated": True,
            "assumption": self.assumption,
        }

    def figure(self, ax=None):
        """Tokens per second by budget and method, a panel per batch."""
        from ..figures.plan import plan_speeds

        return plan_speeds(self, ax)


def plan(
    model,
    fast_memory: int | str | None = None,
    machine: Hardware | str | None = None,
    *,
    batch: Iterable[int] = BATCHES,
    like: str | None = None,
    gamma: int = GAMMA,
    weights: str | None = None,
    **rates: float,
) -> Plan:
    """``fast_memory``: bytes of experts as ``specmoe.load`` takes them; None: what the machine's
    memory leaves beside the trunk. ``machine``: a ``Hardware``, a preset's name, or None, this one,
    probed for some seconds, the engine's own parts on a cut of the model included. ``rates`` (``link_bytes_per_s``, ``memory_bytes_per_s``,
    ``flop_per_s``) replace the machine's. ``like`` (None: a shipped model's own routing; "even":
    no expert likelier than another), ``gamma`` and ``weights`` as in ``expect``."""
    config, weights = _config_of(model, weights)
    size = size_of(config, weights)
    layout = _layout(file) if weights is None and (file := _gguf(model)) else None
    if layout:
        expert_bytes = mean_of_layers(layout, "payload_bytes")
        size = replace(size, expert_bytes=expert_bytes, source=f"{size.name}, {IN_FILE}")
    record_bytes = -(-size.expert_bytes // PAGE_BYTES) * PAGE_BYTES
    record_bytes = mean_of_layers(layout, "record_bytes") if layout else record_bytes
    slot_bytes = layout.record_bytes if layout else record_bytes
    machine = machine_of(machine, rates, record_bytes, str(model) if _is_shipped(model) else config)
    budget = parse_bytes("fast_memory", fast_memory) or _left_beside(size, machine)
    memory = _slots(size, slot_bytes, budget, _scratch_bytes(size, layout))
    stored = replace(size, name=_name(model, size), expert_bytes=record_bytes)
    like = like or (str(model) if _is_shipped(model) else LIKE)
    batch, given = tuple(batch), {"like": like, "gamma": gamma}

    def at(share: float) -> tuple[Expectation, ...]:
        found = (expect(stored, machine, share=share, batch=b, **given) for b in batch)
        return tuple(each for of_batch in found for each in of_batch.values())

    share = min(1.0, memory.num_slots / (size.num_layers * size.num_experts))
    return Plan(
        replace(size, name=stored.name),
        machine,
        budget,
        memory.num_slots,
        memory.draft_experts,
        memory.cached_experts,
        memory.num_slots * (slot_bytes - record_bytes),
        None if isinstance(config, ModelSize) else kv_bytes_per_token(config),
        at(share),
        tuple((each, row) for each in SHARES for row in at(each)),
        _assumption(like, gamma, batch, machine),
    )


def _is_shipped(model) -> bool:
    return isinstance(model, str) and model in SHIPPED


def _assumption(like: str, gamma: int, batch: tuple[int, ...], machine: Hardware) -> str:
    text = ASSUMED_EVEN if like == EVEN else ASSUMED
    more = CARRIED if batch != (1,) and like != EVEN else ""
    said = {"like": LIKE if like == EVEN else like, "gamma": gamma, "more": more}
    return text.format(**said, speeds=PROBED if machine.engine else CEILINGS)


def frame_of(rows: Iterable[Expectation]) -> pd.DataFrame:
    more = ("tokens_per_second", "limit")
    return pd.DataFrame([asdict(row) | {k: getattr(row, k) for k in more} for row in rows])


# The budget


def _left_beside(size: ModelSize, machine: Hardware) -> int:
    """Bytes of the machine's memory that the trunk leaves."""
    left = int(machine.fast_memory_bytes - size.held_bytes)
    if left <= 0:
        what = f"the {machine.fast_memory_bytes / 1e9:.1f} GB of fast memory of {machine.name!r}"
        why = f"cannot hold the trunk of {size.name!r}, {size.held_bytes / 1e9:.1f} GB"
        raise FastMemoryError(f"{what} {why}: say fast_memory, or take another machine")
    return left


def _scratch_bytes(size: ModelSize, layout) -> int:
    """In which the engine widens an expert to float32 on a CPU."""
    if layout:
        return 4 * layout.elements
    return 2 * size.expert_bytes if "in bf16" in size.source else 0


def _slots(size: ModelSize, record_bytes: int, budget: int, scratch_bytes: int):
    """The engine's own plan; where its default N asks too much, ``FastMemoryError`` says so."""
    from ...checkpoint.in_place import slack_bytes
    from ...offload.budget import plan_memory

    shape, options = (size.num_layers, size.num_experts), LoadOptions(fast_memory=budget)
    slot_bytes = record_bytes + slack_bytes(record_bytes)
    return plan_memory(slot_bytes, scratch_bytes, shape, options)


# The model


def _config_of(model, weights: str | None):
    """What ``size_of`` takes, and the format of the weights: that of the headers where a folder has
    some."""
    if not isinstance(model, str | Path):
        return model, weights
    if str(model) in known_models():
        return known_models()[str(model)].config, weights
    if file := _gguf(model):
        from ...checkpoint.gguf_file import config_of
        from ...checkpoint.gguf_header import read_gguf

        return config_of(read_gguf(file)).to_dict(), weights
    folder = _folder(model)
    config = read_config(folder)
    if weights is None and not config.get("quantization_config"):
        weights = _stored(folder) or ("fp32" if _dtype(config) == "float32" else None)
    return config, weights


def _gguf(model) -> Path | None:
    """The file, where ``model`` is a GGUF or a folder with one."""
    from ...checkpoint.files import GGUF, resolve

    path = Path(model).expanduser() if isinstance(model, str | Path) else None
    if path is None or not (path.suffix == GGUF or path.is_dir()):
        return None
    found = resolve(path)
    return found if found.suffix == GGUF else None


def _layout(file: Path):
    """Of the experts as they lie in a GGUF, by its header."""
    from ...checkpoint.files import open_checkpoint
    from ...checkpoint.plan import plan_experts

    return plan_experts(open_checkpoint(file)).layout


def mean_of_layers(layout, name: str) -> int:
    """``name`` of an ``ExpertLayout``, where layers differ the mean: what an expert takes."""
    sizes = [getattr(one, name) for one in layout.by_layer or (layout,)]
    return round(sum(sizes) / len(sizes))


def _dtype(config: dict) -> str:
    return str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")


def _folder(model: str | Path) -> Path:
    """A path, the folder of a shipped model, or the cached snapshot of a hub id."""
    from ...checkpoint.files import SHIPPED

    if Path(model).expanduser().exists():
        return Path(model).expanduser()
    if (SHIPPED / str(model) / "config.json").is_file():
        return SHIPPED / str(model)
    if str(model).count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(str(model), "config.json")
        except ValueError:  # no name that a repository can have
            found = None
        if isinstance(found, str):
            return Path(found).parent
    known = nearest(model, known_models())
    raise OptionError(
        f"{str(model)!r} is no folder, no hub id whose config.json is in the cache, and no name of "
        f"the table: {known}, or give a folder with a config.json"
    )


def _stored(folder: Path) -> str | None:
    """The format of most weights, by the headers; None: no weights there, or another format."""
    from ...checkpoint.header import read_header

    counts: Counter = Counter()
    for shard in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        for stored in read_header(shard).values():
            counts[stored.format] += math.prod(stored.shape)
    return NAMES.get(counts.most_common(1)[0][0]) if counts else None


def _name(model, size: ModelSize) -> str:
    if isinstance(model, str | Path):
        known = known_models().get(str(model))
        return known.title if known else Path(model).name or size.name
    return size.name


def kv_bytes_per_token(config) -> int | None:
    """Bytes in bf16 that one token leaves in the engine's own KV cache, found by running the
    model's class without memory; None where it keeps state of another kind, or has an encoder."""
    import torch

    from ...model.recurrent import decoder_of
    from .parameters import model_without_memory

    model, experts = model_without_memory(config)
    if model.config.is_encoder_decoder:
        return None
    for module in experts:
        module.forward = lambda hidden, *rest, **more: hidden
    try:
        decoder = decoder_of(model)
    except SpecMoEError:
        return None
    decoder.allocate(1, 2)
    with torch.no_grad():
        decoder.forward(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    kept = [
        state
        for layer in decoder.kv_cache.layers
        if layer.is_initialized
        for state in (layer.keys, layer.values)
    ]
    return sum(state.shape[1] * state.shape[3] * 2 for state in kept)
