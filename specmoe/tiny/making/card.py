"""The record and the model card of a shipped checkpoint, both from the same dictionary of
measurements.

Comes in: a folder and the record of a training run. Goes out: ``training.json`` and ``README.md``
in it.
"""

from __future__ import annotations

import json
from pathlib import Path

_CARD = """---
license: apache-2.0
library_name: transformers
tags: [mixture-of-experts, mixtral, sparse-upcycling, synthetic]
---
# {name}

A Mixtral-class language model small enough to ship with `specmoe`: {shape[num_layers]} layers, hidden size
{shape[hidden_size]}, {shape[num_experts]} experts per layer with FFN {shape[ffn_size]}, top-{shape[top_k]}
routing, byte-level BPE of {shape[vocab_size]} with single digits, {shape[max_positions]} positions, bf16. It exists
to show offloaded and speculative MoE decoding on a trained model; it knows nothing of the world.

## Data
Generated JSON, SQL, CSV, short stories, number words, dates and sums (operands and results within 0 to 99), and
functions of the Python standard library. Held out by generator seed, by fact (a number, a date, a pair, a request) and,
for Python, by source file: one key in ten, chosen by CRC-32. Most prompts announce the content, so that one completion
is right.

## Recipe
{recipe}

## Measured on held-out texts (weights rounded to bf16, arithmetic in float32, greedy)
{domains}

{rounds}

Expert use over the same texts; mean Gini **{mean_gini:.3f}**. Dead: under 0.1 % of the layer's picks.

{layers}

## Limits
The texts are templates: the model is at home in them and lost outside; Python code looks like Python but does not work.
Nothing here says how a large model behaves. `training.json` holds the recipe, the loss curve and every number above.
"""


def _table(head: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _phase_text(name: str, phase: dict, run: dict) -> str:
    text = (
        f"{name}: {run['steps']} steps, {run['tokens'] / 1e6:.1f} M tokens, "
        f"{run['seconds'] / 60:.1f} minutes, peak "
        f"learning rate {phase['peak_learning_rate']:g}, balancing {phase['balance']:g}"
    )
    if phase["target_gini"] is None:
        return text
    return f"{text}, turned round in layers whose Gini of use is under {phase['target_gini']:g}"


def _recipe_text(record: dict) -> str:
    recipe, phases = record["recipe"], record["phases"]
    parts = [_phase_text(name, recipe[name], run) for name, run in phases.items()]
    made = record["made_with"]
    return (
        f"Sparse upcycling on {made['threads']} CPU thread(s), AdamW, float32, seed "
        f"{recipe['seed']}: train a dense "
        f"model, copy its FFN into every expert with noise of {recipe['expert_noise']:g} of the "
        "weights' standard "
        "deviation, random routers, train on with one light load-balancing term per layer.\n\n"
        + "\n".join(f"- {part}" for part in parts)
        + f"\n\nPython {made['python']} (its library is training text), torch {made['torch']}."
        + (f" {record['note']}" if record.get("note") else "")
    )


def _domain_table(record: dict) -> str:
    rounds = record.get("tokens_per_round") or {}
    head = [
        "domain",
        "held-out loss",
        "whole completion right",
        "lines right",
        *(f"tokens per round, N = {n}" for n in rounds.get("by_draft_experts", {})),
    ]
    rows = []
    for domain, loss in record["held_out_loss"].items():
        match = record["exact_match"].get(domain)
        row = [
            domain,
            f"{loss:.3f}",
            *((_percent(match["whole"]), _percent(match["lines"])) if match else ("–", "–")),
        ]
        rows.append(
            row + [f"{by[domain]:.2f}" for by in rounds.get("by_draft_experts", {}).values()]
        )
    return _table(head, rows)


def _rounds_text(record: dict) -> str:
    rounds = record.get("tokens_per_round")
    if not rounds:
        return (
            "Tokens per round were not measured when this card was written: `specmoe bench` "
            "measures them."
        )
    return f"Tokens per round: {rounds['how']} Mean is over all rounds, not over domains."


def _layer_table(use: dict) -> str:
    columns = (use["gini_per_layer"], use["dead_per_layer"], use["never_used_per_layer"])
    rows = [[layer, *row] for layer, row in enumerate(zip(*columns, strict=True))]
    return _table(["layer", "Gini of use", "dead experts", "of them never used"], rows)


def card_text(record: dict) -> str:
    """The model card, in Markdown with the hub's front matter."""
    return _CARD.format(
        name=record["name"],
        shape=record["recipe"]["shape"],
        recipe=_recipe_text(record),
        domains=_domain_table(record),
        rounds=_rounds_text(record),
        mean_gini=record["expert_use"]["mean_gini"],
        layers=_layer_table(record["expert_use"]),
    )


def write_record(folder: Path, record: dict) -> None:
    """Write ``training.json`` and ``README.md`` into ``folder``."""
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_text(record), encoding="utf-8")
