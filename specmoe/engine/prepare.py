"""From what was asked for to a run that can begin: prompts become rows, options become a method.

Comes in: prompts in any form, the options of ``generate``. Goes out: a ``Plan``; all of it has been
checked, nothing is held yet. ``Engine.start`` calls this.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..errors import CheckpointError, OptionError
from ..model.decoder import Decoder
from ..model.inputs import check_lengths, read_prompts
from ..model.seq2seq import Seq2SeqDecoder
from ..model.translation import check_source_lengths, decoder_prompt, read_sources, refuse_languages
from ..options import GenerateOptions, from_kwargs
from ..speculate.evidence import first_draft
from ..speculate.loop import Sequence
from ..speculate.sampling import Sampler
from ..speculate.sources import Oracle
from .methods import Method, make_method
from .rules import Rules
from .settings import end_tokens, gather

DEFAULT_BATCH_SIZE = 64
CALIBRATION = {"num_prompts": 8, "max_new_tokens": 24}


@dataclass(frozen=True)
class Plan:
    """A run before it begins: nothing is held yet."""

    rows: list[Sequence]
    options: GenerateOptions
    method: Method
    sampler: Sampler
    batch_size: int
    eos: frozenset[int]


class Reader:
    """Prompts of one model as rows. ``found``: its tokenizer; None, or an error, where it has
    none."""

    def __init__(self, model: PreTrainedModel, decoder: Decoder, found):
        self.model = model
        self.decoder = decoder
        self.found = found
        self.tokenizer = None if isinstance(found, CheckpointError) else found

    def rows(self, prompts, attention_mask, options: GenerateOptions) -> list[Sequence]:
        """One row per prompt. Raises ``OptionError`` for what cannot be read or is too long."""
        if isinstance(self.decoder, Seq2SeqDecoder):
            return self._of_sources(prompts, attention_mask, options)
        decoder, new, first = self.decoder, options.max_new_tokens, options.first_prompt
        refuse_languages(options.source_lang, options.target_lang, self.model.config.model_type)
        tokens = read_prompts(prompts, attention_mask, self.found, decoder.vocab_size)
        check_lengths(tokens, new, decoder.max_positions)
        return [Sequence(first + i, list(row), len(row) + new) for i, row in enumerate(tokens)]

    def _of_sources(self, prompts, attention_mask, options: GenerateOptions) -> list[Sequence]:
        """Rows of an encoder-decoder: as in transformers, ``max_new_tokens`` counts all but the
        start token."""
        decoder, new, first = self.decoder, options.max_new_tokens, options.first_prompt
        sources = read_sources(
            prompts, attention_mask, self.tokenizer, decoder.vocab_size, options.source_lang
        )
        forced = self.model.generation_config.forced_bos_token_id
        forced = options.own.get("forced_bos_token_id", forced)
        start = decoder_prompt(decoder.start_token, forced, self.tokenizer, options.target_lang)
        check_source_lengths(sources, len(start), new, decoder.max_positions)
        return [
            Sequence(first + index, list(start), 1 + new, source=source)
            for index, source in enumerate(sources)
        ]


def prepare(engine, prompts, attention_mask, options: Mapping) -> Plan:
    """Read and check everything; calibrate where the method stands on it."""
    # a tokenizer may add them; no model here reads them
    options = {name: value for name, value in options.items() if name != "token_type_ids"}
    given = options
    options = from_kwargs(GenerateOptions, gather(options))
    rules = Rules(engine.model, engine.tokenizer, options)
    options, decoder = rules.options, engine.decoder
    _check_end_tokens(options.eos_token_id, decoder.vocab_size)
    longest = dataclasses.replace(options, max_new_tokens=rules.longest)
    rows = engine.reader.rows(prompts, attention_mask, longest)
    sampler = Sampler(options, warped=rules.give_rules(rows))
    most = max(row.limit for row in rows)
    if decoder.max_positions is not None and most > decoder.max_positions:
        what = f"max_length={most} passes the model's {decoder.max_positions} positions"
        raise OptionError(f"{what}: use less")
    rows = _copies(rows, options)
    batch_size = min(options.batch_size or DEFAULT_BATCH_SIZE, len(rows))
    max_block = decoder.largest_block(batch_size)
    hotness = _hotness(engine, options, rows)
    first = first_draft(batch_size, engine.info["top_k"], engine.packed.num_experts)
    method = make_method(options, engine.memory, engine.packed, hotness, max_block, first)
    decoder.check_blocks(rows, batch_size, method.planner.max_gamma)
    if isinstance(method.source, Oracle) and not method.source.texts:
        method.source.texts |= _texts(
            engine, prompts, attention_mask, given | {"seed": sampler.seed}
        )
    eos = rules.eos.union(*(row.rules.eos for row in rows if row.rules))
    return Plan(rows, options, method, sampler, batch_size, eos)


def _check_end_tokens(given, vocab_size: int) -> None:
    outside = [token for token in end_tokens(given) if token >= vocab_size]
    if outside:
        raise OptionError(f"eos_token_id={outside[0]} is outside the vocabulary of {vocab_size}")


def _copies(rows: list[Sequence], options: GenerateOptions) -> list[Sequence]:
    """``num_return_sequences`` rows for each, side by side, with noise of their own and one
    prefill."""
    number = options.num_return_sequences
    if number == 1:
        return rows
    if not options.do_sample:
        raise OptionError(
            f"num_return_sequences={number} without do_sample=True would give the "
            f"same text {number} times"
        )
    numbers = itertools.count(options.first_prompt)
    return [
        dataclasses.replace(row, prompt=next(numbers), tokens=list(row.tokens), twin=index)
        for index, row in enumerate(rows)
        for _ in range(number)
    ]


def _texts(engine, prompts, attention_mask, options: Mapping) -> dict[int, list[int]]:
    """What plain decoding gives: prompt -> its new tokens. The oracle drafts it."""
    plain = {"method": "cached", "eviction": "temporal", "draft": "resident", "gamma": None}
    options = {**options, **plain, "streamer": None, "progress": None}
    with engine.start(prompts, attention_mask=attention_mask, **options) as run:
        output, rows = run.output(), run.plan.rows
    return {
        row.prompt: tokens[row.num_prompt :].tolist()
        for row, tokens in zip(rows, output.sequences, strict=True)
    }


def _hotness(engine, options: GenerateOptions, rows: list[Sequence]) -> list[list[int]] | None:
    """Calibrates on the first prompts when a method needs it and nobody has."""
    static = options.method == "cached" and options.eviction == "static"
    by_use = options.draft_set == "hot_global" or "merged" in str(options.draft)
    hot_global = options.method in ("specmoe", "auto") and by_use
    if (static or hot_global) and engine.hotness is None:
        room = (engine.decoder.max_positions or 1 << 30) - max(row.num_prompt for row in rows)
        first = [row.source or row.tokens for row in rows[: CALIBRATION["num_prompts"]]]
        languages = {"target_lang": options.target_lang} if engine.is_translation else {}
        engine.calibrate(first, min(CALIBRATION["max_new_tokens"], room), **languages)
    return engine.hotness
