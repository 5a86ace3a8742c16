"""A checkpoint's tokenizer, and tokens as text.

Comes in: a checkpoint's folder; sequences of ids. Goes out: the tokenizer, None, or why there is
none; texts. ``engine`` calls this. Code of a checkpoint never runs, and nothing is asked.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..checkpoint.gguf_header import read_gguf
from ..errors import CheckpointError

logger = logging.getLogger("specmoe")
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def load_tokenizer(folder: Path, model_type: str | None = None):
    """The tokenizer; None when the checkpoint brings none; a ``CheckpointError`` (not raised: token
    ids need none) when its files cannot be used."""
    from transformers import AutoTokenizer

    is_gguf = folder.is_file()
    if not (_has_vocabulary(folder) if is_gguf else any((folder / n).exists() for n in FILES)):
        return None
    where, options = (folder.parent, _inside(folder, model_type)) if is_gguf else (folder, {})
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
    # a dozen libraries read these files, each with errors of its own
    except Exception as failure:
        reason = next((line for line in str(failure).splitlines() if line.strip()), "")[:200]
        broken = CheckpointError(
            f"the tokenizer files in {folder} cannot be used ({type(failure).__name__}: {reason}): "
            "download them again,"
            " or pass token ids"
        )
        logger.warning("%s", broken)
        return broken


def _has_vocabulary(file: Path) -> bool:
    return "tokenizer.ggml.tokens" in read_gguf(file).settings


def _inside(file: Path, model_type: str | None) -> dict[str, str]:
    """How transformers is told to look into a GGUF. Where it is told the model's type, too, it does
    not spend most of a minute on finding that out."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    is_known = TOKENIZER_MAPPING_NAMES.get(model_type) is not None
    return {"gguf_file": file.name} | ({"tokenizer_type": model_type} if is_known else {})


def to_texts(tokenizer, sequences: list[list[int]]) -> list[str]:
    """Special tokens left out; empty where there is no tokenizer."""
    if tokenizer is None or isinstance(tokenizer, CheckpointError):
        return []
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in sequences]


def new_texts(
    tokenizer, sequences: list[list[int]], lengths: list[int], texts: list[str]
) -> list[str]:
    """What each of ``texts`` holds beyond its first ``lengths`` tokens: prompt + new text = text.
    (New tokens decoded alone would lose the space that a SentencePiece tokenizer puts before a
    word.)"""
    prompts = to_texts(
        tokenizer, [tokens[:length] for tokens, length in zip(sequences, lengths, strict=True)]
    )
    return [
        text[len(os.path.commonprefix([prompt, text])) :] for prompt, text in zip(prompts, texts)
    ]
