"""One check for each step of ``notebooks/01_specmoe_from_scratch``: it asks the real engine.

Comes in: tokens, reads and rounds of the reader's own code. Goes out: ``Passed`` with a sentence of
what is equal, or an ``ExerciseError`` whose sentence says what differs first and where to look
(``compare`` finds it). Nothing is read ahead, so that all counts repeat exactly.

    L MoE layers, E experts, N draft experts, V vocabulary, G gamma
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from ...engine.engine import Engine
from ...engine.engine import load as load_engine
from ...engine.output import Output
from ...offload.pool import min_slots
from ...tiny.texts.data import prompts as held_out
from ..exercises.verdict import ExerciseError, Passed, require
from .compare import Rounds, compare_reads, compare_rounds, compare_stand_ins, compare_tokens

Job = tuple[list[list[int]], int, int]  # prompts, new tokens of each at most, gamma

CLOSE = 1e-4  # logits: transformers computes norms in float32


def load(model: str, draft_experts: int) -> Engine:
    """The engine that the checks ask: float64, and as many slots as the notebook's pool has: N in
    each layer, and one."""
    options = {"store": "memory", "dtype": "float64", "draft_experts": draft_experts}
    with load_engine(model, **options) as probe:
        memory = probe.memory
    slots = min_slots(memory.num_layers, draft_experts)
    fast_memory = slots * memory.slot_bytes + memory.scratch_bytes
    return load_engine(model, fast_memory=fast_memory, **options)


def prompts(engine: Engine, domains: Sequence[str], number: int = 0) -> list[list[int]]:
    """Token ids of one held-out prompt of each domain: the one of this number, from 0."""
    texts = [held_out(domain, number + 1)[number].text for domain in domains]
    return [engine.tokenizer(text)["input_ids"] for text in texts]


class FromPrompt:
    """A draft set that never changes: the N experts that the prompt used most. State: ``sets``, of
    every layer."""

    def __init__(self):
        self.sets: dict[int, list[int]] = {}

    def __call__(self, layer: int, counts: Sequence[int], num_draft: int) -> list[int]:
        used = [expert for expert, count in enumerate(counts) if count]
        most = sorted(used, key=lambda expert: -counts[expert])[:num_draft]
        return self.sets.setdefault(layer, most)


def _readable(check: Callable) -> Callable:
    """A check that cannot read what it is given says so in a sentence, too."""

    @functools.wraps(check)
    def checked(*given):
        try:
            return check(*given)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as failure:
            raise ExerciseError(
                f"{check.__name__} cannot read what it is given ({type(failure).__name__}: "
                f"{failure}): give it what the cells above it made"
            ) from failure

    return checked


# ---- one check per step ----


@_readable
def check_decoder(
    engine: Engine, prompt: list[int], logits: torch.Tensor, row: list[int]
) -> Passed:
    """Step 1: ``logits`` [V] after the prompt, and ``row``, the prompt continued token by token."""
    far = float((logits - engine.next_logits(prompt)).abs().max())
    require(
        far < CLOSE,
        f"your logits after the prompt are up to {far:.2g} away from the engine's: the forward pass "
        "itself differs (positions, mask, norms, the router's weights, or the experts)",
    )
    output = _run(engine, [prompt], _new(prompt, row), method="resident")
    where = "one pass over the prompt is right, so look at what the KV cache keeps between passes"
    compare_tokens(output, [row], where)
    return Passed(f"the same {_new(prompt, row)} tokens as the engine's, and nothing to read")


@_readable
def check_on_demand(engine: Engine, prompt: list[int], row: list[int], store) -> Passed:
    """Step 2: every pass reads each expert that it needs, and keeps none."""
    output = _run(engine, [prompt], _new(prompt, row), method="on_demand")
    compare_tokens(output, [row], "a record that was read must be that of the expert asked for")
    return _same(output, [row], store)


@_readable
def check_pool(engine: Engine, prompt: list[int], row: list[int], store) -> Passed:
    """Step 3: N experts of each layer stay, those that the prompt used most."""
    options = {"method": "specmoe", "gamma": 0, "draft_set": FromPrompt()}
    output = _run(engine, [prompt], _new(prompt, row), **options)
    compare_tokens(output, [row], "a slot must hold the record that it is asked for")
    return _same(output, [row], store)


@_readable
def check_draft(
    engine: Engine, prompt: list[int], drafted: list[int], stand_ins: Sequence, pool
) -> Passed:
    """Step 4: the first block ``drafted`` [G], with ``stand_ins`` [L][E] among what ``pool``
    keeps."""
    fixed = FromPrompt()
    output = _first_round(engine, prompt, len(drafted), fixed)
    for layer, distances in enumerate(engine.experts.distances):
        kept = sorted(fixed.sets[layer])
        mine = sorted(pool.kept[layer])
        require(mine == kept, f"layer {layer} keeps {mine}, the engine {kept}")
        compare_stand_ins(layer, list(map(int, stand_ins[layer])), distances, kept)
    theirs = list(output.trace.blocks[0].drafted)
    require(
        drafted == theirs,
        f"the stand-ins are right, but you draft {drafted}, the engine {theirs}: the draft keeps the "
        "router's own weights, and replaces nothing but the experts",
    )
    compare_reads(output, pool.store.reads, last=-1)
    return Passed(f"the same {len(drafted)} drafted tokens as the engine's, and no read for them")


@_readable
def check_verification(
    engine: Engine, prompt: list[int], drafted: list[int], own: list[int], store
) -> Passed:
    """Step 5: ``own`` [G + 1], what the full model would write after every token of the block."""
    output = _first_round(engine, prompt, len(drafted), FromPrompt())
    theirs = list(output.trace.blocks[0].committed)
    mine = own[: len(theirs)]
    require(
        mine == theirs,
        f"after the block's first tokens the full model writes {theirs}, you say {mine}: roll the KV "
        "cache back to before the draft, and let the block begin with the row's last token",
    )
    num = compare_reads(output, store.reads, last=0)
    return Passed(f"the full model's own tokens, and the same {num} reads for prompt and block")


@_readable
def check_rounds(engine: Engine, job: Job, result: tuple[list, Rounds], store) -> Passed:
    """Step 6: ``result`` = rows and rounds, with residents that never change."""
    return _check_result(engine, job, result, store, draft_set=FromPrompt())


@_readable
def check_specmoe(engine: Engine, job: Job, result: tuple[list, Rounds], store) -> Passed:
    """Steps 7 and 8: the residents are replaced in every verification."""
    return _check_result(engine, job, result, store)


# ---- the engine's side ----


def _run(engine: Engine, prompts: list[list[int]], new_tokens: int, **options) -> Output:
    return engine.generate(
        prompts, batch_size=len(prompts), max_new_tokens=new_tokens, prefetch=False, **options
    )


def _first_round(engine: Engine, prompt: list[int], gamma: int, fixed: FromPrompt) -> Output:
    options = {"method": "specmoe", "gamma": gamma, "draft_set": fixed}
    return _run(engine, [prompt], gamma + 1, **options)


def _new(prompt: list[int], row: list[int]) -> int:
    """How many tokens were added; the engine is asked for as many."""
    require(
        len(row) > len(prompt) and row[: len(prompt)] == prompt,
        "the row should be the prompt and the new tokens after it",
    )
    return len(row) - len(prompt)


def _check_result(engine, job: Job, result, store, **options) -> Passed:
    (prompts, new_tokens, gamma), (rows, rounds) = job, result
    output = _run(engine, prompts, new_tokens, method="specmoe", gamma=gamma, **options)
    compare_rounds(output.trace.blocks, rounds)
    compare_tokens(output, rows, "the rounds are right, so look at how their tokens are put down")
    return _same(output, rows, store)


def _same(output: Output, rows: list[list[int]], store) -> Passed:
    """Reads and bytes of a whole run, whose tokens are right."""
    num_reads = compare_reads(output, store.reads)
    num_bytes = output.stats.prefill_bytes + output.stats.fetched_bytes
    require(
        store.bytes == num_bytes,
        f"the reads are right, but you count {store.bytes:,} bytes, the engine {num_bytes:,}: an "
        "expert is all of its matrices, as they lie in the file",
    )
    num_new = sum(map(len, rows)) - sum(output.num_prompt_tokens)
    return Passed(
        f"{num_new} tokens, {num_reads:,} reads and {num_bytes:,} bytes are the engine's, each of "
        "them"
    )
