"""Which generation settings are followed or refused, and those that a call or a prompt gives.

Comes in: keyword arguments of ``generate`` named as in transformers' ``GenerationConfig``, and
``settings``, a dict or None per prompt. Goes out: both checked, as far as that needs no model.
``rules`` calls next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from transformers import GenerationConfig

from ..errors import OptionError, nearest
from ..options import GenerateOptions

PROCESSED = """
    repetition_penalty encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids sequence_bias suppress_tokens begin_suppress_tokens forced_bos_token_id
    forced_eos_token_id min_length min_new_tokens exponential_decay_length_penalty
    remove_invalid_values renormalize_logits watermarking_config stop_strings max_length
""".split()
# What has an effect only when sampling, and the values that have none.
SAMPLED = {
    "temperature": (0, 1),
    "top_k": (0,),
    "top_p": (1,),
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
}
# Fields of GenerateOptions that are settings, too.
OF_OPTIONS = ("temperature", "top_k", "top_p", "do_sample", "eos_token_id", "max_new_tokens")
# Of the call as a whole.
OF_A_CALL = ("forced_bos_token_id", "num_return_sequences")
CALLABLES = ("logits_processor", "stopping_criteria")
HONOURED = tuple(dict.fromkeys((*PROCESSED, *SAMPLED, *OF_OPTIONS, *OF_A_CALL)))
OF_A_ROW = tuple(name for name in (*HONOURED, *CALLABLES) if name not in OF_A_CALL)
BEAMS = "beam search keeps several texts per prompt"
# Settings that would change the text in a way that is not followed here: neutral values, and why.
REFUSED = {
    "num_beams": ((1,), BEAMS),
    "num_beam_groups": ((1,), BEAMS),
    "constraints": ((), BEAMS),
    "force_words_ids": ((), BEAMS),
    "diversity_penalty": ((0,), BEAMS),
    "guidance_scale": ((1,), "guidance runs the model twice per token"),
    "penalty_alpha": ((0,), "contrastive search reads hidden states"),
    "dola_layers": ((), "DoLa reads hidden states"),
    "token_healing": ((False,), "token healing rewrites the prompt"),
    "max_time": ((), "a text would depend on the clock"),
    "prompt_lookup_num_tokens": ((), "drafts come from draft=, which may be 'ngram'"),
    "assistant_early_exit": ((), "drafts come from draft=, which may be 'layer_skip'"),
    "use_mtp": ((False,), "drafts come from draft=, which has no prediction heads"),
    "is_assistant": ((False,), "drafts come from draft="),
    "num_return_sequences": ((1,), "it is said in the call, not by the checkpoint or one prompt"),
}
SCORES = "scores are not kept; engine.next_logits(tokens) gives those after a text"
STATES = "they are not kept; a forward hook sees them (docs/generation.md)"
GAMMA = "drafted tokens per round are gamma="
# Arguments that no text here follows: the values that ask for nothing, and why not another.
INSTEAD = {
    "pad_token_id": (..., "rows are never padded"),
    "use_cache": ((True,), "there is always a KV cache"),
    "return_dict_in_generate": ((False,), "an Output is returned: sequences, texts, stats, trace"),
    "output_scores": ((False,), SCORES),
    "output_logits": ((False,), SCORES),
    "output_attentions": ((False,), STATES),
    "output_hidden_states": ((False,), STATES),
    "length_penalty": ((1,), BEAMS),
    "early_stopping": ((False,), BEAMS),
    "synced_gpus": ((False,), "one process decodes"),
    "trust_remote_code": ((False,), "code of a checkpoint never runs"),
    "assistant_model": ((), "drafts come from draft=, which may be a function"),
    "assistant_tokenizer": ((), "drafts come from draft=, which may be a function"),
    "num_assistant_tokens": ((), GAMMA),
    "num_assistant_tokens_schedule": ((), GAMMA),
    "assistant_confidence_threshold": ((), GAMMA),
    "max_matching_ngram_size": ((), "draft='ngram' looks for the longest match by itself"),
    "prefix_allowed_tokens_fn": (
        (),
        "pass logits_processor=[PrefixConstrainedLogitsProcessor(fn, 1)]",
    ),
    "negative_prompt_ids": ((), REFUSED["guidance_scale"][1]),
    "negative_prompt_attention_mask": ((), REFUSED["guidance_scale"][1]),
    "tokenizer": ((), "texts and stop_strings are read by the checkpoint's own tokenizer"),
    "custom_generate": ((), "specmoe.custom_generate(engine) is for transformers' generate"),
    "inputs_embeds": ((), "drafted tokens have ids, and so must the prompt"),
    "past_key_values": ((), "every call begins with an empty KV cache"),
    "cache": ((), "every call begins with an empty KV cache"),
    "position_ids": ((), "positions follow from the attention mask"),
    "decoder_start_token_id": ((), "a text begins with the checkpoint's own"),
    "decoder_input_ids": ((), "a text begins with the checkpoint's start token"),
    "bos_token_id": ((), "a prompt holds its own first token"),
}


LONGEST_NGRAM = 4096
_EMPTY = GenerationConfig()


def gather(options: Mapping) -> dict:
    """Keyword arguments of ``generate`` -> those of ``GenerateOptions``; the others are in ``own``.

    ``OptionError`` for a setting that is not followed."""
    known = {field.name for field in dataclasses.fields(GenerateOptions)} - {"own"}
    options = dict(options)
    own = _from_config(options.pop("generation_config", None))
    for name in [name for name in options if name not in known]:
        if name == "own":
            raise OptionError("unknown option 'own': settings are given by their own names")
        if name in (*PROCESSED, *SAMPLED, *REFUSED):
            own[name] = options.pop(name)
        elif name in INSTEAD or hasattr(_EMPTY, name):
            _refuse_instead(name, options.pop(name))
    check_sizes(own)
    if any(given.get("max_new_tokens") is not None for given in (options, own)):
        own.pop("max_length", None)  # as in transformers
    of_options = (*OF_OPTIONS, "num_return_sequences")
    given = {name: own.pop(name) for name in of_options if own.get(name) is not None}
    said = {k: value for k, value in options.items() if value is not None or k not in given}
    if "num_return_sequences" in {**given, **said}:
        # said in the call, a checkpoint's own number asks for nothing
        own["num_return_sequences"] = 1
    return {**given, **said, "own": own}


def _refuse_instead(name: str, value) -> None:
    neutral, why = INSTEAD.get(name, ((), "it does not change the text"))
    if not (neutral is ... or value is None or value in neutral):
        raise OptionError(f"{name}={value!r} is not an option here: {why}; leave it out")


def _from_config(config) -> dict:
    """The settings in a ``GenerationConfig`` or a dict, but those that are not about the text."""
    if config is None:
        return {}
    if isinstance(config, GenerationConfig):
        config = {name: value for name, value in vars(config).items() if value is not None}
    if not isinstance(config, Mapping):
        raise OptionError(
            f"generation_config={config!r} must be a GenerationConfig or a dict of its settings"
        )
    for name in config:
        known = isinstance(name, str) and (hasattr(_EMPTY, name) or name in (*HONOURED, *REFUSED))
        if not known:
            raise OptionError(
                f"generation_config: unknown setting {name!r}: {nearest(name, HONOURED)}"
            )
        if INSTEAD.get(name, [()])[0] and config[name] != getattr(_EMPTY, name, None):
            _refuse_instead(name, config[name])
    return {name: value for name, value in config.items() if name in (*HONOURED, *REFUSED)}


def per_prompt(settings) -> list[Mapping]:
    if settings is None:
        return []
    if not isinstance(settings, list | tuple):
        raise OptionError(
            f"settings must be a list with a dict or None per prompt, not {type(settings).__name__}"
        )
    found = []
    for index, own in enumerate(settings):
        if not (own is None or isinstance(own, Mapping)):
            raise OptionError(f"settings[{index}] must be a dict or None, not {type(own).__name__}")
        found.append(check_row(own or {}, f"settings[{index}]"))
    return found


def check_row(own: Mapping, where: str) -> dict:
    """One prompt's settings, checked without a model; ``where`` begins the error."""
    for name, value in own.items():
        if name in REFUSED and value in (None, *REFUSED[name][0]):
            continue
        if name in REFUSED or name in INSTEAD:
            why = (REFUSED.get(name) or INSTEAD[name])[1]
            raise OptionError(f"{where}: {name} cannot be followed for a prompt: {why}")
        if name not in OF_A_ROW:
            raise OptionError(f"{where}: unknown setting {name!r}: {nearest(name, OF_A_ROW)}")
    check_sizes(own)
    own = {name: value for name, value in own.items() if value is not None and name not in REFUSED}
    if own.get("temperature") == 0:
        own.setdefault("do_sample", False)
    if "max_new_tokens" in own:
        own.pop("max_length", None)
    try:
        GenerateOptions(**{name: own[name] for name in OF_OPTIONS if name in own})
    except OptionError as refusal:
        raise OptionError(f"{where}: {refusal}") from refusal
    return own


def check_sizes(own: Mapping) -> None:
    """Lengths. A longer n-gram than any text would only cost time: transformers makes a list of
    that many slices per token."""
    for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
        value = own.get(name)
        if isinstance(value, int) and value > LONGEST_NGRAM:
            raise OptionError(f"{name}={value} must be at most {LONGEST_NGRAM}")
    length = own.get("max_length")
    if length is not None and (type(length) is not int or length < 1):
        raise OptionError(f"max_length={length!r} must be a whole number of at least 1")


def end_tokens(eos, given: bool = False) -> frozenset[int]:
    """End tokens from an id, a list, a tensor or an array of ids; a checkpoint's -1 is none."""
    ids = eos.tolist() if hasattr(eos, "tolist") else eos
    ids = [] if ids is None else ids
    ids = list(ids) if isinstance(ids, list | tuple | set | frozenset) else [ids]
    ids = [token.item() if hasattr(token, "item") else token for token in ids]
    if any(type(token) is not int or (given and token < 0) for token in ids):
        raise OptionError(f"eos_token_id={eos!r} must be a token id or a list of them")
    return frozenset(token for token in ids if token >= 0)


def as_list(name: str, given) -> list:
    """A callable or a list of callables -> a list."""
    parts = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for part in parts:
        if not callable(part):
            raise OptionError(f"{name} holds {part!r}: give functions of (input_ids, scores)")
    return parts


def check_effect(given: Mapping, samples: bool) -> None:
    """A setting of sampling, given by hand, must not go without effect."""
    for name in SAMPLED:
        value = given.get(name)
        if not samples and value is not None and value not in SAMPLED[name]:
            raise OptionError(
                f"{name}={value!r} has no effect without do_sample=True: add it or drop {name}"
            )


def refuse(config: GenerationConfig) -> None:
    for name, (neutral, why) in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value not in neutral:
            way = f"pass {name}={neutral[0] if neutral else None!r}"
            raise OptionError(
                f"{name}={value!r} cannot be followed ({why}): {way}, or use transformers"
            )
    if str(config.cache_implementation) == "quantized":
        raise OptionError("cache_implementation='quantized' changes the tokens: take it out")
    if type(config.watermarking_config).__name__ == "SynthIDTextWatermarkingConfig":
        raise OptionError(
            "watermarking_config: SynthID keeps state between tokens: use WatermarkingConfig"
        )
