"""Prompts as users hold them -> token ids.

Comes in: texts, lists of ids, a padded tensor with its attention mask, or a tokenizer's output. Goes out: one list of ids
per prompt, padding removed by the mask (never by the pad id: it may be a real token). ``engine`` calls this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from .errors import OptionError


def read_prompts(prompts, attention_mask, tokenizer, vocab_size: int) -> list[list[int]]:
    """Token ids of every prompt; ``OptionError`` naming the prompt that cannot be used."""
    if isinstance(prompts, Mapping):
        attention_mask = prompts.get("attention_mask", attention_mask)
        prompts = prompts["input_ids"]
    if isinstance(prompts, str):
        raise OptionError("prompts is one string: pass a list, [prompt]")
    if not isinstance(prompts, torch.Tensor | Sequence):
        raise OptionError(f"prompts is a {type(prompts).__name__}: pass a list of texts or of token ids, or ids [B, T]")
    if isinstance(prompts, torch.Tensor):
        rows = _from_tensor(prompts, attention_mask)
    else:
        rows = [_from_one(index, prompt, tokenizer) for index, prompt in enumerate(prompts)]
    if not rows:
        raise OptionError("prompts is empty: pass at least one prompt")
    for index, row in enumerate(rows):
        _check_ids(index, row, vocab_size)
    return rows


def _from_tensor(ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    if ids.ndim != 2 or ids.dtype.is_floating_point:
        raise OptionError(f"prompts is a {ids.dtype} tensor of shape {tuple(ids.shape)}: expected integer ids [B, T]")
    if attention_mask is None:
        return ids.tolist()
    attention_mask = torch.as_tensor(attention_mask)
    if attention_mask.shape != ids.shape:
        raise OptionError(f"attention_mask has shape {tuple(attention_mask.shape)}, prompts {tuple(ids.shape)}")
    return [row[mask.bool()].tolist() for row, mask in zip(ids, attention_mask, strict=True)]


def _from_one(index: int, prompt, tokenizer) -> list[int]:
    if isinstance(prompt, str):
        if tokenizer is None:
            raise OptionError(f"prompt {index} is a text, but the checkpoint has no tokenizer: pass token ids")
        return list(tokenizer(prompt)["input_ids"]) if prompt else []
    if isinstance(prompt, torch.Tensor):
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or any(isinstance(token, bool) or not isinstance(token, int) for token in prompt):
        raise OptionError(f"prompt {index} is neither a text nor a list of token ids: {str(prompt)[:60]!r}")
    return list(prompt)


def _check_ids(index: int, row: list[int], vocab_size: int) -> None:
    if not row:
        raise OptionError(f"prompt {index} is empty: it needs at least one token")
    outside = next((token for token in row if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise OptionError(f"prompt {index} holds token id {outside}, outside the vocabulary of {vocab_size}")


def check_lengths(rows: list[list[int]], max_new_tokens: int, max_positions: int | None) -> None:
    """Every prompt and its new tokens must fit the model's positions."""
    if max_positions is None:
        return
    for index, row in enumerate(rows):
        if len(row) >= max_positions:
            raise OptionError(f"prompt {index} has {len(row)} tokens; the model has {max_positions} positions: shorten it")
        if len(row) + max_new_tokens > max_positions:
            raise OptionError(
                f"prompt {index} has {len(row)} tokens, and max_new_tokens={max_new_tokens} would pass the model's "
                f"{max_positions} positions: at most {max_positions - len(row)} new tokens fit"
            )
