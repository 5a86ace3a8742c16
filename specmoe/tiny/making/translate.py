"""The model that translates: its sentence pairs, loss, and what it can do on held-out ones.

Comes in: a ``TranslationRecipe``. Goes out: ``Translations``, which ``train`` follows; the
checkpoint has the layout of NLLB-MoE, and ``evaluate`` gives exact match of greedy output and
expert use.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, NllbMoeForConditionalGeneration

from ..texts.translate_data import SentencePair, held_out_pairs, sentence_pairs
from .evaluate import HELD_OUT_SEED, counted_picks, expert_use
from .recipe import TARGET, TranslationRecipe
from .training import Family
from .translate_model import (
    BOS,
    EOS,
    PAD,
    new_translation_tokenizer,
    new_translator,
    published_state,
    sparse_layers,
    translation_config,
)

_TOKENIZER_PAIRS = 8000
_IGNORED = -100
_BATCH = 128


class Translations(Family):
    """An NLLB-MoE-class model that translates a sentence."""

    recipe: TranslationRecipe
    counted = "target_tokens"
    num_eval = 512

    def new_tokenizer(self):
        """Trained on both sides of the first pairs."""
        pairs = itertools.islice(sentence_pairs(self.recipe.seed), _TOKENIZER_PAIRS)
        texts = (text for pair in pairs for text in (pair.english, pair.french))
        return new_translation_tokenizer(texts, self.recipe.shape)

    def dense(self) -> nn.Module:
        return new_translator(self.recipe.shape, sparse=False)

    def sparse(self) -> nn.Module:
        return new_translator(self.recipe.shape, sparse=True)

    def batches(self, phase: str, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(source [B, S], target [B, T]) of pairs of about equal length."""
        pairs, rng = sentence_pairs(seed), random.Random(f"batches {seed}")
        size = getattr(self.recipe, f"{phase}_pairs")
        while True:
            pool = self._encode(list(itertools.islice(pairs, size * self.recipe.pool_batches)))
            pool.sort(key=lambda pair: (len(pair[1]), len(pair[0])))
            starts = list(range(0, len(pool), size))
            rng.shuffle(starts)
            for start in starts:
                sources, targets = zip(*pool[start : start + size], strict=True)
                yield padded(sources, PAD), padded(targets, _IGNORED)

    def _encode(self, pairs: list[SentencePair]) -> list[tuple[list[int], list[int]]]:
        """(source ids, target ids) of each pair, both ``language ... </s>``."""
        sources = self.tokenizer([pair.english for pair in pairs])["input_ids"]
        targets = self.tokenizer(text_target=[pair.french for pair in pairs])["input_ids"]
        return list(zip(sources, targets, strict=True))

    def loss_of(self, model, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Mean cross-entropy of the target [B, T] given the source [B, S], under teacher forcing,
        padding left out."""
        logits = read_target(model, *batch)
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), ignore_index=_IGNORED)

    def count_tokens(self, batch: tuple[torch.Tensor, torch.Tensor]) -> int:
        return int((batch[1] != _IGNORED).sum())

    def routers(self, model) -> dict[str, nn.Module]:
        """Of the sparse layers, encoder first."""
        layers = sparse_layers(model)
        return {name: layer.router for name, layer in layers.items() if hasattr(layer, "router")}

    @torch.no_grad()
    def evaluate(self, model, num: int) -> dict:
        """Exact match of greedy translation of ``num`` held-out sentences, and which experts their
        text uses."""
        pairs = held_out_pairs(num, HELD_OUT_SEED)
        got = self._translate(model.eval(), [pair.english for pair in pairs])
        encoded = self._encode(pairs)
        both = list(zip(pairs, got, strict=True))
        right = sum(text == pair.french for pair, text in both)
        wrong = [
            {"english": pair.english, "french": pair.french, "got": text}
            for pair, text in both
            if text != pair.french
        ]
        use = expert_use(self._use_while_reading(model, encoded))
        decoder = [gini for name, gini in use["gini_per_layer"].items() if ".decoder." in name]
        return {
            "exact_match": {"share": round(right / num, 4), "pairs": num, "seed": HELD_OUT_SEED},
            "mean_target_tokens": round(sum(len(ids) - 1 for _, ids in encoded) / num, 2),
            "wrong_examples": wrong[:8],
            "expert_use": use | {"mean_gini_decoder": round(sum(decoder) / len(decoder), 4)},
        }

    def _translate(self, model, sentences: list[str]) -> list[str]:
        """Plain greedy translations."""
        found = []
        for start in range(0, len(sentences), _BATCH):
            part = sentences[start : start + _BATCH]
            output = model.generate(
                **self.tokenizer(part, return_tensors="pt", padding=True),
                do_sample=False,
                num_beams=1,
                max_new_tokens=128,
                decoder_start_token_id=EOS,
                eos_token_id=EOS,
                pad_token_id=PAD,
                forced_bos_token_id=self.tokenizer.convert_tokens_to_ids(TARGET),
            )
            found += self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return found

    def _use_while_reading(self, model, encoded: list[tuple]) -> dict[str, torch.Tensor]:
        """Picks [E] per sparse layer while the model reads the expected translations. Not taken
        from ``generate``: there finished rows go on with padding, which is routed too."""
        with counted_picks(self.routers(model), self.recipe.shape.num_experts) as counts:
            for start in range(0, len(encoded), _BATCH):
                sources, targets = zip(*encoded[start : start + _BATCH], strict=True)
                read_target(model, padded(sources, PAD), padded(targets, _IGNORED))
        return counts

    def published(self, model) -> nn.Module:
        shape = self.recipe.shape
        half = NllbMoeForConditionalGeneration(translation_config(shape)).to(torch.bfloat16)
        half.load_state_dict(published_state(model))
        half.generation_config = GenerationConfig(
            do_sample=False,
            bos_token_id=BOS,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_bos_token_id=self.tokenizer.convert_tokens_to_ids(TARGET),
            max_length=shape.max_positions,
        )
        return half


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    """[B, T] ids, filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def read_target(model, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of the target [B, T] given the source [B, S], every token after the right
    ones."""
    mask = target != _IGNORED
    inputs = torch.cat(
        [torch.full_like(target[:, :1], EOS), target[:, :-1].masked_fill(~mask[:, :-1], PAD)], dim=1
    )
    return model(
        input_ids=source,
        attention_mask=(source != PAD).long(),
        decoder_input_ids=inputs,
        decoder_attention_mask=mask.long(),
        use_cache=False,
    ).logits
