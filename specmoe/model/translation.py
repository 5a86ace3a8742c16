"""Sources and languages of an encoder-decoder: what the encoder reads, and what the decoder begins
with.

Comes in: prompts as users hold them, ``source_lang`` and ``target_lang``. Goes out: token ids of
every source, and the decoder's first tokens. ``engine.prepare`` calls this in place of ``inputs``.
"""

from __future__ import annotations

import re

from ..errors import OptionError, nearest
from .inputs import is_message, read_prompts

LANGUAGE = re.compile(r"_{0,2}[a-z]{2,3}(_[A-Z][A-Za-z]{1,3})?_{0,2}")  # fra_Latn, __fr__, en_XX


def language_codes(tokenizer) -> dict[str, int]:
    """Language code -> token id; empty for a tokenizer that knows no languages."""
    if tokenizer is None or not hasattr(tokenizer, "src_lang"):
        return {}
    table = getattr(tokenizer, "lang_code_to_id", None)
    if table:
        return dict(table)
    special = set(tokenizer.all_special_ids)
    return {
        token: index
        for token, index in tokenizer.get_added_vocab().items()
        if index in special and LANGUAGE.fullmatch(token)
    }


def read_sources(
    prompts, attention_mask, tokenizer, vocab_size: int, source_lang: str | None
) -> list[list[int]]:
    """Token ids of every source text, written in ``source_lang``."""
    _refuse_chat(prompts)
    if source_lang is None:
        return read_prompts(prompts, attention_mask, tokenizer, vocab_size)
    _language_id("source_lang", source_lang, tokenizer)
    before, tokenizer.src_lang = tokenizer.src_lang, source_lang
    try:
        return read_prompts(prompts, attention_mask, tokenizer, vocab_size)
    finally:
        tokenizer.src_lang = before


def decoder_prompt(
    start_token: int, forced_token: int | None, tokenizer, target_lang: str | None
) -> list[int]:
    """What the decoder begins with: its start token and the language token (``forced_token``: the
    checkpoint's own)."""
    codes = language_codes(tokenizer)
    if target_lang is not None:
        return [start_token, _language_id("target_lang", target_lang, tokenizer)]
    if forced_token is not None:
        return [start_token, forced_token]
    if codes:
        shown = ", ".join(sorted(codes)[:6])
        raise OptionError(
            "no target language: pass target_lang=, one of the tokenizer's "
            f"{len(codes)} codes ({shown}, ...)"
        )
    return [start_token]


def check_source_lengths(
    sources: list[list[int]], num_start: int, max_new_tokens: int, max_positions: int | None
) -> None:
    """Sources fit the encoder's positions, new tokens the decoder's. ``max_new_tokens`` counts the
    language token, as in transformers, and so must leave room for one more."""
    if max_new_tokens < num_start:
        raise OptionError(
            f"max_new_tokens={max_new_tokens} is filled by the language token: use "
            f"at least {num_start}"
        )
    if max_positions is None:
        return
    for index, source in enumerate(sources):
        if len(source) > max_positions:
            raise OptionError(
                f"prompt {index} has {len(source)} tokens; the encoder has {max_positions} "
                "positions: shorten it"
            )
    if max_new_tokens + 1 > max_positions:
        raise OptionError(
            f"max_new_tokens={max_new_tokens} passes the decoder's {max_positions} positions: use "
            "a smaller one"
        )


def refuse_languages(source_lang: str | None, target_lang: str | None, model_type: str) -> None:
    """A decoder-only model has no languages to choose."""
    for option, value in (("source_lang", source_lang), ("target_lang", target_lang)):
        if value is not None:
            raise OptionError(
                f"{option}={value!r} is for translation models (encoder-decoder); "
                f"{model_type} has no encoder"
            )


def _language_id(option: str, code: str, tokenizer) -> int:
    codes = language_codes(tokenizer)
    if not codes:
        raise OptionError(
            f"{option}={code!r}: the checkpoint's tokenizer knows no languages; leave it out"
        )
    if code not in codes:
        raise OptionError(f"{option}={code!r} is unknown: {nearest(code, codes)}")
    return codes[code]


def _refuse_chat(prompts) -> None:
    is_list = isinstance(prompts, list | tuple)
    if is_message(prompts) or is_list and any(map(_holds_messages, prompts)):
        raise OptionError(
            "prompts are chat messages: an encoder-decoder translates texts; pass "
            "the texts themselves"
        )


def _holds_messages(prompt) -> bool:
    is_list = isinstance(prompt, list | tuple)
    return is_message(prompt) or is_list and any(map(is_message, prompt))
