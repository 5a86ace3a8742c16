"""The recipe of the translation model, as data: shape, phases, noise. No torch here.

Goes out: ``TRANSLATE``, a frozen ``TranslationRecipe`` that ``translate_train`` follows and
``training.json`` records.
"""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import Phase, Training

SOURCE, TARGET = "eng_Latn", "fra_Latn"


@dataclass(frozen=True)
class TranslationShape:
    """An NLLB-MoE encoder-decoder with tied embeddings; every ``sparse_step``-th layer of each side
    is sparse."""

    num_experts: int = 128
    num_layers: int = 4  # on each side
    sparse_step: int = 2
    hidden_size: int = 128
    ffn_size: int = 64
    num_heads: int = 4
    vocab_size: int = 400
    max_positions: int = 256


@dataclass(frozen=True)
class TranslationRecipe(Training):
    """Sparse upcycling: train ``dense``, copy its FFN into every expert with noise, train
    ``upcycled``."""

    name: str
    shape: TranslationShape
    dense: Phase
    upcycled: Phase
    dense_pairs: int = 16  # pairs per step: small first, because a step's cost grows with them
    upcycled_pairs: int = 32
    pool_batches: int = 16  # batches cut from one pool of pairs sorted by length


# The dense model is left early, at a loss of about 0.2: what is learned later, the experts learn
# apart from each other.
TRANSLATE = TranslationRecipe(
    "tiny-translate",
    TranslationShape(),
    dense=Phase(1.5, 2.5e-3, warm_up_steps=200, final_share=1.0, steps=1200),
    upcycled=Phase(28, 1.5e-3, balance=0.001, target_gini=0.74),
    weight_decay=0.01,
    beta2=0.98,
)
