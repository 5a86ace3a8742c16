"""The recipes of the shipped models, as data: shape, texts, phases. No torch here.

Comes in: a name. Goes out: a frozen ``Recipe`` or ``TranslationRecipe`` that ``train`` follows and
``training.json`` records.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import OptionError, nearest

SOURCE, TARGET = "eng_Latn", "fra_Latn"


@dataclass(frozen=True)
class Shape:
    """A Mixtral-class decoder with tied embeddings."""

    num_experts: int
    top_k: int = 2
    num_layers: int = 4
    hidden_size: int = 128
    ffn_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    vocab_size: int = 2048
    max_positions: int = 512
    rope_theta: float = 10_000.0


# Shares of documents, not of tokens: short documents are drawn more often.
WEIGHTS = {
    "json": 1.0,
    "sql": 1.0,
    "csv": 0.7,
    "stories": 0.7,
    "numbers": 2.0,
    "dates": 1.5,
    "arithmetic": 5.0,
    "python": 2.0,
}


@dataclass(frozen=True)
class Phase:
    """One training run from warm-up to the end of its cosine."""

    minutes: float
    peak_learning_rate: float
    balance: float = 0.0  # weight of one load-balancing term per layer
    # of one batch: the term turns round where a layer's use is more even
    target_gini: float | None = None
    warm_up: float = 0.03  # share of the phase
    warm_up_steps: int | None = None  # instead of a share
    final_share: float = 0.05  # of the peak learning rate; 1: constant
    # the phase's length in steps; ``minutes`` is then about what they take
    steps: int | None = None


@dataclass(frozen=True)
class TextPhase(Phase):
    """A phase on a mixture of documents."""

    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every recipe says beside its phases, ``dense``, ``upcycled`` and perhaps ``steered``."""

    expert_noise: float = 0.05  # of the standard deviation of the dense FFN's weights
    router_std: float = 0.02
    weight_decay: float = 0.05
    beta2: float = 0.95  # of AdamW
    clip_norm: float = 1.0
    seed: int = 20261123

    @property
    def phases(self) -> dict[str, Phase]:
        """The phases there are, in order."""
        found = {name: getattr(self, name, None) for name in ("dense", "upcycled", "steered")}
        return {name: phase for name, phase in found.items() if phase is not None}


@dataclass(frozen=True)
class Recipe(Training):
    """Sparse upcycling: train ``dense``, copy its FFN into every expert with noise, train
    ``upcycled``, ``steered``."""

    name: str
    shape: Shape
    dense: TextPhase
    upcycled: TextPhase
    steered: TextPhase | None = None
    batch_tokens: int = 2048
    sequence_tokens: int = 256  # every eighth step doubles it, so that all positions are trained
    bare_share: float = 0.1  # documents shown without the line that announces their content


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


_DENSE = TextPhase(21, 4e-3)
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
RECIPES = {
    "tiny-skewed": Recipe(
        "tiny-skewed",
        Shape(num_experts=32),
        dense=_DENSE,
        upcycled=TextPhase(24, 2.5e-3, balance=0.001),
        steered=TextPhase(
            19,
            1.4e-3,
            balance=0.001,
            target_gini=0.7,
            weights=WEIGHTS | {"arithmetic": 8.0, "csv": 1.2},
        ),
    ),
    "tiny-balanced": Recipe(
        "tiny-balanced",
        Shape(num_experts=8),
        dense=_DENSE,
        upcycled=TextPhase(13, 2.5e-3, balance=0.02),
    ),
    "tiny-translate": TRANSLATE,
}


def recipe_of(name: str) -> Recipe | TranslationRecipe:
    """The recipe called ``name``; an unknown name raises with the nearest one."""
    if name not in RECIPES:
        raise OptionError(f"no recipe is called {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]
