"""What was run, where and under which budget: the table near the top of a report.

Comes in: the result of a bench. Goes out: Markdown in which every name is data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..figures import as_table, show_bytes
from ..words import markdown_rows


def as_markdown(text: object) -> str:
    """``text`` as data in Markdown: whatever stands in a name, nothing of it is a tag, a link, a
    cell or a formula."""
    return re.sub(
        r"[^\w\s.,:;/()+%=-]|[_\r\n\t]|:(?=//)", lambda match: f"&#{ord(match[0])};", str(text)
    )


def say_setup(result) -> str:
    """A table of what was run, where and under which budget; ``result`` is that of a bench."""
    machine, model = result.machine, result.model
    names = ("specmoe", "torch", "transformers", "python")
    facts = {
        "model": _model_words(model),
        "experts per token": f"{model['top_k']} in each MoE layer",
        "one expert": _expert_words(model),
        "all experts": show_bytes(all_experts(model)),
        "fast memory for experts": f"{show_bytes(model['fast_memory_bytes'])}, the same for every "
        "method but resident",
        "draft experts (N)": f"{model['draft_experts']} in each MoE layer",
        "slow memory": _store_words(machine["store"]),
        "machine": _machine_words(machine),
        "versions": ", ".join(f"{name} {as_markdown(machine[name])}" for name in names),
        "work": _work_words(as_table(result.rows)),
    }
    return markdown_rows(["", ""], facts.items())


def all_experts(model: Mapping[str, Any]) -> int:
    """Bytes of all of them."""
    return model["layers"] * model["experts"] * model["record_bytes"]


def _model_words(model: Mapping[str, Any]) -> str:
    """Which of the layers decode is said where an encoder has some too."""
    name, layers = as_markdown(model["name"]), model["layers"]
    words = f"{name}: {layers} MoE layers of {model['experts']} experts"
    decoding = model.get("decoding_layers", model["layers"])
    if decoding == model["layers"]:
        return words
    return (
        f"{words}; {decoding} of the layers are the decoder's and take part in every step, "
        f"{model['layers'] - decoding} the encoder's, which run once per prompt"
    )


def _machine_words(machine: Mapping[str, Any]) -> str:
    memory = show_bytes(machine["memory"]["total_bytes"])
    cpu = as_markdown(machine["cpu"])
    return (
        f"{cpu}, {machine['cores']} cores, {memory} of memory; torch uses {machine['threads']} "
        f"thread{'s' if machine['threads'] != 1 else ''}"
    )


def _expert_words(model: Mapping[str, Any]) -> str:
    words = f"{show_bytes(model['expert_bytes'])} of {as_markdown(model['expert_dtype'])}"
    if not model.get("widened_from"):
        return words
    return (
        f"{words}, widened with zeros from {show_bytes(model['widened_from'])}: same outputs, "
        "the cost of a larger one"
    )


def _store_words(store: Mapping[str, Any]) -> str:
    words = f"{as_markdown(store['store'])}, {store.get('num_readers', 1)} readers"
    if store["store"] == "disk":
        reads = as_markdown(store.get("reads"))
        direct = ", direct I/O (no page cache)"
        words += direct if reads == "direct" else f", reads: {reads} (**not** direct I/O)"
    rate = store.get("link_bytes_per_s")
    return words + (f", throttled to {rate / 1e9:.3g} GB/s" if rate else ", as fast as it is")


def _work_words(table: pd.DataFrame) -> str:
    each = table.drop_duplicates("batch")
    work = ", ".join(
        f"{num} at batch {batch}" for num, batch in zip(each["num_prompts"], each["batch"])
    )
    return f"prompts: {work}; each method {table['repeats'].iloc[0]} times in turn, medians shown"
