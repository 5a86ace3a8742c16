"""What is no error: two numbers that only rounding tells apart, and the token that depends on them.

Comes in: two logits; or transformers' own model, which has read a text, and the token that it
likes less. Goes out: whether rounding alone decides, and where. ``exactness`` asks this of every
divergence. Each proof is made of the reference's own numbers: in 16 bits its logits, those of its
routers, and its logits after one token of one layer went to the expert that its router almost
chose; in float32 its logits with other sums of the same numbers.

    T tokens, K top_k, E experts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..checkpoint import expert_modules
from ..offload.routers import logits_of, router_of

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
TIE_ULPS = 2
# Rows that read a text together: products of other shapes add in another order.
COPIES = (1, 2, 8)
# Each costs a forward pass over the text; what is not proved by then counts as an error.
MOST_TRIED = 100


def is_tie(first: float, second: float, dtype: torch.dtype) -> bool:
    """Whether two logits of a 16-bit model lie within 2 ulp, the steps of ``dtype`` at their
    size."""
    if dtype not in SIXTEEN_BITS:
        return False
    size = max(abs(first), abs(second))
    return math.isfinite(size) and abs(first - second) <= TIE_ULPS * ulp(size, dtype)


def is_rounded(gaps: Sequence[float]) -> bool:
    """Whether the order of sums moves two logits as far as they are apart: ``gaps`` between them,
    each of other sums of the same numbers."""
    return max(gaps) - min(gaps) >= min(gaps)


def tie_of_sums(
    model: PreTrainedModel, read: Callable[[int], torch.Tensor], token: int, logits: torch.Tensor
) -> str:
    """Why ``token``, whose float32 logit is not the first of ``logits`` [V], made token by token,
    is as good as the first: "" where nothing says so. ``read`` gives them when the model reads the
    text in one go, beside so many copies of it; with its own attention and with the plain one."""
    gaps = [_below_first(token, logits)]
    for attention in (model.config._attn_implementation, "eager"):
        with _attention(model, attention):
            gaps += [_below_first(token, read(copies)) for copies in COPIES]
    if not is_rounded(gaps):
        return ""
    least, most = min(gaps), max(gaps)
    return f"tie in float32: the order of sums puts it {least:.2g} to {most:.2g} below the first"


def _below_first(token: int, logits: torch.Tensor) -> float:
    return float(logits.max() - logits[token])


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def ulp(value: float, dtype: torch.dtype) -> float:
    """The step between neighbouring numbers of ``dtype`` at ``value``."""
    info = torch.finfo(dtype)
    return 2.0 ** math.floor(math.log2(max(value, info.tiny))) * info.eps


def tie_before(
    model: nn.Module, read: Callable[[], torch.Tensor], token: int, dtype: torch.dtype
) -> str:
    """Why ``token``, which the model likes less, is as good as its first: "" where nothing says so.
    ``read`` lets the model read the text in one go and gives its logits [V]."""
    heard: list[CloseChoice] = []
    modules = expert_modules(model)
    with ExitStack() as stack:
        for layer, (name, experts) in enumerate(modules.items()):
            stack.enter_context(_listening(layer, router_of(model, name), experts, dtype, heard))
        logits = read()
    if _is_first(token, logits, dtype):
        return "tie when the reference reads it in one go"
    for choice in sorted(heard)[:MOST_TRIED]:
        with _otherwise(choice, list(modules.values())[choice.layer]):
            logits = read()
        if _is_first(token, logits, dtype):
            return f"router tie in layer {choice.layer}"
    return ""


def _is_first(token: int, logits: torch.Tensor, dtype: torch.dtype) -> bool:
    return is_tie(float(logits.max()), float(logits[token]), dtype)


class CloseChoice(NamedTuple):
    """A token that a router sent to ``chosen`` and almost to ``refused``; ``gap`` of the two
    logits, 1 is all that counts as close."""

    gap: float
    layer: int
    token: int
    chosen: int
    refused: int


def close_choices(
    layer: int, logits: torch.Tensor, index: torch.Tensor, dtype: torch.dtype
) -> Iterator[CloseChoice]:
    """Pairs of a chosen and a refused expert within 2 ulp, of router logits [T, E] and choices
    [T, K].

    The step is that of the token's largest chosen logit: all its logits come from one hidden state
    and share the rounding of that. A router that does not choose its largest logits (groups, a
    bias) gives none.
    """
    taken = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, True)
    chosen = logits.float().masked_fill(~taken, math.inf)  # [T, E]
    refused = logits.float().masked_fill(taken, -math.inf)
    lead = chosen.min(dim=1).values - refused.max(dim=1).values  # [T]
    largest = logits.float().abs().masked_fill(~taken, 0).max(dim=1).values
    for token, size in enumerate(largest.tolist()):
        near = TIE_ULPS * ulp(size, dtype)
        if not 0 <= float(lead[token]) <= near:
            continue
        for one in (chosen[token] - refused[token].max() <= near).nonzero().flatten().tolist():
            gaps = chosen[token, one] - refused[token]
            for other in (gaps <= near).nonzero().flatten().tolist():
                yield CloseChoice(float(gaps[other]) / near, layer, token, one, other)


@contextmanager
def _listening(layer: int, router: nn.Module | None, experts: nn.Module, dtype, heard: list):
    """Within, ``heard`` gets the close choices of one layer."""
    said: list[torch.Tensor] = []

    def choose(_, args: tuple) -> None:
        index = args[1] if len(args) > 1 else None
        if said and index is not None and index.dim() == 2 and index.dtype == torch.long:
            logits = logits_of(said.pop(), next(experts.parameters()).shape[0])
            heard.extend(close_choices(layer, logits, index, dtype))

    with ExitStack() as stack:
        if router is not None:
            hook = router.register_forward_hook(lambda _, args, output: said.append(output))
            stack.callback(hook.remove)
            stack.callback(experts.register_forward_pre_hook(choose).remove)
        yield


@contextmanager
def _otherwise(choice: CloseChoice, experts: nn.Module) -> Iterator[None]:
    """Within, that token goes to the refused expert, with the weight of the chosen one."""

    def send(_, args: tuple) -> tuple:
        hidden, index, *rest = args
        index = index.clone()
        row = index[choice.token]
        row[row == choice.chosen] = choice.refused
        return hidden, index, *rest

    hook = experts.register_forward_pre_hook(send)
    try:
        yield
    finally:
        hook.remove()
