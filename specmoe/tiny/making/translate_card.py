"""The record and the model card of the translation model, both from the same dictionary of
measurements.

Comes in: a folder and the record of a training run. Goes out: ``training.json`` and ``README.md``
in it; ``with_rounds`` adds the figures of speculative decoding, measured after the checkpoint was
saved.
"""

from __future__ import annotations

import json
from pathlib import Path

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: translation
language: [en, fr]
tags: [mixture-of-experts, nllb-moe, sparse-upcycling, synthetic]
---
# {name}

An English to French translation model in the shape of NLLB-MoE, small enough to ship with `specmoe`:
{shape[num_layers]} + {shape[num_layers]} layers, hidden size {shape[hidden_size]}, {shape[num_experts]} ReLU experts
with FFN {shape[ffn_size]} in every {step} layer of the encoder and of the decoder, top-2 routing, BPE of
{shape[vocab_size]}, {parameters:.2f} M parameters, bf16. It exists to show offloaded and speculative MoE decoding on a
trained model; it translates the sentences of its generator and nothing else.

## Data
Generated sentence pairs with exact French grammar: numbers, ages, prices, dates and times written out, actions in
present, past and future with agreement of articles, adjectives and verbs; {mean_target_tokens:.1f} target tokens on
average, `</s>` counted, the language token not. Held out by sentence: one in ten, chosen by the CRC-32 of the English
text, so no held-out sentence was ever trained on, whatever the seed; the words and the numbers are the same on both sides.

## Use
`src_lang="eng_Latn"`, target language forced with `forced_bos_token_id` of `fra_Latn` (in `generation_config.json`).
**transformers 5.23 runs the wrong experts of NLLB-MoE**: use `specmoe`, or
`specmoe.tiny.making.translate_model.use_sorted_experts`. Per token, the best expert's output times gate 1 plus the second
best's times gate 2; the gates are the two softmax probabilities divided by their sum
(`normalize_router_prob_before_dropping` true; the same after dropping, since nothing is dropped:
`moe_eval_capacity_token_fraction` 1). `moe_token_dropout` 0, `second_expert_policy` "all"; padding goes to no expert
(`router_ignore_padding_tokens` false).

## Recipe
{recipe}

## Measured on held-out sentences (weights rounded to bf16, arithmetic in float32, plain greedy)
Exactly the expected translation: **{exact:.1f} %** of {pairs} sentences.

{rounds}

{limits}Expert use over the same sentences; dead: under 0.1 % of the layer's picks.

{layers}

`training.json` holds the recipe, the loss curves, wrong translations and every number above.
"""


def _table(head: list[str], rows: list[list]) -> str:
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)
    )


def _rate_text(phase: dict) -> str:
    shape = "constant" if phase.get("final_share") == 1 else "cosine"
    return f"peak learning rate {phase['peak_learning_rate']:g} ({shape})"


def _balance_text(phase: dict) -> str:
    target = phase.get("target_gini")
    steered = (
        ""
        if target is None
        else f", turned round where a layer's use is more even than a Gini of {target:g} in a batch"
    )
    return f"a load-balancing term of {phase['balance']:g} per layer{steered}"


def _recipe_text(record: dict) -> str:
    recipe, made = record["recipe"], record["made_with"]
    parts = [
        f"- {name}: {run['steps']} steps of {recipe[f'{name}_pairs']} pairs, "
        f"{run['target_tokens'] / 1e6:.1f} M target "
        f"tokens, {run['seconds'] / 60:.1f} minutes, {_rate_text(recipe[name])}, final "
        f"loss {run['loss_curve'][-1][1]:.4f}"
        for name, run in record["phases"].items()
    ]
    return (
        f"Sparse upcycling on {made['threads']} CPU thread(s), AdamW, float32, seed "
        f"{recipe['seed']}: train a dense "
        f"model, copy its FFN into every expert with noise of {recipe['expert_noise']:g} of the "
        "weights' standard "
        f"deviation, random routers, train on with {_balance_text(recipe['upcycled'])}.\n\n"
        + "\n".join(parts)
        + f"\n\nPython {made['python']}, torch {made['torch']}."
        + (f" {record['note']}" if record.get("note") else "")
    )


def _rounds_text(record: dict) -> str:
    rounds = record.get("tokens_per_round")
    if not rounds:
        return "Tokens per round were not measured when this card was written."
    head = ["batch", "tokens per round", "expert loads per token: on-demand", "SpecMoE", "saved"]
    rows = [
        [
            batch,
            f"{row['tokens_per_round']:.2f}",
            f"{row['on_demand_loads_per_token']:.3f}",
            f"{row['loads_per_token']:.3f}",
            f"{row['saved_percent']:.1f} %",
        ]
        for batch, row in rounds["by_batch"].items()
    ]
    growth = rounds["growth_of_bytes"]
    others = "; ".join(f"{name} {value:.2f}" for name, value in rounds["other_drafts"].items())
    return (
        f"{rounds['how']}\n\n{_table(head, rows)}\n\nGrowth of bytes from batch 1 to 256: "
        "on-demand "
        f"{growth['on_demand']:.1f}x, SpecMoE {growth['specmoe']:.2f}x. Other drafts at batch 256, "
        "tokens per round: "
        f"{others}. Drafting with no MoE output is the control: what it reaches is owed to the "
        "other layers."
    )


def _layer_table(use: dict) -> str:
    rows = [
        [name.removeprefix("model.").removesuffix(".ffn"), value, use["dead_per_layer"][name]]
        + [use["never_used_per_layer"][name]]
        for name, value in use["gini_per_layer"].items()
    ]
    return _table(["layer", "Gini of use", "dead experts", "of them never used"], rows)


def translation_card(record: dict) -> str:
    """The model card, in Markdown with the hub's front matter."""
    shape = record["recipe"]["shape"]
    return _CARD.format(
        name=record["name"],
        shape=shape,
        step={2: "second", 4: "fourth"}[shape["sparse_step"]],
        parameters=record["parameters"] / 1e6,
        mean_target_tokens=record["mean_target_tokens"],
        recipe=_recipe_text(record),
        exact=100 * record["exact_match"]["share"],
        pairs=record["exact_match"]["pairs"],
        rounds=_rounds_text(record),
        limits=f"{record['limits']}\n\n" if record.get("limits") else "",
        layers=_layer_table(record["expert_use"]),
    )


def write_translation_record(folder: Path, record: dict) -> None:
    """Write ``training.json`` and ``README.md`` into ``folder``."""
    (folder / "training.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "README.md").write_text(translation_card(record), encoding="utf-8")


def with_rounds(folder: Path, rounds: dict) -> None:
    """Add figures of speculative decoding to a saved checkpoint's record and card."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    write_translation_record(folder, record | {"tokens_per_round": rounds})
