"""The prompts of whatever is measured: a user's own, or held-out texts of the shipped models.

Comes in: an engine, or whether its model translates, and how many. Goes out: prompts, the same for
the same seed. ``methods``, ``workplace``, ``gpu_parts`` and ``paper`` ask here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ...tiny.texts.data import held_out_prompts
from ...tiny.texts.translate_data import held_out_pairs

# Token ids of a prompt for a model without a tokenizer, at most.
MOST_BYTES = 32


def held_out(num: int, seed: int, translates: bool = False) -> list[str]:
    """``num`` texts that no shipped model was trained on: English sentences where it translates."""
    if translates:
        return [pair.english for pair in held_out_pairs(num, seed)]
    return held_out_prompts(num, seed)


def prompts_for(engine, num: int, seed: int, given: Sequence | None = None) -> list:
    """``num`` prompts for ``engine``: those ``given``, from the first again where they are too few,
    else held-out texts; without a tokenizer the texts' bytes serve as token ids."""
    if given is not None:
        return list(itertools.islice(itertools.cycle(given), num))
    texts = held_out(num, seed, getattr(engine, "is_translation", False))
    if getattr(engine, "tokenizer", "") is not None:
        return texts
    vocab_size = engine.decoder.vocab_size
    return [[byte % vocab_size for byte in text.encode()[:MOST_BYTES]] for text in texts]
