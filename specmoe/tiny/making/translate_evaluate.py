"""What the translation model can do on held-out sentences: exact match of greedy output, loss,
expert use.

Comes in: a model whose sparse layers are ``SortedMoe``, its tokenizer. Goes out: a dictionary that
``training.json`` and the model card show.
"""

from __future__ import annotations

import torch

from ..texts.translate_data import held_out_pairs
from .evaluate import DEAD_SHARE, HELD_OUT_SEED, gini
from .translate_model import EOS, PAD, sparse_layers
from .translate_recipe import TARGET

_BATCH = 128


@torch.no_grad()
def translate(model, tokenizer, sentences: list[str], max_new_tokens: int = 128) -> list[str]:
    """Plain greedy translations."""
    found = []
    for start in range(0, len(sentences), _BATCH):
        inputs = tokenizer(sentences[start : start + _BATCH], return_tensors="pt", padding=True)
        output = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            decoder_start_token_id=EOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            forced_bos_token_id=tokenizer.convert_tokens_to_ids(TARGET),
        )
        found += tokenizer.batch_decode(output, skip_special_tokens=True)
    return found


def count_picks(model) -> tuple[dict[str, torch.Tensor], list]:
    """Per sparse layer a counter [E] that grows with every forward pass, and the hooks to remove
    afterwards."""
    layers = sparse_layers(model)
    counts = {
        name: torch.zeros(len(layer.fc1_weight), dtype=torch.long) for name, layer in layers.items()
    }

    def counter(count: torch.Tensor):
        # must return None, or it would replace the router's output
        def hook(_module, _inputs, output):
            count.add_(torch.bincount(output[2].reshape(-1), minlength=len(count)))

        return hook

    return counts, [
        layer.router.register_forward_hook(counter(counts[name])) for name, layer in layers.items()
    ]


@torch.no_grad()
def use_while_reading(model, tokenizer, pairs: list) -> dict[str, torch.Tensor]:
    """Picks [E] per sparse layer while the model reads the expected translations. Not taken from
    ``generate``: there finished rows go on with padding, which is routed too."""
    counts, hooks = count_picks(model)
    for start in range(0, len(pairs), _BATCH):
        part = pairs[start : start + _BATCH]
        source = tokenizer([pair.english for pair in part], return_tensors="pt", padding=True)
        target = tokenizer(
            text_target=[pair.french for pair in part], return_tensors="pt", padding=True
        )
        ids, mask = target["input_ids"], target["attention_mask"]
        inputs = torch.cat([torch.full_like(ids[:, :1], EOS), ids[:, :-1]], dim=1)
        model(**source, decoder_input_ids=inputs, decoder_attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return counts


def expert_use(counts: dict[str, torch.Tensor]) -> dict:
    """Gini and dead experts of each sparse layer; a dead expert has under 0.1 % of its layer's
    picks."""
    ginis = {name: round(gini(count.tolist()), 4) for name, count in counts.items()}
    decoder = [value for name, value in ginis.items() if ".decoder." in name]
    return {
        "gini_per_layer": ginis,
        "mean_gini": round(sum(ginis.values()) / len(ginis), 4),
        "mean_gini_decoder": round(sum(decoder) / len(decoder), 4),
        "dead_per_layer": {
            name: int((c < DEAD_SHARE * c.sum()).sum()) for name, c in counts.items()
        },
        "never_used_per_layer": {name: int((c == 0).sum()) for name, c in counts.items()},
        "counts": {name: count.tolist() for name, count in counts.items()},
    }


def evaluate_translation(model, tokenizer, num_pairs: int = 512, seed: int = HELD_OUT_SEED) -> dict:
    """Exact match of greedy translation of ``num_pairs`` held-out sentences, and which experts
    their text uses."""
    pairs = held_out_pairs(num_pairs, seed)
    got = translate(model.eval(), tokenizer, [pair.english for pair in pairs])
    counts = use_while_reading(model, tokenizer, pairs)
    right = [text == pair.french for text, pair in zip(got, pairs, strict=True)]
    wrong = [
        {"english": pair.english, "french": pair.french, "got": text}
        for pair, text, same in zip(pairs, got, right, strict=True)
        if not same
    ]
    lengths = [
        len(ids) - 1 for ids in tokenizer(text_target=[pair.french for pair in pairs])["input_ids"]
    ]
    return {
        "exact_match": {
            "share": round(sum(right) / num_pairs, 4),
            "pairs": num_pairs,
            "seed": seed,
        },
        "mean_target_tokens": round(sum(lengths) / num_pairs, 2),
        "wrong_examples": wrong[:8],
        "expert_use": expert_use(counts),
    }
