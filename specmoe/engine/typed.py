"""Every option of ``load`` and ``generate``: its name, its type, what it means, unit included.

Comes in: nothing. Goes out: what type checkers and editors read (``Unpack[LoadArguments]``), and
the same lines, with the defaults of ``options``' dataclasses, in signatures, ``help()`` and the
command line's help. A test compares names and types with the dataclasses.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypedDict, TypeVar, get_type_hints

from ..options import GenerateOptions, LoadOptions

F = TypeVar("F", bound=Callable[..., Any])


class LoadArguments(TypedDict, total=False):
    store: Annotated[
        str | None,
        "where experts live: disk (a packed copy), memory, or checkpoint (no copy; the default for "
        "large experts)",
    ]
    device: Annotated[str, "of all but the slow store: cpu, cuda or cuda:1"]
    dtype: Annotated[
        Any, "of the arithmetic, e.g. float32, or auto: the checkpoint's; None: float32 on a CPU"
    ]
    draft_experts: Annotated[int | None, "resident experts per MoE layer"]
    fast_memory: Annotated[int | str | None, "bytes of all experts in fast memory, e.g. 2GiB"]
    link_bytes_per_s: Annotated[float | None, "throttle the store, bytes per second, e.g. 2.5e8"]
    expert_bytes: Annotated[int | str | None, "widen experts to this many bytes, same outputs"]
    compile: Annotated[
        bool | str,
        "torch.compile around the experts (a minute of warm-up); reduce-overhead: its mode for a "
        "GPU",
    ]
    trace: Annotated[bool, "keep the events of each run in output.trace"]
    num_readers: Annotated[int, "threads that read the store"]
    revision: Annotated[str | None, "branch, tag or commit of a hub id"]
    gguf_file: Annotated[str | None, "which GGUF file of a folder or hub id with several"]
    token: Annotated[str | bool | None, "of the hub; None: the one of hf auth login"]
    cache_dir: Annotated[str | None, "folder of the hub's downloads; None: the hub's own"]


class Settings(TypedDict, total=False):
    """transformers' generation settings; ``docs/generation.md`` says what each does here."""

    generation_config: Any
    max_length: int | None
    min_length: int | None
    min_new_tokens: int | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    encoder_no_repeat_ngram_size: int | None
    bad_words_ids: list[list[int]] | None
    sequence_bias: Any
    suppress_tokens: list[int] | None
    begin_suppress_tokens: list[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | list[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    remove_invalid_values: bool | None
    renormalize_logits: bool | None
    watermarking_config: Any
    stop_strings: str | list[str] | None
    min_p: float | None
    top_h: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    pad_token_id: int | None
    token_type_ids: Any


class GenerateArguments(Settings, total=False):
    max_new_tokens: Annotated[int, "at most this many new tokens each"]
    method: Annotated[str, "auto, specmoe, on_demand, cached, overlapped or resident"]
    gamma: Annotated[int | None, "drafted tokens per round; None: planned"]
    planner: Annotated[Any, "how far to draft where gamma is not given: confidence or cost"]
    draft: Annotated[
        Any, "resident, ngram, low_bit:4, merged:4, layer_skip, ngram+resident, oracle"
    ]
    draft_set: Annotated[Any, "hot_temporal, hot_global or random"]
    substitute: Annotated[Any, "affinity, router, random, drop or no_experts"]
    draft_top_k: Annotated[int | None, "experts per token while drafting; None: the model's"]
    eviction: Annotated[Any, "of method cached: temporal, decayed, lru, lfu or static"]
    prefetch: Annotated[bool, "fetch what the draft's routers named, before it is asked for"]
    batch_size: Annotated[int | None, "rows in flight; finished ones are refilled"]
    num_return_sequences: Annotated[int, "texts per prompt, when sampling"]
    do_sample: Annotated[bool | None, "draw tokens; None: greedy unless generation_config says so"]
    temperature: Annotated[float | None, "of sampling; 0 is greedy"]
    top_k: Annotated[int | None, "sample among this many likeliest tokens (0: all)"]
    top_p: Annotated[float | None, "sample among the likeliest tokens up to this mass (1: all)"]
    seed: Annotated[int | None, "of sampling"]
    first_prompt: Annotated[int, "number of the first prompt in a longer job: noise depends on it"]
    accept_rule: Annotated[str, "when sampling: coupled, rejection or block"]
    eos_token_id: Annotated[int | list[int] | None, "what ends a text; None: the model's"]
    logits_processor: Annotated[Any, "functions of (ids [1, T], scores [1, V]) -> scores"]
    stopping_criteria: Annotated[Any, "functions of (ids [1, T], scores) -> bool"]
    settings: Annotated[Any, "generation settings per prompt: a list of dicts or None"]
    source_lang: Annotated[str | None, "language of the prompts; None: the tokenizer's"]
    target_lang: Annotated[str | None, "language to translate into; None: the checkpoint's"]
    streamer: Annotated[Any, "one of transformers' streamers, for one prompt"]
    progress: Annotated[Any, "True for a bar, or a function of (finished, prompts)"]


def said(arguments: type) -> dict[str, str]:
    """Option -> what it means."""
    hints = get_type_hints(arguments, include_extras=True)
    return {
        name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")
    }


def listing(arguments: type, options: type) -> Callable[[F], F]:
    """A decorator: the function's signature and docstring list ``options``, a dataclass, one by one
    with what ``arguments`` says of each."""
    fields: Mapping[str, Any] = {each.name: each for each in dataclasses.fields(options)}
    texts = said(arguments)

    def give(function: F) -> F:
        own, hints = inspect.signature(function), get_type_hints(arguments)
        *kept, rest = own.parameters.values()
        listed = [
            inspect.Parameter(
                name, rest.KEYWORD_ONLY, default=fields[name].default, annotation=hint
            )
            for name, hint in hints.items()
            if name in texts
        ]
        others = [name for name in hints if name not in texts]
        lines = [f"{each.name}={each.default!r}: {texts[each.name]}" for each in listed]
        lines += [", ".join(others)] if others else []
        last = [rest] if others else []
        signature = own.replace(parameters=[*kept, *listed, *last])
        setattr(function, "__signature__", signature)  # noqa: B010
        function.__doc__ = "\n    ".join([inspect.getdoc(function) or "", "\nOptions:", *lines])
        return function

    return give


lists_load = listing(LoadArguments, LoadOptions)
lists_generate = listing(GenerateArguments, GenerateOptions)
