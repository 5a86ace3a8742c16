"""An engine's decoding inside transformers' own ``generate`` and pipelines.

Comes in: an engine. Goes out: what ``engine.model.generate(custom_generate=...)`` calls in place of
its own loop: with ids, and with the processors and criteria that transformers made of all settings.
Each of these sees what it would see there, pads and place in the batch included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from ..errors import OptionError
from .engine import Engine
from .settings import PROCESSED, SAMPLED, refuse


def custom_generate(engine: Engine, **options) -> Callable[..., torch.Tensor]:
    """``pipeline("text-generation", model=engine.model, tokenizer=engine.tokenizer)(texts,
    custom_generate=specmoe.custom_generate(engine))`` decodes with ``engine``; so does
    ``engine.model.generate``.

    ``options`` are those of ``Engine.generate`` (method, gamma, streamer, ...). The result is what
    transformers expects: ids [B, T + new], filled up with the pad token. Not for encoder-decoders.
    """
    if engine.is_translation:
        raise OptionError("custom_generate is for decoders: call engine.generate to translate")

    def decode(
        model, input_ids, logits_processor, stopping_criteria, generation_config, **rest: Any
    ) -> torch.Tensor:
        if model is not engine.model:
            raise OptionError("custom_generate got another model than engine.model: pass that one")
        _check(generation_config, rest)
        mask = rest.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        given = _ends(stopping_criteria, input_ids.shape[1]) | _sampling(generation_config)
        own = [each for each in stopping_criteria if not isinstance(each, _OURS)]
        if logits_processor or own:
            given["settings"] = _of_rows(input_ids, mask, logits_processor, own)
        output = engine.generate(input_ids, attention_mask=mask, **{**given, **options})
        pad = generation_config.pad_token_id or 0
        pairs = zip(output.sequences, output.num_prompt_tokens)
        new = pad_sequence([tokens[n:] for tokens, n in pairs], True, padding_value=pad)
        return torch.cat([input_ids, new.to(input_ids)], dim=1)

    return decode


# What the engine looks after by itself.
_OURS = (EosTokenCriteria, MaxLengthCriteria)


def _check(config, rest: dict) -> None:
    config = copy.copy(config)
    # transformers has made as many rows of each prompt before it calls
    config.num_return_sequences = 1
    refuse(config)
    if config.return_dict_in_generate:
        raise OptionError("custom_generate returns ids: leave return_dict_in_generate out")
    # transformers 5.24 keeps a streamer to itself, and gives it the prompt only
    for name in ("streamer", "assistant_model"):
        if rest.get(name) is not None:
            raise OptionError(f"{name} belongs to specmoe.custom_generate(engine, ...): move it")


def _ends(criteria, num_prompt: int) -> dict[str, Any]:
    """Where texts end, by what transformers made of its settings; the others are neutral."""
    most = min(each.max_length for each in criteria if isinstance(each, MaxLengthCriteria))
    ends = [each.eos_token_id.tolist() for each in criteria if isinstance(each, EosTokenCriteria)]
    neutral: dict[str, Any] = dict.fromkeys(PROCESSED)
    return neutral | {"max_new_tokens": most - num_prompt, "eos_token_id": sum(ends, [])}


def _sampling(config) -> dict[str, Any]:
    """Temperature and so on are among the processors."""
    if not config.do_sample:
        return {}
    neutral: dict[str, Any] = dict.fromkeys(SAMPLED)
    return neutral | {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def _of_rows(input_ids: torch.Tensor, mask: torch.Tensor, processors, criteria) -> list[dict]:
    parts = {"logits_processor": processors, "stopping_criteria": criteria}
    return [
        {name: [_seeing(input_ids, mask, row, part) for part in of] for name, of in parts.items()}
        for row in range(len(input_ids))
    ]


def _seeing(input_ids: torch.Tensor, mask: torch.Tensor, row: int, part: Callable) -> Callable:
    """``part``, for a row of its batch: with the pads before it, and in its place."""
    pads = input_ids[row][mask[row] == 0]

    def call(ids: torch.Tensor, scores: torch.Tensor | None) -> torch.Tensor:
        ids = torch.cat([pads[None].to(ids), ids], dim=1).expand(len(input_ids), -1)
        scores = None if scores is None else scores.expand(len(input_ids), -1).clone()
        return part(ids, scores)[row : row + 1]

    call.__name__ = type(part).__name__
    return call
