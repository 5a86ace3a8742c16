"""Prompts as users hold them -> token ids.

Comes in: texts, chats, lists of ids, a padded tensor or array with its attention mask, a pandas
column, or a tokenizer's output. Goes out: one list of ids per prompt, padding removed by the mask
(never by the pad id: it may be a real token). ``engine`` calls this.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from ..errors import CheckpointError, OptionError

logger = logging.getLogger("specmoe")


def one_of(prompts, input_ids, inputs):
    """``prompts`` under whichever of the three names it was given."""
    given = {"prompts": prompts, "input_ids": input_ids, "inputs": inputs}
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        names = " and ".join(found) or "none"
        raise OptionError(
            f"prompts were given as {names}: give them once, as prompts, inputs or input_ids"
        )
    return given[found[0]]


def read_prompts(prompts, attention_mask, tokenizer, vocab_size: int) -> list[list[int]]:
    """Token ids of every prompt; ``OptionError`` naming the prompt that cannot be used."""
    if isinstance(prompts, Mapping) and not is_message(prompts):
        if "input_ids" not in prompts:
            raise OptionError(
                "prompts is a dict without input_ids: pass what a tokenizer returns, "
                "or a list of prompts"
            )
        _refuse_media(prompts)
        attention_mask = prompts.get("attention_mask", attention_mask)
        prompts = prompts["input_ids"]
    prompts = _as_rows(prompts)
    if not len(prompts):
        raise OptionError("prompts is empty: pass at least one prompt")
    rows = [_read_one(index, prompt, tokenizer) for index, prompt in enumerate(prompts)]
    if attention_mask is not None:
        rows = _masked(prompts, rows, attention_mask)
    elif isinstance(prompts, np.ndarray):
        _warn_of_padding(rows, tokenizer)
    for index, row in enumerate(rows):
        _check_ids(index, row, vocab_size)
    return rows


def _refuse_media(prompts: Mapping) -> None:
    """What a processor adds for pictures and sound would be dropped, and the text means another."""
    given = [str(name) for name, value in prompts.items() if value is not None]
    media = [name for name in given if re.search("pixel|image|video|audio", name)]
    if media:
        raise OptionError(
            f"prompts hold {', '.join(media)}, and specmoe decodes texts only: leave images, "
            "videos and sound out"
        )


def _as_rows(prompts) -> Sequence:
    """Something with one entry per prompt."""
    if isinstance(prompts, str):
        raise OptionError("prompts is one string: pass a list, [prompt]")
    if isinstance(prompts, torch.Tensor):
        prompts = prompts.detach().cpu().numpy()
    elif hasattr(prompts, "to_numpy") and hasattr(prompts, "iloc"):
        if len(prompts.shape) != 1:
            raise OptionError(
                f"prompts is a table of shape {prompts.shape}: pass one column, table['prompt']"
            )
        prompts = prompts.tolist()
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "OUS" and prompts.ndim == 1:
        prompts = prompts.tolist()
    if isinstance(prompts, np.ndarray):
        if prompts.ndim != 2 or prompts.dtype.kind not in "iu":
            raise OptionError(
                f"prompts is a {prompts.dtype} tensor of shape {prompts.shape}: expected integer "
                "ids [B, T]"
            )
        return prompts
    if isinstance(prompts, Sequence) and prompts and all(map(is_message, prompts)):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | Mapping):
        raise OptionError(
            f"prompts is a {type(prompts).__name__}: pass a list of texts or of token ids, or ids "
            "[B, T]"
        )
    return list(prompts)


def _read_one(index: int, prompt, tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return _from_text(index, prompt, tokenizer)
    if is_message(prompt):
        prompt = [prompt]
    if isinstance(prompt, torch.Tensor | np.ndarray):
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and prompt and all(map(is_message, prompt)):
        return _from_chat(index, prompt, tokenizer)
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes)
    if not is_list or not all(
        isinstance(token, int | np.integer) and not isinstance(token, bool) for token in prompt
    ):
        raise OptionError(
            f"prompt {index} is neither a text, a chat nor a list of token ids: "
            f"{str(prompt)[:60]!r}"
        )
    return [int(token) for token in prompt]


def is_message(value) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _from_text(index: int, text: str, tokenizer) -> list[int]:
    need_tokenizer(f"prompt {index} is a text", tokenizer)
    try:
        text.encode()
    except UnicodeEncodeError as failure:
        raise OptionError(
            f"prompt {index} holds half a surrogate pair at character {failure.start}: decode the "
            "text properly"
        ) from None
    if not text:
        return []
    # A text that a chat template rendered brings its own first token.
    own = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    return list(tokenizer(text, add_special_tokens=not own)["input_ids"])


def _from_chat(index: int, messages, tokenizer) -> list[int]:
    need_tokenizer(f"prompt {index} is a chat", tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError(
            f"prompt {index} is a chat, and the tokenizer has no chat template: pass "
            "the text itself"
        )
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as failure:  # templates are programs of the checkpoint's author
        raise OptionError(
            f"prompt {index}: the chat template refused the messages ({failure})"
        ) from failure
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def need_tokenizer(what: str, tokenizer) -> None:
    """Refuse ``what`` where there is no tokenizer, or none that can be read."""
    if isinstance(tokenizer, CheckpointError):
        raise CheckpointError(f"{what}, and {tokenizer}")
    if tokenizer is None:
        raise OptionError(f"{what}, but the checkpoint has no tokenizer: pass token ids")


def _masked(prompts, rows: list[list[int]], attention_mask) -> list[list[int]]:
    """What the mask leaves of each row; a mask belongs to ids, and has their shape."""
    if hasattr(attention_mask, "tolist"):
        attention_mask = attention_mask.tolist()
    masks = [mask.tolist() if hasattr(mask, "tolist") else mask for mask in attention_mask]
    if any(isinstance(prompt, str) for prompt in prompts):
        raise OptionError(
            "attention_mask belongs to token ids, and prompts are texts: leave it out"
        )
    lengths = [len(row) for row in rows]
    if [len(mask) if isinstance(mask, Sequence) else -1 for mask in masks] != lengths:
        raise OptionError(
            f"attention_mask has another shape than prompts, whose rows have {lengths[:8]} tokens"
        )
    if any(value not in (0, 1) for mask in masks for value in mask):
        raise OptionError(
            "attention_mask holds values other than 0 and 1: pass the tokenizer's own"
        )
    return [
        [token for token, real in zip(row, mask) if real]
        for row, mask in zip(rows, masks, strict=True)
    ]


def _warn_of_padding(rows: list[list[int]], tokenizer) -> None:
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None and any(pad in (row[0], row[-1]) for row in rows if row):
        logger.warning(
            "prompts begin or end with the pad token %d and have no attention_mask: it "
            "counts as text",
            pad,
        )


def _check_ids(index: int, row: list[int], vocab_size: int) -> None:
    if not row:
        raise OptionError(f"prompt {index} is empty: it needs at least one token")
    outside = next((token for token in row if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise OptionError(
            f"prompt {index} holds token id {outside}, outside the vocabulary of {vocab_size}"
        )


def check_lengths(rows: list[list[int]], max_new_tokens: int, max_positions: int | None) -> None:
    """Every prompt and its new tokens must fit the model's positions."""
    if max_positions is None:
        return
    for index, row in enumerate(rows):
        if len(row) >= max_positions:
            raise OptionError(
                f"prompt {index} has {len(row)} tokens; the model has {max_positions} positions: "
                "shorten it"
            )
        if len(row) + max_new_tokens > max_positions:
            raise OptionError(
                f"prompt {index} has {len(row)} tokens, and max_new_tokens={max_new_tokens} would "
                "pass the model's "
                f"{max_positions} positions: at most {max_positions - len(row)} new tokens fit"
            )
