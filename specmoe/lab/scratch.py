"""What a reader builds in ``notebooks/01_specmoe_from_scratch``, compared with the engine step by
step.

Comes in: tokens, reads and rounds of the reader's own code. Goes out: ``Passed`` with a sentence of
what is equal, or an ``ExerciseError`` whose sentence says what differs first and where to look.
Every check asks the real engine, with nothing read ahead, so that all counts repeat exactly.

    L MoE layers, E experts, N draft experts, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..engine.engine import Engine
from ..engine.engine import load as load_engine
from ..engine.output import Output
from ..offload.affinity import nearest_resident
from ..offload.pool import min_slots
from ..tiny.texts.data import prompts as held_out
from ..trace import Block
from .exercises.verdict import Passed, require

Reads = Sequence[tuple[int, int]]  # (layer, expert) of every read, in order
Job = tuple[list[list[int]], int, int]  # prompts, new tokens of each at most, gamma
Rounds = Sequence[Sequence[tuple[list[int], list[int]]]]  # per round and row: drafted, gained

CLOSE = 1e-4  # logits: transformers computes norms in float32


def load(model: str, draft_experts: int) -> Engine:
    """The engine that the checks ask: float64, and as many slots as the notebook's pool has: N in
    each layer, and one."""
    options = {"store": "memory", "dtype": "float64", "draft_experts": draft_experts}
    with load_engine(model, **options) as probe:
        memory = probe.memory
    slots = min_slots(memory.num_layers, draft_experts)
    fast_memory = slots * memory.record_bytes + memory.scratch_bytes
    return load_engine(model, fast_memory=fast_memory, **options)


def prompts(engine: Engine, domains: Sequence[str], number: int = 0) -> list[list[int]]:
    """Token ids of one held-out prompt of each domain: the one of this number, from 0."""
    texts = [held_out(domain, number + 1)[number].text for domain in domains]
    return [engine.tokenizer(text)["input_ids"] for text in texts]


def beside(guess, found) -> str:
    """A prediction beside what came out; without one, only that."""
    return f"{found:,}" if guess is None else f"{found:,}, and you said {guess}"


class FromPrompt:
    """A draft set that never changes: the N experts that the prompt used most. State: ``sets``, of
    every layer."""

    def __init__(self):
        self.sets: dict[int, list[int]] = {}

    def __call__(self, layer: int, counts: Sequence[int], num_draft: int) -> list[int]:
        used = [expert for expert, count in enumerate(counts) if count]
        most = sorted(used, key=lambda expert: -counts[expert])[:num_draft]
        return self.sets.setdefault(layer, most)


# ---- one check per step ----


def check_decoder(
    engine: Engine, prompt: list[int], logits: torch.Tensor, row: list[int]
) -> Passed:
    """Step 1: ``logits`` [V] after the prompt, and ``row``, the prompt continued token by token."""
    far = float((logits - engine.next_logits(prompt)).abs().max())
    require(
        far < CLOSE,
        f"your logits after the prompt are up to {far:.2g} away from the engine's: the forward pass "
        "itself differs (positions, mask, norms, or the weights of the experts)",
    )
    output = _run(engine, [prompt], _new(prompt, row), method="resident")
    where = "one pass over the prompt is right, so look at what the KV cache keeps between passes"
    _compare_tokens(output, [row], where)
    return Passed(f"the same {_new(prompt, row)} tokens as the engine's, and nothing to read")


def check_on_demand(engine: Engine, prompt: list[int], row: list[int], store) -> Passed:
    """Step 2: every pass reads each expert that it needs, and keeps none."""
    output = _run(engine, [prompt], _new(prompt, row), method="on_demand")
    _compare_tokens(output, [row], "a record that was read must be that of the expert asked for")
    return _same(output, [row], store)


def check_pool(engine: Engine, prompt: list[int], row: list[int], store) -> Passed:
    """Step 3: N experts of each layer stay, those that the prompt used most."""
    options = {"method": "specmoe", "gamma": 0, "draft_set": FromPrompt()}
    output = _run(engine, [prompt], _new(prompt, row), **options)
    _compare_tokens(output, [row], "a slot must hold the record that it is asked for")
    return _same(output, [row], store)


def check_draft(
    engine: Engine, prompt: list[int], drafted: list[int], stand_ins: Sequence, pool
) -> Passed:
    """Step 4: the first block drafted, with ``stand_ins`` [L][E] among what ``pool`` keeps."""
    fixed = FromPrompt()
    output = _first_round(engine, prompt, len(drafted), fixed)
    for layer, distances in enumerate(engine.experts.distances):
        kept = sorted(fixed.sets[layer])
        require(
            sorted(pool.kept[layer]) == kept,
            f"layer {layer} keeps {sorted(pool.kept[layer])}, the engine {kept}",
        )
        _compare_stand_ins(layer, list(map(int, stand_ins[layer])), distances, kept)
    theirs = list(output.trace.blocks[0].drafted)
    require(
        drafted == theirs,
        f"the stand-ins are right, but you draft {drafted}, the engine {theirs}: the draft computes "
        "with the router's own weights, and nothing but the experts is replaced",
    )
    _compare_reads(output, pool.store.reads, last=-1)
    return Passed(f"the same {len(drafted)} drafted tokens as the engine's, and no read for them")


def check_verification(
    engine: Engine, prompt: list[int], drafted: list[int], own: list[int], store
) -> Passed:
    """Step 5: ``own``, what the full model would write after every token of the block."""
    output = _first_round(engine, prompt, len(drafted), FromPrompt())
    theirs = list(output.trace.blocks[0].committed)
    require(
        own[: len(theirs)] == theirs,
        f"after the block's tokens the full model writes {theirs}, you say {own[: len(theirs)]}: "
        "roll the KV cache back to before the draft, and give the block the same positions",
    )
    _compare_reads(output, store.reads, last=0)
    num = sum(len(experts) for (index, _), experts in _passes(output) if index == 0)
    return Passed(f"the full model's own tokens, and the same {num} reads for the whole block")


def check_rounds(engine: Engine, job: Job, result: tuple[list, Rounds], store) -> Passed:
    """Step 6: ``result`` = rows and rounds, with residents that never change."""
    return _check_result(engine, job, result, store, draft_set=FromPrompt())


def check_specmoe(engine: Engine, job: Job, result: tuple[list, Rounds], store) -> Passed:
    """Steps 7 and 8: the residents are replaced in every verification."""
    return _check_result(engine, job, result, store)


# ---- the engine's side ----


def _run(engine: Engine, prompts: list[list[int]], new_tokens: int, **options) -> Output:
    return engine.generate(
        prompts,
        batch_size=len(prompts),
        max_new_tokens=new_tokens,
        prefetch=False,
        **options,
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


def _passes(output: Output) -> list[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """What the engine read, in order: ((round, layer), [(layer, expert)]); round -1 is the
    prefill."""
    frame = output.trace.to_frame()
    reads = frame[frame["kind"] == "fetch"].groupby(["round", "layer"])["expert"]
    return [((index, layer), [(layer, e) for e in experts]) for (index, layer), experts in reads]


# ---- what is compared ----


def _check_result(engine, job: Job, result, store, **options) -> Passed:
    (prompts, new_tokens, gamma), (rows, rounds) = job, result
    output = _run(engine, prompts, new_tokens, method="specmoe", gamma=gamma, **options)
    _compare_rounds(output.trace.blocks, rounds)
    _compare_tokens(output, rows, "the rounds are right, so look at how their tokens are put down")
    return _same(output, rows, store)


def _same(output: Output, rows: list[list[int]], store) -> Passed:
    """Reads and bytes of a whole run, whose tokens are right."""
    _compare_reads(output, store.reads)
    num_bytes = output.stats.prefill_bytes + output.stats.fetched_bytes
    require(
        store.bytes == num_bytes,
        f"the reads are right, but you count {store.bytes:,} bytes, the engine {num_bytes:,}: an "
        "expert is all of its matrices, as they lie in the file",
    )
    num_new = sum(map(len, rows)) - sum(output.num_prompt_tokens)
    return Passed(
        f"{num_new} tokens, {len(store.reads):,} reads, {num_bytes:,} bytes: the engine's, each of "
        "them"
    )


def _compare_tokens(output: Output, rows: list[list[int]], where: str) -> None:
    for index, (mine, theirs) in enumerate(zip(rows, output.sequences, strict=True)):
        theirs = theirs.tolist()
        require(
            len(mine) == len(theirs),
            f"row {index} ends after {len(mine)} tokens, the engine's after {len(theirs)}: a row "
            "ends at the end token or when it is full",
        )
        for place, (one, other) in enumerate(zip(mine, theirs)):
            require(
                one == other,
                f"token {place} of row {index} is {one}, the engine's is {other}: {where}",
            )


def _compare_stand_ins(
    layer: int, mine: list[int], distances: torch.Tensor, kept: list[int]
) -> None:
    right = nearest_resident(distances, kept)[:-1].tolist()
    require(
        len(mine) == len(right),
        f"layer {layer} has {len(mine)} stand-ins: {len(right)} are needed, one for each expert",
    )
    for expert, (one, other) in enumerate(zip(mine, right)):
        require(
            one == other,
            f"expert {one} stands in for expert {expert} of layer {layer}: it should be {other}, "
            "the resident whose weights are nearest",
        )


def _compare_reads(output: Output, reads: Reads, last: int | None = None) -> None:
    """``reads`` against the engine's, layer by layer and pass by pass, up to round ``last``."""
    at, before = 0, []
    for (index, layer), right in _passes(output):
        if last is not None and index > last:
            break
        mine, when = list(reads[at : at + len(right)]), _name_of(index)
        twice = [key for place, key in enumerate(mine) if key in mine[:place]]
        twice += [key for key in mine[:1] if key in before]
        extra, missing = set(mine) - set(right), set(right) - set(mine)
        _say_twice(twice, when)
        _say_extra(sorted(extra), when)
        _say_missing(sorted(missing), when, layer)
        at, before = at + len(right), right
    rest = list(reads[at:])
    _say_twice([key for key in rest[:1] if key in before], "the last pass")
    _say_extra(rest, "the last pass")


def _say_twice(keys: Reads, when: str) -> None:
    for layer, expert in keys:
        require(
            False,
            f"expert {expert} of layer {layer} is read twice in {when}: read it once, for all "
            "tokens of the pass that ask for it",
        )


def _say_extra(keys: Reads, when: str) -> None:
    for layer, expert in keys:
        require(
            False,
            f"in {when} you read expert {expert} of layer {layer}, and the engine does not: it is "
            "in fast memory already, or no token asks for it",
        )


def _say_missing(keys: Reads, when: str, layer: int) -> None:
    for _, expert in keys:
        require(
            False,
            f"in {when} you do not read expert {expert} of layer {layer}, and the engine does: it "
            "had to leave fast memory before",
        )


def _name_of(index: int) -> str:
    return "the prefill" if index < 0 else f"round {index}"


def _compare_rounds(blocks: Sequence[Block], rounds: Rounds) -> None:
    """Every block of the engine against the same of the reader's, in order."""
    earlier: dict[int, Block] = {}
    for block in blocks:
        require(
            block.round < len(rounds),
            f"you make {len(rounds)} rounds, and the engine goes on with round {block.round}",
        )
        drafted, gained = rounds[block.round][block.row]
        _compare_drafts(block, list(drafted), earlier.get(block.row))
        _compare_gain(block, list(drafted), list(gained))
        earlier[block.row] = block
    num = blocks[-1].round + 1
    require(len(rounds) == num, f"you make {len(rounds)} rounds, the engine {num}")


def _compare_drafts(block: Block, drafted: list[int], before: Block | None) -> None:
    right = list(block.drafted)
    said = f"round {block.round} drafts {drafted} in row {block.row}, the engine {right}: "
    rejected = before is not None and before.accepted < len(before.drafted)
    if rejected and before.round == block.round - 1:
        said += (
            "it is the first round after a rejected token, whose keys and values must be forgotten "
            "(roll the KV cache back), or the residents are not the engine's"
        )
    else:
        said += "both continue the same text, so the residents or their stand-ins differ"
    require(drafted == right, said)


def _compare_gain(block: Block, drafted: list[int], gained: list[int]) -> None:
    """The same block was drafted; what became of it?"""
    right, num = list(block.committed), block.accepted
    said = f"round {block.round} gains {gained} in row {block.row}, the engine {right}: "
    if len(gained) > num and num < len(drafted) and gained[num] == drafted[num]:
        said += (
            f"you accept drafted token {num + 1}, which the full model would not have written: "
            "stop at the first that differs"
        )
    elif gained == right[: len(gained)] or gained[: num - 1] == right[: num - 1]:
        said += (
            "take every drafted token that the full model agrees with, then one token of its own"
        )
    else:
        said += (
            "the block is the same, so the full model saw another text: roll the KV cache back to "
            "before the draft, then verify"
        )
    require(gained == right, said)
