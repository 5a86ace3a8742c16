"""The record and the model card of a shipped checkpoint, both from the same dictionary of
measurements.

Comes in: a folder and the record of a training run. Goes out: ``training.json`` and ``README.md``
in it.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...lab.words import markdown_rows

_TEXTS = """---
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

_TRANSLATION = """---
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


def write_record(folder: Path, record: dict) -> None:
    """Write ``training.json`` and ``README.md`` into ``folder``."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (folder / "training.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card_text(record), encoding="utf-8")


def card_text(record: dict) -> str:
    """The model card, in Markdown with the hub's front matter."""
    if "sparse_step" in record["recipe"]["shape"]:
        return _translation_card(record)
    return _TEXTS.format(
        name=record["name"],
        shape=record["recipe"]["shape"],
        recipe=_recipe_text(
            record,
            "train on with one light load-balancing term per layer",
            [_phase_text(record["recipe"][name], name, run) for name, run in _phases(record)],
            " (its library is training text)",
        ),
        domains=_domain_table(record),
        rounds=_text_rounds(record),
        mean_gini=record["expert_use"]["mean_gini"],
        layers=_layer_table(record["expert_use"]),
    )


def _translation_card(record: dict) -> str:
    shape, recipe = record["recipe"]["shape"], record["recipe"]
    return _TRANSLATION.format(
        name=record["name"],
        shape=shape,
        step={2: "second", 4: "fourth"}[shape["sparse_step"]],
        parameters=record["parameters"] / 1e6,
        mean_target_tokens=record["mean_target_tokens"],
        recipe=_recipe_text(
            record,
            f"train on with {_balance_text(recipe['upcycled'])}",
            [_pairs_text(recipe, name, run) for name, run in _phases(record)],
        ),
        exact=100 * record["exact_match"]["share"],
        pairs=record["exact_match"]["pairs"],
        rounds=_translation_rounds(record),
        limits=f"{record['limits']}\n\n" if record.get("limits") else "",
        layers=_layer_table(record["expert_use"]),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _phases(record: dict):
    return record["phases"].items()


def _recipe_text(record: dict, balancing: str, phases: list[str], python: str = "") -> str:
    recipe, made = record["recipe"], record["made_with"]
    return (
        f"Sparse upcycling on {made['threads']} CPU thread(s), AdamW, float32, seed "
        f"{recipe['seed']}: train a dense model, copy its FFN into every expert with noise of "
        f"{recipe['expert_noise']:g} of the weights' standard deviation, random routers, "
        f"{balancing}.\n\n"
        + "\n".join(f"- {phase}" for phase in phases)
        + f"\n\nPython {made['python']}{python}, torch {made['torch']}."
        + (f" {record['note']}" if record.get("note") else "")
    )


def _phase_text(phase: dict, name: str, run: dict) -> str:
    text = (
        f"{name}: {run['steps']} steps, {run['tokens'] / 1e6:.1f} M tokens, "
        f"{run['seconds'] / 60:.1f} minutes, peak "
        f"learning rate {phase['peak_learning_rate']:g}, balancing {phase['balance']:g}"
    )
    if phase["target_gini"] is None:
        return text
    return f"{text}, turned round in layers whose Gini of use is under {phase['target_gini']:g}"


def _pairs_text(recipe: dict, name: str, run: dict) -> str:
    phase = recipe[name]
    shape = "constant" if phase.get("final_share") == 1 else "cosine"
    return (
        f"{name}: {run['steps']} steps of {recipe[f'{name}_pairs']} pairs, "
        f"{run['target_tokens'] / 1e6:.1f} M target tokens, {run['seconds'] / 60:.1f} minutes, "
        f"peak learning rate {phase['peak_learning_rate']:g} ({shape}), "
        f"final loss {run['loss_curve'][-1][1]:.4f}"
    )


def _balance_text(phase: dict) -> str:
    target = phase.get("target_gini")
    text = f"a load-balancing term of {phase['balance']:g} per layer"
    if target is None:
        return text
    return f"{text}, turned round where a layer's use is more even than a Gini of {target:g} in a batch"


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
    return markdown_rows(head, rows)


def _text_rounds(record: dict) -> str:
    rounds = record.get("tokens_per_round")
    if not rounds:
        return (
            "Tokens per round were not measured when this card was written: `specmoe bench` "
            "measures them."
        )
    return f"Tokens per round: {rounds['how']} Mean is over all rounds, not over domains."


def _translation_rounds(record: dict) -> str:
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
        f"{rounds['how']}\n\n{markdown_rows(head, rows)}\n\nGrowth of bytes from batch 1 to 256: "
        "on-demand "
        f"{growth['on_demand']:.1f}x, SpecMoE {growth['specmoe']:.2f}x. Other drafts at batch 256, "
        "tokens per round: "
        f"{others}. Drafting with no MoE output is the control: what it reaches is owed to the "
        "other layers."
    )


def _layer_table(use: dict) -> str:
    columns = [use[f"{name}_per_layer"] for name in ("gini", "dead", "never_used")]
    if isinstance(columns[0], dict):  # of layers with names
        named = list(columns[0])
        columns = [column.values() for column in columns]
    else:
        named = range(len(columns[0]))
    names = [str(name).removeprefix("model.").removesuffix(".ffn") for name in named]
    return markdown_rows(
        ["layer", "Gini of use", "dead experts", "of them never used"],
        [list(row) for row in zip(names, *columns, strict=True)],
    )
