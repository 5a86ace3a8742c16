"""10,000 prompts x all methods on the shipped models in bfloat16 on a CPU: does any token differ,
and are those ties?

    python tests/long/ties.py --out tests/long/results/ties.jsonl --seconds 600
    python tests/long/ties.py --out tests/long/results/products.jsonl --products

The second is in float32, with every product of few rows made by the kernels that real sizes have;
these small models would not use them. They add in an order of their own.

Each chunk of prompts is one line of the file; a later call goes on where the last one stopped.
Within a chunk every method runs in one batch and is compared with ``on_demand`` in one batch; every
divergence is judged by the logits of transformers' own model. The first prompts of a chunk also run
alone through ``on_demand`` and through transformers' own ``generate``. tiny-translate (nllb-moe)
has no reference in transformers, so there plain decoding judges.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import specmoe
from specmoe.checkpoint import model as opened
from specmoe.engine.exactness import TransformersReference, choose_reference, first_divergence
from specmoe.model import kernels
from specmoe.tiny.texts.data import held_out_prompts
from specmoe.tiny.texts.translate_data import held_out_pairs

PROMPTS = {"tiny-skewed": 4000, "tiny-balanced": 4000, "tiny-translate": 2000}
METHODS = ("overlapped", "cached", "specmoe", "resident", "auto")
CHUNK, LONGEST, NEW_TOKENS, SEED, ALONE = 250, 12, 8, 2026, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--models", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--products", action="store_true", help="float32, kernels of real sizes")
    options = parser.parse_args()
    if options.products:
        kernels.LEAST_STORED = opened.LEAST_STORED = 0
    dtype = "float32" if options.products else "bfloat16"
    until = time.monotonic() + options.seconds
    done = {(row["model"], row["first"]) for row in lines_of(options.out)}
    for model in options.models:
        num = PROMPTS[model]
        missing = [first for first in range(0, num, CHUNK) if (model, first) not in done]
        if not missing or time.monotonic() > until:
            continue
        with specmoe.load(model, dtype=dtype, store="memory") as engine:
            prompts, reference = (
                prompts_of(engine, model, num),
                choose_reference(engine, eos_token_id=[]),
            )
            for first in missing:
                if time.monotonic() > until:
                    break
                row = {
                    "model": model,
                    "first": first,
                    **run_chunk(engine, reference, prompts[first : first + CHUNK]),
                }
                with options.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")
    print(json.dumps(summary(lines_of(options.out)), indent=1))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def prompts_of(engine, model: str, num: int) -> list:
    """Held-out texts, cut to their first ``LONGEST`` ids; whole sentences where they are
    translated."""
    if engine.is_translation:
        return [pair.english for pair in held_out_pairs(num, SEED)]
    return [engine.tokenizer(text)["input_ids"][:LONGEST] for text in held_out_prompts(num, SEED)]


def run_chunk(engine, reference, prompts: list) -> dict:
    run = {"max_new_tokens": NEW_TOKENS, "eos_token_id": [], "batch_size": len(prompts)}
    plain = engine.generate(prompts, method="on_demand", **run)
    rows, lengths, sources = (
        [row.tolist() for row in plain.sequences],
        plain.num_prompt_tokens,
        plain.sources,
    )
    found = []

    def compare(method: str, expected: list, got: list) -> None:
        for index, (wanted, given) in enumerate(zip(expected, got, strict=False)):
            if wanted != given:
                at = method, index, lengths[index], sources[index]
                found.append(first_divergence(reference, at, wanted, given))

    for method in METHODS:
        compare(
            method,
            rows,
            [row.tolist() for row in engine.generate(prompts, method=method, **run).sequences],
        )
    alone = engine.generate(
        prompts[:ALONE], method="on_demand", **{**run, "batch_size": 1}
    ).sequences
    compare("alone", rows, [row.tolist() for row in alone])
    num_judged = 0
    if isinstance(reference, TransformersReference):
        starts = zip(rows[:ALONE], lengths, sources, strict=False)
        own = [reference.tokens(row[:length], source, NEW_TOKENS) for row, length, source in starts]
        compare("against transformers", own, rows)
        num_judged = len(own)
    return {
        "prompts": len(prompts),
        "tokens": plain.stats.num_new_tokens * (1 + len(METHODS)),
        "alone": len(alone),
        "judged_by_transformers": num_judged,
        "judge": reference.name,
        "divergences": [
            {
                "method": d.method,
                "prompt": d.prompt,
                "position": d.position,
                "tokens": [d.plain_token, d.token],
                "logits": d.logits,
                "is_tie": d.is_tie,
                "why": d.why,
            }
            for d in found
        ],
    }


def summary(rows: list[dict]) -> dict:
    """Sums over all chunks, by model and in all."""
    models = {}
    for name in sorted({row["model"] for row in rows}):
        models[name] = _sums([row for row in rows if row["model"] == name])
    return {**_sums(rows), "models": models}


def _sums(rows: list[dict]) -> dict:
    found = [d for row in rows for d in row["divergences"]]
    numbers = {
        key: sum(row[key] for row in rows)
        for key in ("prompts", "tokens", "alone", "judged_by_transformers")
    }
    ties = sum(d["is_tie"] for d in found)
    return {**numbers, "divergences": len(found), "proved_ties": ties, "others": len(found) - ties}


if __name__ == "__main__":
    main()
