"""What holds for each row of a run: transformers' logits processors, end tokens, stopping
criteria.

Comes in: the checkpoint's ``model.generation_config``, the options of ``generate``, ``settings``
per prompt. Goes out: options for the sampler and each row's ``RowRules``. ``prepare`` calls this.

Order of precedence: a prompt's own, arguments, ``generation_config=``, the checkpoint. Sampling
is the exception: a checkpoint's ``do_sample`` is not followed, but its temperature and so on are
used when sampling is asked for.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping

import torch
from transformers import ForcedBOSTokenLogitsProcessor, GenerationConfig, PreTrainedModel
from transformers.generation.stopping_criteria import StopStringCriteria

from ..errors import OptionError
from ..options import GenerateOptions
from ..speculate.loop import Sequence
from ..speculate.processors import RowRules
from .settings import (
    CALLABLES,
    PROCESSED,
    SAMPLED,
    as_list,
    check_effect,
    end_tokens,
    per_prompt,
    refuse,
)


class Rules:
    """The settings of a run. ``options``: with what sampling needs filled in."""

    def __init__(self, model: PreTrainedModel, tokenizer, options: GenerateOptions):
        self.model = model
        self.tokenizer = tokenizer
        self.config = copy.copy(model.generation_config)
        given = {name: getattr(options, name, None) for name in (*SAMPLED, "do_sample")}
        given = {name: value for name, value in given.items() if value is not None} | options.own
        self._sets = per_prompt(options.settings)
        self.config.do_sample, self.config.max_length = False, None
        _fill(self.config, {**given, "max_new_tokens": options.max_new_tokens})
        if options.eos_token_id is not None:
            self.config.eos_token_id = options.eos_token_id
            end_tokens(options.eos_token_id, given=True)
        self.callables = {name: getattr(options, name) for name in CALLABLES}
        self.samples = bool(self.config.do_sample) or any(
            each.get("do_sample") for each in self._sets
        )
        check_effect(given, bool(self.config.do_sample) or self.samples)
        self._stop_strings: dict[str, StopStringCriteria] = {}
        names = ("temperature", "top_k", "top_p") if self.samples else ()
        warps = {name: getattr(self.config, name) for name in names}
        self.options = dataclasses.replace(options, do_sample=self.samples, **warps)

    @property
    def longest(self) -> int:
        """The most new tokens that a prompt may get."""
        # what max_length leaves is known with the prompts; ``_rules`` checks it
        least = 2 if self.model.config.is_encoder_decoder else 1
        default = least if self.config.max_length else self.options.max_new_tokens
        return max(
            least if each.get("max_length") else each.get("max_new_tokens", default)
            for each in self._sets or [{}]
        )

    @property
    def eos(self) -> frozenset[int]:
        return end_tokens(self.config.eos_token_id)

    def give_rules(self, rows: Iterable[Sequence]) -> bool:
        """Give ``rows`` their rules; False, and none given, where the sampler's own are enough."""
        if self._sets and len(self._sets) != len(rows):
            raise OptionError(
                f"settings has {len(self._sets)} entries for {len(rows)} prompts: give one each"
            )
        if not self._sets and self._is_plain(rows[0]):
            for row in rows:
                self._limit(row, self.config)
            return False
        for index, row in enumerate(rows):
            own = self._sets[index] if self._sets else {}
            try:
                row.rules = self._rules(row, own)
            except OptionError as refusal:
                raise OptionError(
                    f"settings[{index}]: {refusal}" if own else str(refusal)
                ) from refusal
        return True

    def _is_plain(self, row: Sequence) -> bool:
        rules = self._rules(row, {})
        basic = ("TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper")
        return not rules.criteria and all(type(each).__name__ in basic for each in rules.processors)

    def _rules(self, row: Sequence, own: Mapping) -> RowRules:
        config = copy.copy(self.config)
        config.max_length = None if own.get("max_new_tokens") else config.max_length
        _fill(config, own)
        check_effect(own, config.do_sample)
        refuse(config)
        eos, start = end_tokens(config.eos_token_id), self._limit(row, config)
        config.max_length = row.limit
        if config.min_new_tokens is not None:
            config.min_length = None
        if row.source and row.num_prompt > 1:
            config.forced_bos_token_id = row.tokens[1]
        device, is_greedy = self.model.device, self.samples and not config.do_sample
        config._eos_token_tensor = torch.tensor(sorted(eos), device=device) if eos else None
        custom, more = (
            self.callables[name] if own.get(name) is None else own[name] for name in CALLABLES
        )
        processors = self._processors(config, start, row.source or row.tokens, custom)
        # The forced language stands in the row already, and would be asked for in every round.
        if row.source and row.num_prompt > 1:
            processors = [x for x in processors if type(x) is not ForcedBOSTokenLogitsProcessor]
        criteria = *self._stops(config.stop_strings), *as_list("stopping_criteria", more)
        return RowRules(tuple(processors), criteria, eos, is_greedy)

    def _limit(self, row: Sequence, config: GenerationConfig) -> int:
        """Set how long ``row`` may become -> what of it does not count as new."""
        start = 1 if row.source else row.num_prompt
        row.limit = config.max_length or start + config.max_new_tokens
        if row.room < 1:
            name = "max_length" if config.max_length else "max_new_tokens"
            by = "the language token" if row.source else f"a prompt of {row.num_prompt} tokens"
            raise OptionError(f"{name}={getattr(config, name)} is filled by {by}: use more")
        return start

    def _processors(self, config: GenerationConfig, start: int, read: list[int], custom) -> list:
        """transformers' own list, in its order, for a row alone."""
        custom = as_list("logits_processor", custom)
        ids = torch.tensor([read], device=self.model.device)
        make = self.model._get_logits_processor
        arguments = {
            "input_ids_seq_length": start,
            "encoder_input_ids": ids,
            "device": self.model.device,
        }
        try:
            return list(make(config, logits_processor=custom, **arguments))
        except Exception as failure:
            raise OptionError(
                f"{_culprit(make, config, arguments)} cannot be used: {failure}"
            ) from failure

    def _stops(self, strings) -> list:
        if strings is None:
            return []
        texts = [strings] if isinstance(strings, str) else strings
        is_list = isinstance(texts, list | tuple) and len(texts) > 0
        if not is_list or not all(isinstance(text, str) and text for text in texts):
            raise OptionError(
                f"stop_strings={strings!r} must be a text or a list of texts, none of them empty"
            )
        if self.tokenizer is None:
            raise OptionError(
                "stop_strings need a tokenizer, and the checkpoint brings none: use eos_token_id"
            )
        key = repr(texts)
        if key not in self._stop_strings:
            self._stop_strings[key] = StopStringCriteria(self.tokenizer, list(texts))
        return [self._stop_strings[key]]


def _fill(config: GenerationConfig, settings: Mapping) -> None:
    for name, value in settings.items():
        if name not in CALLABLES:
            if name in ("temperature", "top_p") and type(value) is int:
                value = float(value)
            if name == "watermarking_config" and isinstance(value, Mapping):
                value = _watermark(value)
            setattr(config, name, value)


def _watermark(value: Mapping):
    try:
        return GenerationConfig(watermarking_config=dict(value)).watermarking_config
    except Exception as failure:
        raise OptionError(f"watermarking_config={value!r} cannot be used: {failure}") from failure


def _culprit(make, config: GenerationConfig, arguments: dict) -> str:
    """Which setting it was that a processor could not be made of."""
    for name in (*PROCESSED, *SAMPLED):
        if getattr(config, name, None) is not None:
            single = GenerationConfig(do_sample=True, max_length=config.max_length)
            single._eos_token_tensor = config._eos_token_tensor
            setattr(single, name, getattr(config, name))
            try:
                make(single, logits_processor=[], **arguments)
            except Exception:
                return f"{name}={getattr(config, name)!r}"
    return "the generation settings"
