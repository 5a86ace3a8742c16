"""What the GPU script measures: tokens, copies, methods, draft steps.

Comes in: a ``Scale`` and what is ``Found`` so far. Goes out: plain dicts. ``gpu`` calls these, one
after the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

import specmoe

from ... import checkpoint
from . import floors
from .gpu_copies import raw_copy_rate, store_rate
from .gpu_numbers import beside_floors, compare, compute_rates
from .methods import ALL_METHODS
from .prompts import held_out
from .settings import TOKENS
from .window import Window, measure
from .workplace import SEED, Workplace, is_translation


@dataclass(frozen=True)
class Scale:
    """How large and how long. ``experts``: model -> (bytes of an expert, experts per decoding layer
    in fast memory)."""

    batches: tuple[int, ...]
    experts: dict[str, tuple[int | None, int]]
    slice_s: float
    warm_up_s: float
    num_prompts: int
    exact_prompts: int
    exact_tokens: int
    copies: int
    compiled_batch: int
    low_bit: dict[str, int]  # sizes of ``gpu_low_bit.make``


@dataclass
class Found:
    """The result: parts by name, what failed, what there was no time for."""

    device: torch.device
    deadline_s: float
    place: Workplace
    content: dict = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, part, *arguments) -> None:
        """Run ``part`` and keep what it says; a failure is kept as a sentence, and the next part
        runs."""
        began_s = time.monotonic()
        try:
            self.content[name] = part(self, *arguments)
        except Exception as failure:  # one part's failure is a finding about that part
            self.failed.append(f"{name}: {type(failure).__name__}: {failure}")
        print(
            f"{name}: {time.monotonic() - began_s:.0f} s "
            f"{self.failed[-1:] if name not in self.content else ''}",
            flush=True,
        )

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether ``seconds`` are left; if not, ``what`` is noted as left out."""
        if time.monotonic() + seconds < self.deadline_s:
            return True
        self.left_out.append(what)
        return False


def tokens_of(output) -> list[list[int]]:
    return [sequence.tolist() for sequence in output.sequences]


# ---- 1. correctness ----


def correctness(found: Found, scale: Scale) -> list[dict]:
    """For each model and dtype: how many prompts have the CPU's fp32 tokens by each method, and
    where the others part."""
    rows = []
    for model in ("tiny-skewed", "tiny-balanced", "tiny-translate"):
        prompts = held_out(scale.exact_prompts, SEED, is_translation(model))
        options = {
            "max_new_tokens": scale.exact_tokens,
            "batch_size": max(1, scale.exact_prompts // 2),
        }
        with specmoe.load(
            model, store="memory", device="cpu", dtype="float32", draft_experts=4
        ) as engine:
            expected = tokens_of(engine.generate(prompts, method="on_demand", **options))
        for dtype in ("float32", "bfloat16"):
            with specmoe.load(
                model, store="memory", device=found.device, dtype=dtype, draft_experts=4
            ) as engine:
                for method in ALL_METHODS:
                    got = tokens_of(engine.generate(prompts, method=method, **options))
                    rows.append(
                        {"model": model, "dtype": dtype, "method": method, **compare(expected, got)}
                    )
    return rows


# ---- 2. and 3. copies, methods ----


def speed(found: Found, scale: Scale, model: str) -> dict:
    """Every method at every batch that there is time for, and the copies of such records."""
    num_bytes, per_layer = scale.experts[model]
    texts = found.place.texts(model)
    began_s = time.monotonic()
    with open_widened(found, model, num_bytes, per_layer) as engine:
        load_s, record_bytes = time.monotonic() - began_s, engine.packed.layout.record_bytes
        raw, pageable = (
            raw_copy_rate(found.device, record_bytes, scale.copies, pin) for pin in (True, False)
        )
        moved, rows = store_rate(engine, scale.copies), []
        for batch in scale.batches:
            rows += _methods(found, scale, engine, model, batch, texts)
        copies = {
            "raw_bytes_per_s": raw,
            "pageable_bytes_per_s": pageable,
            "store_bytes_per_s": moved,
            "share": moved / raw,
        }
        facts, rates = floors.facts(engine), compute_rates(found.device)
        return {
            "load_s": load_s,
            "info": facts,
            "copies": copies,
            "rates": rates,
            "rows": beside_floors(rows, facts, rates, raw),
        }


def open_widened(found: Found, model: str, num_bytes: int | None, per_layer: int):
    """An engine with widened experts in (pinned) host memory and room for ``per_layer`` of them in
    each decoding layer."""
    packed = checkpoint.pack(checkpoint.resolve(model), expert_bytes=num_bytes)
    layers = 2 if is_translation(model) else len(packed.layers)
    options = {
        "fast_memory": per_layer * layers * packed.layout.record_bytes,
        "expert_bytes": num_bytes,
    }
    return specmoe.load(model, store="memory", device=found.device, trace=False, **options)


def _methods(found: Found, scale: Scale, engine, model: str, batch: int, texts) -> list[dict]:
    rows = []
    for method in ALL_METHODS:
        if method == "resident" and not _fits(found, engine):
            continue
        if not found.has_time(f"{model}, B = {batch}, {method}", 4 * scale.slice_s):
            continue
        window = Window(batch, scale.slice_s, scale.warm_up_s, texts)
        prompts = found.place.prompts(model)
        sums = measure(engine, prompts, window, method=method, max_new_tokens=TOKENS)
        speed_ = sums["num_new_tokens"] / sums["seconds"]
        rows.append({"batch": batch, "method": method, "tokens_per_second": speed_, **sums})
        print(f"  {model}, B = {batch}, {method}: {speed_:.1f} tokens/s", flush=True)
    return rows


def _fits(found: Found, engine) -> bool:
    """Whether all experts fit on the device beside the engine's own slots."""
    whole = (
        len(engine.packed.layers) * engine.packed.num_experts * engine.packed.layout.record_bytes
    )
    return found.device.type == "cpu" or whole < 0.9 * torch.cuda.mem_get_info(found.device)[0]


# ---- 4. compiled draft steps ----


# name of the results -> ``compile=``
WAYS = {"plain": False, "compiled": True, "replayed": "reduce-overhead"}


def compiled(found: Found, scale: Scale, model: str = "tiny-balanced") -> dict:
    """Seconds of a draft step (gamma 5), plain, compiled, and compiled into graphs that the GPU
    replays; how long compiling took, and how many graphs were not made to be replayed."""
    batch, rows = scale.compiled_batch, {}
    texts, prompts = found.place.texts(model), found.place.prompts(model)
    options = {"method": "specmoe", "gamma": 5, "max_new_tokens": TOKENS}
    for name, compile in WAYS.items():
        if compile and not found.has_time(f"{name} draft steps", 10 * scale.slice_s):
            continue
        with specmoe.load(
            model, store="memory", device=found.device, trace=False, compile=compile
        ) as engine:
            window = Window(batch, scale.slice_s, scale.warm_up_s, texts)
            began_s, skipped = time.monotonic(), graphs_skipped()
            measure(engine, prompts, Window(batch, 0.01, 0.0, texts), **options)
            rows[f"{name}_warm_up_s"] = time.monotonic() - began_s
            sums = measure(engine, prompts, window, **options)
            rows[f"{name}_really"] = bool(engine.compiled)
            rows[f"{name}_step_s"] = sums["draft_s"] / max(1, sums["gamma"] * sums["num_rounds"])
            rows[f"{name}_graphs_skipped"] = graphs_skipped() - skipped
    return {"model": model, "batch": batch, **rows}


def graphs_skipped() -> int:
    """How many compiled graphs torch could not make into ones that a GPU replays, so far."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
