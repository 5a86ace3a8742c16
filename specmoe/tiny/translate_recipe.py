"""The recipe of the translation model, as data: shape, phases, noise. No torch here.

Goes out: ``TRANSLATE``, a frozen ``TranslationRecipe`` that ``translate_train`` follows and ``training.json`` records.
"""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import Phase

SOURCE, TARGET = "eng_Latn", "fra_Latn"


@dataclass(frozen=True)
class TranslationShape:
    """An NLLB-MoE encoder-decoder with tied embeddings; every ``sparse_step``-th layer of each side is sparse."""

    num_experts: int = 128
    num_layers: int = 4  # on each side
    sparse_step: int = 2
    hidden_size: int = 128
    ffn_size: int = 64
    num_heads: int = 4
    vocab_size: int = 400
    max_positions: int = 256


@dataclass(frozen=True)
class TranslationRecipe:
    """Sparse upcycling: train ``dense``, copy its FFN into every expert with noise, train ``upcycled``."""

    name: str
    shape: TranslationShape
    dense: Phase
    upcycled: Phase
    balance: float = 0.001  # weight of one load-balancing term per sparse layer
    expert_noise: float = 0.05  # of the standard deviation of the dense FFN's weights
    router_std: float = 0.02
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dense_pairs: int = 16  # pairs per step: small first, because a step's cost grows with them
    upcycled_pairs: int = 32
    pool_batches: int = 16  # batches cut from one pool of pairs sorted by length
    seed: int = 20261123


TRANSLATE = TranslationRecipe("tiny-translate", TranslationShape(), dense=Phase(25, 2.5e-3), upcycled=Phase(11, 1e-3))
