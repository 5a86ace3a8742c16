"""``specmoe plan``: what to expect before anything is downloaded.

Comes in: the namespace that ``parser`` parsed. Goes out: an exit code; the plan is printed.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..errors import OptionError
from . import printing

RATES = {
    "link": "link_bytes_per_s",
    "memory_rate": "memory_bytes_per_s",
    "compute": "flop_per_s",
}
UNUSED = "; {} stay unused: a slot holds the largest layer's expert, and layers differ"
OPTIONS = ("fast_memory", "machine", "batch", "like", "weights")


def plan(args: Namespace) -> int:
    given = vars(args)
    rates = {field: given[word] for word, field in RATES.items() if word in given}
    for word, field in RATES.items():
        if field in rates and not rates[field] > 0:
            option = word.replace("_", "-")
            raise OptionError(f"--{option} {given[word]:g} must be above zero, per second")
    from ..lab.simulate import plan as make_plan

    said = {name: given[name] for name in OPTIONS if name in given}
    found = make_plan(_model(given), **said, **rates)
    printing.emit(args, found.to_json(), lambda: text_of(found))
    return 0


def _model(given: dict) -> str | Path:
    """What to plan for: a model, or the file of its folder that was named."""
    if "gguf_file" not in given:
        return given["model"]
    from ..checkpoint import resolve

    return resolve(given["model"], gguf_file=given["gguf_file"])


def text_of(found) -> str:
    """The plan for people: bytes, budget, speeds, and what was assumed."""
    from ..lab.figures.base import show_bytes

    model, machine = found.model, found.machine
    kv = found.kv_bytes_per_token
    sizes = {
        "an expert": show_bytes(model.expert_bytes),
        "all experts": show_bytes(model.experts_bytes + model.encoder_bytes),
        "the trunk": f"{show_bytes(model.held_bytes)} as stored (a CPU may hold it in float32)",
        "KV cache": f"{show_bytes(kv)} per token of a text, in bf16" if kv else "not counted",
        "fast memory": f"{show_bytes(found.fast_memory_bytes)} for experts: {found.slots} slots, "
        f"{found.share:.0%} of them; per layer {found.draft_experts} draft, or "
        f"{found.cached_experts} are cached"
        + (UNUSED.format(show_bytes(found.unused_bytes)) if found.unused_bytes else ""),
        "machine": f"{machine.name}: link {machine.link_bytes_per_s / 1e9:.3g} GB/s, memory "
        f"{machine.memory_bytes_per_s / 1e9:.3g} GB/s, {machine.flop_per_s / 1e12:.3g} TFLOP/s",
    }
    head = (
        f"{model.name}: {model.num_layers} layers of {model.num_experts} experts, top-{model.top_k}"
    )
    lines = [f"  {name:<12}{value}" for name, value in sizes.items()]
    rows = [
        {
            "method": row.method,
            "texts": row.batch,
            "bytes/token": show_bytes(row.link_bytes),
            "tokens/s" if row.parts_s else "tokens/s, at most": row.tokens_per_second,
            "what decides": row.limit,
            "fits": "yes" if row.fits else "no",
        }
        for row in found.rows
    ]
    table = printing.table(rows)
    return "\n".join([head, *lines, "", "Simulated, nothing was run:", table, "", found.assumption])
