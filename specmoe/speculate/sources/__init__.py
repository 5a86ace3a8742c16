"""Where drafts come from, by name: ``generate(draft=...)``.

Comes in: a name, maybe with an argument behind a colon ("ngram:3"), or your own function or object
(``base.DraftSource`` is the contract). Goes out: the source of one run. ``register`` gives yours a
name, in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ... import registry
from ...checkpoint import ExpertLayout
from ...errors import OptionError
from ...offload.budget import MemoryPlan
from .base import DraftSource, Own
from .copies import LowBit
from .layer_skip import LayerSkip
from .merged import Merged
from .resident import Resident
from .text import LONGEST, Ngram, NgramOrModel, Oracle

__all__ = ["DraftSource", "Experts", "Oracle", "make_source", "register"]


class Experts(NamedTuple):
    """What a source may have to know of the experts: ``num_experts`` of a layer; ``counts``
    [L][E], tokens of a calibration (None: nobody counted)."""

    layout: ExpertLayout
    memory: MemoryPlan
    num_experts: int
    counts: list[list[int]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """MoE layers that draft, experts of each."""
        return self.memory.num_layers, self.num_experts


def _ngram(argument: str, _) -> DraftSource:
    return Ngram(_whole("ngram", argument, LONGEST))


def _resident(argument: str, _) -> DraftSource:
    _no_argument("resident", argument)
    return Resident()


def _oracle(argument: str, _) -> DraftSource:
    _no_argument("oracle", argument)
    return Oracle({})


def _low_bit(argument: str, experts: Experts) -> DraftSource:
    bits = _whole("low_bit", argument, 4)
    return LowBit(bits, experts.layout, experts.shape, experts.memory.scratch_bytes)


def _merged(argument: str, experts: Experts) -> DraftSource:
    number = _whole("merged", argument, experts.memory.draft_experts)
    return Merged(number, experts.layout, experts.shape, experts.counts)


def _layer_skip(argument: str, _) -> DraftSource:
    numbers = [_whole("layer_skip", part, 1, least=0) for part in argument.split(",")]
    return LayerSkip(tuple(numbers) if argument else None)


def _mtp(argument: str, _) -> DraftSource:
    raise OptionError(
        "draft='mtp': a checkpoint's own prediction heads are a model beside it, which reads its "
        "hidden states, and a round keeps none: use draft='low_bit:4' or 'ngram+resident'"
    )


# name -> (what stands behind its colon, ``Experts``) -> a source
_MAKERS: dict[str, Callable] = {
    "resident": _resident,
    "ngram": _ngram,
    "low_bit": _low_bit,
    "merged": _merged,
    "layer_skip": _layer_skip,
    "mtp": _mtp,
    "oracle": _oracle,
}


def register(name: str, source) -> None:
    """``source`` (a function, or a class or object with ``draft``) is called ``name`` from now
    on: ``specmoe.register`` of a draft."""
    registry.register("draft", name, source)


def make_source(draft, experts: Experts | None = None) -> DraftSource:
    """The source that ``draft`` names (``GenerateOptions`` has checked the name), or one around a
    user's own. ``A+B``: the n-gram ``A`` where a row's text has one, else ``B``."""
    if not isinstance(draft, str) and not registry.is_part("draft", draft):
        raise OptionError(f"draft={draft!r} must be a name, a function or have a method draft")
    if part := registry.own("draft", draft):
        return Own(part)
    first, plus, second = draft.partition("+")
    if plus:
        ngram, model = make_source(first, experts), make_source(second, experts)
        if not isinstance(ngram, Ngram):
            raise OptionError(f"draft={draft!r}: only ngram can stand before the plus")
        return NgramOrModel(ngram, model)
    name, colon, argument = draft.partition(":")
    if colon and registry.own("draft", name):
        _no_argument(name, argument)
    return _MAKERS[name](argument, experts)


def _whole(name: str, argument: str, default: int, least: int = 1) -> int:
    """What stands behind the colon, as a number of at least ``least``."""
    if not argument:
        return default
    if not argument.isdecimal() or int(argument) < least:
        raise OptionError(f"draft='{name}:{argument}': write a whole number, as in '{name}:3'")
    return int(argument)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise OptionError(f"draft='{name}:{argument}': {name} takes nothing behind a colon")
